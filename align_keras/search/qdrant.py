"""Store and search vectors in Qdrant, for indexes too large for one machine.

The same client works embedded, in a directory, and with a server.
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
    """Write vectors to a new collection.

    The id of a point is the row of its vector, and its payload is the key. If
    two processes write to one collection, the server lets only one of them
    create it. If writing fails, the collection is deleted again.

    Args:
        vectors: float32 array `(count, dim)` of unit vectors.
        keys: iterable of strings.
        location: string. The URL of a server, or a directory.
        collection: string. The name of the collection.

    Raises:
        ConnectionError: the server does not answer, or refuses.
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


def delete(location: str | Path, collection: str) -> None:
    """Delete a collection that `upload` wrote, if the server still answers.

    Args:
        location, collection: as in `upload`.
    """
    with contextlib.suppress(Exception):
        with contextlib.closing(connect(location)) as client:
            client.delete_collection(collection)


def _create(client, collection, dim):
    """Create a collection; return `False` if it exists."""
    from qdrant_client.http.exceptions import ApiException

    if client.collection_exists(collection):
        return False
    models = qdrant_client.models
    sizes = models.VectorParams(size=dim, distance=models.Distance.DOT)
    try:
        client.create_collection(collection, sizes)
    except ApiException:
        # If another process has just created it, the error depends on the
        # server's version.
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
    """Open a Qdrant server or a directory of embedded Qdrant.

    Args:
        location: string. The URL of a server, whose key is read from the
            environment variable `QDRANT_API_KEY`, or a directory.

    Returns:
        A `qdrant_client.QdrantClient`.

    Raises:
        BlockingIOError: another process has the directory open.
        ImportError: the client is not installed.
        ValueError: the directory is damaged, or opening it would run code.
    """
    client = qdrant_client.QdrantClient
    if "://" in str(location):
        return client(
            url=location,
            api_key=os.environ.get("QDRANT_API_KEY"),
            # If there is no server, the first request raises a clear error;
            # this check only warns.
            check_compatibility=False,
        )
    _check_pickles(Path(location))
    try:
        return client(path=str(location))
    except RuntimeError as error:
        raise BlockingIOError(
            f"`{location}` is already open, perhaps in `align-keras serve`, "
            "and embedded Qdrant allows one client at a time: stop the other "
            f"one, or use a server. Received: {error}"
        ) from error


class _Points(pickle.Unpickler):
    """Unpickles the points of embedded Qdrant, and no other class."""

    def find_class(self, module, name):
        point = qdrant_client.models.PointStruct
        if (module, name) == (point.__module__, point.__qualname__):
            return point
        raise pickle.UnpicklingError(f"it calls {module}.{name}")


def _check_pickles(directory):
    """Refuse a directory with pickles that would run code when opened.

    Embedded Qdrant stores its points in SQLite as pickles, and an index may
    come from a stranger.
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
        # A damaged pickle may raise many types of errors.
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
            "the server is running and QDRANT_API_KEY is right. "
            f"Received: {error}"
        ) from error


class QdrantSearch:
    """Finds the nearest vectors in a collection.

    Args:
        location: string. The URL of a server, or a directory.
        collection: string. The name of the collection.
        count: int. The number of vectors that it must hold.

    Raises:
        BlockingIOError: another process has the directory open.
        ConnectionError: the server does not answer, or refuses.
        ValueError: the collection is missing, or does not hold `count`
            vectors.
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
        """Find the vectors nearest to each query, as `FaissSearch` does."""
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
        """Close the directory or the connection."""
        self._client.close()
