"""Image encoders of other libraries, against their own outputs."""

import importlib.util
import json
from pathlib import Path

import keras
import keras_hub
import numpy as np
import pytest
from compare_keras_applications import SIZES
from compare_keras_applications import before_the_head
from compare_keras_applications import grey_levels
from compare_keras_applications import randomize
from keras import ops
from towers import towers

from align_keras import AlignDualEncoder
from align_keras import AlignImageConverter
from align_keras import BertTextEncoder
from align_keras import EfficientNetBackbone
from align_keras.cli import main
from align_keras.interop import from_keras_applications
from align_keras.interop import keras_applications_converter
from align_keras.interop.efficientnet import coefficients
from align_keras.interop.efficientnet import find_coefficients
from align_keras.interop.keras_applications import application_coefficients
from align_keras.keras_hub_internals import abstract_variables

TIMM_SCRIPT = Path(__file__).with_name("compare_timm.py")


def assert_close(result, expected):
    scale = np.abs(expected).max()
    # Places of a channel differ by hundreds of times the tolerance.
    assert np.std(expected / scale, axis=(1, 2)).max() > 0.004
    np.testing.assert_allclose(result, expected, atol=1e-5 * max(scale, 1))


# === keras.applications ===


@pytest.fixture(scope="module")
def application():
    """B0 for images of any size, with its own rescaling of pixels."""
    return randomize(keras.applications.EfficientNetB0(False, weights=None))


def test_keras_applications_of_any_size(application):
    encoder = from_keras_applications(application, dropout=0.1)
    assert (encoder.padding, encoder.dropout) == ("fixed", 0.1)
    converter = keras_applications_converter(application)
    for size in ((64, 64), (71, 90)):
        images = grey_levels(size)
        prepared = images * np.float32(converter.scale) + np.float32(
            converter.offset
        )
        assert_close(encoder(prepared), before_the_head(application, images))


@pytest.mark.parametrize(
    "size", [size.upper() for size in towers("b2") if size != "l2"]
)
def test_keras_applications_of_known_size(size):
    """The stem and each strided block see odd maps and even ones."""
    make = getattr(keras.applications, f"EfficientNet{size}")
    model = randomize(make(False, weights=None, input_shape=(75, 97, 3)))
    encoder = from_keras_applications(model)
    assert encoder.padding == "same"
    converter = keras_applications_converter(model)
    images = grey_levels((75, 97))
    assert_close(encoder(converter(images)), before_the_head(model, images))


def test_keras_applications_by_name(application, tmp_path, monkeypatch, capsys):
    """The command, with all of it but the download."""

    def load(include_top):
        assert include_top is False
        return application

    monkeypatch.setattr(keras.applications, "EfficientNetB0", load)
    preset = str(tmp_path / "preset")
    source = "keras-applications://EfficientNetB0"
    assert main(["convert", source, preset, "--antialias", "yes"]) == 0
    assert "EfficientNetBackbone" in capsys.readouterr().out
    encoder = EfficientNetBackbone.from_preset(preset)
    converter = AlignImageConverter.from_preset(preset)
    assert converter.antialias is True
    own = keras_applications_converter(application)
    np.testing.assert_allclose(converter.scale, own.scale, rtol=1e-6)
    images = grey_levels((64, 64))
    prepared = images * np.float32(own.scale) + np.float32(own.offset)
    assert_close(encoder(prepared), before_the_head(application, images))
    assert main(["convert", "keras-applications://VGG16", preset]) == 2
    assert "EfficientNetB0 to EfficientNetB7" in capsys.readouterr().err


@pytest.mark.parametrize("size", SIZES)
def test_every_size_of_keras_applications_is_recognised(size):
    make = getattr(keras.applications, f"EfficientNet{size}")
    with abstract_variables():
        model = make(False, weights=None)
    assert application_coefficients(model) == coefficients(size.lower())


def test_other_networks_are_refused():
    assert coefficients("l2") == (4.3, 5.3)
    with pytest.raises(ValueError, match="No EfficientNet.*channels="):
        find_coefficients([1] * 7, [8] * 7)
    with pytest.raises(ValueError, match="must be one of keras.applications"):
        from_keras_applications(
            keras.Sequential([keras.Input((8, 8, 3))], name="other")
        )


# === timm ===


@pytest.mark.skipif(
    importlib.util.find_spec("timm") is None,
    reason="timm is not installed: pip install --no-deps timm",
)
def test_timm(tmp_path, run_script):
    names = towers("b4", "l2")
    output = run_script(TIMM_SCRIPT, tmp_path, "--names", *names).stdout
    found = json.loads(output.splitlines()[-1])
    for difference, scale in found["differences"]:
        assert scale > 0.1
        # Against float64: we are off by 5e-6 and 9.5e-6 of the scale, and
        # PyTorch's own float32 by 3e-6.
        assert difference < 2e-5 * max(scale, 1)
    assert found["pixel"] < 1e-5
    assert found["agrees"] == dict.fromkeys(names, True)


