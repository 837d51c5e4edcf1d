"""Export a SavedModel that runs without this package and without KerasHub."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras

from align_keras.backend.lengths import any_length
from align_keras.classes import class_vectors
from align_keras.embedding.embed_streams import embed_texts
from align_keras.io.atomic import atomic_directory
from align_keras.io.fingerprints import directory_fingerprint
from align_keras.io.json_files import read_json
from align_keras.io.json_files import write_json
from align_keras.io.lists import check_list
from align_keras.io.mirrors import stored
from align_keras.io.paths import local_path
from align_keras.serving.towers import at_precision
from align_keras.serving.towers import tf_towers
from align_keras.serving.untrusted_images import read_images
from align_keras.serving.warmup import WARMUP_FILE
from align_keras.serving.warmup import can_write_warmup
from align_keras.serving.warmup import write_warmup_requests

# How much of a text to read; the tokens come from its beginning.
_MAX_TEXT_BYTES = 1 << 16
# Tells `update_saved_model` of which preset a directory is the export.
_SOURCE = "exported_from.json"

SIGNATURES = {
    "encode_image": ["image_bytes"],
    "encode_text": ["texts"],
    "serving_default": ["image_bytes", "texts"],
}


@stored("path")
def export_saved_model(
    model: Any,
    path: str | Path,
    precision: str | None = None,
    classes: Sequence[str | list[str]] | None = None,
    templates: Sequence[str] = ("{}",),
    top_k: int = 5,
    max_pixels: int = 32_000_000,
    warmup: bool | None = None,
) -> dict[str, list[str]]:
    """Write a SavedModel that takes the bytes of images and plain strings.

    It includes the weights, the vocabulary and the preprocessing. To run it,
    a process imports `tensorflow` and `tensorflow_text`, which registers the
    operations of the tokenizer; TensorFlow Serving includes them
    (docs/serving.md). The batch may have any size.

    - `encode_image`: `image_bytes`, strings `(images,)`, the contents of
      image files, to `embeddings` and `valid`;
    - `encode_text`: `texts`, strings `(texts,)`, to `embeddings`;
    - `serving_default`: both to `similarities`, float32 `(images, texts)`,
      `image_embeddings`, `text_embeddings`, `valid`, and the scalar
      `temperature`. The softmax of similarities divided by the temperature
      gives probabilities;
    - `classify`, if `classes` are given: `image_bytes` to `labels`, strings,
      and `probabilities`, float32, both `(images, top_k)` with the best
      first, and `valid`. Probabilities are over all classes.

    Embeddings are float32 `(count, embedding_dim)` of unit length, whatever
    the precision of the model, and similarities are cosines from -1 to 1.
    Only the first 64 KiB of a text are read.

    `valid`, bool `(images,)`, is false for a file that cannot be decoded as
    an image, or that has more than `max_pixels`: its embedding, similarities
    and probabilities are zeros and its labels empty strings. The other images
    of the batch are not affected.

    Args:
        model: an `align_keras.AlignDualEncoder` with a preprocessor.
        path: string or `pathlib.Path`. The directory to write. If the export
            fails, it is not created. The warm-up requests of an earlier
            export are removed or replaced.
        precision: string, `"float32"` or `"bfloat16"`. The latter halves the
            size. Defaults to `None`: the precision of the model.
        classes: list of strings, the names of classes, or of lists of strings
            if a class has several names, of which the first is its label. The
            class vectors are stored in the export. Defaults to `None`: no
            signature `classify`.
        templates: list of strings with `{}` in place of the class name. The
            vector of a class is the mean over the templates. Defaults to the
            bare name.
        top_k: int. Number of labels that `classify` returns for an image, at
            most the number of classes. Defaults to 5.
        max_pixels: int. Images with more pixels are refused before they are
            decoded. Defaults to 32 million.
        warmup: bool. Whether to write requests with which TensorFlow Serving
            warms the model up. Defaults to `None`: only if
            tensorflow-serving-api is installed.

    Returns:
        Dict from the name of each signature to the list of its inputs.

    Raises:
        ValueError: The model has no preprocessor, or an argument is wrong.
        ImportError: tensorflow-serving-api is not installed and `warmup` is
            true.

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
    check_list(classes, "classes")
    check_list(templates, "templates")
    path = local_path(path)
    model.require_preprocessor()
    if keras.config.backend() == "torch":
        raise ValueError(
            "A SavedModel holds a TensorFlow graph, which the torch backend "
            "does not have. Set the environment variable KERAS_BACKEND to "
            "tensorflow or jax. Received: backend='torch'"
        )
    for name, value in (("top_k", top_k), ("max_pixels", max_pixels)):
        if value < 1:
            raise ValueError(
                f"`{name}` must be positive. Received: {name}={value}"
            )
    import tensorflow as tf

    model = at_precision(model, precision)
    module, functions = _functions(model, max_pixels, precision == "bfloat16")
    inputs = dict(SIGNATURES)
    if classes:
        functions["classify"] = _classify(
            module,
            functions["encode_image"],
            [name if isinstance(name, str) else name[0] for name in classes],
            class_vectors(
                partial(embed_texts, model, progress=False), classes, templates
            ),
            model.temperature,
            top_k,
        )
        inputs["classify"] = ["image_bytes"]
    with atomic_directory(path, (WARMUP_FILE, _SOURCE)) as temporary:
        tf.saved_model.save(module, str(temporary), signatures=functions)
        if can_write_warmup() if warmup is None else warmup:
            write_warmup_requests(temporary, _batchable(inputs))
    return inputs


