"""Convolutions in the form that is fastest on each device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from keras import ops

# Outside of a compiled program, compile once for each shape.
_compile = functools.partial(jax.jit, static_argnums=(2, 3))


def convolve(x, kernel, strides, padding):
    """Convolve images with a kernel.

    Args:
        x: float tensor of shape `(batch, height, width, channels)`.
        kernel: float tensor of shape `(rows, columns, channels, filters)`.
        strides: pair of ints.
        padding: string. `"valid"` or `"same"`.

    Returns:
        A float tensor of shape `(batch, new_height, new_width, filters)`.
    """
    strides = tuple(strides)
    if kernel.shape[:2] == (1, 1) and strides == (1, 1):
        return _convolve_places(x, kernel, strides, padding)
    return ops.conv(x, kernel, strides, padding, "channels_last")


@_compile
def _convolve_places(x, kernel, strides, padding):
    def convolution(x, kernel):
        return ops.conv(x, kernel, strides, padding, "channels_last")

    def product(x, kernel):
        # XLA would transpose a map of four axes for the gradient of the kernel.
        rows = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
        return rows.reshape(*x.shape[:-1], kernel.shape[-1])

    return jax.lax.platform_dependent(
        x, kernel, cpu=product, default=convolution
    )


def convolve_depthwise(x, kernel, strides, padding):
    """Convolve each channel with its own kernel.

    On a CPU, XLA's convolution loop is far slower than one product for each
    position of the kernel, because XLA fuses these products into one pass.

    Args:
        x: float tensor of shape `(batch, height, width, channels)`.
        kernel: float tensor of shape `(rows, columns, channels, 1)`.
        strides: pair of ints.
        padding: string. `"valid"` or `"same"`.

    Returns:
        A float tensor of shape `(batch, new_height, new_width, channels)`.
    """
    return _convolve_depthwise(x, kernel, tuple(strides), padding)


@_compile
def _convolve_depthwise(x, kernel, strides, padding):
    def convolution(x, kernel):
        return ops.depthwise_conv(x, kernel, strides, padding, "channels_last")

    def products(x, kernel):
        margins = jax.lax.padtype_to_pads(
            x.shape[1:3], kernel.shape[:2], strides, padding.upper()
        )
        x = _padded(x, [(*pair, 0) for pair in margins])
        # Sum in 32 bits as a convolution does, whatever the dtypes.
        wide = jnp.promote_types(x.dtype, jnp.float32)
        pair = x.astype(wide), kernel[..., 0].astype(wide)
        return _sum_of_products(*pair, strides).astype(x.dtype)

    return jax.lax.platform_dependent(
        x, kernel, cpu=products, default=convolution
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _sum_of_products(x, kernel, strides):
    """Sum the products of the kernel's weights and shifted copies of `x`.

    Args:
        x: float tensor `(batch, height, width, channels)`, padded.
        kernel: float tensor `(rows, columns, channels)`.
        strides: pair of ints.
    """
    rows, columns, _ = kernel.shape
    places = _places(x, kernel, strides)
    return sum(
        _shifted(x, (0, row, column, 0), (1, *strides, 1), places)
        * kernel[row, column]
        for row in range(rows)
        for column in range(columns)
    )


def _padded(x, margins):
    """Pad rows and columns, before, after and between them."""
    if not np.any(margins):
        return x
    none = (0, 0, 0)
    zero = jnp.zeros((), x.dtype)
    padded = jax.lax.pad(x, zero, (none, *margins, none))
    # Without the barrier, XLA computes `x` once more for the kernel's centre,
    # which sees no margin.
    return jax.lax.optimization_barrier(padded)


def _places(x, kernel, strides):
    """Return the height and width of the output."""
    return [
        (size - window) // stride + 1
        for size, window, stride in zip(
            x.shape[1:3], kernel.shape[:2], strides, strict=True
        )
    ]


def _shifted(x, start, strides, places):
    """Slice the part of `x` that one position of the kernel multiplies."""
    counts = (x.shape[0], *places, x.shape[-1])
    ends = [
        first + (count - 1) * stride + 1
        for first, count, stride in zip(start, counts, strides, strict=True)
    ]
    return jax.lax.slice(x, start, ends, strides)


def _forward(x, kernel, strides):
    return _sum_of_products(x, kernel, strides), (x, kernel)


def _backward(strides, saved, gradient):
    # The gradient that JAX derives writes a map per position of the kernel.
    x, kernel = saved
    return (
        _gradient_of_input(x, kernel, strides, gradient),
        _gradient_of_kernel(x, kernel, strides, gradient),
    )


_sum_of_products.defvjp(_forward, _backward)


def _gradient_of_input(x, kernel, strides, gradient):
    """Convolve the dilated gradient with the kernel rotated by 180 degrees."""
    margins = [
        (window - 1, size - 1 - (count - 1) * stride, stride - 1)
        for size, window, count, stride in zip(
            x.shape[1:3],
            kernel.shape[:2],
            gradient.shape[1:3],
            strides,
            strict=True,
        )
    ]
    spread = _padded(gradient, margins)
    return _sum_of_products(spread, kernel[::-1, ::-1], (1, 1))


def _gradient_of_kernel(x, kernel, strides, gradient):
    """Sum over blocks of rows, each of which stays in the cache.

    All positions of the kernel read a block. A loop over the kernel's rows
    keeps the program short.
    """
    batch, height, width, channels = gradient.shape
    down, right = strides
    most = min(height, max(1, _BLOCK // (width * channels)))
    # Blocks of fewer rows, if that spares a copy with more rows.
    choices = range(most, most // 2, -1)
    lines = next((n for n in choices if height % n == 0), most)
    blocks = -(-height // lines)
    missing = blocks * lines - height
    gradient = jnp.pad(gradient, ((0, 0), (0, missing), (0, 0), (0, 0)))
    x = jnp.pad(x, ((0, 0), (0, missing * down), (0, 0), (0, 0)))
    span = (lines - 1) * down + 1  # Rows of `x` under a row of the kernel.

    def add(total, place):
        image, line = place
        part = _block(gradient, image, line, lines)
        window = _block(x, image, line * down, span + kernel.shape[0] - 1)

        def of_row(row):
            seen = jax.lax.dynamic_slice_in_dim(window, row, span)
            columns = (
                seen[::down, column : column + (width - 1) * right + 1 : right]
                for column in range(kernel.shape[1])
            )
            return jnp.stack([jnp.sum(c * part, (0, 1)) for c in columns])

        return total + jax.lax.map(of_row, jnp.arange(kernel.shape[0])), None

    images, firsts = np.indices((batch, blocks), "int32").reshape(2, -1)
    total = jnp.zeros(kernel.shape, x.dtype)
    return jax.lax.scan(add, total, (images, firsts * lines))[0]


# Elements of the gradient in a block, whose size is 128 KiB.
_BLOCK = 2**15


def _block(x, image, line, lines):
    """Slice consecutive rows of an image."""
    sizes = (1, lines, *x.shape[2:])
    # Where 64 bits are enabled, a plain 0 has another dtype than `line`.
    zero = jnp.zeros_like(line)
    return jax.lax.dynamic_slice(x, (image, line, zero, zero), sizes)[0]
