"""Both losses at once and tile by tile, against their equations."""

import keras
import numpy as np
import pytest
from keras import ops
from loss_references import paper_loss
from loss_references import reference
from loss_references import sigmoid_loss
from loss_references import unit_rows

from align_keras import ContrastiveLoss
from align_keras import SigmoidLoss
from align_keras import backend

NAMES = ("images", "texts", "temperature", "bias")


def make_loss(kind, extra, tile_size):
    if kind == "sigmoid":
        return SigmoidLoss(reduction="sum", tile_size=tile_size)
    return ContrastiveLoss(extra, reduction="sum", tile_size=tile_size)


def scores_and_gradients(loss, inputs, weights, mask=None):
    """What `score` gives, and the gradients of the weighted sum."""
    names = [n for n in NAMES if n != "bias" or hasattr(loss, "takes_bias")]
    values = [ops.convert_to_tensor(inputs[name], "float32") for name in names]

    def total(values):
        images, texts, temperature, *bias = values
        bias = {"bias": bias[0]} if bias else {}
        scores = loss.score(images, texts, temperature, mask, **bias)
        return loss.reduce(scores[0], weights, mask), scores

    weights = ops.convert_to_tensor(weights, "float32")
    _, scores, gradients = backend.value_and_gradients(total, values)
    names = ["loss", "image_hit", "text_hit", *names]
    arrays = map(ops.convert_to_numpy, [*scores, *gradients])
    return dict(zip(names, arrays, strict=True))


def assert_equal(got, expected, tolerance=5e-6):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(np.abs(value).max(), 1.0)
        np.testing.assert_allclose(
            got[name], value, atol=tolerance * scale, rtol=0, err_msg=name
        )


def make_inputs(n, temperature=0.1, bias=-3.0):
    return {
        "images": unit_rows((n, 6), 0),
        "texts": unit_rows((n, 6), 1),
        "temperature": temperature,
        "bias": bias,
    }


# 15 is three tiles of five; 13 leaves padding; 64 is more than there are.
@pytest.mark.parametrize(
    "tile_size, cases",
    [
        (None, [(13, False), (13, True)]),
        (5, [(15, False), (13, False), (13, True)]),
        (64, [(13, True)]),
    ],
)
@pytest.mark.parametrize(
    "kind, extra",
    [("contrastive", 0.0), ("contrastive", 0.1), ("sigmoid", -3.0)],
)
def test_equals_the_equations_and_their_gradients(
    kind, extra, tile_size, cases
):
    loss = make_loss(kind, extra, tile_size)
    for n, masked in cases:
        inputs = make_inputs(n)
        weights = np.random.default_rng(2).uniform(-1, 2, n)
        mask = np.ones(n, bool)
        if masked:
            mask[[0, 4, n - 1]] = False
        expected = reference(
            kind,
            inputs["images"],
            inputs["texts"],
            inputs["temperature"],
            extra,
            weights,
            mask,
        )
        got = scores_and_gradients(
            loss, inputs, weights, mask if masked else None
        )
        assert_equal(got, expected)


def test_the_references_gradients_are_the_slopes_of_its_losses():
    inputs, weights = make_inputs(5), np.array([1.0, -2, 0.5, 3, 0])
    for kind, function, extra in (
        ("contrastive", paper_loss, 0.1),
        ("sigmoid", sigmoid_loss, -3.0),
    ):
        arguments = [inputs["images"], inputs["texts"], 0.1, extra]
        slopes = reference(kind, *arguments, weights, np.ones(5, bool))
        names = NAMES if kind == "sigmoid" else NAMES[:3]
        for position, name in enumerate(names):
            rng = np.random.default_rng(position)
            direction = rng.normal(size=np.shape(arguments[position]))
            up, down = list(arguments), list(arguments)
            up[position] = arguments[position] + 1e-6 * direction
            down[position] = arguments[position] - 1e-6 * direction
            slope = weights @ (function(*up) - function(*down)) / 2e-6
            expected = np.sum(slopes[name] * direction)
            assert slope == pytest.approx(expected, rel=1e-6), (kind, name)


@pytest.mark.parametrize("kind", ["contrastive", "sigmoid"])
def test_tiles_give_the_first_of_equal_scores(kind):
    # Captions repeat in a web batch, here across the tiles as well.
    texts = np.eye(4, dtype="float32")[[0, 1, 0, 2, 1, 0, 3, 3, 1]]
    inputs = {**make_inputs(9), "images": texts[::-1].copy(), "texts": texts}
    scores = inputs["images"] @ texts.T
    labels = np.arange(9)
    for tile_size in (None, 2, 4):
        got = scores_and_gradients(
            make_loss(kind, 0.1, tile_size), inputs, np.ones(9)
        )
        for name, axis in (("image_hit", 1), ("text_hit", 0)):
            hits = scores.argmax(axis=axis) == labels
            np.testing.assert_array_equal(got[name], hits, err_msg=name)


