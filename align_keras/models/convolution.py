"""Convolutions and the normalisation of what they give."""

import keras
from keras import layers
from keras import ops

from align_keras import backend


def convolve_and_normalize(convolution, normalization, x, training):
    """Run a convolution and the normalisation behind it.

    In inference a normalisation is a scale and a shift of each channel. The
    scale goes into the kernel, so that the map is not read and written for it.

    Args:
        convolution: `keras.layers.Conv2D` or `keras.layers.DepthwiseConv2D`,
            built, without a bias.
        normalization: `BatchNormalization`, built.
        x: float tensor of shape `(batch, height, width, channels)`.
        training: bool. Whether batch statistics are on.

    Returns:
        A float tensor of shape `(batch, new_height, new_width, filters)`.
    """
    depthwise = isinstance(convolution, layers.DepthwiseConv2D)
    run = backend.convolve_depthwise if depthwise else backend.convolve
    kernel = ops.convert_to_tensor(convolution.kernel)
    form = convolution.strides, convolution.padding
    if training and normalization.trainable:
        return normalization(run(x, kernel, *form), training=True)
    scale, shift = normalization.scale_and_shift()
    factors = scale[:, None] if depthwise else scale
    folded = ops.cast(kernel, scale.dtype) * factors
    x = run(x, ops.cast(folded, x.dtype), *form)
    return x + ops.cast(shift, x.dtype)


def activate(activation, x, training):
    """Apply an activation, in the form that suits the step.

    Args:
        activation: callable, of `keras.activations`.
        x: float tensor.
        training: bool. Whether gradients are asked for.
    """
    if training and activation is keras.activations.silu:
        return backend.silu(x)
    return activation(x)
