"""Any model as two functions: pictures to vectors, and texts to vectors."""

import dataclasses
import hashlib
import importlib.util
import io
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import keras
import numpy as np

from align_keras import backend
from align_keras.models import presets
from align_keras.preprocessing.decode import decode_with_pillow


def read_pixels(picture):
    """Decode a picture.

    Args:
        picture: a file path, an encoded file as bytes, or an array.

    Returns:
        A uint8 array `(height, width, 3)`, or the array that was given.

    Raises:
        ValueError: the picture does not decode; the message says why.
    """
    if isinstance(picture, (str, os.PathLike)):
        with open(picture, "rb") as file:
            picture = file.read()
    if isinstance(picture, np.ndarray):
        return picture
    return decode_with_pillow(picture)


@dataclasses.dataclass(frozen=True)
class Embedder:
    """A model that is to be measured, as plain functions.

    Rows need not have unit length: the evaluations scale them.

    Args:
        name: string. How results call the model.
        images: callable. Takes a list of what `read` returns and gives an
            array `(count, dim)`.
        texts: callable. Takes a list of strings and gives an array `(count,
            dim)`.
        read: callable. Makes of a path, of the bytes of a file or of a uint8
            array what `images` takes, in several threads, and raises
            `ValueError` where a picture does not decode. Defaults to
            `read_pixels`.
        words: callable. As `texts`, for the similarity of single words.
            Defaults to `None`: `texts`.
        fingerprint: string. Differs for models that give different vectors;
            names their vectors on disk. Defaults to `None`: they are not
            kept.

    Example:

    ```python
    embedder = Embedder("mine", images=my_images, texts=my_texts)
    evaluate_retrieval(embedder, "packed/*.tfrecord")
    ```
    """

    name: str
    images: Callable
    texts: Callable
    read: Callable = read_pixels
    words: Callable | None = None
    fingerprint: str | None = None


def as_embedder(model, name=None, fingerprint=None):
    """Make an `Embedder` of a model.

    Args:
        model: an `Embedder`, which is returned as it is, or an
            `align_keras.AlignDualEncoder` with a preprocessor.
        name: string. Defaults to the name of the model.
        fingerprint: string. See `Embedder`.

    Returns:
        An `Embedder`.

    Raises:
        ValueError: the model has no preprocessor.
    """
    if isinstance(model, Embedder):
        return model
    preprocessor = _preprocessor(model)

    def tokens(texts):
        return keras.tree.map_structure(
            keras.ops.convert_to_numpy, preprocessor.tokenize(texts)
        )

    encode_image = _encoder(model, "images", model.encode_image)
    encode_text = _encoder(model, "texts", model.encode_text)
    encode_word = _encoder(model, "words", partial(word_features, model))
    return Embedder(
        name=name or model.name,
        images=lambda batch: encode_image(np.stack(batch)),
        texts=lambda texts: encode_text(tokens(texts)),
        read=picture_reader(model),
        words=lambda texts: encode_word(tokens(texts)),
        fingerprint=fingerprint,
    )


def word_features(model, tokens):
    """Compute text features before the projection.

    For BERT this is the vector of the `[CLS]` token of the last layer, by
    which the paper compares words (section 8, Table 12).

    Args:
        model: an `align_keras.AlignDualEncoder`.
        tokens: dict with `"token_ids"` and `"padding_mask"`.

    Returns:
        A float tensor of shape `(batch, hidden_dim)`.
    """
    return model.text_vectors(tokens, training=False)


def picture_reader(model):
    """Return a function from one picture to what the image tower takes.

    Args:
        model: an `align_keras.AlignDualEncoder` with a preprocessor.

    Returns:
        A callable that takes a picture in a form of `embed_images` and
        returns a NumPy array float32 `(height, width, 3)`. It raises
        `ValueError` with the reason where a picture does not decode, and may
        run in several threads.
    """
    convert = _converter(_preprocessor(model))

    def read(image):
        image = read_pixels(image)
        if image.dtype.kind == "f":
            return image.astype("float32", copy=False)
        return np.asarray(convert(image))

    return read


