"""Normalise and activate feature maps with Keras operations."""

import keras
from keras import ops


def normalize_batch(x, gamma, beta, epsilon):
    """Normalise a feature map by the statistics of the global batch.

    Args:
        x: float tensor of shape `(batch, height, width, channels)`.
        gamma: float32 tensor of shape `(channels,)`.
        beta: float32 tensor of shape `(channels,)`.
        epsilon: float. Added to the variance.

    Returns:
        A tuple of the normalised feature map, of the dtype of `x`, and the mean
        and variance of each channel, through which no gradients flow.
    """
    wide = ops.cast(x, gamma.dtype)
    mean, variance = ops.moments(wide, axes=(0, 1, 2))
    normalized = ops.batch_normalization(
        wide, mean, variance, -1, beta, gamma, epsilon
    )
    statistics = ops.stop_gradient(mean), ops.stop_gradient(variance)
    return ops.cast(normalized, x.dtype), *statistics


def normalize_and_silu(x, gamma, beta, epsilon):
    """Normalise a feature map and apply `silu`.

    Args:
        x: see `normalize_batch`, as for all other arguments.

    Returns:
        The tuple of `normalize_batch`, with `silu` applied to the feature map.
    """
    normalized, *statistics = normalize_batch(x, gamma, beta, epsilon)
    return silu(normalized), *statistics


silu = keras.activations.silu
