"""Open and query an index: a directory with model, vectors and thumbnails."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from align_keras import __version__
from align_keras.embedding.similarity import as_vectors
from align_keras.io.fingerprints import check_digest
from align_keras.io.fingerprints import directory_fingerprint
from align_keras.io.folders import check_links
from align_keras.io.folders import stays_inside
from align_keras.io.json_files import read_json
from align_keras.io.lists import check_templates
from align_keras.io.mirrors import reads
from align_keras.search.columns import Column
from align_keras.search.exact import check_k
from align_keras.search.exact import nearest

FORMAT = "align_keras index"
VERSION = 1
COLUMNS = ("keys", "texts", "thumbnails")


class DamagedIndex(ValueError):
    """An index answers with what it cannot hold."""


class Index:
    """An index that `build_index` wrote, opened with memory maps.

    Args:
        directory: string or `pathlib.Path`.
        qdrant: string. The URL of the Qdrant server, if the index was built
            with one. It is never taken from the index, which may come from a
            stranger: queries and `QDRANT_API_KEY` are sent there. Defaults to
            `None`: no server.
        verify: bool. Whether to read the files of the index and compare their
            checksums, which does not reach vectors on a Qdrant server.
            Defaults to `False`: files are not checked.

    Raises:
        ConnectionError: the server does not answer.
        FileNotFoundError: there is no index.
        OutsideFolder: a file in the index is a link that leads out of it.
        ValueError: the index is damaged or of another version, or its vectors
            are on a server and `qdrant` is not given.

    Example:

    ```python
    index = Index("index")
    ((rows, scores),) = index.search(query[None], k=10)
    index.key(rows[0])
    ```
    """

    @reads("directory")
    def __init__(
        self,
        directory: str | Path,
        qdrant: str | None = None,
        verify: bool = False,
    ):
        self.directory = Path(directory)
        about = _read_about(self.directory)
        check_links(self.directory)
        if verify:
            for name, digest in about["sha256"].items():
                path = self.directory / name
                check_digest(path, digest, "build the index again")
        self.count, self.dim = about["count"], about["dim"]
        self.kind, self.fingerprint = about["kind"], about["fingerprint"]
        # The first name of a class is its label.
        names = [
            [label] if isinstance(label, str) else label
            for label in about["labels"]
        ]
        self.class_names = {first: [first, *more] for first, *more in names}
        self.labels = list(self.class_names)
        self.templates = check_templates(about["templates"], directory)
        try:
            self.vectors = np.load(
                self.directory / "vectors.npy", "r", allow_pickle=False
            )
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(
                f"`{directory}/vectors.npy` is damaged or missing: {error}. "
                "Build the index again."
            ) from None
        if (
            self.vectors.shape != (self.count, self.dim)
            or self.vectors.dtype != "float32"
        ):
            raise ValueError(
                f"`{directory}/vectors.npy` does not hold what index.json "
                f"says: {self.vectors.dtype} {self.vectors.shape}, not float32 "
                f"({self.count}, {self.dim}). Build the index again."
            )
        self._keys, self._texts, self._thumbnails = (
            Column(self.directory, name, self.count) for name in COLUMNS
        )
        self._nearest = self._open(about["settings"], qdrant)

    def _open(self, settings, qdrant):
        location = self._location(settings, qdrant)
        if self.kind == "exact":

            def exact(queries, k):
                found = nearest(queries, self.vectors, k)
                return list(zip(*found, strict=True))

            return exact
        if self.kind == "qdrant":
            from align_keras.search.qdrant import QdrantSearch

            return QdrantSearch(location, settings["collection"], self.count)
        from align_keras.search.approximate import FaissSearch

        path = self.directory / "index.faiss"
        return FaissSearch(path, self.vectors, settings)

    def _location(self, settings, qdrant):
        """Return where Qdrant is: a URL, or a directory in the index."""
        built_with = settings.get("location")
        if qdrant is None and built_with is None:
            return self.directory / "qdrant"
        if built_with is None:
            raise ValueError(
                f"`{self.directory}` holds its vectors itself: leave out "
                f"`qdrant`. Received: qdrant={qdrant!r}"
            )
        if qdrant is None:
            raise ValueError(
                f"The vectors of `{self.directory}` were sent to the Qdrant "
                f"server {built_with!r}: name it yourself with --qdrant, if "
                "you trust it with your queries."
            )
        check_url(qdrant)
        return qdrant

    def search(
        self, queries: np.ndarray, k: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Find the vectors nearest to each query.

        Args:
            queries: float array `(num_queries, dim)` of unit vectors.
            k: int.

        Returns:
            A list with a pair of arrays for each query: int64 rows, best
            first, and float32 scores. Approximate search may find fewer than
            `k`.

        Raises:
            ValueError: the queries have another dimension, or `k` is not
                positive.
            DamagedIndex: the index returns rows that it does not have.
        """
        queries = as_vectors(queries, "queries")
        if queries.shape[1] != self.dim:
            raise ValueError(
                f"The index holds vectors of {self.dim} values. Received: "
                f"queries of {queries.shape[1]}"
            )
        check_k(k)
        found = self._nearest(queries, min(int(k), self.count))
        for rows, scores in found:
            within = np.all((rows >= 0) & (rows < self.count))
            if not (within and np.isfinite(scores).all()):
                raise DamagedIndex(
                    f"`{self.directory}` returns rows that do not exist, or "
                    "scores that are not finite: it is damaged. Build the "
                    "index again."
                )
        return found

    def key(self, row: int) -> str:
        """Return the key of a row, a string."""
        return self._keys[row].decode("utf-8", "replace")

    def text(self, row: int) -> str:
        """Return the caption of a row, a string that may be empty."""
        return self._texts[row].decode("utf-8", "replace")

    def thumbnail(self, row: int) -> bytes:
        """Return the thumbnail of a row: bytes of a JPEG file, maybe empty."""
        return self._thumbnails[row]

    def describe(self, rows: np.ndarray, scores: np.ndarray) -> list[dict]:
        """Return a dict of row, key, text and score for each result."""
        return [
            {
                "row": int(row),
                "key": self.key(row),
                "text": self.text(row),
                "score": float(score),
            }
            for row, score in zip(rows, scores, strict=True)
        ]

    def load_model(self, model: str | Path | None = None) -> Any:
        """Load the model of the index.

        Args:
            model: string or `pathlib.Path`. Another copy of the same model.
                Defaults to `None`: the copy in the index.

        Returns:
            An `align_keras.embedding.Embedder`.

        Raises:
            ValueError: it is not the model that embedded the vectors.
        """
        # Vectors can be searched without Keras.
        from align_keras.embedding.loading import load_embedder
        from align_keras.embedding.loading import require_model

        path = require_model(model or self.directory / "model")
        require_match(path, self.fingerprint, self.directory)
        return load_embedder(path)

    def close(self) -> None:
        """Close the connection to Qdrant, if there is one."""
        if hasattr(self._nearest, "close"):
            self._nearest.close()