def _converter(preprocessor):
    """Return the conversion of pixels, as a graph where there is TensorFlow.

    Eagerly, JAX would compile the resizing for every size of picture. The
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


def _preprocessor(model):
    if model.preprocessor is None:
        raise ValueError(
            "The model has no preprocessor, so it cannot read pictures and "
            "texts: load it from a preset directory that holds one, or set "
            "`model.preprocessor` to an `AlignPreprocessor`."
        )
    return model.preprocessor


def _encoder(model, name, function):
    """Return the compiled function, made once for each model."""
    # Not an attribute that Keras would track, and gone with the model.
    encoders = model.__dict__.setdefault("_compiled_encoders", {})
    if name not in encoders:
        encoders[name] = backend.compile_inference(model, function)
    return encoders[name]


# === From disk ===


def load_embedder(model):
    """Load a model that is to be measured.

    Args:
        model: string. A SavedModel that `align-keras export` wrote; a preset
            directory or handle of an `AlignDualEncoder`; or a directory,
            handle or name of a preset of KerasHub's CLIP or SigLIP, such as
            `"clip_vit_base_patch32"`.

    Returns:
        An `Embedder`.

    Raises:
        ValueError: it is none of these.

    Example:

    ```python
    embedder = load_embedder("run/model")
    ```
    """
    path = Path(model)
    if (path / "saved_model.pb").is_file():
        return saved_model_embedder(path)
    name = path.name or str(model)
    kind = "AlignDualEncoder"
    if (path / "config.json").is_file():
        kind = presets.load_config(path).get("class_name")
    elif name.startswith(("clip_", "siglip")):
        kind = "CLIPBackbone" if name.startswith("clip_") else "SigLIPBackbone"
    if kind in _KERAS_HUB:
        import keras_hub

        backbone = getattr(keras_hub.models, kind).from_preset(str(model))
        preprocessor = getattr(keras_hub.models, _KERAS_HUB[kind])
        return keras_hub_embedder(
            backbone,
            preprocessor.from_preset(str(model)),
            name,
            fingerprint_of(path),
        )
    from align_keras import AlignDualEncoder

    presets.require_class(presets.find_preset(model), AlignDualEncoder)
    return as_embedder(
        AlignDualEncoder.from_preset(str(model)),
        str(model),
        fingerprint_of(path),
    )


_KERAS_HUB = {
    "CLIPBackbone": "CLIPPreprocessor",
    "SigLIPBackbone": "SigLIPPreprocessor",
}


def keras_hub_embedder(backbone, preprocessor, name=None, fingerprint=None):
    """Make an `Embedder` of KerasHub's CLIP or SigLIP.

    Args:
        backbone: a `keras_hub.models.CLIPBackbone` or `SigLIPBackbone`.
        preprocessor: its `keras_hub` preprocessor.
        name: string. Defaults to the name of the backbone.
        fingerprint: string. See `Embedder`.

    Returns:
        An `Embedder`.
    """
    converter = preprocessor.image_converter

    def read(picture):
        # One by one, for they differ in size.
        pixels = converter(read_pixels(picture)[None])
        return keras.ops.convert_to_numpy(pixels)[0]

    blank = np.zeros((1, 8, 8, 3), "uint8")

    def texts(batch):
        # Its preprocessor takes texts together with pictures only.
        pictures = np.repeat(blank, len(batch), axis=0)
        inputs = preprocessor({"prompts": list(batch), "images": pictures})
        if isinstance(inputs, tuple):
            inputs = inputs[0]
        return encode_texts(keras.ops.convert_to_numpy(inputs["token_ids"]))

    encode_images = backend.compile_inference(
        backbone, backbone.get_vision_embeddings
    )
    encode_texts = backend.compile_inference(
        backbone, backbone.get_text_embeddings
    )
    return Embedder(
        name=name or backbone.name,
        images=lambda batch: encode_images(np.stack(batch)),
        texts=texts,
        read=read,
        fingerprint=fingerprint,
    )


def load_saved_model(path):
    """Load a SavedModel that `align-keras export` wrote.

    Args:
        path: string or `pathlib.Path`. Its directory.

    Returns:
        What `tf.saved_model.load` returns.

    Raises:
        ImportError: TensorFlow is not installed.
        ValueError: it lacks one of the signatures.
    """
    import tensorflow as tf
    import tensorflow_text  # noqa: F401  registers the tokenizer's operations

    served = tf.saved_model.load(str(path))
    for name in ("encode_image", "encode_text"):
        if name not in served.signatures:
            raise ValueError(
                f"The SavedModel `{path}` has no signature `{name}`: write it "
                "with `align-keras export`. Received: "
                f"{', '.join(served.signatures)}"
            )
    return served


def saved_model_embedder(path, served=None):
    """Make an `Embedder` of a SavedModel that `align-keras export` wrote.

    Args:
        path: string or `pathlib.Path`. Its directory.
        served: what `load_saved_model` returned for it. Defaults to `None`:
            it is loaded.

    Returns:
        An `Embedder`.

    Raises:
        ImportError: TensorFlow is not installed.
        ValueError: it lacks one of the signatures.
    """
    import tensorflow as tf

    served = served or load_saved_model(path)

    def read(picture):
        if isinstance(picture, np.ndarray):
            return _png(picture)
        if not isinstance(picture, bytes):
            picture = Path(picture).read_bytes()
        # The graph would fail for the whole batch.
        decode_with_pillow(picture)
        return picture

    def ask(signature, argument, values):
        values = {argument: tf.constant(list(values))}
        return served.signatures[signature](**values)["embeddings"].numpy()

    return Embedder(
        name=str(path),
        images=lambda batch: ask("encode_image", "image_bytes", batch),
        texts=lambda texts: ask("encode_text", "texts", texts),
        read=read,
        fingerprint=fingerprint_of(Path(path)),
    )


def _png(pixels):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def fingerprint_of(path):
    """Digest of all files of a model; `None` for what is not a directory."""
    if not path.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            digest.update(file.relative_to(path).as_posix().encode())
            with open(file, "rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:16]
