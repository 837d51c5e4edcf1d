"""What a block does in few passes, against the plain way to do it."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from align_keras import backend
from align_keras.models.batch_normalization import BatchNormalization
from align_keras.models.convolution import convolve_and_normalize
from align_keras.models.initializers import FanOutNormal
from align_keras.models.initializers import SmallNormal


def depthwise_by_hand(x, kernel, stride, padding):
    """Every output by a sum over its window; the reference of all else."""
    rows, columns = kernel.shape[:2]
    if padding == "same":
        margins = []
        for size, window in ((x.shape[1], rows), (x.shape[2], columns)):
            total = max((-(-size // stride) - 1) * stride + window - size, 0)
            margins.append((total // 2, total - total // 2))
        x = np.pad(x, ((0, 0), *margins, (0, 0)))
    height = (x.shape[1] - rows) // stride + 1
    width = (x.shape[2] - columns) // stride + 1
    result = np.zeros((x.shape[0], height, width, x.shape[3]))
    for i in range(height):
        for j in range(width):
            top, left = i * stride, j * stride
            window = x[:, top : top + rows, left : left + columns]
            result[:, i, j] = (window * kernel[..., 0]).sum((1, 2))
    return result


@pytest.mark.parametrize(
    "size, window, stride, padding",
    [(9, 3, 1, "same"), (11, 5, 2, "valid"), (10, 5, 2, "same")],
)
def test_depthwise_convolution_and_its_gradients(size, window, stride, padding):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, size, size, 3))
    kernel = rng.standard_normal((window, window, 3, 1))
    expected = depthwise_by_hand(x, kernel, stride, padding)
    weights = rng.standard_normal(expected.shape)

    def weighted(arguments):
        x, kernel = arguments
        outputs = backend.convolve_depthwise(
            x, kernel, (stride, stride), padding
        )
        return ops.sum(outputs * ops.cast(weights, outputs.dtype)), outputs

    arguments = [
        ops.convert_to_tensor(value.astype("float32")) for value in (x, kernel)
    ]
    _, outputs, gradients = backend.value_and_gradients(weighted, arguments)
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    # The function is linear in each argument: a difference is the derivative.
    for values, gradient in zip((x, kernel), gradients, strict=True):
        step = rng.standard_normal(values.shape)
        if values is x:
            change = depthwise_by_hand(step, kernel, stride, padding)
        else:
            change = depthwise_by_hand(x, step, stride, padding)
        np.testing.assert_allclose(
            np.sum(np.asarray(gradient) * step),
            np.sum(change * weights),
            rtol=1e-4,
            atol=1e-4,
        )


@pytest.mark.parametrize(
    "convolution",
    [
        layers.Conv2D(6, 1, use_bias=False),
        layers.Conv2D(6, 3, strides=2, use_bias=False),
        layers.DepthwiseConv2D(3, padding="same", use_bias=False),
    ],
    ids=["pointwise", "strided", "depthwise"],
)
def test_inference_folds_the_normalization(convolution):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 8, 8, 4)).astype("float32")
    plain = convolution(x)
    normalization = BatchNormalization()
    normalization.build(plain.shape)
    normalization.settle()
    *weights, _ = normalization.weights
    for variable in weights:
        variable.assign(rng.uniform(0.5, 2.0, variable.shape))
    gamma, beta, mean, variance = (
        ops.convert_to_numpy(variable) for variable in weights
    )
    expected = (ops.convert_to_numpy(plain) - mean) / np.sqrt(variance + 1e-3)
    expected = expected * gamma + beta
    folded = ops.convert_to_numpy(
        convolve_and_normalize(convolution, normalization, x, False)
    )
    np.testing.assert_allclose(folded, expected, rtol=1e-4, atol=1e-5)
    # A frozen normalisation keeps its statistics in training, too.
    normalization.trainable = False
    frozen = ops.convert_to_numpy(
        convolve_and_normalize(convolution, normalization, x, True)
    )
    np.testing.assert_allclose(frozen, expected, rtol=1e-4, atol=1e-5)
    normalization.trainable = True
    outputs = ops.convert_to_numpy(
        convolve_and_normalize(convolution, normalization, x, True)
    )
    plain = ops.convert_to_numpy(plain)
    expected = (plain - plain.mean((0, 1, 2))) / np.sqrt(
        plain.var((0, 1, 2)) + 1e-3
    )
    np.testing.assert_allclose(outputs, expected * gamma + beta, atol=1e-4)
    np.testing.assert_allclose(
        normalization.moving_variance,
        0.99 * variance + 0.01 * plain.var((0, 1, 2)),
        rtol=1e-4,
    )


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_silu_of_training_and_its_gradient():
    x = np.linspace(-6, 6, 25).astype("float32")

    def total(arguments):
        outputs = backend.silu(arguments[0])
        return ops.sum(outputs), outputs

    _, outputs, (gradient,) = backend.value_and_gradients(
        total, [ops.convert_to_tensor(x)]
    )
    np.testing.assert_allclose(outputs, x * sigmoid(x), atol=1e-6)
    np.testing.assert_allclose(
        gradient, sigmoid(x) * (1 + x * (1 - sigmoid(x))), atol=1e-6
    )


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 2e-5), ("bfloat16", 0.03)]
)
def test_normalization_with_silu_and_its_gradients(dtype, tolerance):
    rng = np.random.default_rng(2)
    x = (rng.standard_normal((3, 5, 4, 6)) * 2 + 1).astype("float32")
    x = ops.convert_to_tensor(x, dtype)
    given = ops.convert_to_numpy(ops.cast(x, "float32")).astype("float64")
    gamma, beta = rng.uniform(0.5, 2.0, (2, 6)).astype("float32")
    weights = rng.standard_normal(x.shape).astype("float32")
    factors = ops.convert_to_tensor(weights)

    def total(arguments):
        outputs, mean, variance = backend.normalize_and_silu(*arguments, 1e-3)
        wide = ops.cast(outputs, "float32")
        return ops.sum(wide * factors), (outputs, mean, variance)

    arguments = [x, ops.convert_to_tensor(gamma), ops.convert_to_tensor(beta)]
    _, (outputs, mean, variance), gradients = backend.value_and_gradients(
        total, arguments
    )
    axes = (0, 1, 2)
    width = np.sqrt(given.var(axes) + 1e-3)
    unit = (given - given.mean(axes)) / width
    inner = unit * gamma + beta
    slope = sigmoid(inner) * (1 + inner * (1 - sigmoid(inner))) * weights
    centred = slope - slope.mean(axes) - unit * (slope * unit).mean(axes)
    expected = (
        gamma / width * centred,
        (slope * unit).sum(axes),
        slope.sum(axes),
    )

    def check(found, wanted):
        found = ops.convert_to_numpy(ops.cast(found, "float32"))
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(found, wanted, atol=tolerance * scale)

    assert keras.backend.standardize_dtype(outputs.dtype) == dtype
    check(outputs, inner * sigmoid(inner))
    check(mean, given.mean(axes))
    check(variance, given.var(axes))
    for gradient, wanted in zip(gradients, expected, strict=True):
        check(gradient, wanted)


@pytest.mark.parametrize("activation", ["silu", "relu"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_an_activation_follows_the_normalization(activation, frozen, training):
    x = np.random.default_rng(3).standard_normal((2, 4, 4, 3)).astype("float32")
    convolution = layers.Conv2D(5, 1, use_bias=False)
    convolution.build(x.shape)
    results = []
    for given in (None, keras.activations.get(activation)):
        normalization = BatchNormalization()
        normalization.build((2, 4, 4, 5))
        normalization.trainable = not frozen
        outputs = convolve_and_normalize(
            convolution, normalization, x, training, given
        )
        statistics = normalization.non_trainable_variables
        results.append(
            [ops.convert_to_numpy(x) for x in (outputs, *statistics)]
        )
    (plain, *before), (activated, *after) = results
    factor = sigmoid(plain) if activation == "silu" else plain > 0
    np.testing.assert_allclose(activated, plain * factor, atol=1e-5)
    for one, two in zip(before, after, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)


def test_initializers():
    values = ops.convert_to_numpy(FanOutNormal(seed=3)((3, 3, 20, 40)))
    assert values.std() == pytest.approx(np.sqrt(2 / (9 * 40)), rel=0.03)
    assert abs(values.mean()) < 0.002
    values = ops.convert_to_numpy(SmallNormal(seed=3)((200, 50)))
    # Cutting off at two deviations makes it narrower.
    assert values.std() == pytest.approx(0.02 * 0.8796, rel=0.03)
    assert np.abs(values).max() <= 0.04
    again = SmallNormal.from_config(SmallNormal(seed=3).get_config())
    np.testing.assert_array_equal(values, again((200, 50)))
    other = ops.convert_to_numpy(SmallNormal()((200, 50)))
    assert not np.allclose(values, other)
