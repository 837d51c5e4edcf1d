import math
import types

import keras
import numpy as np
import pytest
from keras import ops

from align_keras import AlignDualEncoder
from align_keras import BertTextEncoder
from align_keras import ContrastiveLoss
from align_keras import EfficientNetBackbone
from align_keras import Lamb
from align_keras import SigmoidLoss


def numpy_of(tree):
    return {k: ops.convert_to_numpy(v) for k, v in tree.items()}


def test_embeddings_follow_from_the_towers(tiny_model, pairs):
    model, x = tiny_model(), pairs(3)
    y = numpy_of(model(x))
    features = ops.convert_to_numpy(model.image_encoder(x["images"]))
    kernel, bias = model.image_projection.get_weights()
    image = features.mean(axis=(1, 2)) @ kernel + bias
    tokens = {k: x[k] for k in ("token_ids", "padding_mask")}
    sequence = model.text_encoder(tokens)["sequence_output"]
    kernel, bias = model.text_projection.get_weights()
    text = ops.convert_to_numpy(sequence)[:, 0] @ kernel + bias
    for name, rows in (("image", image), ("text", text)):
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        np.testing.assert_allclose(
            y[f"{name}_embeddings"], rows, rtol=1e-4, atol=1e-5
        )
    np.testing.assert_allclose(
        ops.convert_to_numpy(model.encode_image(x["images"])),
        y["image_embeddings"],
        atol=1e-6,
    )
    np.testing.assert_allclose(
        ops.convert_to_numpy(model.encode_text(tokens)),
        y["text_embeddings"],
        atol=1e-6,
    )


def test_image_features_stay_unprojected_at_their_own_width(tiny_model):
    assert tiny_model(embedding_dim=24).image_projection is not None
    own = tiny_model(embedding_dim=None)
    assert own.image_projection is None
    assert own.embedding_dim == 8


def test_fit_takes_the_step_of_the_loss_and_reports_recall(tiny_model, pairs):
    model, x = tiny_model(), pairs(6)
    model.compile(keras.optimizers.SGD(0.0), ContrastiveLoss(0.2))
    history = model.fit(x, batch_size=6, verbose=0).history
    # With a rate of zero, a second pass sees the same weights.
    y = model(x, training=True)
    losses, image_hits, text_hits = ContrastiveLoss(0.2).score(
        y["image_embeddings"], y["text_embeddings"], 1.0
    )
    recalls = {
        "image_to_text_recall_at_1": image_hits,
        "text_to_image_recall_at_1": text_hits,
    }
    loss = ops.convert_to_numpy(losses).mean()
    assert history["loss"][0] == pytest.approx(loss, rel=1e-4)
    for name, hits in recalls.items():
        hits = ops.convert_to_numpy(hits).mean()
        assert history[name][0] == pytest.approx(hits, abs=1e-6)


def test_training_separates_pairs(tiny_model, pairs):
    model, x = tiny_model(), pairs(8)
    model.compile(Lamb(0.02), ContrastiveLoss(0.0))
    history = model.fit(x, batch_size=8, epochs=40, verbose=0).history
    assert history["loss"][0] > 3.0
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    assert history["text_to_image_recall_at_1"][-1] == 1.0


def test_temperature_never_leaves_its_range(tiny_model, pairs):
    model = tiny_model(temperature_range=(0.1, 2.0), initial_temperature=0.5)
    assert model.temperature == pytest.approx(0.5)
    model.compile(keras.optimizers.SGD(1e4))
    model.fit(pairs(4), batch_size=4, verbose=0)
    assert model.temperature in (
        pytest.approx(0.1, rel=1e-5),
        pytest.approx(2.0, rel=1e-5),
    )


@pytest.mark.parametrize("form", ["log", "raw"])
def test_step_of_the_temperature_follows_the_slope_of_the_loss(
    form, tiny_model, pairs
):
    model, x = tiny_model(temperature_form=form), pairs(6)
    rate = 1e-2
    model.compile(keras.optimizers.SGD(rate))
    y = model(x, training=True)

    def loss(parameter):
        temperature = math.exp(parameter) if form == "log" else parameter
        rows = y["image_embeddings"], y["text_embeddings"]
        return float(ContrastiveLoss()(*rows, temperature=temperature))

    start = 0.0 if form == "log" else 1.0
    slope = (loss(start + 1e-2) - loss(start - 1e-2)) / 2e-2
    assert abs(slope) > 1e-3
    model.fit(x, batch_size=6, verbose=0)
    moved = model.contrastive_head.get_weights()[0] - start
    assert moved == pytest.approx(-rate * slope, rel=1e-2)


def test_the_sigmoid_loss_trains_the_bias(tiny_model, pairs):
    model, x = tiny_model(initial_bias=-3.0), pairs(6)
    model.compile(keras.optimizers.SGD(1e-2), SigmoidLoss())
    y = numpy_of(model(x, training=True))
    logits = y["image_embeddings"] @ y["text_embeddings"].T - 3.0
    signs = 2 * np.eye(6) - 1
    history = model.fit(x, batch_size=6, verbose=0).history
    loss = np.log1p(np.exp(-signs * logits)).sum() / 6
    assert history["loss"][0] == pytest.approx(loss, rel=1e-5)
    slope = (-signs / (1 + np.exp(signs * logits))).sum() / 6
    bias = float(model.contrastive_head.bias)
    assert bias == pytest.approx(-3.0 - 1e-2 * slope, rel=1e-5)


def test_the_sigmoid_loss_needs_a_bias(tiny_model):
    with pytest.raises(ValueError, match="initial_bias=-10.0"):
        tiny_model().compile(loss=SigmoidLoss())


