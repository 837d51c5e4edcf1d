"""A SavedModel that runs without this package and without KerasHub."""

from pathlib import Path

import keras

from align_keras.files import atomic_directory

SIGNATURES = ("encode_image", "encode_text", "serving_default")


def export_saved_model(model, path):
    """Write a SavedModel that takes the bytes of pictures and plain strings.

    Weights, vocabulary and preprocessing travel inside. To run it, a process
    imports `tensorflow` and `tensorflow_text`, which registers the operations
    of the tokenizer. The batch may have any size.

    - `encode_image`: `image_bytes`, strings `(images,)`, the contents of
      picture files, to `embeddings`;
    - `encode_text`: `texts`, strings `(texts,)`, to `embeddings`;
    - `serving_default`: both to `similarities`, float32 `(images, texts)`,
      `image_embeddings` and `text_embeddings`.

    Embeddings are float32 `(count, embedding_dim)` of unit length, whatever
    the precision of the model, and similarities are cosines from -1 to 1.

    Args:
        model: an `align_keras.AlignDualEncoder` with a preprocessor.
        path: string or `pathlib.Path`. The directory to write. It appears
            whole or not at all.

    Raises:
        ValueError: the model has no preprocessor.
        ImportError: TensorFlow is not installed.

    Example:

    ```python
    export_saved_model(model, "align_saved_model")

    import tensorflow as tf
    import tensorflow_text

    served = tf.saved_model.load("align_saved_model")
    vectors = served.signatures["encode_text"](
        texts=tf.constant(["a red bus"])
    )["embeddings"]
    ```
    """
    if model.preprocessor is None:
        raise ValueError(
            "The model has no preprocessor, so its export could not read "
            "pictures and texts: set `model.preprocessor` to an "
            "`AlignPreprocessor` before exporting."
        )
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ImportError(
            "A SavedModel is written by TensorFlow, which is not installed: "
            "`pip install tensorflow tensorflow-text`."
        ) from error
    servable, signatures = _servable(model, tf)
    with atomic_directory(path) as temporary:
        tf.saved_model.save(servable, str(temporary), signatures=signatures)


def export_preset(preset, path):
    """Export the model of a preset directory, unless that is done.

    Args:
        preset: string or `pathlib.Path`. The preset directory.
        path: string or `pathlib.Path`. The directory to write, left as it is
            where its SavedModel is younger than the preset's weights.

    Returns:
        bool. Whether it was written now.
    """
    from align_keras.models import AlignDualEncoder

    written = Path(path, "saved_model.pb")
    weights = Path(preset, "model.weights.h5")
    if written.is_file() and written.stat().st_mtime > weights.stat().st_mtime:
        return False
    export_saved_model(AlignDualEncoder.from_preset(str(preset)), path)
    return True


def _servable(model, tf):
    """Return a trackable object that holds the weights, and its signatures."""
    preprocessor = model.preprocessor
    servable, image_tower, text_tower = _towers(model, tf)

    image_bytes = tf.TensorSpec((None,), tf.string, name="image_bytes")
    texts = tf.TensorSpec((None,), tf.string, name="texts")

    @tf.function(input_signature=[image_bytes], autograph=False)
    def encode_image(image_bytes):
        images = preprocessor({"images": image_bytes})["images"]
        return {"embeddings": tf.cast(image_tower(images), tf.float32)}

    @tf.function(input_signature=[texts], autograph=False)
    def encode_text(texts):
        tokens = preprocessor.tokenize(texts)
        return {"embeddings": tf.cast(text_tower(tokens), tf.float32)}

    @tf.function(input_signature=[image_bytes, texts], autograph=False)
    def serve(image_bytes, texts):
        images = encode_image(image_bytes)["embeddings"]
        words = encode_text(texts)["embeddings"]
        return {
            "similarities": tf.matmul(images, words, transpose_b=True),
            "image_embeddings": images,
            "text_embeddings": words,
        }

    return servable, dict(
        zip(SIGNATURES, (encode_image, encode_text, serve), strict=True)
    )


def _towers(model, tf):
    """Return a module with the weights, and both towers as TF functions."""
    module = tf.Module()
    if keras.config.backend() == "tensorflow":
        module.weights = [weight.value for weight in model.weights]
        return module, model.encode_image, model.encode_text

    from jax.experimental import jax2tf

    from align_keras.backend.jax import stateless

    module.weights = [
        tf.Variable(keras.ops.convert_to_numpy(weight))
        for weight in model.weights
    ]

    def convert(encode):
        converted = jax2tf.convert(
            stateless(model, encode),
            polymorphic_shapes=[None, "(batch, ...)"],
            native_serialization_platforms=("cpu", "cuda", "tpu"),
            with_gradient=False,
        )
        return lambda inputs: converted(list(module.weights), inputs)

    return module, convert(model.encode_image), convert(model.encode_text)
