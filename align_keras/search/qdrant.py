"""Vectors in Qdrant, for those who outgrow one machine.

The same client works embedded, in a directory, and against a server.
"""

import base64
import contextlib
import io
import os
import pickle
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from align_keras.io.optional import OptionalModule

qdrant_client = OptionalModule("qdrant_client", extra="qdrant")

_BATCH = 256


def upload(
    vectors: np.ndarray,
    keys: Iterable[str],
    location: str | Path,
    collection: str,
) -> None:
    """Write vectors to a collection that does not exist yet.

    A point's number is the row of its vector, and its payload the key. Of two
    that write to one collection, the server lets one create it. What could
    not be written whole is deleted again.

    Args:
        vectors: float32 array `(count, dim)` of unit vectors.
        keys: iterable of strings.
        location: string. The URL of a server, or a directory.
        collection: string.

    Raises:
        ConnectionError: the server does not answer, or not as Qdrant does.
        ImportError: the client is not installed.
        FileExistsError: the collection exists.
    """
    with contextlib.closing(connect(location)) as client, _errors_of(location):
        if not _create(client, collection, vectors.shape[1]):
            raise FileExistsError(
                f"The collection `{collection}` exists in `{location}`, or "
                "another process is writing it: choose another name with "
                "--collection, or delete it."
            )
        try:
            _fill(client, collection, vectors, iter(keys))
        except BaseException:
            with contextlib.suppress(Exception):
                client.delete_collection(collection)
            raise


def _create(client, collection, dim):
    """Whether a collection was made, which nobody else has."""
    from qdrant_client.http.exceptions import ApiException

    if client.collection_exists(collection):
        return False
    models = qdrant_client.models
    sizes = models.VectorParams(size=dim, distance=models.Distance.DOT)
    try:
        client.create_collection(collection, sizes)
    except ApiException:
        # Versions of the server say in several ways that there is one now.
        if client.collection_exists(collection):
            return False
        raise
    return True


def _fill(client, collection, vectors, keys):
    for start in range(0, len(vectors), _BATCH):
        part = np.array(vectors[start : start + _BATCH])
        client.upsert(
            collection,
            qdrant_client.models.Batch(
                ids=list(range(start, start + len(part))),
                vectors=part.tolist(),
                payloads=[{"key": next(keys)} for _ in part],
            ),
        )


def connect(location: str | Path) -> Any:
    """Open Qdrant.

    Args:
        location: string. The URL of a server, whose key is read from the
            environment variable `QDRANT_API_KEY`, or a directory.

    Returns:
        A `qdrant_client.QdrantClient`.

    Raises:
        BlockingIOError: another process has the directory open.
        ImportError: the client is not installed.
        ValueError: the directory is damaged, or holds a program.
    """
    client = qdrant_client.QdrantClient
    if "://" in str(location):
        return client(
            url=location,
            api_key=os.environ.get("QDRANT_API_KEY"),
            # The first request tells more than the warning of this one.
            check_compatibility=False,
        )
    _check_pickles(Path(location))
    try:
        return client(path=str(location))
    except RuntimeError as error:
        raise BlockingIOError(
            f"`{location}` is open already, such as in `align-keras serve`, "
            "and embedded Qdrant takes one user at a time: end the other, or "
            f"use a server. Received: {error}"
        ) from error


class _Points(pickle.Unpickler):
    """Reads what embedded Qdrant stores, and calls nothing else."""

    def find_class(self, module, name):
        point = qdrant_client.models.PointStruct
        if (module, name) == (point.__module__, point.__qualname__):
            return point
        raise pickle.UnpicklingError(f"it calls {module}.{name}")


def _check_pickles(directory):
    """Refuse a directory whose pickles run a program when they are opened.

    Embedded Qdrant keeps its points in SQLite as pickles, and an index may be
    a stranger's.
    """
    for path in directory.rglob("storage.sqlite"):
        address = f"{path.resolve().as_uri()}?mode=ro"
        try:
            with contextlib.closing(
                sqlite3.connect(address, uri=True)
            ) as database:
                rows = database.execute("SELECT id, point FROM points")
                for key, point in rows:
                    _Points(io.BytesIO(base64.b64decode(key))).load()
                    _Points(io.BytesIO(point)).load()
        # A damaged pickle raises a dozen types.
        except Exception as error:
            raise ValueError(
                f"`{path}` is damaged, or not what embedded Qdrant wrote: "
                f"{error}. Build the index again."
            ) from None


@contextlib.contextmanager
def _errors_of(location):
    from qdrant_client.http.exceptions import ApiException

    try:
        yield
    except ApiException as error:
        raise ConnectionError(
            f"Qdrant at `{location}` does not answer as it should: check that "
            "the server runs and QDRANT_API_KEY is right. "
            f"Received: {error}"
        ) from error


class QdrantSearch:
    """The nearest vectors of a collection.

    Args:
        location: string. The URL of a server, or a directory.
        collection: string.
        count: int. The vectors that it must hold.

    Raises:
        BlockingIOError: another process has the directory open.
        ConnectionError: the server does not answer, or not as Qdrant does.
        ValueError: the collection is missing or holds another number.
    """

    def __init__(self, location: str | Path, collection: str, count: int):
        self._models = qdrant_client.models
        self._client = connect(location)
        self._location, self._collection = location, collection
        found = None
        with _errors_of(location):
            if self._client.collection_exists(collection):
                found = self._client.count(collection, exact=True).count
        if found != count:
            self._client.close()
            holds = "does not exist" if found is None else f"holds {found}"
            raise ValueError(
                f"The index has {count} vectors, but the collection "
                f"`{collection}` in `{location}` {holds}: build the index "
                "again."
            )

    def __call__(
        self, queries: np.ndarray, k: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Find nearest vectors, as `FaissSearch` does."""
        requests = [
            self._models.QueryRequest(query=query.tolist(), limit=k)
            for query in np.asarray(queries, "float32")
        ]
        with _errors_of(self._location):
            answers = self._client.query_batch_points(
                self._collection, requests
            )
        return [
            (
                np.array([point.id for point in answer.points], "int64"),
                np.array([point.score for point in answer.points], "float32"),
            )
            for answer in answers
        ]

    def close(self) -> None:
        """Let go of the directory or the connection."""
        self._client.close()
