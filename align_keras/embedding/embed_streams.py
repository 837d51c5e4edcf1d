"""Embed any number of images or texts into unit vectors in memory."""

import contextlib
import itertools
import logging
import os
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sized
from pathlib import Path
from typing import Any
from typing import NamedTuple

import keras
import numpy as np

from align_keras.embedding.embedder import Embedder
from align_keras.embedding.embedder import as_embedder
from align_keras.embedding.similarity import unit_rows
from align_keras.embedding.vector_cache import VectorCache
from align_keras.embedding.vector_cache import image_mark
from align_keras.embedding.vector_cache import names_digest
from align_keras.io.fingerprints import fingerprint
from align_keras.io.lists import check_list
from align_keras.io.progress import progress_bar
from align_keras.io.text import clean_text
from align_keras.io.threads import map_ahead

logger = logging.getLogger("align_keras")


def embed_images(
    model: Any,
    images: Iterable,
    batch_size: int = 64,
    progress: bool = True,
    total: int | None = None,
    unreadable: Callable | None = None,
) -> np.ndarray:
    """Embed images in batches, reading ahead in threads.

    Images are taken from `images` one by one, so a generator over any number
    of them needs only the memory of a few batches.

    Args:
        model: an `align_keras.AlignDualEncoder` with a preprocessor, or an
            `Embedder`.
        images: iterable of images: file paths, encoded files as bytes, uint8
            arrays `(height, width, 3)`, or, for an `AlignDualEncoder`, float
            arrays `(height, width, 3)` that are already preprocessed.
        batch_size: int. Images per call of the network. The last batch is
            padded, so that only one shape is compiled. Defaults to `64`.
        progress: bool. Whether to draw a progress bar on the standard error
            stream. Defaults to `True`.
        total: int. How many images will come, for the bar. Defaults to
            `None`, the length of `images` if it has one.
        unreadable: callable. Takes an image that cannot be read, and the
            error; that image then has no row. Defaults to `None`: the error
            is raised.

    Returns:
        NumPy array float32 `(count, embedding_dim)`, rows of unit length.

    Raises:
        FileNotFoundError: A path does not exist.
        ValueError: The model has no preprocessor or returns numbers that are
            not finite, an image is not readable, or there are no images.

    Example:

    ```python
    vectors = embed_images(model, ["bus.jpg", "harbour.png"])
    ```
    """
    embedder = as_embedder(model)
    if isinstance(images, (str, bytes, os.PathLike)):
        images = [images]
    if total is None and isinstance(images, Sized):
        total = len(images)

    def named():
        for number, image in enumerate(images):
            is_path = isinstance(image, (str, os.PathLike))
            yield repr(image) if is_path else number, image

    def refuse(item, error):
        if unreadable is not None:
            return unreadable(item[1], error)
        raise ValueError(f"Image {item[0]} is not readable: {error}.") from (
            error
        )

    with progress_bar("Embedding images", total, progress) as advance:
        batches = embed_stream(embedder, named(), refuse, batch_size)
        return _join(_gather(batches, advance), "images")


def embed_texts(
    model: Any,
    texts: list[str],
    batch_size: int = 256,
    progress: bool = True,
    cache: str | Path | None = None,
) -> np.ndarray:
    """Embed texts in batches.

    Args:
        model, progress: as in `embed_images`.
        texts: list of strings.
        batch_size: int. Texts per call of the network. Defaults to `256`.
        cache: string or `pathlib.Path`. A directory in which to keep the
            vectors, if the embedder has a fingerprint. Defaults to `None`.

    Returns:
        NumPy array float32 `(count, embedding_dim)`, rows of unit length.

    Raises:
        ValueError: The model has no preprocessor or returns numbers that are
            not finite, or there are no texts.

    Example:

    ```python
    vectors = embed_texts(model, ["a red bus", "boats in a harbour"])
    ```
    """
    check_list(texts, "texts")
    embedder = as_embedder(model)
    # JSON and command lines can hold half of a surrogate pair, which is in no
    # vocabulary.
    texts = [clean_text(text) for text in texts]
    files = VectorCache(cache, embedder, f"texts-{fingerprint(*texts)}")
    rows = []
    with progress_bar("Embedding texts", len(texts), progress) as advance:
        for number, start in enumerate(range(0, len(texts), files.size)):
            part = texts[start : start + files.size]
            chunk = files.load(number)
            if chunk is None:
                batches = encode_batches(
                    embedder.texts, zip(part, part, strict=True), batch_size
                )
                vectors = _join(_gather(batches, advance), "texts")
                chunk = files.save(number, vectors=vectors)
            else:
                advance(len(part))
            rows.append(chunk["vectors"])
    return _join(rows, "texts")


