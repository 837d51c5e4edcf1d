import keras
import numpy as np
import pytest
from keras import ops
from loss_references import paper_loss
from loss_references import sigmoid_loss
from loss_references import unit_rows

from align_keras import ContrastiveLoss
from align_keras import SigmoidLoss
from align_keras import backend
from align_keras.losses.contrastive_loss import plain_contrastive_loss
from align_keras.losses.sigmoid_loss import plain_sigmoid_loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("temperature", [1.0, 0.07, 1 / 64])
def test_equals_the_papers_equations(smoothing, temperature):
    images, texts = unit_rows((7, 5), 0), unit_rows((7, 5), 1)
    loss = ContrastiveLoss(label_smoothing=smoothing, reduction="none")
    values = loss(
        images.astype("float32"),
        texts.astype("float32"),
        temperature=temperature,
    )
    expected = paper_loss(images, texts, temperature, smoothing)
    np.testing.assert_allclose(
        ops.convert_to_numpy(values), expected, rtol=2e-6, atol=5e-6
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("temperature", [1.0, 0.07])
def test_the_plain_loss_is_the_papers(smoothing, temperature):
    images, texts = unit_rows((7, 5), 0), unit_rows((7, 5), 1)
    found = plain_contrastive_loss(
        ops.convert_to_tensor(images, "float32"),
        ops.convert_to_tensor(texts, "float32"),
        temperature,
        smoothing,
    )
    expected = paper_loss(images, texts, temperature, smoothing)
    np.testing.assert_allclose(
        ops.convert_to_numpy(found), expected, rtol=2e-6, atol=5e-6
    )


def test_the_plain_sigmoid_loss_is_that_of_siglip():
    images, texts = unit_rows((7, 5), 0), unit_rows((7, 5), 1)
    found = plain_sigmoid_loss(
        ops.convert_to_tensor(images, "float32"),
        ops.convert_to_tensor(texts, "float32"),
        0.07,
        -3.0,
    )
    np.testing.assert_allclose(
        ops.convert_to_numpy(found),
        sigmoid_loss(images, texts, 0.07, -3.0),
        rtol=2e-6,
        atol=5e-6,
    )


@pytest.mark.parametrize("tile_size", [None, 3, 64])
@pytest.mark.parametrize(
    "loss, plain, extra",
    [
        (ContrastiveLoss(0.3, "none"), plain_contrastive_loss, 0.3),
        (SigmoidLoss("none"), plain_sigmoid_loss, -3.0),
    ],
)
def test_loss_and_gradients_are_those_of_the_plain_loss(
    loss, plain, extra, tile_size
):
    """The plain loss is differentiated by the backend, not by us."""
    rows = unit_rows((10, 6), 0), unit_rows((10, 6), 1)
    arguments = [ops.convert_to_tensor(x, "float32") for x in (*rows, 0.2)]
    weights = np.random.default_rng(2).uniform(size=10).astype("float32")
    weights = ops.convert_to_tensor(weights)
    loss.tile_size = tile_size
    bias = {"bias": extra} if isinstance(loss, SigmoidLoss) else {}

    def ours(images, texts, temperature):
        values = loss(images, texts, temperature=temperature, **bias)
        return ops.sum(weights * values)

    def theirs(images, texts, temperature):
        return ops.sum(weights * plain(images, texts, temperature, extra))

    value, gradients = _value_and_gradients(ours, arguments)
    expected, expected_gradients = _value_and_gradients(theirs, arguments)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def _value_and_gradients(function, arguments):
    value, _, gradients = backend.value_and_gradients(
        lambda arguments: (function(*arguments), ()), arguments
    )
    return (
        ops.convert_to_numpy(value),
        [ops.convert_to_numpy(gradient) for gradient in gradients],
    )


def test_floor_at_the_papers_batch_is_the_entropy_of_the_targets():
    # Cosine 1 on the diagonal and -1/(n-1) off it is the best that can be;
    # the logit gap ln(1 + 9 n) then gives the floor of smoothed labels.
    n = 64
    gap = np.log(1 + 9 * n)
    rows = np.eye(n, dtype="float32")
    value = float(ContrastiveLoss(0.1)(rows, rows, temperature=1 / gap))
    targets = np.full(n, 0.1 / n)
    targets[0] += 0.9
    assert value == pytest.approx(-2 * targets @ np.log(targets), rel=1e-5)


def test_starts_near_two_log_n():
    images, texts = unit_rows((512, 256), 0), unit_rows((512, 256), 1)
    value = float(ContrastiveLoss()(images, texts, temperature=1.0))
    assert value == pytest.approx(2 * np.log(512), rel=2e-3)


def test_reductions_and_weights():
    images = unit_rows((6, 4), 2).astype("float32")
    texts = unit_rows((6, 4), 3).astype("float32")
    weights = np.array([1, 0, 2, 1, 0, 1], "float32")
    each = ops.convert_to_numpy(
        ContrastiveLoss(reduction="none")(images, texts)
    )
    mean = ContrastiveLoss()(images, texts)
    total = ContrastiveLoss(reduction="sum")(images, texts, weights)
    assert float(mean) == pytest.approx(each.mean(), rel=1e-6)
    assert float(total) == pytest.approx((each * weights).sum(), rel=1e-6)


def test_score_tells_what_was_retrieved():
    images = np.eye(4, dtype="float32")
    texts = images[[0, 1, 3, 2]]
    _, image_hits, text_hits = ContrastiveLoss().score(images, texts)
    assert ops.convert_to_numpy(image_hits).tolist() == [1, 1, 0, 0]
    assert ops.convert_to_numpy(text_hits).tolist() == [1, 1, 0, 0]


def test_low_precision_embeddings_score_in_float32():
    images, texts = unit_rows((8, 16), 0), unit_rows((8, 16), 1)
    rounded = [ops.cast(rows, "bfloat16") for rows in (images, texts)]
    value = ContrastiveLoss()(*rounded, temperature=1 / 64)
    exact = [ops.convert_to_numpy(ops.cast(r, "float64")) for r in rounded]
    expected = paper_loss(*exact, 1 / 64, 0.1).mean()
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_config_round_trip():
    loss = ContrastiveLoss(label_smoothing=0.3, reduction="sum", name="other")
    config = keras.losses.serialize(loss)
    again = keras.losses.deserialize(config)
    assert again.get_config() == loss.get_config()
    assert again.label_smoothing == 0.3
    assert again.reduction == "sum"


@pytest.mark.parametrize(
    "arguments", [{"label_smoothing": 1.0}, {"reduction": "average"}]
)
def test_refuses_nonsense(arguments):
    (name, value), *_ = arguments.items()
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        ContrastiveLoss(**arguments)