def check_url(url: str) -> None:
    """Refuse what is not a URL: Qdrant's client would create a directory."""
    if not url.startswith(("http://", "https://")):
        raise ValueError(
            "`qdrant` must be a URL such as http://host:6333. "
            f"Received: qdrant={url!r}"
        )


def require_match(model: Path, expected: str, owner: str | Path) -> None:
    """Refuse a model other than the one that embedded the vectors."""
    found = directory_fingerprint(model)
    if found != expected:
        raise ValueError(
            f"The model `{model}` does not match `{owner}`: its fingerprint is "
            f"{found}, and that of the vectors {expected}. Give the model that "
            "embedded them, or embed them again."
        )


def _read_about(directory):
    path = directory / "index.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"`{os.fspath(directory)}` is not an index: it has no index.json. "
            "Write one with `align-keras index`."
        )
    about = read_json(path)
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(f"`{path}` does not describe an align_keras index.")
    if about.get("version") != VERSION:
        raise ValueError(
            f"`{directory}` is an index of version {about.get('version')}, but "
            f"this align_keras ({__version__}) reads version {VERSION}: "
            "upgrade, or build the index again."
        )
    for name, is_sound in _FIELDS.items():
        if not is_sound(about.get(name)):
            _refuse(path, name, about.get(name))
    for name, is_sound in _SETTINGS[about["kind"]].items():
        if not is_sound(about["settings"].get(name)):
            _refuse(path, f"settings: {name}", about["settings"].get(name))
    return about


def _refuse(path, name, value):
    raise ValueError(
        f"`{path}` is damaged: it has {name}={str(value)[:100]!r}. Build the "
        "index again."
    )


def _is_count(value):
    return type(value) is int and 0 < value < 2**48


def _is_string(value):
    return isinstance(value, str)


def _are_names(value):
    return isinstance(value, list) and all(
        _is_string(name)
        or (isinstance(name, list) and name and all(map(_is_string, name)))
        for name in value
    )


# The fields of `index.json`, and a check for each.
_FIELDS: dict[str, Callable] = {
    "count": _is_count,
    "dim": _is_count,
    "kind": lambda value: _is_string(value) and value in _SETTINGS,
    "fingerprint": _is_string,
    "labels": _are_names,
    "templates": lambda value: (
        isinstance(value, list) and value and all(map(_is_string, value))
    ),
    "settings": lambda value: isinstance(value, dict),
    "sha256": lambda value: (
        isinstance(value, dict)
        and all(map(_is_string, value.values()))
        and all(map(stays_inside, value))
    ),
}
# The settings of each kind of index, and a check for each.
_SETTINGS: dict[str, dict[str, Callable]] = {
    "exact": {},
    "qdrant": {
        "location": lambda value: value is None or _is_string(value),
        "collection": _is_string,
    },
    "hnsw": {
        "neighbours": _is_count,
        "breadth": _is_count,
        "candidates": _is_count,
    },
    "ivf-pq": {"probes": _is_count, "candidates": _is_count},
}
