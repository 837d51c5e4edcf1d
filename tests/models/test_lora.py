"""`enable_lora` of the whole model, and of a tower alone."""

import keras
import numpy as np
import pytest
from keras import ops

from align_keras import AlignDualEncoder
from align_keras import BertTextEncoder
from align_keras import EfficientNetBackbone
from align_keras.models.lora import add_lora
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
    with pytest.raises(ValueError, match="finds no dense layer.*query"):
        EfficientNetBackbone(0.2, 0.2).enable_lora(2)
    for rank in (0, 2.5, "2", True):
        with pytest.raises(ValueError, match=f"`rank`.*rank={rank!r}"):
            model.enable_lora(rank)
    assert len(model.trainable_variables) == trained
    assert not plain.image_encoder_is_frozen


def test_updates_of_codes_are_refused(build, tmp_path):
    """Whichever comes first; in int8 most updates would be rounded to 0."""
    model = build()
    model.text_encoder.quantize("int8")
    for part in (model, model.text_encoder):
        with pytest.raises(ValueError, match="cannot be given low-rank up"):
            part.enable_lora(2)
    with pytest.raises(ValueError, match="cannot be given low-rank updates"):
        add_lora(model, 2)
    assert not any("lora_" in v.path for v in model.variables)
    model.image_encoder.get_layer("value").enable_lora(2)
    model.save_to_preset(tmp_path / "apart")
    model = build()
    model.enable_lora(2)
    for part in (model, model.text_encoder):
        with pytest.raises(ValueError, match="updates of .*value"):
            part.quantize("int8")
    layer = model.image_encoder.get_layer("value")
    layer.quantize("int8")
    with pytest.raises(ValueError, match="such as `value`"):
        model.save_to_preset(tmp_path / "preset")
    assert not (tmp_path / "preset").exists()


@pytest.mark.parametrize("first", ["text_encoder", "model"])
@pytest.mark.parametrize("second", ["text_encoder", "model"])
def test_updates_are_made_once(first, second, build):
    model = build()
    for part in (first, second):
        part = model if part == "model" else model.text_encoder
        if not any("lora_" in v.path for v in model.variables):
            part.enable_lora(2)
            before = [v.path for v in model.trainable_variables]
            continue
        with pytest.raises(ValueError, match="added only once.*of.*value"):
            part.enable_lora(2)
    assert [v.path for v in model.trainable_variables] == before


def outputs_of(model, x):
    return np.concatenate(list(model.predict(x, verbose=0).values()))


TABLES = ["value", "token_embedding"]


@pytest.mark.parametrize("names", [None, TABLES])
def test_updates_come_back_from_a_file_of_weights(
    names, build, pairs, tmp_path
):
    """Keras would load zeros for both factors, which learn no more."""
    x = pairs(4, size=8)
    model = build()
    model.enable_lora(2, names)
    moved(model, x)
    model.save_weights(tmp_path / "model.weights.h5")
    again = build()
    again.enable_lora(2, names)
    again.load_weights(tmp_path / "model.weights.h5")
    for one, other in zip(again.weights, model.weights, strict=True):
        np.testing.assert_allclose(
            *map(ops.convert_to_numpy, (one, other)), rtol=1e-5, atol=1e-6
        )
    steps = {"batch_size": 4, "shuffle": False, "verbose": 0, "epochs": 2}
    losses = []
    for same in (model, again):
        same.compile(keras.optimizers.SGD(0.1))
        losses.append(same.fit(x, **steps).history["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    # A model without updates takes the sum, and other updates start anew.
    expected = outputs_of(again, x)
    again.save_weights(tmp_path / "again.weights.h5")
    for rank in (None, 3):
        other = build()
        if rank is not None:
            other.enable_lora(rank, names)
        other.load_weights(tmp_path / "again.weights.h5")
        np.testing.assert_allclose(
            outputs_of(other, x), expected, rtol=1e-4, atol=1e-5
        )
    assert any("lora_" in name for name in moved(other, x))


def test_a_keras_file_holds_the_merged_weights(build, pairs, tmp_path):
    x = pairs(4, size=8)
    model = build()
    model.enable_lora(2)
    moved(model, x)
    with pytest.warns(UserWarning, match="updates are merged"):
        model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    clone = keras.models.clone_model(model)
    for plain in (again, clone):
        assert not any("lora_" in v.path for v in plain.variables)
    np.testing.assert_allclose(
        outputs_of(again, x), outputs_of(model, x), rtol=1e-4, atol=1e-5
    )


def test_files_of_updates_alone(build, pairs, tmp_path):
    """KerasHub's, which know no tables."""
    x = pairs(4, size=8)
    model = build()
    start = model.get_weights()
    model.enable_lora(2)
    model.compile(keras.optimizers.Adam(0.1))
    model.fit(x, batch_size=4, epochs=2, verbose=0)
    model.save_lora_weights(tmp_path / "model.lora.h5")
    again = build()
    again.set_weights(start)
    again.load_lora_weights(tmp_path / "model.lora.h5")
    found, expected = (
        [ops.convert_to_numpy(v) for v in m.variables if "lora_" in v.path]
        for m in (again, model)
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    tables = build()
    tables.enable_lora(2, TABLES)
    with pytest.raises(ValueError, match="embedding tables.*token_embedding"):
        tables.save_lora_weights(tmp_path / "tables.lora.h5")
