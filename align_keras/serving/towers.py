"""Convert the two towers to TensorFlow functions, from TensorFlow or JAX."""

from collections.abc import Callable
from typing import Any

import keras

from align_keras.backend.stateless import stateless

PRECISIONS = ("float32", "bfloat16")


def at_precision(model: Any, precision: str | None) -> Any:
    """Return the model, or a copy of it that computes in another precision.

    Args:
        model: `align_keras.AlignDualEncoder`.
        precision: string, `"float32"` or `"bfloat16"`; or `None`, which
            returns the model itself. In bfloat16, sums, means and the
            embeddings stay in float32, as in Keras's `"mixed_bfloat16"`.

    Raises:
        ValueError: The precision is unknown, or a tower has no `dtype`
            argument.
    """
    if precision is None:
        return model
    if precision not in PRECISIONS:
        raise ValueError(
            f"`precision` must be one of {PRECISIONS}. "
            f"Received: precision={precision!r}"
        )
    policy = "mixed_bfloat16" if precision == "bfloat16" else precision
    copy = model.from_config({**model.get_config(), "dtype": policy})
    copy.set_weights(model.get_weights())
    copy.preprocessor = model.preprocessor
    for tower in (copy.image_encoder, copy.text_encoder):
        if not any(
            dtype == precision for dtype in computing_dtypes(tower).values()
        ):
            raise ValueError(
                f"`precision` cannot be {precision!r}, because the encoder "
                f"`{tower.name}` takes no `dtype`: build the model with an "
                "encoder of that precision instead."
            )
    return copy


def tf_towers(model: Any, compact: bool) -> tuple[Any, Callable, Callable]:
    """Return a `tf.Module` with the weights, and both towers.

    Args:
        model: `align_keras.AlignDualEncoder`.
        compact: bool. Whether to store matrices that are used in bfloat16 in
            that precision, which halves the file and does not change results.

    Returns:
        Tuple of the module, to which the caller must keep a reference, and
        two functions: from preprocessed images, and from a dict of tokens, to
        embeddings.
    """
    import tensorflow as tf

    module = tf.Module()
    dtypes = computing_dtypes(model)

    def stored(weight):
        if compact and len(weight.shape) > 1 and dtypes.get(id(weight)):
            value = keras.ops.convert_to_numpy(weight)
            return tf.Variable(tf.cast(value, dtypes[id(weight)]))
        if keras.config.backend() == "tensorflow":
            return weight.value
        return tf.Variable(keras.ops.convert_to_numpy(weight))

    module.weights = [stored(weight) for weight in model.weights]

    def with_weights(encode):
        run = stateless(model, encode)
        if keras.config.backend() == "jax":
            run = _convert_jax(run)

        def tower(inputs):
            values = [
                tf.cast(tf.convert_to_tensor(stored), weight.dtype)
                for stored, weight in zip(
                    module.weights, model.weights, strict=True
                )
            ]
            return run(values, inputs)

        return tower

    return (
        module,
        with_weights(model.encode_image),
        with_weights(model.encode_text),
    )


def _convert_jax(run):
    from jax.experimental import jax2tf

    return jax2tf.convert(
        run,
        polymorphic_shapes=[None, "(batch, ...)"],
        native_serialization_platforms=("cpu", "cuda", "tpu"),
        with_gradient=False,
    )


def computing_dtypes(model: Any) -> dict[int, str]:
    """Return the dtype in which each weight is used, by the weight's `id`."""
    return {
        id(weight): layer.compute_dtype
        for layer in model._flatten_layers(include_self=False)
        for weight in layer.weights
        if not list(layer._flatten_layers(include_self=False))
    }
