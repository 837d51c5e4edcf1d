"""Wrap any model as two functions: images to vectors, texts to vectors."""

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
        A uint8 array `(height, width, 3)`; an array is returned unchanged.

    Raises:
        ValueError: the image does not decode; the message says why.
    """
    if isinstance(image, np.ndarray):
        return image
    return decode_with_pillow(read_bytes(image))


def refuse_floats(image: np.ndarray) -> None:
    """Refuse an array that may be preprocessed already."""
    if image.dtype.kind == "f":
        raise TypeError(
            "Float arrays count as preprocessed already, and only an "
            "`AlignDualEncoder` can embed them; pass uint8 pixels. Received: "
            f"dtype={image.dtype}"
        )


def read_bytes(image: str | Path | bytes) -> bytes:
    """Return the bytes of an image file; bytes are returned unchanged."""
    if isinstance(image, bytes):
        return image
    return read_file(image)


@dataclasses.dataclass(frozen=True)
class Embedder:
    """A model in the form that evaluation and search use: plain functions.

    The rows that the functions return need not have unit length; the callers
    scale them.

    Args:
        name: string. The model's name in results.
        images: callable. Takes a list of what `read` returns, and returns an
            array `(count, dim)`.
        texts: callable. Takes a list of strings, and returns an array
            `(count, dim)`.
        read: callable. Takes a path, the bytes of a file or a uint8 array,
            and returns one input of `images`. It is called in several threads
            and raises `ValueError` if the image does not decode. Defaults to
            `read_pixels`.
        words: callable. Like `texts`, but for the similarity of single words.
            Defaults to `None`: `texts` is used.
        fingerprint: string. Identifies the vectors of this model on disk, so
            it must differ between models that return different vectors.
            Defaults to `None`: vectors are not kept.
        temperature: float. What cosines are divided by before a softmax.
            Defaults to `None`, unknown.
        decodes: bool. Whether the model decodes files itself, so that `read`
            should be given a file rather than pixels. Defaults to `False`.

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
    """Make an `Embedder` from a model.

    Args:
        model: an `Embedder`, which is returned unchanged, or an
            `align_keras.AlignDualEncoder` with a preprocessor.
        name: string. Defaults to the name of the model.
        fingerprint: string. See `Embedder`.
        strategy: the strategy in whose scope the model was created. Images
            are split over its replicas. Defaults to `None`, one device.

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
    """Make an `Embedder` from KerasHub's CLIP or SigLIP.

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
        pixels = read_pixels(image)
        refuse_floats(pixels)
        # One by one, because they differ in size.
        pixels = converter(pixels[None])
        return keras.ops.convert_to_numpy(pixels)[0]

    blank: np.ndarray = np.zeros((1, 8, 8, 3), "uint8")
    encode_texts = _compiled(backbone, backbone.get_text_embeddings)

    def texts(batch):
        # The preprocessor takes texts only together with images.
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
    """Make `Embedder.images` from a function from pixels to vectors."""
    if is_split(strategy):
        return over_replicas(strategy, encode)
    encode = _compiled(model, encode)
    return lambda batch: encode(np.stack(batch))


def _compiled(model, function):
    """Return the compiled function, which each model keeps."""
    # Set in `__dict__`, so that Keras does not track it.
    compiled = model.__dict__.setdefault("_compiled_encoders", {})
    if function.__name__ not in compiled:
        compiled[function.__name__] = backend.compile_inference(model, function)
    return compiled[function.__name__]


def _image_reader(preprocessor):
    """Return a function from one image to an input of the image tower."""
    convert = _converter(preprocessor)

    def read(image):
        image = read_pixels(image)
        if image.dtype.kind == "f":
            return image.astype("float32", copy=False)
        return np.asarray(convert(image))

    return read


def _converter(preprocessor):
    """Return a function that converts pixels, as a graph with TensorFlow.

    Run eagerly, JAX would compile the resizing for every size of image. The
    graph is traced once for each setting, not for each call.
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
