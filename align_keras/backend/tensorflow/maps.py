"""What a training step does with each number of a map, in few passes.

A map of features is far larger than a processor's caches, so that the time of
these operations is that of reading and writing it.
"""

import tensorflow as tf


def normalize_batch(x, gamma, beta, epsilon):
    """Normalise a map by the statistics of this replica's batch.

    Args:
        x: float tensor of shape `(batch, height, width, channels)`.
        gamma: float32 tensor of shape `(channels,)`.
        beta: float32 tensor of shape `(channels,)`.
        epsilon: float. Added to the variance.

    Returns:
        A tuple of the normalised map, of the dtype of `x`, and the mean and
        variance of each channel, through which no gradients flow.
    """
    normalized, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x,
        scale=gamma,
        offset=beta,
        mean=tf.zeros((0,)),
        variance=tf.zeros((0,)),
        epsilon=epsilon,
        is_training=True,
    )
    # The operation estimates the variance of what the batch is a sample of.
    count = tf.cast(tf.size(x[..., 0]), "float32")
    variance = variance * tf.maximum(count - 1.0, 1.0) / count
    return normalized, tf.stop_gradient(mean), tf.stop_gradient(variance)


@tf.custom_gradient
def silu(x):
    """Compute `x * sigmoid(x)`, as a step of training does best.

    Value and gradient are one compiled pass each, where operations of
    TensorFlow make eight. Inference does not need it, and an export could not
    have it.

    Args:
        x: float tensor.

    Returns:
        A float tensor of the same shape.
    """
    return _silu(x), lambda gradient: _silu_gradient(x, gradient)


@tf.function(jit_compile=True, autograph=False)
def _silu(x):
    return x * tf.sigmoid(x)


@tf.function(jit_compile=True, autograph=False)
def _silu_gradient(x, gradient):
    sigmoid = tf.sigmoid(x)
    return gradient * sigmoid * (1.0 + x * (1.0 - sigmoid))
