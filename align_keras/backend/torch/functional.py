"""Gradients, loops and recomputation of functions without side effects."""

import keras
import torch
import torch.utils.checkpoint


def values(variables):
    """Read variables as tensors."""
    return [variable.value for variable in variables]


def value_and_gradients(function, arguments):
    """Differentiate a function of a list of tensors.

    Args:
        function: callable of the list. Returns a pair: a scalar, and anything
            else.
        arguments: list of float tensors.

    Returns:
        A tuple of the scalar, the rest, and a list of dense gradients.
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
    """Give a function of tensors a gradient of its own.

    Keras' operation of that name knows one output only on this backend.

    Args:
        function: callable of tensors. Returns a pair of one or more tensors,
            and a callable from their gradients to those of the inputs.

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
        carry: structure of tensors, whose shapes and dtypes stay as they are.
        inputs: structure of tensors with first axes of equal length.
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
    """Remember the random numbers that are drawn from here on.

    Keras' dropout draws from torch's own generators where it was given no
    seed, and these are no state of a model.

    Returns:
        A callable without arguments, after which the same numbers are drawn.
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
    """Run a function and keep nothing of it for the backward pass.

    Args:
        function: callable of float tensors. Returns a pair: a tensor, and a
            list of tensors that gradients do not flow through. It is called
            once more in the backward pass.
        *inputs: structures of float tensors.

    Returns:
        What `function` returns.
    """
    return torch.utils.checkpoint.checkpoint(
        function, *inputs, use_reentrant=False
    )


def wait_for(known, tensor):
    """Return `tensor`: operations run in the order in which they are called."""
    return tensor


def densify(gradient):
    """Return `gradient`, which is dense already."""
    return gradient


def sum_of_squares(tensor):
    """Sum the squares of all numbers of a tensor, of whatever shape."""
    return torch.sum(torch.square(tensor))


def without_gradients(function):
    """Run a function of inference without keeping what gradients need.

    Args:
        function: callable.

    Returns:
        A callable of the same arguments, whose results are detached.
    """
    return torch.no_grad()(function)


def compile_inference(model, function):
    """Return `function`, which runs `model`, without gradients.

    Args:
        model: `keras.Model`, built.
        function: callable of one array, or dict of arrays.

    Returns:
        A callable of the same input.
    """

    return without_gradients(function)


def require(condition, message):
    """Fail with `message` unless the condition holds."""
    if not bool(condition):
        raise ValueError(message)
