"""One compiled function from a model, on either backend."""

import keras


def compiled(model, function):
    """Compile `function`, which reads the weights of `model`, for inference.

    `keras.Model.predict` would do, but on JAX its first call takes several
    times as long as the compilation itself.

    Args:
        model: `keras.Model`, built. Its weights may change later on.
        function: callable of one array, or dict of arrays, that runs `model`
            without training it.

    Returns:
        A callable of the same inputs. Each new shape is compiled once.
    """
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, autograph=False)

    import jax

    run = jax.jit(stateless(model, function))
    return lambda inputs: run([w.value for w in model.weights], inputs)


def stateless(model, function):
    """Return `function` with the weights of `model` as a first argument.

    Args:
        model: `keras.Model`, built.
        function: callable of one argument that runs `model`.

    Returns:
        A callable of a list of arrays, in the order of `model.weights`, and
        the argument of `function`.
    """

    def with_weights(weights, inputs):
        state = zip(model.weights, weights, strict=True)
        with keras.StatelessScope(state_mapping=state):
            return function(inputs)

    return with_weights
