"""Loops over tiles whose memory does not grow with their number."""

import tensorflow as tf


def scan(step, carry, inputs, dtypes):
    """Fold `step` over the first axis of `inputs`, and stack what it yields.

    Args:
        step: callable. Takes the carry and a tuple of slices of `inputs`, and
            returns the next carry and a tuple of tensors to stack.
        carry: tuple of tensors, whose shapes and dtypes stay as they are.
        inputs: tuple of tensors with first axes of equal length.
        dtypes: tuple of the dtypes of the tensors to stack.

    Returns:
        A pair of the last carry and the tuple of stacked tensors.
    """
    length = tf.shape(inputs[0])[0]
    stacks = tuple(tf.TensorArray(dtype, size=length) for dtype in dtypes)

    def body(index, carry, stacks):
        carry, outputs = step(carry, tuple(x[index] for x in inputs))
        stacks = tuple(
            stack.write(index, output)
            for stack, output in zip(stacks, outputs, strict=True)
        )
        return index + 1, carry, stacks

    # Tiles side by side would need the memory that tiles are to save.
    _, carry, stacks = tf.while_loop(
        lambda index, *_: index < length,
        body,
        (0, carry, stacks),
        parallel_iterations=1,
    )
    return carry, tuple(stack.stack() for stack in stacks)


def replicate(tensor):
    """Return `tensor`, which is whole on every replica already."""
    return tensor
