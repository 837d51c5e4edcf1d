"""`enable_lora` of the whole model, and of a tower alone."""

import keras
import numpy as np
import pytest
from keras import ops

from align_keras import AlignDualEncoder
from align_keras import BertTextEncoder
from align_keras.models.lora import merged_lora


@pytest.fixture
def build():
    def build():
        keras.utils.set_random_seed(0)
        images = keras.Input((8, 8, 3), name="images")
        features = keras.layers.Conv2D(6, 3)(images)
        features = keras.layers.Dense(8, name="value")(features)
        text_encoder = BertTextEncoder(50, 1, 2, 16, 32, dropout=0.0)
        return AlignDualEncoder(
            keras.Model(images, features), text_encoder, embedding_dim=6
        )

    return build


def moved(model, x, **kwargs):
    """Take a step; returns the paths of the variables that it moved."""
    model.compile(keras.optimizers.Adam(0.1), **kwargs)
    # The second factor of an update starts from zero, and so does the step of
    # the first.
    before = [ops.convert_to_numpy(v) for v in model.variables]
    model.fit(x, batch_size=4, epochs=2, verbose=0)
    names = set()
    for variable, value in zip(model.variables, before, strict=True):
        if not np.array_equal(ops.convert_to_numpy(variable), value):
            names.add(variable.path)
    return names


@pytest.mark.parametrize("remat", [False, True])
def test_of_the_whole_model_is_of_both_towers(remat, build, pairs):
    x = pairs(4, size=8)
    whole = build()
    whole.enable_lora(2)
    found = moved(whole, x, remat=remat)
    ours = {name for name in found if "lora_" not in name}
    kinds = ("projection/kernel", "projection/bias", "temperature")
    biases = ("query/bias", "value/bias")
    assert len(ours) == 8 and all(n.endswith(kinds + biases) for n in ours)
    updates = {name for name in found if "lora_" in name}
    assert len(updates) == 6  # A dense layer, a query and a value.
    both = build()
    both.text_encoder.enable_lora(2)
    both.image_encoder.trainable = False
    both.image_encoder.layers[-1].trainable = True
    both.image_encoder.layers[-1].enable_lora(2)
    assert moved(both, x, remat=remat) == found


def test_of_a_tower_leaves_the_rest_alone(build, pairs):
    x = pairs(4, size=8)
    model = build()
    model.text_encoder.enable_lora(2)
    text = {v.path for v in model.text_encoder.variables}
    found = moved(model, x)
    kinds = {name.rpartition("/")[2] for name in found & text}
    assert len(found & text) == 6  # Of a query and a value.
    assert kinds == {"bias", "lora_kernel_a", "lora_kernel_b"}
    outside = {v.path for v in model.trainable_variables} - text
    # A bias before an average and a normalisation may stand still.
    assert len(outside - found) == 0 and len(outside) == 9


def test_what_was_frozen_stays_frozen(build, pairs):
    model = build()
    model.text_projection.trainable = False
    model.enable_lora(2)
    found = moved(model, pairs(4, size=8))
    assert not any("text_projection" in name for name in found)
    assert any("image_projection" in name for name in found)


def test_targets_may_be_projections(build, pairs):
    model = build()
    model.enable_lora(2, ["text_projection"])
    found = moved(model, pairs(4, size=8))
    assert sum("text_projection/lora" in name for name in found) == 2
    assert not any(name.endswith("text_projection/kernel") for name in found)


def test_a_preset_holds_the_merged_weights(build, pairs, tmp_path):
    x = pairs(4, size=8)
    model = build()
    model.enable_lora(2)
    moved(model, x)
    model.save_to_preset(tmp_path / "preset")
    again = AlignDualEncoder.from_preset(str(tmp_path / "preset"))
    assert not any("lora_" in v.path for v in again.variables)
    with merged_lora(model):
        assert again.count_params() < model.count_params()
    for name, value in model.predict(x, verbose=0).items():
        np.testing.assert_allclose(
            again.predict(x, verbose=0)[name], value, rtol=1e-4, atol=1e-5
        )


def test_names_of_no_layer_are_refused(build):
    """Keras would freeze the towers and say nothing."""
    model = build()
    trained = len(model.trainable_variables)
    with pytest.raises(ValueError, match=r"Received: \['kwery'\]"):
        model.enable_lora(2, target_layer_names=["value", "kwery"])
    images = keras.Input((8, 8, 3), name="images")
    tokens = keras.Input((None,), dtype="int32", name="token_ids")
    plain = AlignDualEncoder(
        keras.Model(images, keras.layers.Conv2D(6, 3)(images)),
        keras.Model(tokens, keras.layers.Embedding(50, 6)(tokens)),
        text_pooling="average",
    )
    with pytest.raises(ValueError, match="finds no dense layer.*query"):
        plain.enable_lora(2)
    assert len(model.trainable_variables) == trained
    assert not plain.image_encoder_is_frozen
