"""Convolutions, together with the normalisation of their outputs."""

import keras
from keras import layers
from keras import ops

from align_keras import backend


def convolve_and_normalize(
    convolution, normalization, x, training, activation=None
):
    """Run a convolution, the normalisation after it, and an activation.

    In inference, normalisation scales and shifts each channel. The scale is
    folded into the kernel, which saves reading and writing the map once.

    Args:
        convolution: `keras.layers.Conv2D` or `keras.layers.DepthwiseConv2D`,
            built, without a bias.
        normalization: `BatchNormalization`, built.
        x: float tensor of shape `(batch, height, width, channels)`.
        training: bool. Whether to use batch statistics.
        activation: callable of `keras.activations`. Defaults to `None`, for
            no activation.

    Returns:
        A float tensor of shape `(batch, new_height, new_width, filters)`.
    """
    depthwise = isinstance(convolution, layers.DepthwiseConv2D)
    run = backend.convolve_depthwise if depthwise else backend.convolve
    kernel = ops.convert_to_tensor(convolution.kernel)
    form = convolution.strides, convolution.padding
    is_silu = activation is keras.activations.silu
    if training and normalization.trainable:
        x = run(x, kernel, *form)
        if is_silu and normalization.has_short_form(x):
            return normalization.normalize_and_silu(x)
        x = normalization(x, training=True)
    else:
        scale, shift = normalization.scale_and_shift()
        factors = scale[:, None] if depthwise else scale
        folded = ops.cast(kernel, scale.dtype) * factors
        x = run(x, ops.cast(folded, x.dtype), *form)
        x = x + ops.cast(shift, x.dtype)
    if activation is None:
        return x
    return backend.silu(x) if training and is_silu else activation(x)
