"""Keep the vectors of a stream on disk, to resume after an interruption."""

import contextlib
import os
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from align_keras.embedding.embedder import Embedder
from align_keras.io.atomic import atomic_file
from align_keras.io.fingerprints import arrays_fingerprint
from align_keras.io.fingerprints import fingerprint
from align_keras.io.mirrors import local_copy
from align_keras.io.stores import is_file

# Rows per file, and thus the most that an interruption can lose.
CHUNK = 4096


class VectorCache:
    """The vectors of one stream and one model, in files of `CHUNK` rows.

    Args:
        cache: string or `pathlib.Path`. The directory for all streams and
            models, or its address; with `None`, nothing is kept.
        embedder: `Embedder`. If it has no fingerprint, nothing is kept.
        name: string. The name of the stream.
    """

    def __init__(self, cache: str | Path | None, embedder: Embedder, name: str):
        self.size = CHUNK
        self.directory = None
        if cache is not None and embedder.fingerprint is not None:
            parts = str(cache), embedder.fingerprint, str(file_name(name))
            self.directory = "/".join(parts)

    def _path(self, number):
        return f"{self.directory}/{number:05d}.npz"

    def load(
        self, number: int, axes: dict[str, int] | None = None
    ) -> dict[str, np.ndarray] | None:
        """Return the arrays of a chunk, or `None` if it is not on disk.

        Args:
            number: int.
            axes: dict. For each array that the chunk must hold in addition to
                `"vectors"`, the number of its axes.

        Raises:
            ValueError: The file is damaged; the message names it.
        """
        if self.directory is None or not is_file(self._path(number)):
            return None
        path = local_copy(self._path(number))
        try:
            with np.load(path, allow_pickle=False) as arrays:
                found = dict(arrays)
            for field, number_of_axes in {"vectors": 2, **(axes or {})}.items():
                if found[field].ndim != number_of_axes:
                    raise ValueError
            return found
        except (EOFError, KeyError, TypeError, ValueError, BadZipFile):
            raise ValueError(
                f"`{self._path(number)}` is damaged: remove it, and its "
                "vectors are computed again."
            ) from None

    def save(self, number: int, **arrays: Any) -> dict[str, np.ndarray]:
        """Write the arrays of a chunk, and return them."""
        if self.directory is not None:
            with atomic_file(self._path(number)) as temporary:
                with open(temporary, "wb") as file:
                    np.savez(file, **arrays)
        return arrays

    def check(self, number: int, chunk: dict, names: list) -> None:
        """Raise `ValueError` if a chunk holds other images.

        Args:
            number, chunk: what `load` took and returned.
            names: list of strings. The names of the images, or these with
                their marks, as given to `names_digest` for `save`.
        """
        if str(chunk.get("names")) != names_digest(names):
            raise ValueError(
                f"`{self._path(number)}` holds the vectors of other images: "
                "the data have changed, or other data have the same name. "
                "Remove that directory, or choose another one."
            )


def file_name(name: str) -> str:
    """Replace the characters of a name that are special in paths."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)


def image_mark(image: Any) -> str:
    """Return what tells an image from others of its name, without decoding.

    Args:
        image: a path, whose mark is the size and the time of the last change;
            or bytes or an array, whose mark is a digest.
    """
    if isinstance(image, (str, os.PathLike)):
        # Whoever reads the image says why it cannot be read.
        with contextlib.suppress(OSError, ValueError):
            about = os.stat(image)
            return f"{about.st_size} bytes at {about.st_mtime_ns}"
        return ""
    if isinstance(image, bytes):
        image = np.frombuffer(image, "uint8")
    image = np.asarray(image)
    return arrays_fingerprint([image], image.shape, image.dtype)


def names_digest(names: list) -> str:
    """Return a digest of a list of names, in their order."""
    return fingerprint(*map(str, names))
