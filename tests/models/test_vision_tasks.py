"""The image tower as the backbone of KerasHub's vision tasks."""

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops

from align_keras import EfficientNetBackbone

SHAPE = (64, 64, 3)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (4, *SHAPE)).astype("float32")


@pytest.fixture(scope="module")
def backbone(images):
    keras.utils.set_random_seed(0)
    backbone = EfficientNetBackbone(0.2, 0.2, image_shape=SHAPE, dropout=0.0)
    # Fresh statistics would let the maps fade.
    backbone(images, training=True)
    return backbone


def maps_of(backbone, images):
    model = keras.Model(backbone.inputs, backbone.pyramid_outputs)
    return {k: ops.convert_to_numpy(v) for k, v in model(images).items()}


def test_the_pyramid_holds_the_last_map_of_each_size(backbone, images):
    maps = maps_of(backbone, images)
    assert sorted(maps) == ["P1", "P2", "P3", "P4", "P5"]
    x = backbone.stem_pad(images)
    x = backbone.stem_conv(x)
    x = backbone.stem_activation(backbone.stem_bn(x))
    found = {}
    for block in backbone.blocks:
        x = block(x)
        found[x.shape[1]] = ops.convert_to_numpy(x)
    assert list(found) == [32, 16, 8, 4, 2]
    for level, value in enumerate(found.values(), 1):
        scale = np.abs(value).max()
        assert scale > 0
        np.testing.assert_allclose(
            maps[f"P{level}"] / scale, value / scale, atol=1e-4
        )


def test_channels_first_are_the_same_numbers(backbone, images):
    config = backbone.get_config() | {
        "data_format": "channels_first",
        "image_shape": (3, 64, 64),
        "name": "first",
    }
    other = EfficientNetBackbone.from_config(config)
    assert EfficientNetBackbone(
        0.2, 0.2, data_format="channels_first"
    ).image_shape == (3, None, None)
    other.set_weights(backbone.get_weights())
    turned = maps_of(other, images.transpose(0, 3, 1, 2))
    for name, value in maps_of(backbone, images).items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(
            turned[name] / scale,
            value.transpose(0, 3, 1, 2) / scale,
            atol=1e-5,
        )


def train(task, images, labels, loss):
    """Train what is not frozen; returns the losses."""
    task.backbone.trainable = False
    before = [ops.convert_to_numpy(w) for w in task.backbone.weights]
    task.compile(keras.optimizers.Adam(0.05), loss)
    history = task.fit(images, labels, epochs=8, verbose=0).history["loss"]
    for old, weight in zip(before, task.backbone.weights, strict=True):
        np.testing.assert_array_equal(old, ops.convert_to_numpy(weight))
    return history


def test_a_frozen_tower_serves_a_classifier(backbone, images):
    task = keras_hub.models.ImageClassifier(
        backbone=backbone, num_classes=2, preprocessor=None
    )
    losses = train(
        task,
        images,
        np.array([0, 1, 0, 1]),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.skipif(
    keras.config.backend() == "torch",
    reason="torch has no gradient of the segmenter's upsampling, of any tower",
)
def test_a_frozen_tower_serves_a_segmenter(backbone, images):
    task = keras_hub.models.DeepLabV3ImageSegmenter(
        backbone=keras_hub.models.DeepLabV3Backbone(
            image_encoder=backbone,
            projection_filters=4,
            low_level_feature_key="P2",
            spatial_pyramid_pooling_key="P5",
            upsampling_size=8,
            dilation_rates=[1, 1, 1],
        ),
        num_classes=2,
        preprocessor=None,
    )
    before = [ops.convert_to_numpy(w) for w in backbone.weights]
    backbone.trainable = False
    task.compile(
        keras.optimizers.Adam(0.02),
        keras.losses.SparseCategoricalCrossentropy(),
        metrics=[],
    )
    masks = (images[..., 0] > 0).astype("int32")
    losses = task.fit(images, masks, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    for old, weight in zip(before, backbone.weights, strict=True):
        np.testing.assert_array_equal(old, ops.convert_to_numpy(weight))
