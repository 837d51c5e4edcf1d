"""Convolutions, in the form that is fastest where they run."""

import jax
from keras import ops


def convolve(x, kernel, strides, padding):
    """Convolve pictures with a kernel.

    Args:
        x: float tensor of shape `(batch, height, width, channels)`.
        kernel: float tensor of shape `(rows, columns, channels, filters)`.
        strides: pair of ints.
        padding: string. `"valid"` or `"same"`.

    Returns:
        A float tensor of shape `(batch, new_height, new_width, filters)`.
    """

    def convolution(x, kernel):
        return ops.conv(x, kernel, list(strides), padding, "channels_last")

    def product(x, kernel):
        return x @ kernel[0, 0]

    if kernel.shape[:2] != (1, 1) or tuple(strides) != (1, 1):
        return convolution(x, kernel)
    return jax.lax.platform_dependent(
        x, kernel, cpu=product, default=convolution
    )


def convolve_depthwise(x, kernel, strides, padding):
    """Convolve each channel with a kernel of its own.

    XLA has no loop for it on a CPU that is anywhere near the speed of one
    product for each place of the kernel, which it fuses into one pass.

    Args:
        x: float tensor of shape `(batch, height, width, channels)`.
        kernel: float tensor of shape `(rows, columns, channels, 1)`.
        strides: pair of ints.
        padding: string. `"valid"` or `"same"`.

    Returns:
        A float tensor of shape `(batch, new_height, new_width, channels)`.
    """

    def convolution(x, kernel):
        return ops.depthwise_conv(
            x, kernel, tuple(strides), padding, "channels_last"
        )

    def products(x, kernel):
        return _sum_of_products(x, kernel, strides, padding)

    return jax.lax.platform_dependent(
        x, kernel, cpu=products, default=convolution
    )


def _sum_of_products(x, kernel, strides, padding):
    margins = jax.lax.padtype_to_pads(
        x.shape[1:3], kernel.shape[:2], strides, padding.upper()
    )
    x = jax.numpy.pad(x, ((0, 0), *margins, (0, 0)))
    places = [
        (size - window) // stride + 1
        for size, window, stride in zip(
            x.shape[1:3], kernel.shape[:2], strides, strict=True
        )
    ]

    def shifted(row, column):
        end = [
            start + (count - 1) * stride + 1
            for start, count, stride in zip(
                (row, column), places, strides, strict=True
            )
        ]
        return jax.lax.slice(
            x,
            (0, row, column, 0),
            (x.shape[0], *end, x.shape[3]),
            (1, *strides, 1),
        )

    rows, columns = kernel.shape[:2]
    return sum(
        shifted(row, column) * kernel[row, column, :, 0]
        for row in range(rows)
        for column in range(columns)
    )
