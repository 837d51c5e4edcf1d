"""Loops over tiles whose memory does not grow with their number."""

import jax
import keras


def scan(step, carry, inputs, dtypes):
    """Fold `step` over the first axis of `inputs`, and stack what it yields.

    Args:
        step: callable. Takes the carry and a tuple of slices of `inputs`, and
            returns the next carry and a tuple of arrays to stack.
        carry: tuple of arrays, whose shapes and dtypes stay as they are.
        inputs: tuple of arrays with first axes of equal length.
        dtypes: tuple of the dtypes of the arrays to stack.

    Returns:
        A pair of the last carry and the tuple of stacked arrays.
    """
    return jax.lax.scan(step, carry, inputs)


def replicate(tensor):
    """Place the whole of `tensor` on every device, where there are several.

    A loop over slices of an array that is spread over the devices would wait
    for one device after the other.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        return tensor
    whole = keras.distribution.TensorLayout(
        [None] * tensor.ndim, distribution.device_mesh
    )
    return keras.distribution.distribute_tensor(tensor, whole)
