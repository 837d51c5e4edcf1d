"""Run a model with weights passed as arguments, on any backend."""

import keras


def stateless(model, function):
    """Return `function` with the weights of `model` as its first argument.

    Args:
        model: `keras.Model`, built.
        function: callable of one argument that runs `model`.

    Returns:
        A callable of a list of arrays in the order of `model.weights`, and the
        argument of `function`.
    """

    def with_weights(weights, inputs):
        state = zip(model.weights, weights, strict=True)
        with keras.StatelessScope(state_mapping=state):
            return function(inputs)

    return with_weights