def embed_readable(
    model: Any,
    images: Iterable[tuple],
    batch_size: int = 64,
    progress: bool = True,
    total: int | None = None,
    cache: str | Path | None = None,
    name: str = "images",
) -> tuple[np.ndarray, np.ndarray]:
    """Embed named images, and leave out those that do not decode.

    Args:
        model, batch_size, progress, total: as in `embed_images`.
        images: iterable of pairs of a name and an image.
        cache: string or `pathlib.Path`. A directory in which to keep the
            vectors, if the embedder has a fingerprint. After an interruption,
            the next call resumes from them. They are compared by the name of
            each image, and by its `image_mark`. Defaults to `None`.
        name: string. The name of the data set within `cache`.

    Returns:
        A pair: float32 array `(count, dim)` of the readable images, rows of
        unit length; and a bool array that tells for each image whether it was
        readable. A warning names each image that was not.

    Raises:
        ValueError: No image is readable, or the cache holds other images.
    """
    embedder = as_embedder(model)
    files = VectorCache(cache, embedder, f"images-{name}")
    images = iter(images)
    rows, readable = [], []
    with progress_bar("Embedding images", total, progress) as advance:
        for number in itertools.count():
            chunk = files.load(number, {"readable": 1})
            part = itertools.islice(images, files.size)
            if chunk is not None:
                # All of them: to the last, images may have been added.
                marked = list(map_ahead(_marked, part))
                files.check(number, chunk, _with_marks(marked))
                for (name, _), kept in zip(
                    marked, chunk["readable"], strict=True
                ):
                    if not kept:
                        logger.warning(
                            "Image %s is left out: it was not readable", name
                        )
                advance(len(marked))
            else:
                chunk = _embed_chunk(embedder, part, batch_size, advance)
                if not len(chunk["readable"]):
                    break
                files.save(number, **chunk)
            rows.append(chunk["vectors"])
            readable.append(chunk["readable"])
            if len(chunk["readable"]) < files.size:
                break
    return _join(rows, "images"), np.concatenate(readable)


class Embedded(NamedTuple):
    """The readable images of a data set.

    Attributes:
        vectors: float32 array `(count, dim)`, rows of unit length.
        notes: list. The captions or the label of each image.
        skipped: integer. Number of images that were left out.
        digest: string. Digest of the names of the readable images.
    """

    vectors: np.ndarray
    notes: list
    skipped: int
    digest: str


def embed_data_set(
    embedder: Embedder,
    data: Any,
    batch_size: int = 64,
    progress: bool = True,
    cache: str | Path | None = None,
) -> Embedded:
    """Embed the images of a data set, and return their notes with them.

    Args:
        embedder: `Embedder`.
        data: `align_keras.evaluation.datasets.DataSet`.
        batch_size, progress, cache: as in `embed_readable`.

    Returns:
        `Embedded`.
    """
    keys, notes = [], []

    def images():
        for key, image, note in data.examples():
            keys.append(key)
            notes.append(note)
            yield key, image

    vectors, readable = embed_readable(
        embedder, images(), batch_size, progress, data.total, cache, data.name
    )
    kept = np.flatnonzero(readable)
    return Embedded(
        vectors,
        [notes[n] for n in kept],
        len(keys) - len(kept),
        names_digest([keys[n] for n in kept]),
    )


# === Streams of batches ===