def test_saved_preset_gives_equal_outputs(tiny_model, pairs, tmp_path):
    model, x = tiny_model(), pairs(4)
    model.compile(Lamb(0.1))
    model.fit(x, batch_size=4, epochs=2, verbose=0)
    model.save_to_preset(tmp_path / "preset")
    again = AlignDualEncoder.from_preset(str(tmp_path / "preset"))
    for name, value in numpy_of(model(x)).items():
        np.testing.assert_array_equal(numpy_of(again(x))[name], value)
    assert again.temperature == model.temperature
    # The moments of the optimizer would triple the file.
    size = (tmp_path / "preset" / "model.weights.h5").stat().st_size
    untrained = tiny_model()
    untrained.save_to_preset(tmp_path / "untrained")
    assert size == (tmp_path / "untrained" / "model.weights.h5").stat().st_size
    model.fit(x, batch_size=4, verbose=0)


def test_saved_model_file_goes_on_training(tiny_model, pairs, tmp_path):
    model, x = tiny_model(), pairs(4)
    model.compile(Lamb(0.1, weight_decay=0.1), ContrastiveLoss(0.3))
    model.fit(x, batch_size=4, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    losses = [
        m.fit(x, batch_size=4, epochs=2, verbose=0).history["loss"]
        for m in (model, again)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_mixed_precision_keeps_embeddings_in_float32(pairs):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = AlignDualEncoder(
            EfficientNetBackbone(0.2, 0.2), BertTextEncoder(50, 1, 2, 16, 32)
        )
    finally:
        keras.config.set_dtype_policy("float32")
    x = pairs(4)
    features = model.image_encoder(x["images"])
    assert keras.backend.standardize_dtype(features.dtype) == "bfloat16"
    for value in model(x).values():
        assert keras.backend.standardize_dtype(value.dtype) == "float32"
        norms = np.linalg.norm(ops.convert_to_numpy(value), axis=1)
        np.testing.assert_allclose(norms, 1, atol=1e-6)
    model.compile(Lamb(0.01))
    loss = model.fit(x, batch_size=4, verbose=0).history["loss"][0]
    assert np.isfinite(loss)


def test_any_keras_towers_train(pairs):
    image = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras.layers.Conv2D(8, 3, strides=4, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    token_ids = keras.Input((None,), dtype="int32", name="token_ids")
    text = keras.Model(
        {"token_ids": token_ids},
        keras.layers.Embedding(50, 6)(token_ids),
    )
    model = AlignDualEncoder(image, text, text_pooling="average")
    x = pairs(4)
    vectors = text.layers[-1](x["token_ids"])
    kernel, bias = model.text_projection.get_weights()
    weights = x["padding_mask"] / x["padding_mask"].sum(1, keepdims=True)
    vectors = ops.convert_to_numpy(vectors) * weights[..., None]
    rows = vectors.sum(axis=1) @ kernel + bias
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(
        numpy_of(model(x))["text_embeddings"], rows, rtol=1e-4, atol=1e-6
    )
    model.compile(keras.optimizers.Adam(0.01))
    losses = model.fit(x, batch_size=4, epochs=30, verbose=0).history["loss"]
    assert losses[-1] < 0.9 * losses[0]
    again = AlignDualEncoder.from_config(model.get_config())
    assert again.count_params() == model.count_params()


def test_pooling_that_is_asked_for_applies_to_the_sequence(tiny_model, pairs):
    model, x = tiny_model(text_pooling="average"), pairs(4)
    tokens = {k: x[k] for k in ("token_ids", "padding_mask")}
    sequence = model.text_encoder(tokens)["sequence_output"]
    kernel, bias = model.text_projection.get_weights()
    weights = x["padding_mask"] / x["padding_mask"].sum(1, keepdims=True)
    sequence = ops.convert_to_numpy(sequence) * weights[..., None]
    rows = sequence.sum(axis=1) @ kernel + bias
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(
        numpy_of(model(x))["text_embeddings"], rows, rtol=1e-4, atol=1e-5
    )


def test_errors_say_what_to_do(tiny_model, pairs):
    model = tiny_model()
    with pytest.raises(ValueError, match="no preprocessor"):
        model.encode_text("a red bus")
    with pytest.raises(ValueError, match="loss='mse'"):
        model.compile("sgd", loss="mse")
    with pytest.raises(ValueError, match="loss_weights=2.0"):
        model.compile("sgd", loss_weights=2.0)
    with pytest.raises(ValueError, match="weighted_metrics=\\['accuracy'\\]"):
        model.compile("sgd", weighted_metrics=["accuracy"])
    with pytest.raises(ValueError, match=" metrics=\\['accuracy'\\]"):
        model.compile("sgd", metrics=["accuracy"])
    with pytest.raises(ValueError, match="initial_temperature=20"):
        tiny_model(initial_temperature=20)
    with pytest.raises(ValueError, match="image_pooling='max'"):
        tiny_model(image_pooling="max")


@pytest.mark.skipif(keras.config.backend() == "torch", reason="has one replica")
def test_what_several_replicas_cannot_do_is_refused(
    tiny_model, pairs, monkeypatch
):
    """Compiled collectives of TensorFlow; rows of another process of JAX."""
    model = tiny_model()
    model.compile("sgd", jit_compile=True)
    if keras.config.backend() == "tensorflow":
        replicas = types.SimpleNamespace(num_replicas_in_sync=2)
        monkeypatch.setattr(type(model), "distribute_strategy", replicas)
        with pytest.raises(ValueError, match="jit_compile=True"):
            model._make_function(model.train_step)
    else:
        import jax

        from align_keras.training import make_strategy

        monkeypatch.setattr(jax, "process_count", lambda: 2)
        with pytest.raises(ValueError, match="2 processes"):
            model.predict(pairs(4))
        with pytest.raises(ValueError, match="2 processes"):
            make_strategy("auto")
