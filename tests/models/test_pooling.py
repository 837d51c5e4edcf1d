"""Averages over the places that count, compared with NumPy."""

import keras
import numpy as np
import pytest
from keras import ops

from align_keras import AlignDualEncoder
from align_keras import BertTextEncoder
from align_keras.models.pooling import Pooling


def masked_mean(x, mask):
    rows = [
        row[places.astype(bool)].mean(0) if places.any() else 0 * row[0]
        for row, places in zip(x.astype("float64"), mask, strict=True)
    ]
    return np.stack(rows)


@pytest.mark.parametrize("dtype", ["int32", "bool", "float32"])
def test_average_leaves_padding_out(dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (5, 7, 4)).astype("float32")
    # The last row is padding alone.
    mask = np.arange(7) < np.array([[7], [1], [3], [6], [0]])
    got = Pooling("average")(x, mask=ops.convert_to_tensor(mask.astype(dtype)))
    np.testing.assert_allclose(got, masked_mean(x, mask), rtol=1e-5)
    # A mask need not be a run.
    mask = rng.integers(0, 2, (5, 7)).astype("bool")
    got = Pooling("average")(x, mask=ops.convert_to_tensor(mask))
    np.testing.assert_allclose(got, masked_mean(x, mask), rtol=1e-5)
    feature_map = x.reshape(5, 7, 2, 2)
    mask = rng.integers(0, 2, (5, 7, 2)).astype("bool")
    got = Pooling("average")(feature_map, mask=ops.convert_to_tensor(mask))
    expected = masked_mean(x.reshape(5, 14, 2), mask.reshape(5, 14))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_average_in_sixteen_bits_is_summed_in_more():
    x = np.full((1, 4096, 2), 1.001, "float32")
    layer = Pooling("average", dtype="mixed_bfloat16")
    mask = np.ones((1, 4096), "int32")
    got = layer(ops.cast(x, "bfloat16"), mask=ops.convert_to_tensor(mask))
    np.testing.assert_allclose(ops.cast(got, "float32"), 1.0, rtol=5e-3)


def test_a_mask_of_another_shape_is_refused():
    x, mask = np.ones((2, 5, 3), "float32"), np.ones((2, 8), "int32")
    with pytest.raises(ValueError, match=r"shape \(2, 5, 3\), mask.*\(2, 8\)"):
        Pooling("average")(x, mask=ops.convert_to_tensor(mask))


def test_padding_does_not_change_the_embedding_of_a_text(tiny_model, pairs):
    model, x = tiny_model(text_pooling="average"), pairs(6)
    tokens = {k: x[k] for k in ("token_ids", "padding_mask")}
    longer = {k: np.pad(v, ((0, 0), (0, 4))) for k, v in tokens.items()}
    for encode in (model.encode_text, lambda t: model.text_vectors(t)):
        short, long = (
            ops.convert_to_numpy(encode(t)) for t in (tokens, longer)
        )
        np.testing.assert_allclose(short, long, rtol=1e-4, atol=1e-5)
    sequence = ops.convert_to_numpy(
        model.text_encoder(tokens)["sequence_output"]
    )
    np.testing.assert_allclose(
        ops.convert_to_numpy(model.text_vectors(tokens)),
        masked_mean(sequence, tokens["padding_mask"]),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("form", ["named", "attached"])
def test_an_image_sequence_may_carry_a_mask(form, pairs):
    """Rows of an image without light are no places of it."""
    images = keras.Input((32, 32, 3), name="images")
    rows = keras.layers.Reshape((32, 96))(images)
    masked = keras.layers.Masking()(rows)
    dense = keras.layers.Dense(6)
    outputs = dense(masked)
    if form == "named":
        seen = keras.layers.Lambda(
            lambda x: ops.cast(ops.any(x != 0, axis=-1), "int32")
        )(rows)
        outputs = {"sequence_output": dense(rows), "padding_mask": seen}
    encoder = keras.Model(images, outputs)
    model = AlignDualEncoder(encoder, BertTextEncoder(50, 1, 2, 16, 32))
    x = pairs(3)["images"]
    x[0, 20:] = x[1, :5] = 0
    mask = (x != 0).any((2, 3))
    kernel, bias = dense.get_weights()
    expected = masked_mean(x.reshape(3, 32, 96) @ kernel + bias, mask)
    np.testing.assert_allclose(
        ops.convert_to_numpy(model.image_features(x)),
        expected,
        rtol=1e-3,
        atol=1e-5,
    )


def test_the_last_token_is_one_that_counts():
    x = np.random.default_rng(0).normal(size=(3, 4, 2)).astype("float32")
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]])
    found = ops.convert_to_numpy(Pooling("last")(x, mask=mask))
    np.testing.assert_array_equal(found, x[[0, 1, 2], [1, 3, 2]])
    found = ops.convert_to_numpy(Pooling("last")(x))
    np.testing.assert_array_equal(found, x[:, -1])


def causal_tower(name):
    """Sums of token vectors so far, under the class name of a library."""
    tokens = keras.Input((None,), dtype="int32", name="token_ids")
    mask = keras.Input((None,), dtype="int32", name="padding_mask")
    vectors = keras.layers.Embedding(50, 6, "normal")(tokens)
    cls = type(name, (keras.Model,), {})
    return cls(
        {"token_ids": tokens, "padding_mask": mask}, ops.cumsum(vectors, 1)
    )


@pytest.mark.parametrize(
    "name, places",
    [("GPT2Backbone", [3, 5]), ("CLIPTextEncoder", [2, 4])],
)
def test_a_causal_tower_is_read_at_its_end(name, places, pairs):
    x = {
        "token_ids": np.array([[5, 6, 49, 7, 0, 0], [5, 6, 8, 9, 49, 3]]),
        "padding_mask": np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]),
    }
    images = keras.Input((4, 4, 3))
    image_encoder = keras.Model(images, keras.layers.Conv2D(6, 3)(images))
    tower = causal_tower(name)
    model = AlignDualEncoder(image_encoder, tower)
    sequence = ops.convert_to_numpy(tower(x))
    expected = sequence[[0, 1], places]
    found = ops.convert_to_numpy(model.text_vectors(x))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    again = AlignDualEncoder(
        image_encoder,
        keras.Model(tower.input, tower.output),
        text_pooling="last" if name == "GPT2Backbone" else "end_of_text",
    )
    found = ops.convert_to_numpy(again.text_vectors(x))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_an_unknown_text_tower_is_not_guessed_at():
    images = keras.Input((4, 4, 3))
    image_encoder = keras.Model(images, keras.layers.Conv2D(6, 3)(images))
    with pytest.raises(ValueError, match="`Unknown`.*text_pooling='auto'"):
        AlignDualEncoder(image_encoder, causal_tower("Unknown"))
    with pytest.raises(ValueError, match="image_pooling='end_of_text'"):
        AlignDualEncoder(
            image_encoder,
            causal_tower("GPT2Backbone"),
            image_pooling="end_of_text",
        )
