"""The forms that JAX runs on a CPU, against those it runs elsewhere."""

import keras
import numpy as np
import pytest

from align_keras import backend
from align_keras.backend import plain_normalization

if keras.config.backend() != "jax":
    pytest.skip("for the JAX backend", allow_module_level=True)

import jax
import jax.numpy as jnp


def _tensors(shapes, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return [
        jnp.asarray(rng.standard_normal(shape)).astype(dtype)
        for shape in shapes
    ]


def _assert_equal(found, wanted, tolerance):
    """Compare tensors; the tolerance is relative to the largest value."""
    assert found.dtype == wanted.dtype
    found, wanted = (np.asarray(x, "float64") for x in (found, wanted))
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, atol=tolerance * scale, rtol=0)


@pytest.fixture(autouse=True)
def bits(request):
    """Enable 64 bits for `float64`."""
    parameters = getattr(request.node, "callspec", None)
    dtype = parameters and parameters.params.get("dtype")
    with jax.enable_x64(dtype == "float64"):
        yield


# Relative to the largest value: float32 sums in another order; bfloat16 has 8
# bits, and JAX sums the gradients of its convolution in 16 bits.
TOLERANCES = [("float32", 1e-5), ("bfloat16", 0.02), ("float64", 1e-12)]


def _plain(x, kernel, strides, padding, groups):
    wide = jnp.promote_types(x.dtype, "float32")
    return jax.lax.conv_general_dilated(
        x.astype(wide),
        kernel.astype(wide),
        strides,
        padding.upper(),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    ).astype(x.dtype)


# The last two cases have several blocks of rows, the last one incomplete.
@pytest.mark.parametrize(
    "size, window, stride, padding",
    [
        ((7, 5, 3), (3, 3), 1, "same"),
        ((8, 9, 2), (5, 5), 1, "same"),
        ((10, 7, 4), (5, 3), 2, "same"),
        ((11, 12, 3), (5, 5), 2, "valid"),
        ((6, 6, 1), (2, 4), 3, "valid"),
        ((23, 61, 96), (3, 3), 1, "same"),
        ((41, 90, 80), (5, 5), 2, "valid"),
    ],
)
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_a_depthwise_convolution_is_the_plain_one(
    size, window, stride, padding, dtype, tolerance
):
    channels = size[-1]
    x, kernel = _tensors([(2, *size), (*window, channels, 1)], dtype)
    strides = stride, stride

    def plain(x, kernel):
        kernel = kernel.swapaxes(2, 3)
        return _plain(x, kernel, strides, padding, channels)

    def ours(x, kernel):
        return backend.convolve_depthwise(x, kernel, strides, padding)

    _assert_equal_with_gradients(ours, plain, (x, kernel), tolerance)


@pytest.mark.parametrize("size", [(7, 5, 3), (1, 1, 8), (9, 16, 2)])
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_a_pointwise_convolution_is_the_plain_one(size, dtype, tolerance):
    arguments = _tensors([(2, *size), (1, 1, size[-1], 6)], dtype)
    form = (1, 1), "valid"
    _assert_equal_with_gradients(
        lambda *pair: backend.convolve(*pair, *form),
        lambda *pair: _plain(*pair, *form, 1),
        arguments,
        tolerance,
    )


def _assert_equal_with_gradients(ours, plain, arguments, tolerance):
    found, wanted = (_with_gradients(f, arguments) for f in (ours, plain))
    for one, two in zip(found, wanted, strict=True):
        _assert_equal(one, two, tolerance)


def _with_gradients(function, arguments):
    """Return the outputs, and the gradients of a weighted sum of them."""
    outputs = jax.eval_shape(function, *arguments)
    (weights,) = _tensors([outputs.shape], outputs.dtype, seed=1)

    @jax.jit
    def run(weights, *arguments):
        outputs, pull = jax.vjp(function, *arguments)
        return outputs, *pull(weights)

    return run(weights, *arguments)


@pytest.mark.parametrize("name", ["normalize_batch", "normalize_and_silu"])
@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("float32", 1e-4), ("bfloat16", 0.02), ("float64", 1e-10)],
)
def test_a_normalization_is_the_plain_one(name, offset, dtype, tolerance):
    (x,) = _tensors([(3, 6, 5, 7)], dtype)
    wide = jnp.promote_types(dtype, "float32")
    gamma, beta = _tensors([(7,), (7,)], wide, seed=2)
    arguments = (x + offset, gamma, beta)

    ours, plain = (
        lambda *tensors, function=function: function(*tensors, 1e-3)
        for function in (
            getattr(backend, name),
            getattr(plain_normalization, name),
        )
    )
    for one, two in zip(ours(*arguments), plain(*arguments), strict=True):
        _assert_equal(one, two, tolerance)
    _assert_equal_with_gradients(
        lambda *tensors: ours(*tensors)[0],
        lambda *tensors: plain(*tensors)[0],
        arguments,
        tolerance,
    )


def _layer(x, depthwise, pointwise, gamma, beta):
    x = backend.convolve_depthwise(x, depthwise, (2, 2), "same")
    x, *_ = backend.normalize_and_silu(x, gamma, beta, 1e-3)
    return backend.convolve(x, pointwise, (1, 1), "valid").sum()


@pytest.mark.parametrize(
    ("platform", "convolutions", "loops"), [("tpu", 5, 0), ("cpu", 0, 2)]
)
def test_each_platform_has_its_own_form(platform, convolutions, loops):
    shapes = (2, 9, 9, 4), (3, 3, 4, 1), (1, 1, 4, 6), (4,), (4,)
    step = jax.jit(jax.value_and_grad(_layer, argnums=(1, 2, 3, 4)))
    arguments = _tensors(shapes, "float32")
    exported = jax.export.export(step, platforms=[platform])(*arguments)
    program = exported.mlir_module()
    # Two forwards; of the second two gradients, of the first one's kernel one.
    assert program.count("stablehlo.convolution") == convolutions
    assert program.count("stablehlo.while") == loops
