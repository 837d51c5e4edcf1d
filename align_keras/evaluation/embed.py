"""Pictures and texts of any number to rows of unit vectors."""

import collections
import concurrent.futures
import importlib.util
import itertools
import os

import keras
import numpy as np
from rich.console import Console
from rich.progress import Progress

from align_keras import backend
from align_keras.preprocessing.decode import decode_with_pillow


def embed_images(model, images, batch_size=64, progress=True, total=None):
    """Embed pictures in batches, reading ahead in threads.

    Pictures are taken one by one from `images`, so that a generator over any
    number of them needs the memory of a few batches.

    Args:
        model: an `align_keras.AlignDualEncoder` with a preprocessor.
        images: iterable of pictures: file paths, encoded files as bytes,
            uint8 arrays `(height, width, 3)`, or float arrays `(height,
            width, 3)` that are preprocessed already.
        batch_size: int. Pictures in one call of the network; the last batch
            is filled up, so that one shape is compiled. Defaults to `64`.
        progress: bool. Whether to draw a progress bar on the standard error
            stream. Defaults to `True`.
        total: int. How many pictures will come, for the bar. Defaults to
            `None`, the length of `images` where it has one.

    Returns:
        NumPy array float32 `(count, embedding_dim)`, rows of unit length.

    Raises:
        FileNotFoundError: A path does not exist.
        ValueError: The model has no preprocessor, a picture is not readable,
            or there is none.

    Example:

    ```python
    vectors = embed_images(model, ["bus.jpg", "harbour.png"])
    ```
    """
    read = picture_reader(model)
    if total is None and hasattr(images, "__len__"):
        total = len(images)

    def read_numbered(numbered):
        number, image = numbered
        try:
            return read(image)
        except ValueError as error:
            name = number if isinstance(image, bytes) else repr(image)
            raise ValueError(f"Picture {name} is not readable: {error}.") from (
                error
            )

    batches = _batches(ahead(read_numbered, enumerate(images)), batch_size)
    return _embed(
        _encoder(model, "encode_image"),
        (np.stack(batch) for batch in batches),
        batch_size,
        progress,
        total,
        "pictures",
    )


def embed_texts(model, texts, batch_size=256, progress=True):
    """Embed texts in batches.

    Args:
        model: an `align_keras.AlignDualEncoder` with a preprocessor.
        texts: list of strings.
        batch_size: int. Texts in one call of the network; the last batch is
            filled up, so that one shape is compiled. Defaults to `256`.
        progress: bool. Whether to draw a progress bar on the standard error
            stream. Defaults to `True`.

    Returns:
        NumPy array float32 `(count, embedding_dim)`, rows of unit length.

    Raises:
        ValueError: The model has no preprocessor, or there is no text.

    Example:

    ```python
    vectors = embed_texts(model, ["a red bus", "boats in a harbour"])
    ```
    """
    tokenize = _preprocessor(model).tokenize

    def tokens(batch):
        return keras.tree.map_structure(
            keras.ops.convert_to_numpy, tokenize(batch)
        )

    return _embed(
        _encoder(model, "encode_text"),
        map(tokens, _batches(texts, batch_size)),
        batch_size,
        progress,
        len(texts),
        "texts",
    )


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
        if isinstance(image, np.ndarray) and image.dtype.kind == "f":
            return image.astype("float32", copy=False)
        if isinstance(image, (str, os.PathLike)):
            with open(image, "rb") as file:
                image = file.read()
        if not isinstance(image, np.ndarray):
            image = decode_with_pillow(image)
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


def ahead(function, items, workers=None):
    """Yield `function(item)` in order, working ahead in threads.

    Args:
        function: callable of one item.
        items: iterable. Read only as far ahead as the threads need.
        workers: int. Number of threads. Defaults to `None`, the number of
            cores.

    Yields:
        The results, in the order of `items`.
    """
    workers = workers or os.cpu_count()
    items = iter(items)
    pending = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        try:
            for item in itertools.islice(items, 4 * workers):
                pending.append(pool.submit(function, item))
            while pending:
                result = pending.popleft().result()
                for item in itertools.islice(items, 1):
                    pending.append(pool.submit(function, item))
                yield result
        finally:
            pool.shutdown(cancel_futures=True)


def _preprocessor(model):
    if model.preprocessor is None:
        raise ValueError(
            "The model has no preprocessor, so it cannot read pictures and "
            "texts: load it from a preset directory that holds one, or set "
            "`model.preprocessor` to an `AlignPreprocessor`."
        )
    return model.preprocessor


def _batches(items, batch_size):
    if batch_size < 1:
        raise ValueError(
            f"`batch_size` must be positive. Received: batch_size={batch_size}"
        )
    items = iter(items)
    while batch := list(itertools.islice(items, batch_size)):
        yield batch


def _encoder(model, method):
    """Return the compiled method, made once for each model."""
    # Not an attribute that Keras would track, and gone with the model.
    encoders = model.__dict__.setdefault("_compiled_encoders", {})
    if method not in encoders:
        function = getattr(model, method)
        encoders[method] = backend.compile_inference(model, function)
    return encoders[method]


def _embed(encode, batches, batch_size, progress, total, unit):
    """Encode arrays, or dicts of arrays, of at most `batch_size` rows."""
    rows = []
    with Progress(console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task(f"Embedding {unit}", total=total)
        for batch in batches:
            count = len(keras.tree.flatten(batch)[0])
            missing = batch_size - count
            full = keras.tree.map_structure(
                lambda array, missing=missing: np.concatenate(
                    [array, np.repeat(array[:1], missing, axis=0)]
                ),
                batch,
            )
            rows.append(keras.ops.convert_to_numpy(encode(full))[:count])
            bar.advance(task, count)
    if not rows:
        raise ValueError(f"There are no {unit} to embed.")
    return np.concatenate(rows)