def embed_stream(
    embedder: Embedder,
    items: Iterable[tuple],
    unreadable: Callable,
    batch_size: int,
    read: Callable | None = None,
) -> Iterator[tuple[list, np.ndarray]]:
    """Embed a stream of images, reading ahead in threads.

    Args:
        embedder: `Embedder`.
        items: iterable of tuples whose first entry is a name.
        unreadable: callable. Takes an item that cannot be read, and the error.
        batch_size: int. See `encode_batches`.
        read: callable. Takes an item, in several threads, and returns what
            `embedder.images` takes; raises `ValueError` if the image is not
            readable. Defaults to `None`: the second entry of the item is the
            image, or a function that returns it.

    Yields:
        What `encode_batches` yields, for the readable items.
    """

    def attempt(item):
        try:
            image = read(item) if read else embedder.read(opened(item[1]))
            return item, image, None
        except ValueError as error:
            return item, None, error

    def readable():
        for item, image, error in map_ahead(attempt, items):
            if error is None:
                yield item, image
            else:
                unreadable(item, error)

    yield from encode_batches(embedder.images, readable(), batch_size)


def opened(image: Any) -> Any:
    """Return an image of a data set, which may be a function."""
    return image() if callable(image) else image


def encode_batches(
    encode: Callable, pairs: Iterable[tuple], batch_size: int
) -> Iterator[tuple[list, np.ndarray]]:
    """Encode a stream in batches of equal size, and scale rows to unit length.

    Args:
        encode: callable from a list of `batch_size` inputs to an array
            `(batch_size, dim)`.
        pairs: iterable of pairs of an item and its input.
        batch_size: int. Inputs per call of `encode`; the last batch is
            padded.

    Yields:
        Pairs of a list of items and a float32 array with one row for each.

    Raises:
        ValueError: `batch_size` is not positive, or a vector is not finite.
    """
    if batch_size < 1:
        raise ValueError(
            f"`batch_size` must be positive. Received: batch_size={batch_size}"
        )
    pairs = iter(pairs)
    while batch := list(itertools.islice(pairs, batch_size)):
        items = [item for item, _ in batch]
        inputs = [value for _, value in batch]
        inputs += inputs[:1] * (batch_size - len(batch))
        vectors = keras.ops.convert_to_numpy(encode(inputs))
        vectors = unit_rows(vectors[: len(batch)])
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            bad = items[int(np.argmin(finite))]
            bad = bad[0] if isinstance(bad, tuple) else bad
            raise ValueError(
                f"The model gives NaN or infinity for `{bad}`: check its "
                "weights."
            )
        yield items, vectors


def _gather(batches, advance):
    rows = []
    for items, vectors in batches:
        rows.append(vectors)
        advance(len(items))
    return rows


def _join(rows, unit):
    """Concatenate the parts, freeing each one once it is copied."""
    rows = [part for part in rows if len(part)]
    if not rows:
        raise ValueError(f"There are no {unit} to embed.")
    whole = np.empty((sum(map(len, rows)), rows[0].shape[1]), "float32")
    start = 0
    while rows:
        part = rows.pop(0)
        whole[start : start + len(part)] = part
        start += len(part)
    return whole


def _marked(item):
    """Return the name and the mark of a pair of a name and an image."""
    name, image = item
    with contextlib.suppress(ValueError):
        return name, image_mark(opened(image))
    return name, ""


def _with_marks(marked):
    return [f"{name} {mark}" for name, mark in marked]


def _embed_chunk(embedder, images, batch_size, advance):
    marked, broken = [], []

    def numbered():
        for number, (name, image) in enumerate(images):
            marked.append((name, ""))
            yield name, image, number

    def read(item):
        name, image, number = item
        image = opened(image)
        marked[number] = name, image_mark(image)
        return embedder.read(image)

    def leave_out(item, error):
        logger.warning("Image %s is left out: %s", item[0], error)
        broken.append(item[2])
        advance(1)

    batches = embed_stream(embedder, numbered(), leave_out, batch_size, read)
    rows = _gather(batches, advance)
    readable = np.ones(len(marked), bool)
    readable[broken] = False
    return {
        # If no image is readable, the length of a row is unknown.
        "vectors": _join(rows, "images") if rows else np.zeros((0, 0)),
        "readable": readable,
        "names": np.array(names_digest(_with_marks(marked))),
    }