def update_saved_model(preset: str | Path, path: str | Path) -> bool:
    """Export the model of a preset directory, unless the export is up to date.

    Args:
        preset: string or `pathlib.Path`. The preset directory.
        path: string or `pathlib.Path`. The directory to write. It is left
            unchanged if its `exported_from.json` has the fingerprint of this
            model. Modification times do not matter.

    Returns:
        bool. Whether the export was written.
    """
    from align_keras.models import AlignDualEncoder

    source = Path(path, _SOURCE)
    found = {"fingerprint": directory_fingerprint(preset)}
    if source.is_file() and read_json(source) == found:
        return False
    # An export that is interrupted must not count as up to date.
    source.unlink(missing_ok=True)
    export_saved_model(AlignDualEncoder.from_preset(str(preset)), path)
    write_json(source, found)
    return True


def _batchable(inputs):
    """Return the signatures that work on a server that batches requests.

    Such a server refuses requests with both images and texts, and a warm-up
    request that is refused would keep the model from loading.
    """
    return {name: names for name, names in inputs.items() if len(names) == 1}


def _functions(model, max_pixels, compact):
    """Return a trackable object with the weights, and the signatures."""
    import tensorflow as tf

    preprocessor = model.preprocessor
    temperature = model.temperature
    module, image_tower, text_tower = tf_towers(model, compact)
    image_bytes = tf.TensorSpec((None,), tf.string, name="image_bytes")
    texts = tf.TensorSpec((None,), tf.string, name="texts")

    @tf.function(input_signature=[image_bytes], autograph=False)
    def encode_image(image_bytes):
        images, valid = read_images(
            image_bytes, preprocessor.image_converter, max_pixels
        )
        embeddings = tf.cast(image_tower(images), tf.float32)
        embeddings = tf.where(valid[:, None], embeddings, 0.0)
        return {"embeddings": embeddings, "valid": valid}

    @tf.function(input_signature=[texts], autograph=False)
    def encode_text(texts):
        texts = tf.strings.substr(texts, 0, _MAX_TEXT_BYTES)
        tokens = preprocessor.tokenize(texts)
        with any_length():
            embeddings = text_tower(tokens)
        return {"embeddings": tf.cast(embeddings, tf.float32)}

    @tf.function(input_signature=[image_bytes, texts], autograph=False)
    def serve(image_bytes, texts):
        images = encode_image(image_bytes)
        words = encode_text(texts)["embeddings"]
        return {
            "similarities": tf.matmul(
                images["embeddings"], words, transpose_b=True
            ),
            "image_embeddings": images["embeddings"],
            "text_embeddings": words,
            "valid": images["valid"],
            # A server that batches requests would mix up the similarities.
            # This scalar output makes it refuse instead.
            "temperature": tf.constant(temperature, tf.float32),
        }

    # The tokenizer creates its tables when it is first traced.
    encode_text.get_concrete_function()
    module.tables = _tables(preprocessor.tokenizer)
    functions = (encode_image, encode_text, serve)
    return module, dict(zip(SIGNATURES, functions, strict=True))


def _tables(tokenizer):
    """List the TensorFlow objects of a tokenizer, to save with the graph."""
    import tensorflow as tf

    kinds = (
        tf.Module,
        tf.lookup.StaticHashTable,
        tf.lookup.experimental.MutableHashTable,
    )
    return [
        value for value in vars(tokenizer).values() if isinstance(value, kinds)
    ]


def _classify(module, encode_image, classes, vectors, temperature, top_k):
    """Return the signature `classify`, and store its vectors in `module`."""
    import tensorflow as tf

    module.class_vectors = tf.Variable(vectors, trainable=False)
    top_k = min(top_k, len(classes))

    @tf.function(input_signature=encode_image.input_signature, autograph=False)
    def classify(image_bytes):
        images = encode_image(image_bytes)
        scores = tf.matmul(
            images["embeddings"], module.class_vectors, transpose_b=True
        )
        probabilities, best = tf.math.top_k(
            tf.nn.softmax(scores / temperature), top_k
        )
        valid = images["valid"][:, None]
        return {
            "labels": tf.where(
                valid, tf.gather(tf.constant(classes), best), ""
            ),
            "probabilities": tf.where(valid, probabilities, 0.0),
            "valid": images["valid"],
        }

    return classify
