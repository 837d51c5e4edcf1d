"""Gradients, loops and recomputation of stateless functions."""

import jax
import keras
import numpy as np
from keras import ops

from align_keras.backend.jax.replicas import num_shards
from align_keras.backend.stateless import stateless


def values(variables):
    """Read variables as tensors."""
    return [variable.value for variable in variables]


def value_and_gradients(function, arguments):
    """Differentiate a function of a list of tensors.

    Args:
        function: callable. Takes the list and returns a pair: a scalar, and
            any other value.
        arguments: list of float tensors.

    Returns:
        A tuple of the scalar, the other value, and a list of dense gradients.
    """
    (value, rest), gradients = jax.value_and_grad(function, has_aux=True)(
        arguments
    )
    return value, rest, gradients


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
    return jax.lax.scan(step, carry, inputs)


# Attaches a gradient to a function of tensors. The function returns its outputs
# and a callable from their gradients to those of the inputs.
custom_gradient = ops.custom_gradient


def mark_random_state():
    """Return a callable that does nothing: only variables hold state."""
    return lambda: None


def recompute(function, *inputs):
    """Run a function without keeping its activations for the backward pass.

    Args:
        function: callable. Takes float tensors and returns a pair: a tensor,
            and a list of tensors without gradients. It is called again in
            the backward pass.
        *inputs: structures of float tensors.

    Returns:
        The return value of `function`.
    """
    return jax.checkpoint(function)(*inputs)


def wait_for(known, tensor):
    """Return `tensor`: the compiler orders the operations of a program."""
    return tensor


def densify(gradient):
    """Return `gradient`, which is already dense."""
    return gradient


def sum_of_squares(tensor):
    """Sum the squares of all elements of a tensor of any shape."""
    return ops.sum(ops.square(tensor))


def without_gradients(function):
    """Return `function`: activations are kept only if gradients are needed."""
    return function


def compile_inference(model, function):
    """Compile `function`, which runs `model` for inference.

    `keras.Model.predict` would also work, but its first call takes several
    times as long as the compilation itself.

    Args:
        model: `keras.Model`, built. Its weights may change later.
        function: callable of an array or a dict of arrays.

    Returns:
        A callable of the same input, which compiles once for each new shape.
        With several devices, each runs some of the rows. With several
        processes, all must call it with the same input, and get all rows.
    """
    run = jax.jit(stateless(model, function))
    if num_shards() == 1:
        return lambda inputs: run([w.value for w in model.weights], inputs)
    run = jax.jit(
        stateless(model, function), out_shardings=_layout(batch=False)
    )

    def over_devices(inputs):
        rows = len(jax.tree.leaves(inputs)[0])
        missing = -rows % num_shards()

        def lay_out(array):
            array = np.asarray(array)
            margins = [(0, missing)] + [(0, 0)] * (array.ndim - 1)
            array = np.pad(array, margins)
            return jax.make_array_from_callback(
                array.shape, _layout(batch=True), lambda place: array[place]
            )

        outputs = run(
            [w.value for w in model.weights], jax.tree.map(lay_out, inputs)
        )
        return jax.tree.map(lambda x: np.asarray(x)[:rows], outputs)

    return over_devices


def _layout(batch):
    """Return the layout of rows: over the devices, or all rows on each."""
    distribution = keras.distribution.distribution()
    dimension = [distribution.batch_dim_name] if batch else []
    return keras.distribution.TensorLayout(
        dimension, distribution.device_mesh
    ).backend_layout


def lengths_may_vary():
    """Return `False`: each new shape would have to be compiled."""
    return False


def traced_once(function):
    """Return `function`, which is not traced by itself."""
    return function


def require(condition, message):
    """Do nothing: shapes are known before anything runs."""
