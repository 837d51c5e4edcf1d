"""Pictures and texts of any number to rows of unit vectors."""

import hashlib
import itertools
import logging
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from rich.console import Console
from rich.progress import Progress

from align_keras.embedding.embedder import as_embedder
from align_keras.io.atomic import atomic_file
from align_keras.io.threads import map_ahead

logger = logging.getLogger("align_keras")

# Rows of one file of the cache: what an interruption may cost.
CHUNK = 4096


def embed_images(model, images, batch_size=64, progress=True, total=None):
    """Embed pictures in batches, reading ahead in threads.

    Pictures are taken one by one from `images`, so that a generator over any
    number of them needs the memory of a few batches.

    Args:
        model: an `align_keras.AlignDualEncoder` with a preprocessor, or an
            `Embedder`.
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
    embedder = as_embedder(model)
    if total is None and hasattr(images, "__len__"):
        total = len(images)

    def read(numbered):
        number, image = numbered
        try:
            return embedder.read(image)
        except ValueError as error:
            name = number if isinstance(image, bytes) else repr(image)
            raise ValueError(f"Picture {name} is not readable: {error}.") from (
                error
            )

    with _Bar("pictures", total, progress) as bar:
        prepared = map_ahead(read, enumerate(images))
        return _encode(embedder.images, prepared, batch_size, bar)


def embed_texts(model, texts, batch_size=256, progress=True, cache=None):
    """Embed texts in batches.

    Args:
        model: an `align_keras.AlignDualEncoder` with a preprocessor, or an
            `Embedder`.
        texts: list of strings.
        batch_size: int. Texts in one call of the network; the last batch is
            filled up, so that one shape is compiled. Defaults to `256`.
        progress: bool. Whether to draw a progress bar on the standard error
            stream. Defaults to `True`.
        cache: string or `pathlib.Path`. A directory where the vectors of an
            embedder with a fingerprint are kept. Defaults to `None`.

    Returns:
        NumPy array float32 `(count, embedding_dim)`, rows of unit length.

    Raises:
        ValueError: The model has no preprocessor, or there is no text.

    Example:

    ```python
    vectors = embed_texts(model, ["a red bus", "boats in a harbour"])
    ```
    """
    embedder = as_embedder(model)
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
    files = _Chunks(cache, embedder, f"texts-{digest}")
    rows = []
    with _Bar("texts", len(texts), progress) as bar:
        for number, start in enumerate(range(0, len(texts), files.size)):
            part = texts[start : start + files.size]
            chunk = files.load(number)
            if chunk is None:
                vectors = _encode(embedder.texts, part, batch_size, bar)
                chunk = files.save(number, vectors=vectors)
            else:
                bar.advance(len(part))
            rows.append(chunk["vectors"])
    if not rows:
        raise ValueError("There are no texts to embed.")
    return np.concatenate(rows)


def embed_readable(
    model,
    pictures,
    batch_size=64,
    progress=True,
    total=None,
    cache=None,
    name="pictures",
):
    """Embed named pictures, and leave out those that do not decode.

    Args:
        model: an `align_keras.AlignDualEncoder` with a preprocessor, or an
            `Embedder`.
        pictures: iterable of pairs of a name and a picture, in a form of
            `embed_images`.
        batch_size: int. Pictures in one call of the network. Defaults to
            `64`.
        progress: bool. Whether to draw a progress bar on the standard error
            stream. Defaults to `True`.
        total: int. How many pictures will come, for the bar.
        cache: string or `pathlib.Path`. A directory where the vectors of an
            embedder with a fingerprint are kept; when it is interrupted, the
            next call goes on from them. Defaults to `None`.
        name: string. Of the data set, within `cache`.

    Returns:
        A pair: float32 array `(count, dim)` of the readable pictures, rows of
        unit length, and a bool array that tells for each picture whether it
        was readable. Each one that was not is named in a warning.

    Raises:
        ValueError: No picture is readable, or the cache is of other pictures.
    """
    embedder = as_embedder(model)
    files = _Chunks(cache, embedder, f"pictures-{file_name(name)}")
    pictures = iter(pictures)
    rows, readable = [], []
    with _Bar("pictures", total, progress) as bar:
        for number in itertools.count():
            chunk = files.load(number)
            if chunk is not None:
                count = len(chunk["readable"])
                names = [n for n, _ in itertools.islice(pictures, count)]
                files.check(number, chunk, names)
                bar.advance(count)
            else:
                part = itertools.islice(pictures, files.size)
                chunk = _embed_chunk(embedder, part, batch_size, bar)
                if not len(chunk["readable"]):
                    break
                files.save(number, **chunk)
            rows.append(chunk["vectors"])
            readable.append(chunk["readable"])
            if len(chunk["readable"]) < files.size:
                break
    rows = [chunk for chunk in rows if len(chunk)]
    if not rows:
        raise ValueError("There are no pictures to embed.")
    return _join(rows), np.concatenate(readable)


class Embedded(NamedTuple):
    """The readable pictures of a data set.

    Attributes:
        vectors: float32 array `(count, dim)`, rows of unit length.
        notes: list of their captions or labels.
        skipped: integer. Number of pictures that were left out.
        pictures: string. Digest of the names of those that were not.
    """

    vectors: np.ndarray
    notes: list
    skipped: int
    pictures: str


def embed_data_set(embedder, data, batch_size=64, progress=True, cache=None):
    """Embed the pictures of a data set, with what it says of them.

    Args:
        embedder: `Embedder`.
        data: `align_keras.evaluation.datasets.DataSet`.
        batch_size: int. Pictures in one call of the network. Defaults to
            `64`.
        progress: bool. Whether to draw a progress bar. Defaults to `True`.
        cache: string or `pathlib.Path`. See `embed_readable`.

    Returns:
        `Embedded`.
    """
    keys, notes = [], []

    def pictures():
        for key, picture, note in data.examples():
            keys.append(key)
            notes.append(note)
            yield key, picture

    vectors, readable = embed_readable(
        embedder,
        pictures(),
        batch_size,
        progress,
        data.total,
        cache,
        data.name,
    )
    kept = np.flatnonzero(readable)
    return Embedded(
        vectors,
        [notes[n] for n in kept],
        len(keys) - len(kept),
        names_digest([keys[n] for n in kept]),
    )


def _embed_chunk(embedder, pictures, batch_size, bar):
    names, readable = [], []

    def read(named):
        name, picture = named
        try:
            return name, embedder.read(picture)
        except ValueError as error:
            return name, error

    def prepared():
        for name, picture in map_ahead(read, pictures):
            names.append(str(name))
            readable.append(not isinstance(picture, ValueError))
            if readable[-1]:
                yield picture
                continue
            logger.warning("Picture %s is left out: %s", name, picture)
            bar.advance(1)

    # Where none is readable, there are no rows and so no width.
    vectors = _encode(embedder.images, prepared(), batch_size, bar, empty=True)
    digest = names_digest(names)
    return {
        "vectors": vectors,
        "readable": np.array(readable, bool),
        "names": np.array(digest),
    }


def _join(rows):
    """Concatenate, freeing each part as it is copied."""
    whole = np.empty((sum(map(len, rows)), rows[0].shape[1]), "float32")
    start = 0
    while rows:
        part = rows.pop(0)
        whole[start : start + len(part)] = part
        start += len(part)
    return whole


def file_name(name):
    """Return a name with nothing in it that a path would take amiss."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)