def test_confident_pairs_lose_nothing_to_rounding():
    """At scores of 64, a loss of zero is the difference of large numbers."""
    rows = unit_rows((9, 32), 0)
    for tile_size in (None, 4):
        got = scores_and_gradients(
            ContrastiveLoss(0.0, "sum", tile_size),
            {"images": rows, "texts": rows, "temperature": 1 / 64},
            np.ones(9),
        )
        expected = paper_loss(rows, rows, 1 / 64, 0.0)
        np.testing.assert_allclose(got["loss"], expected, rtol=0, atol=8e-6)
        assert got["loss"].min() >= 0


@pytest.mark.parametrize("loss", [ContrastiveLoss, SigmoidLoss])
def test_low_precision_embeddings_score_in_float32(loss):
    rounded = [ops.cast(unit_rows((8, 16), s), "bfloat16") for s in (0, 1)]
    exact = [ops.cast(rows, "float32") for rows in rounded]
    loss = loss(tile_size=3)
    for got, expected in zip(
        loss.score(*rounded, 0.1), loss.score(*exact, 0.1), strict=True
    ):
        assert keras.backend.standardize_dtype(got.dtype) == "float32"
        np.testing.assert_array_equal(
            *map(ops.convert_to_numpy, (got, expected))
        )


def test_the_mean_is_over_the_pairs_that_count():
    images, texts = unit_rows((6, 4), 0), unit_rows((6, 4), 1)
    mask = np.array([1, 1, 0, 1, 0, 1], bool)
    weights = np.array([1, 2, 5, 0, 5, 1])
    each = paper_loss(images[mask], texts[mask], 0.1, 0.1)
    for tile_size in (None, 4):
        loss = ContrastiveLoss(tile_size=tile_size)
        value = loss(images, texts, temperature=0.1, mask=mask)
        assert float(value) == pytest.approx(each.mean(), rel=1e-5)
        value = loss(images, texts, weights, temperature=0.1, mask=mask)
        expected = (each * weights[mask]).mean()
        assert float(value) == pytest.approx(expected, rel=1e-5)
    nothing = ContrastiveLoss()(images, texts, mask=np.zeros(6, bool))
    assert float(nothing) == 0.0


def test_compiled_and_of_unknown_batch():
    if keras.config.backend() != "tensorflow":
        pytest.skip("Only TensorFlow compiles for a batch of unknown size")
    import tensorflow as tf

    inputs = make_inputs(13)
    rows = [tf.constant(inputs[n], "float32") for n in NAMES[:2]]
    kinds = ("contrastive", "sigmoid")

    def step(images, texts):
        results = []
        for kind in kinds:
            loss = make_loss(kind, 0.1, 5)
            with tf.GradientTape() as tape:
                tape.watch((images, texts))
                value = loss(images, texts, temperature=0.1)
            results.append((value, *tape.gradient(value, (images, texts))))
        return results

    signature = [tf.TensorSpec([None, 6])] * 2
    for jit_compile in (False, True):
        compiled = tf.function(step, signature, jit_compile=jit_compile)
        for kind, extra, got in zip(
            kinds, (0.1, -10.0), compiled(*rows), strict=True
        ):
            expected = reference(
                kind,
                *(inputs[n] for n in NAMES[:2]),
                0.1,
                extra,
                np.ones(13),
                np.ones(13, bool),
            )
            total = expected["loss"].sum()
            assert float(got[0]) == pytest.approx(total, rel=1e-5)
            for value, name in zip(got[1:], NAMES[:2], strict=True):
                np.testing.assert_allclose(value, expected[name], atol=2e-5)


def test_large_batches_are_tiled_and_need_little_memory():
    assert ContrastiveLoss().tile_size_of(np.empty((4095, 1))) is None
    assert ContrastiveLoss().tile_size_of(np.empty((4096, 1))) == 128
    if keras.config.backend() != "jax":
        return
    import jax

    rows = jax.ShapeDtypeStruct((32768, 640), "float32")
    for loss in (ContrastiveLoss(), SigmoidLoss()):

        def value(images, texts, temperature, loss=loss):
            return loss(images, texts, temperature=temperature)

        step = jax.jit(jax.grad(value, (0, 1, 2)))
        memory = step.lower(rows, rows, 0.1).compile().memory_analysis()
        needed = memory.temp_size_in_bytes + memory.output_size_in_bytes
        assert needed < 2**30


@pytest.mark.parametrize("loss", [ContrastiveLoss, SigmoidLoss])
def test_config_round_trip(loss):
    loss = loss(reduction="sum", tile_size=7, name="other", dtype="float64")
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(again) is type(loss)
    assert again.get_config() == loss.get_config()
    assert (again.reduction, again.tile_size) == ("sum", 7)


@pytest.mark.parametrize("tile_size", [0, -4, 2.5, "small"])
def test_refuses_a_tile_size_that_is_none(tile_size):
    with pytest.raises(ValueError, match=f"tile_size={tile_size!r}"):
        ContrastiveLoss(tile_size=tile_size)
