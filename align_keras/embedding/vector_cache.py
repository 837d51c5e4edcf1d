"""Vectors of a stream on disk, so that an interruption costs little."""

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from align_keras.embedding.embedder import Embedder
from align_keras.io.atomic import atomic_file
from align_keras.io.fingerprints import fingerprint
from align_keras.io.mirrors import local_copy
from align_keras.io.stores import is_file

# Rows of one file: what an interruption may cost.
CHUNK = 4096


class VectorCache:
    """Vectors of one stream and one model, in files of `CHUNK` rows.

    Args:
        cache: string or `pathlib.Path`. The directory of all streams and
            models, or its address, or `None`, which keeps nothing.
        embedder: `Embedder`. Without a fingerprint nothing is kept.
        name: string. Of the stream.
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
        """Return the arrays of a chunk, or `None` where it is not there.

        Args:
            number: int.
            axes: dict from an array that it must hold beside `"vectors"` to
                the number of its axes.

        Raises:
            ValueError: It is damaged; the message names the file.
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
                "vectors are made again."
            ) from None

    def save(self, number: int, **arrays: Any) -> dict[str, np.ndarray]:
        """Keep the arrays of a chunk, and return them."""
        if self.directory is not None:
            with atomic_file(self._path(number)) as temporary:
                with open(temporary, "wb") as file:
                    np.savez(file, **arrays)
        return arrays

    def check(self, number: int, chunk: dict, names: list) -> None:
        """Raise `ValueError` where a chunk is of images of other names."""
        if str(chunk.get("names")) != names_digest(names):
            raise ValueError(
                f"`{self._path(number)}` holds the vectors of other images: "
                "the data have changed. Remove that directory, or choose "
                "another one."
            )


def file_name(name: str) -> str:
    """Return a name without characters that have a meaning in a path."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)


def names_digest(names: list) -> str:
    """Return a string that differs for other names, or another order."""
    return fingerprint(*map(str, names))