def test_timm_names_are_known_where_timm_is_not(tmp_path):
    """The layout that timm publishes, written by hand."""
    safetensors = pytest.importorskip("safetensors.numpy")
    (tmp_path / "config.json").write_text(
        '{"architecture": "tf_efficientnet_b0"}'
    )
    tensors = {
        "conv_stem.weight": np.zeros((32, 3, 3, 3), "float32"),
        "bn1.num_batches_tracked": np.array(3),
        "conv_head.weight": np.zeros((1280, 320, 1, 1), "float32"),
        "bn2.running_mean": np.zeros(1280, "float32"),
        "classifier.bias": np.zeros(1000, "float32"),
    }
    safetensors.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as error:
        EfficientNetBackbone.from_preset(str(tmp_path))
    message = str(error.value)
    assert "blocks.0.0.conv_dw.weight (32, 1, 3, 3)" in message
    assert "unexpected" not in message and "wrong" not in message
    (tmp_path / "config.json").write_text('{"architecture": "resnet50"}')
    with pytest.raises(ValueError, match="`architecture`.*'resnet50'"):
        EfficientNetBackbone.from_preset(str(tmp_path))


def test_images_are_resized_as_timm_says(tmp_path):
    """Four fifths of the side are left by the crop."""
    config = {
        "architecture": "tf_efficientnet_b0",
        "pretrained_cfg": {
            "mean": [0.5, 0.4, 0.3],
            "std": [0.1, 0.2, 0.25],
            "input_size": [3, 48, 64],
            "crop_pct": 0.8,
            "interpolation": "bicubic",
        },
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    converter = AlignImageConverter.from_preset(str(tmp_path))
    assert converter.image_size == (48, 64)
    assert converter.resize_size == (60, 80)
    given = AlignImageConverter.from_preset(str(tmp_path), image_size=32)
    assert given.resize_size == (40, 40)
    config["pretrained_cfg"]["crop_pct"] = 1.5
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="`crop_pct` in .*config.json.* 1.5"):
        AlignImageConverter.from_preset(str(tmp_path))


# === Any backbone as it is ===


def vit():
    return keras_hub.models.ViTBackbone((32, 32, 3), 8, 1, 2, 16, 32)


def siglip():
    return keras_hub.models.SigLIPVisionEncoder(
        8, 16, 1, 2, 32, image_shape=(32, 32, 3)
    )


def efficientnet_v2():
    # Of 1280 features, as ever: KerasHub's config forgets any other number.
    return keras_hub.models.EfficientNetBackbone(
        stackwise_width_coefficients=[0.2] * 3,
        stackwise_depth_coefficients=[0.5] * 3,
        stackwise_kernel_sizes=[3, 3, 3],
        stackwise_num_repeats=[2, 2, 2],
        stackwise_input_filters=[24, 24, 48],
        stackwise_output_filters=[24, 48, 64],
        stackwise_expansion_ratios=[1, 4, 4],
        stackwise_squeeze_and_excite_ratios=[0.0, 0.0, 0.25],
        stackwise_strides=[1, 2, 2],
        stackwise_block_types=["fused", "fused", "unfused"],
        input_shape=(32, 32, 3),
    )


def resnet():
    return keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(32, 32, 3),
    )


def keras_cv_resnet():
    keras_cv = pytest.importorskip(
        "keras_cv", reason="KerasCV is not installed", exc_type=Exception
    )
    return keras_cv.models.ResNetBackbone(
        stackwise_filters=[64, 64],
        stackwise_blocks=[1, 1],
        stackwise_strides=[1, 2],
        block_type="basic_block",
        include_rescaling=False,
        input_shape=(32, 32, 3),
    )


@pytest.mark.parametrize(
    ("make", "pooling"),
    [
        (vit, "first"),
        (siglip, "auto"),
        (efficientnet_v2, "auto"),
        (resnet, "auto"),
        (keras_cv_resnet, "auto"),
    ],
)
def test_any_backbone_serves_as_it_is(make, pooling, tmp_path):
    encoder = randomize(make())
    model = AlignDualEncoder(
        encoder, BertTextEncoder(50, 1, 2, 16, 32), 24, image_pooling=pooling
    )
    images = grey_levels((32, 32)) / 127.5 - 1
    inputs = {
        "images": images,
        "token_ids": np.full((2, 4), 7),
        "padding_mask": np.ones((2, 4), "int32"),
    }
    features = encoder(images)
    if isinstance(features, dict):
        features = features["sequence_output"]
    features = ops.convert_to_numpy(features)
    if pooling == "first":
        features = features[:, 0]
    else:
        features = features.reshape(2, -1, features.shape[-1]).mean(axis=1)
    kernel, bias = model.image_projection.get_weights()
    expected = features @ kernel + bias
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    result = ops.convert_to_numpy(model(inputs)["image_embeddings"])
    assert np.abs(result[0] - result[1]).max() > 1e-3
    np.testing.assert_allclose(result, expected, atol=1e-5)
    model.save_to_preset(tmp_path / "preset")
    again = AlignDualEncoder.from_preset(str(tmp_path / "preset"))
    np.testing.assert_array_equal(again(inputs)["image_embeddings"], result)
