"""Gradients, loops and recomputation of functions without side effects."""

import tensorflow as tf


def values(variables):
    """Read variables as tensors."""
    return [tf.convert_to_tensor(variable.value) for variable in variables]


def value_and_gradients(function, arguments):
    """Differentiate a function of a list of tensors.

    Args:
        function: callable of the list. Returns a pair: a scalar, and anything
            else.
        arguments: list of float tensors.

    Returns:
        A tuple of the scalar, the rest, and a list of dense gradients.
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

    The memory of the loop does not grow with the number of its steps.

    Args:
        step: callable. Takes the carry and slices of `inputs`, and returns
            the next carry and a structure of tensors to stack.
        carry: structure of tensors, whose shapes and dtypes stay as they are.
        inputs: structure of tensors with first axes of equal length.
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

    # Steps side by side would need the memory that the loop is to save.
    _, carry, stacks = tf.while_loop(
        lambda index, *_: index < length,
        body,
        (0, carry, stacks),
        parallel_iterations=1,
    )
    return carry, tf.nest.map_structure(lambda stack: stack.stack(), stacks)


# Gives a function of tensors, which returns its outputs and a callable from
# their gradients to those of the inputs, that gradient.
custom_gradient = tf.custom_gradient


def mark_random_state():
    """Return a callable that does nothing: variables alone hold the state."""
    return lambda: None


def recompute(function, *inputs):
    """Run a function and keep nothing of it for the backward pass.

    Unlike `tf.recompute_grad`, it takes a function that returns the new state
    of its layers beside its output, and reads no variables.

    Args:
        function: callable of float tensors. Returns a pair: a tensor, and a
            list of tensors that gradients do not flow through. It is called
            once more in the backward pass.
        *inputs: structures of float tensors.

    Returns:
        What `function` returns.
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
    """Copy `tensor` in a way that has to wait until another is known.

    Without it, a graph computes and keeps as early as possible what is needed
    late. XLA heeds no control dependencies, hence a zero that depends on the
    other.

    Args:
        known: float tensor.
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
    """Sum the squares of all numbers of a tensor, of whatever shape."""
    return 2.0 * tf.nn.l2_loss(tensor)


def without_gradients(function):
    """Return `function`: nothing is kept unless gradients are asked for."""
    return function


def compile_inference(model, function):
    """Compile `function`, which runs `model` without training it.

    Args:
        model: `keras.Model`, built. Its weights may change later on.
        function: callable of one array, or dict of arrays.

    Returns:
        A callable of the same input. Each new shape is compiled once.
    """
    return tf.function(function, autograph=False)


def require(condition, message):
    """Fail with `message` when the step runs, unless the condition holds."""
    tf.debugging.Assert(condition, [message])
