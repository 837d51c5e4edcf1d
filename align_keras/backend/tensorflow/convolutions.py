"""Convolutions in the form that is fastest on each device."""

from keras import ops


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
    return ops.conv(x, kernel, list(strides), padding, "channels_last")


def convolve_depthwise(x, kernel, strides, padding):
    """Convolve each channel with its own kernel.

    Args:
        x: float tensor of shape `(batch, height, width, channels)`.
        kernel: float tensor of shape `(rows, columns, channels, 1)`.
        strides: pair of ints.
        padding: string. `"valid"` or `"same"`.

    Returns:
        A float tensor of shape `(batch, new_height, new_width, channels)`.
    """
    return ops.depthwise_conv(
        x, kernel, tuple(strides), padding, "channels_last"
    )
