"""Less work for TensorFlow, where a test is not about that work."""

from align_keras.preprocessing import decode


def decode_plainly(replace=setattr):
    """Decode by one operation, where a test is not about images.

    Each iterator instantiates the three thousand operations that read every
    kind of file, which takes seconds.

    Args:
        replace: function like `setattr`. That of a `pytest.MonkeyPatch` undoes
            it. Defaults to `setattr`, for processes of their own.
    """
    import tensorflow as tf

    def traced():
        return lambda contents: tf.io.decode_png(contents, channels=3)

    replace(decode, "_traced", traced)


def optimise_graphs(do):
    """Say whether TensorFlow optimises graphs, or runs them as traced.

    To optimise one takes longer than to run it a few times.
    """
    import tensorflow as tf

    tf.config.optimizer.set_experimental_options(
        {"disable_meta_optimizer": not do}
    )
