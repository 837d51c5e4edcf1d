"""Gradients, loops and recomputation of stateless functions."""

import tensorflow as tf

from align_keras.backend.lengths import any_length
from align_keras.backend.lengths import lengths_are_free


def values(variables):
    """Read variables as tensors."""
    return [tf.convert_to_tensor(variable.value) for variable in variables]


def value_and_gradients(function, arguments):
    """Differentiate a function of a list of tensors.

    Args:
        function: callable. Takes the list and returns a pair: a scalar, and
            any other value.
        arguments: list of float tensors.

    Returns:
        A tuple of the scalar, the other value, and a list of dense gradients.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(arguments)
        value, rest = function(arguments)
    gradients = tape.gradient(
        value, arguments, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    return value, rest, [densify(gradient) for gradient in gradients]


def scan(step, carry, inputs, dtypes=()):
    """Loop over the first axis of tensors, one step at a time.

    The memory of the loop does not grow with the number of steps.

    Args:
        step: callable. Takes the carry and slices of `inputs`, and returns
            the next carry and a structure of tensors to stack.
        carry: structure of tensors. Their shapes and dtypes must not change.
        inputs: structure of tensors whose first axes have equal length.
        dtypes: structure of the dtypes of the tensors to stack.

    Returns:
        A pair of the last carry and the structure of stacked tensors.
    """
    length = tf.shape(tf.nest.flatten(inputs)[0])[0]
    stacks = tf.nest.map_structure(
        lambda dtype: tf.TensorArray(dtype, length), dtypes
    )

    def body(index, carry, stacks):
        carry, outputs = step(
            carry, tf.nest.map_structure(lambda rows: rows[index], inputs)
        )
        stacks = tf.nest.map_structure(
            lambda stack, output: stack.write(index, output), stacks, outputs
        )
        return index + 1, carry, stacks

    # Parallel steps would need the memory that the loop saves.
    _, carry, stacks = tf.while_loop(
        lambda index, *_: index < length,
        body,
        (0, carry, stacks),
        parallel_iterations=1,
    )
    return carry, tf.nest.map_structure(lambda stack: stack.stack(), stacks)


# Attaches a gradient to a function of tensors. The function returns its outputs
# and a callable from their gradients to those of the inputs.
custom_gradient = tf.custom_gradient


def mark_random_state():
    """Return a callable that does nothing: only variables hold state."""
    return lambda: None


def recompute(function, *inputs):
    """Run a function without keeping its activations for the backward pass.

    Unlike `tf.recompute_grad`, it takes a function that reads no variables,
    and that returns the new state of its layers along with its output.

    Args:
        function: callable. Takes float tensors and returns a pair: a tensor,
            and a list of tensors without gradients. It is called again in
            the backward pass.
        *inputs: structures of float tensors.

    Returns:
        The return value of `function`.
    """
    state = []

    @tf.custom_gradient
    def run(*flat):
        output, state[:] = function(*tf.nest.pack_sequence_as(inputs, flat))

        def backward(gradient):
            copies = [wait_for(gradient, tensor) for tensor in flat]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(copies)
                again, _ = function(*tf.nest.pack_sequence_as(inputs, copies))
            return tape.gradient(
                again,
                copies,
                output_gradients=gradient,
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )

        return output, backward

    return run(*tf.nest.flatten(inputs)), state


def wait_for(known, tensor):
    """Copy `tensor`, but not before another tensor is computed.

    Without it, a graph computes values as early as possible and keeps them
    until they are needed. XLA ignores control dependencies, so the copy adds a
    zero that depends on the other tensor.

    Args:
        known: float tensor. Must be computed first.
        tensor: float tensor.

    Returns:
        A tensor equal to `tensor`.
    """
    if tf.executing_eagerly():
        return tf.identity(tensor)
    first = tf.reduce_max(tf.reshape(known, [-1])[:1])
    defined = tf.cast(first, "bool")
    zero = tf.where(defined == defined, 0.0, float("nan"))
    return tensor + tf.cast(zero, tensor.dtype)


def densify(gradient):
    """Turn the sparse gradient of an embedding into a dense tensor."""
    if isinstance(gradient, tf.IndexedSlices):
        return tf.convert_to_tensor(gradient)
    return gradient


def sum_of_squares(tensor):
    """Sum the squares of all elements of a tensor of any shape."""
    return 2.0 * tf.nn.l2_loss(tensor)


def without_gradients(function):
    """Return `function`: activations are kept only if gradients are needed."""
    return function


def compile_inference(model, function):
    """Compile `function`, which runs `model` for inference.

    Args:
        model: `keras.Model`, built. Its weights may change later.
        function: callable of an array or a dict of arrays.

    Returns:
        A callable of the same input, which compiles once for each new shape.
    """

    def run(inputs):
        with any_length():
            return function(inputs)

    return tf.function(run, autograph=False)


def lengths_may_vary():
    """Return whether a tensor's length may depend on the data.

    A TPU needs fixed shapes, and a graph that is traced outside of
    `any_length` may be meant for one.
    """
    return tf.executing_eagerly() or lengths_are_free()


def traced_once(function):
    """Make the graph of a function once for tensors of all shapes.

    A graph that updates hundreds of variables then holds one call for each,
    and not all operations of the update, which take seconds to trace and to
    optimize.

    Args:
        function: callable of tensors. Returns a tuple of tensors.

    Returns:
        A callable of the same tensors.
    """
    traced = tf.function(
        function,
        autograph=False,
        experimental_attributes={"_noinline": True},
    )

    def run(*tensors):
        tensors = [tf.convert_to_tensor(tensor) for tensor in tensors]
        any_shape = [tf.TensorSpec(None, tensor.dtype) for tensor in tensors]
        return traced.get_concrete_function(*any_shape)(*tensors)

    return run


def require(condition, message):
    """Fail with `message` at run time unless the condition holds."""
    tf.debugging.Assert(condition, [message])
