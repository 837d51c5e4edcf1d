import keras

from align_keras import backend
from align_keras.models.step_scope import current_mask
from align_keras.models.step_scope import rematerializing
from align_keras.models.step_scope import step_scope
from align_keras.models.towers import trained_variables


def rematerialize(layer, function, *inputs):
    """Run a block, and recompute it in the backward pass if the step asks.

    The block becomes a pure function of its inputs and variables. The backward
    pass repeats it with the same variables and the same random state, so
    dropout draws the same mask. Assignments to its variables, such as the
    moving statistics of a normalisation, are applied once.

    Args:
        layer: `keras.Layer`. Owns all variables that `function` uses.
        function: callable of `inputs`.
        *inputs: float tensors.

    Returns:
        The tensor that `function` returns.
    """
    if not rematerializing():
        return function(*inputs)
    mask = current_mask()
    trainable = trained_variables(layer)
    others = [v for v in layer.variables if all(v is not t for t in trainable)]
    state = list(zip(others, backend.values(others), strict=True))

    def pure(parameters, *inputs):
        mapping = [*zip(trainable, parameters, strict=True), *state]
        with keras.StatelessScope(mapping) as scope, step_scope(mask):
            outputs = function(*inputs)
        return outputs, [scope.get_current_value(v) for v in others]

    outputs, changed = backend.recompute(
        pure, backend.values(trainable), *inputs
    )
    for (variable, before), after in zip(state, changed, strict=True):
        if after is not before:
            variable.assign(after)
    return outputs


def rematerialize_encoder(encoder, function):
    """Run an encoder as one block, unless it rematerialises its own blocks.

    Args:
        encoder: `keras.Model`.
        function: callable without arguments that runs the encoder.

    Returns:
        The tensor that `function` returns.
    """
    if getattr(encoder, "rematerializes_blocks", False):
        return function()
    return rematerialize(encoder, function)