def names_digest(names):
    """Return a string that differs for other names, or another order."""
    return hashlib.sha256("\0".join(map(str, names)).encode()).hexdigest()


class _Chunks:
    """Vectors on disk, in files of so many rows."""

    def __init__(self, cache, embedder, name):
        self.directory = None
        self.size = CHUNK
        if cache is not None and embedder.fingerprint is not None:
            self.directory = Path(cache) / embedder.fingerprint / name

    def _path(self, number):
        return self.directory / f"{number:05d}.npz"

    def load(self, number):
        if self.directory is None or not self._path(number).is_file():
            return None
        with np.load(self._path(number), allow_pickle=False) as arrays:
            return dict(arrays)

    def save(self, number, **arrays):
        if self.directory is not None:
            with atomic_file(self._path(number)) as temporary:
                with open(temporary, "wb") as file:
                    np.savez(file, **arrays)
        return arrays

    def check(self, number, chunk, names):
        if str(chunk["names"]) != names_digest(names):
            raise ValueError(
                f"`{self._path(number)}` holds the vectors of other pictures: "
                "the data have changed. Remove that directory, or choose "
                "another one."
            )


class _Bar:
    """A progress bar on the standard error stream, or none."""

    def __init__(self, unit, total, shown):
        self.progress = Progress(
            console=Console(stderr=True), disable=not shown
        )
        self.task = self.progress.add_task(f"Embedding {unit}", total=total)
        self.unit = unit

    def __enter__(self):
        self.progress.start()
        return self

    def __exit__(self, *_):
        self.progress.stop()

    def advance(self, count):
        self.progress.advance(self.task, count)


def _encode(encode, items, batch_size, bar, empty=False):
    """Encode items in batches of one size, to rows of unit length."""
    if batch_size < 1:
        raise ValueError(
            f"`batch_size` must be positive. Received: batch_size={batch_size}"
        )
    items, rows = iter(items), []
    while batch := list(itertools.islice(items, batch_size)):
        full = batch + batch[:1] * (batch_size - len(batch))
        vectors = keras.ops.convert_to_numpy(encode(full))
        rows.append(_unit(vectors[: len(batch)]))
        bar.advance(len(batch))
    if not rows and not empty:
        raise ValueError(f"There are no {bar.unit} to embed.")
    return np.concatenate(rows) if rows else np.zeros((0, 0), "float32")


def _unit(vectors):
    """Scale rows to unit length, where they have not got it."""
    vectors = np.asarray(vectors, "float32")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    far = ~(np.abs(lengths - 1) < 1e-5) & (lengths > 0)
    return np.where(far, vectors / np.where(far, lengths, 1), vectors)
