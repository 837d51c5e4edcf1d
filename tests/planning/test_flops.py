"""Operations of products and convolutions, against a count by hand."""

import pytest

jax = pytest.importorskip("jax")
jnp = jax.numpy

from align_keras.planning.flops import count_flops


def count(function, *shapes, **options):
    arguments = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
    return count_flops(jax.make_jaxpr(function)(*arguments), **options)


def convolution(x, kernel, groups):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (2, 2),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def test_product_and_convolutions():
    assert count(jnp.matmul, (3, 4, 5), (3, 5, 6)) == 2 * 3 * 4 * 5 * 6
    plain = count(lambda x, k: convolution(x, k, 1), (2, 9, 9, 3), (3, 3, 3, 8))
    assert plain == 2 * (2 * 4 * 4 * 8) * (3 * 3 * 3)
    depthwise = count(
        lambda x, k: convolution(x, k, 6), (2, 9, 9, 6), (3, 3, 1, 6)
    )
    assert depthwise == 2 * (2 * 4 * 4 * 6) * (3 * 3)


def test_nested_functions():
    """A loop counts its turns; a recomputed function counts twice."""

    def loop(x, y):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ y), None), x, length=7)

    assert count(loop, (4, 4), (4, 4)) == 7 * 2 * 4**3
    assert count(loop, (4, 4), (4, 4), loops=False) == 2 * 4**3

    def square(x):
        return jnp.sum(jax.checkpoint(lambda x: jnp.sin(jnp.sin(x @ x) @ x))(x))

    forward, whole = count(square, (4, 4)), count(jax.grad(square), (4, 4))
    assert forward == 2 * 2 * 4**3
    # Forward, again the product under the inner sine (the outer one needs
    # both), and two products backward for each.
    assert whole == forward + forward + 2 * forward

    def either(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x, x)

    assert count(either, (4, 4)) == 2 * 4**3
    assert count(jax.jit(either), (4, 4)) == 2 * 4**3
