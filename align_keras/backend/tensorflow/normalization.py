"""Normalise and activate feature maps in few passes.

A feature map is far larger than a processor's caches, so these operations take
as long as reading and writing it.
"""

import tensorflow as tf


def normalize_batch(x, gamma, beta, epsilon):
    """Normalise a feature map by the statistics of this replica's batch.

    Args:
        x: float tensor of shape `(batch, height, width, channels)`.
        gamma: float32 tensor of shape `(channels,)`.
        beta: float32 tensor of shape `(channels,)`.
        epsilon: float. Added to the variance.

    Returns:
        A tuple of the normalised feature map, of the dtype of `x`, and the mean
        and variance of each channel, through which no gradients flow.
    """
    normalized, mean, variance, _ = _normalize(x, gamma, beta, epsilon)
    return normalized, tf.stop_gradient(mean), tf.stop_gradient(variance)


def normalize_and_silu(x, gamma, beta, epsilon):
    """Normalise a feature map and apply `silu`, keeping only `x`.

    Otherwise the normalised feature map would be kept for the gradient of
    `silu`: a third of all activations. Here the gradient is computed from `x`.

    Args:
        x: see `normalize_batch`, as for all other arguments.

    Returns:
        The tuple of `normalize_batch`, with `silu` applied to the feature map.
    """

    @tf.custom_gradient
    def run(x, gamma, beta):
        normalized, mean, variance, kept = _normalize(x, gamma, beta, epsilon)

        def backward(gradient, *_):
            scale = gamma * tf.math.rsqrt(variance + epsilon)
            shift = beta - mean * scale
            gradients = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=_normalized_silu_gradient(x, scale, shift, gradient),
                x=x,
                scale=gamma,
                reserve_space_1=kept[0],
                reserve_space_2=kept[1],
                reserve_space_3=kept[2],
                epsilon=epsilon,
                is_training=True,
            )
            return gradients[:3]

        return (_silu(normalized), mean, variance), backward

    # A custom gradient refuses to read variables.
    gamma, beta = tf.convert_to_tensor(gamma), tf.convert_to_tensor(beta)
    activated, mean, variance = run(x, gamma, beta)
    return activated, tf.stop_gradient(mean), tf.stop_gradient(variance)


def _normalize(x, gamma, beta, epsilon):
    normalized, mean, variance, *kept = tf.raw_ops.FusedBatchNormV3(
        x=x,
        scale=gamma,
        offset=beta,
        mean=tf.zeros((0,)),
        variance=tf.zeros((0,)),
        epsilon=epsilon,
        is_training=True,
    )
    # The operation returns the unbiased estimate of the variance.
    count = tf.cast(tf.size(x[..., 0]), "float32")
    variance = variance * tf.maximum(count - 1.0, 1.0) / count
    return normalized, mean, variance, kept


@tf.custom_gradient
def silu(x):
    """Compute `x * sigmoid(x)` in the way that is fastest in training.

    Value and gradient each take one compiled pass; TensorFlow's operations
    would take eight. Inference does not need it, and an exported model cannot
    contain it.

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
    return gradient * _silu_slope(x)


@tf.function(jit_compile=True, autograph=False)
def _normalized_silu_gradient(x, scale, shift, gradient):
    slope = _silu_slope(tf.cast(x, "float32") * scale + shift)
    return tf.cast(tf.cast(gradient, "float32") * slope, x.dtype)


def _silu_slope(x):
    sigmoid = tf.sigmoid(x)
    return sigmoid * (1.0 + x * (1.0 - sigmoid))
