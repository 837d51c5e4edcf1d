"""Loops over tiles whose memory does not grow with their number."""

import tensorflow as tf


def scan(function, carry, rows, dtypes=None):
    """Loop over the leading axis of tensors, one step at a time.

    Args:
        function: callable of the carry and a slice of `rows`. Returns the
            next carry and a dict of outputs.
        carry: structure of tensors.
        rows: structure of tensors whose first axes are equally long.
        dtypes: dict. The dtype of each output.

    Returns:
        The last carry, and the outputs, stacked along a new first axis.
    """
    count = tf.shape(tf.nest.flatten(rows)[0])[0]
    stacks = {
        name: tf.TensorArray(dtype, count)
        for name, dtype in (dtypes or {}).items()
    }

    def body(index, carry, stacks):
        part = tf.nest.map_structure(lambda row: row[index], rows)
        carry, outputs = function(carry, part)
        stacks = {
            name: stack.write(index, outputs[name])
            for name, stack in stacks.items()
        }
        return index + 1, carry, stacks

    # Tiles side by side would need the memory that tiles are to save.
    _, carry, stacks = tf.while_loop(
        lambda index, *_: index < count,
        body,
        (0, carry, stacks),
        parallel_iterations=1,
    )
    return carry, {name: stack.stack() for name, stack in stacks.items()}


def replicate(tensor):
    """Return `tensor`, which is whole on every replica already."""
    return tensor
