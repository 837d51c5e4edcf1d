"""Loops over tiles whose memory does not grow with their number."""

import jax
import keras


def scan(function, carry, rows, dtypes=None):
    """Loop over the leading axis of arrays, one step at a time.

    Args:
        function: callable of the carry and a slice of `rows`. Returns the
            next carry and a dict of outputs.
        carry: structure of arrays.
        rows: structure of arrays whose first axes are equally long.
        dtypes: dict. The dtype of each output. Needed on TensorFlow.

    Returns:
        The last carry, and the outputs, stacked along a new first axis.
    """
    return jax.lax.scan(function, carry, rows)


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
