"""Normalise and activate feature maps in the form for each device.

On a CPU, a feature map is far larger than the caches, so an operation takes as
long as reading and writing it. The gradient that JAX derives would keep or
compute several maps per normalisation; the one here keeps only its input.
"""

import functools

import jax
import jax.numpy as jnp
from keras import ops

from align_keras.backend import plain_normalization
from align_keras.backend.plain_normalization import silu

__all__ = ["normalize_and_silu", "normalize_batch", "silu"]


def normalize_batch(x, gamma, beta, epsilon):
    """Normalise a feature map by the statistics of the global batch.

    Args:
        x: see `plain_normalization.normalize_batch`, as for all other
            arguments and the result.
    """
    plain = plain_normalization.normalize_batch
    return _run((plain, _identity), x, gamma, beta, epsilon)


def normalize_and_silu(x, gamma, beta, epsilon):
    """Normalise a feature map and apply `silu`.

    Args:
        x: see `normalize_batch`, as for all other arguments.

    Returns:
        The tuple of `normalize_batch`, with `silu` applied to the feature map.
    """
    plain = plain_normalization.normalize_and_silu
    return _run((plain, silu), x, gamma, beta, epsilon)


def _run(forms, x, gamma, beta, epsilon):
    weights = map(ops.convert_to_tensor, (gamma, beta))
    activated, *statistics = _by_platform(forms, x, *weights, epsilon)
    return activated, *map(ops.stop_gradient, statistics)


# Outside of a compiled program, compile once for each shape.
@functools.partial(jax.jit, static_argnums=(0, 4))
def _by_platform(forms, x, gamma, beta, epsilon):
    plain, activation = forms
    return jax.lax.platform_dependent(
        x,
        gamma,
        beta,
        cpu=lambda *tensors: _normalize(*tensors, epsilon, activation),
        default=lambda *tensors: plain(*tensors, epsilon),
    )


def _identity(x):
    return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalize(x, gamma, beta, epsilon, activation):
    """Normalise a feature map, then apply an activation."""
    return _forward(x, gamma, beta, epsilon, activation)[0]


def _forward(x, gamma, beta, epsilon, activation):
    wide = x.astype(gamma.dtype)
    mean, variance = _moments(wide, epsilon)
    scale, shift = _scale_and_shift(gamma, beta, epsilon, mean, variance)
    activated = activation(wide * scale + shift).astype(x.dtype)
    saved = x, gamma, beta, mean, variance
    return (activated, mean, variance), saved


def _moments(x, epsilon):
    """Average each channel and its squares, in one pass if that is exact.

    Where a mean is far from 0, the difference of the mean square and the
    squared mean has lost digits. Then a second pass averages the squares of
    the deviations.
    """
    mean = jnp.mean(x, _PLACES)
    variance = jnp.maximum(jnp.mean(x * x, _PLACES) - mean * mean, 0)
    is_far = jnp.any(mean * mean > 100 * (variance + epsilon))
    return mean, jax.lax.cond(
        is_far,
        lambda: jnp.mean(jnp.square(x - mean), _PLACES),
        lambda: variance,
    )


def _backward(epsilon, activation, saved, gradients):
    x, gamma, beta, mean, variance = saved
    # Without the barriers, XLA would keep maps of the forward pass for this
    # one, and compute the gradient of the activation three times.
    x, gradient = jax.lax.optimization_barrier((x, gradients[0]))
    wide = x.astype(gamma.dtype)
    scale, shift = _scale_and_shift(gamma, beta, epsilon, mean, variance)
    _, pull = jax.vjp(activation, wide * scale + shift)
    (gradient,) = pull(gradient.astype(gamma.dtype))
    gradient = jax.lax.optimization_barrier(gradient)
    width = jax.lax.rsqrt(variance + epsilon)
    of_beta = jnp.sum(gradient, _PLACES)
    of_gamma = (jnp.sum(gradient * wide, _PLACES) - mean * of_beta) * width
    count = x.size // x.shape[-1]
    mean_part = (wide - mean) * (width * of_gamma / count)
    inner = gradient - of_beta / count - mean_part
    return (scale * inner).astype(x.dtype), of_gamma, of_beta


_normalize.defvjp(_forward, _backward)

_PLACES = (0, 1, 2)


def _scale_and_shift(gamma, beta, epsilon, mean, variance):
    scale = gamma * jax.lax.rsqrt(variance + epsilon)
    return scale, beta - mean * scale
