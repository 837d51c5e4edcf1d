"""Any model as two functions: images to vectors, and texts to vectors."""

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from align_keras import backend
from align_keras.embedding.replicas import is_split
from align_keras.embedding.replicas import over_replicas
from align_keras.io.folders import read_file
from align_keras.io.images import decode_with_pillow


def read_pixels(image: Any) -> np.ndarray:
    """Decode an image.

    Args:
        image: a file path, an encoded file as bytes, or an array.

    Returns:
        A uint8 array `(height, width, 3)`, or the array that was given.

    Raises:
        ValueError: the image does not decode; the message says why.
    """
    if isinstance(image, np.ndarray):
        return image
    return decode_with_pillow(read_bytes(image))


def read_bytes(image: str | Path | bytes) -> bytes:
    """Return the contents of an image file, given its path or these."""
    if isinstance(image, bytes):
        return image
    return read_file(image)


@dataclasses.dataclass(frozen=True)
class Embedder:
    """A model as evaluation and search use it: plain functions.

    Rows need not have unit length: whoever embeds scales them.

    Args:
        name: string. How results call the model.
        images: callable. Takes a list of what `read` returns and gives an
            array `(count, dim)`.
        texts: callable. Takes a list of strings and gives an array `(count,
            dim)`.
        read: callable. Makes of a path, of the bytes of a file or of a uint8
            array what `images` takes, in several threads, and raises
            `ValueError` where an image does not decode. Defaults to
            `read_pixels`.
        words: callable. As `texts`, for the similarity of single words.
            Defaults to `None`: `texts`.
        fingerprint: string. Differs for models that give different vectors;
            names their vectors on disk. Defaults to `None`: they are not
            kept.
        temperature: float. What cosines are divided by before a softmax.
            Defaults to `None`: it is not known.
        decodes: bool. Whether the model decodes files itself, so that `read`
            is better given a file than pixels. Defaults to `False`.

    Example:

    ```python
    embedder = Embedder("mine", images=my_images, texts=my_texts)
    measure_retrieval(embedder, "packed/*.tfrecord")
    ```
    """

    name: str
    images: Callable
    texts: Callable
    read: Callable = read_pixels
    words: Callable | None = None
    fingerprint: str | None = None
    temperature: float | None = None
    decodes: bool = False


def as_embedder(
    model: Any,
    name: str | None = None,
    fingerprint: str | None = None,
    strategy: Any = None,
) -> Embedder:
    """Make an `Embedder` of a model.

    Args:
        model: an `Embedder`, which is returned as it is, or an
            `align_keras.AlignDualEncoder` with a preprocessor.
        name: string. Defaults to the name of the model.
        fingerprint: string. See `Embedder`.
        strategy: the strategy in whose scope the model was made. Images are
            split over its replicas. Defaults to `None`, one device.

    Returns:
        An `Embedder`.

    Raises:
        ValueError: the model has no preprocessor.
    """
    if isinstance(model, Embedder):
        return model
    preprocessor = model.require_preprocessor()

    def tokens(texts):
        return keras.tree.map_structure(
            keras.ops.convert_to_numpy, preprocessor.tokenize(texts)
        )

    encode_text = _compiled(model, model.encode_text)
    encode_word = _compiled(model, model.text_vectors)
    return Embedder(
        name=name or model.name,
        images=_image_batches(model, model.encode_image, strategy),
        texts=lambda texts: encode_text(tokens(texts)),
        read=_image_reader(preprocessor),
        words=lambda texts: encode_word(tokens(texts)),
        fingerprint=fingerprint,
        temperature=model.temperature,
    )


def keras_hub_embedder(
    backbone: Any,
    preprocessor: Any,
    name: str | None = None,
    fingerprint: str | None = None,
    strategy: Any = None,
) -> Embedder:
    """Make an `Embedder` of KerasHub's CLIP or SigLIP.

    Args:
        backbone: a `keras_hub.models.CLIPBackbone` or `SigLIPBackbone`.
        preprocessor: its `keras_hub` preprocessor.
        name: string. Defaults to the name of the backbone.
        fingerprint: string. See `Embedder`.
        strategy: see `as_embedder`.

    Returns:
        An `Embedder`.
    """
    converter = preprocessor.image_converter

    def read(image):
        # One by one, for they differ in size.
        pixels = converter(read_pixels(image)[None])
        return keras.ops.convert_to_numpy(pixels)[0]

    blank: np.ndarray = np.zeros((1, 8, 8, 3), "uint8")
    encode_texts = _compiled(backbone, backbone.get_text_embeddings)

    def texts(batch):
        # Its preprocessor takes texts together with images only.
        images = np.repeat(blank, len(batch), axis=0)
        inputs = preprocessor({"prompts": list(batch), "images": images})
        if isinstance(inputs, tuple):
            inputs = inputs[0]
        return encode_texts(keras.ops.convert_to_numpy(inputs["token_ids"]))

    return Embedder(
        name=name or backbone.name,
        images=_image_batches(
            backbone, backbone.get_vision_embeddings, strategy
        ),
        texts=texts,
        read=read,
        fingerprint=fingerprint,
    )


def _image_batches(model, encode, strategy):
    """Return `Embedder.images` of a function from pixels to vectors."""
    if is_split(strategy):
        return over_replicas(strategy, encode)
    encode = _compiled(model, encode)
    return lambda batch: encode(np.stack(batch))


def _compiled(model, function):
    """Return the compiled function, made once for each model."""
    # Not an attribute that Keras would track, and gone with the model.
    compiled = model.__dict__.setdefault("_compiled_encoders", {})
    if function.__name__ not in compiled:
        compiled[function.__name__] = backend.compile_inference(model, function)
    return compiled[function.__name__]


def _image_reader(preprocessor):
    """Return a function from one image to what the image tower takes."""
    convert = _converter(preprocessor)

    def read(image):
        image = read_pixels(image)
        if image.dtype.kind == "f":
            return image.astype("float32", copy=False)
        return np.asarray(convert(image))

    return read


def _converter(preprocessor):
    """Return the conversion of pixels, as a graph where there is TensorFlow.

    Eagerly, JAX would compile the resizing for every size of image. The graph
    is traced once for each setting, not for each call.
    """
    converter = preprocessor.image_converter
    setting = (id(converter), converter.image_size, converter.resize_size)
    graphs = preprocessor.__dict__.setdefault("_converters", {})
    if setting in graphs:
        return graphs[setting]

    def convert(pixels):
        return preprocessor({"images": pixels})["images"]

    if importlib.util.find_spec("tensorflow") is not None:
        import tensorflow as tf

        pixels = tf.TensorSpec((None, None, 3), tf.uint8)
        convert = tf.function(convert, [pixels], autograph=False)
    graphs[setting] = convert
    return convert
