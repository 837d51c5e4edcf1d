"""Gradients, loops and recomputation of stateless functions."""

import keras
import torch
import torch.utils.checkpoint


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
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_(True) for x in arguments]
        value, rest = function(leaves)
        gradients = []
        if leaves:
            gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    gradients = [
        torch.zeros_like(leaf) if gradient is None else gradient
        for leaf, gradient in zip(leaves, gradients, strict=True)
    ]
    return value.detach(), _detached(rest), gradients


def _detached(tree):
    return keras.tree.map_structure(
        lambda x: x.detach() if isinstance(x, torch.Tensor) else x, tree
    )


def custom_gradient(function):
    """Attach a gradient to a function of tensors.

    On this backend, Keras' operation of that name supports only one output.

    Args:
        function: callable. Takes tensors and returns a pair: one or more
            tensors, and a callable from their gradients to those of the
            inputs.

    Returns:
        A callable of the same tensors, which returns the outputs.
    """

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(context, *inputs):
            outputs, context.gradient = function(*inputs)
            if isinstance(outputs, torch.Tensor):
                return outputs
            outputs = tuple(outputs)
            counts = [x for x in outputs if not x.is_floating_point()]
            context.mark_non_differentiable(*counts)
            return outputs

        @staticmethod
        def backward(context, *upstream):
            gradients = context.gradient(*upstream)
            if isinstance(gradients, torch.Tensor):
                return gradients
            return tuple(gradients)

    return Function.apply


def scan(step, carry, inputs, dtypes=()):
    """Loop over the first axis of tensors, one step at a time.

    Args:
        step: callable. Takes the carry and slices of `inputs`, and returns
            the next carry and a structure of tensors to stack.
        carry: structure of tensors. Their shapes and dtypes must not change.
        inputs: structure of tensors whose first axes have equal length.
        dtypes: structure of the dtypes of the tensors to stack.

    Returns:
        A pair of the last carry and the structure of stacked tensors.
    """
    stacks = []
    for index in range(len(keras.tree.flatten(inputs)[0])):
        slices = keras.tree.map_structure(
            lambda x, index=index: x[index], inputs
        )
        carry, outputs = step(carry, slices)
        stacks.append(outputs)
    joined = keras.tree.map_structure(lambda *x: torch.stack(x), *stacks)
    return carry, joined


def mark_random_state():
    """Save the state of the random generators, to draw the same numbers again.

    Without a seed, Keras' dropout draws from torch's own generators, which are
    not part of the model's state.

    Returns:
        A callable without arguments that restores the state.
    """
    state = torch.get_rng_state()
    devices = []
    if torch.cuda.is_available():
        devices = torch.cuda.get_rng_state_all()

    def rewind():
        torch.set_rng_state(state)
        if devices:
            torch.cuda.set_rng_state_all(devices)

    return rewind


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
    return torch.utils.checkpoint.checkpoint(
        function, *inputs, use_reentrant=False
    )


def wait_for(known, tensor):
    """Return `tensor`: operations run in the order in which they are called."""
    return tensor


def densify(gradient):
    """Return `gradient`, which is already dense."""
    return gradient


def sum_of_squares(tensor):
    """Sum the squares of all elements of a tensor of any shape."""
    return torch.sum(torch.square(tensor))


def without_gradients(function):
    """Run a function without keeping activations for gradients.

    Args:
        function: callable.

    Returns:
        A callable of the same arguments that returns detached tensors.
    """
    return torch.no_grad()(function)


def compile_inference(model, function):
    """Return `function`, which runs `model`, with gradients disabled.

    Args:
        model: `keras.Model`, built.
        function: callable of an array or a dict of arrays.

    Returns:
        A callable of the same input.
    """

    return without_gradients(function)


def lengths_may_vary():
    """Return whether a tensor's length may depend on the data.

    Graphs that `torch.export` or `torch.jit.trace` make have fixed shapes.
    """
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing())


def traced_once(function):
    """Return `function`, which is not traced by itself."""
    return function


def require(condition, message):
    """Fail with `message` unless the condition holds."""
    if not bool(condition):
        raise ValueError(message)
