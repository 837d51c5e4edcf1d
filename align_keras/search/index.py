"""An index: one directory with model, vectors, keys and thumbnails."""

import contextlib
import json
import os
import shutil
from pathlib import Path

import numpy as np

from align_keras import __version__
from align_keras.classes import check_templates
from align_keras.embedding.embed_files import METADATA
from align_keras.embedding.embed_files import require_pyarrow
from align_keras.embedding.embed_files import unit_rows
from align_keras.embedding.embedder import fingerprint_of
from align_keras.embedding.scores import as_vectors
from align_keras.embedding.search_model import load_search_model
from align_keras.embedding.search_model import model_path
from align_keras.io.atomic import atomic_directory
from align_keras.search.columns import Column
from align_keras.search.columns import ColumnWriter
from align_keras.search.exact import check_k
from align_keras.search.exact import nearest

FORMAT = "align_keras index"
VERSION = 1
KINDS = ("auto", "exact", "ivf-pq", "hnsw", "qdrant")
# Above this, `auto` takes FAISS: a scan of so many vectors of 640 values
# reads 640 MB for each query.
EXACT_UP_TO = 250_000
# A graph is built in memory: 3.6 GB for so many vectors of 640 values.
GRAPH_UP_TO = 4_000_000
_COLUMNS = ("keys", "texts", "thumbnails")


def build_index(
    vectors,
    output,
    model,
    kind="auto",
    labels=(),
    templates=("{}",),
    qdrant=None,
    collection=None,
):
    """Make an index of what `embed` wrote.

    Args:
        vectors: string or `pathlib.Path`. The directory that `embed` wrote.
        output: string or `pathlib.Path`. The directory to write. It appears
            whole or not at all.
        model: string or `pathlib.Path`. The model that `embed` used, which is
            copied into the index.
        kind: string. `"exact"` compares with every vector; `"ivf-pq"` and
            `"hnsw"` ask FAISS for candidates; `"qdrant"` asks that database;
            `"auto"` is `"exact"` up to 250,000 vectors, `"hnsw"` up to
            4,000,000 and `"ivf-pq"` above.
        labels: list of strings. Classes that the web page tells apart in a
            picture. Defaults to none.
        templates: list of strings with `{}` where the name of a class goes;
            see `align_keras.classes.class_vectors`. Defaults to the name
            alone.
        qdrant: string. The URL of a Qdrant server, for that kind alone.
            Defaults to `None`, the embedded form inside the index.
        collection: string. The name in Qdrant, for that kind alone. Defaults
            to `None`, `"align_keras"`.

    Returns:
        dict, that of `index.json`.

    Raises:
        FileExistsError: `output` exists.
        ValueError: the vectors are of another model, or not complete, or an
            argument is wrong.

    Example:

    ```python
    build_index("vectors", "index", model="run/model")
    ```
    """
    require_pyarrow()
    directory = Path(vectors)
    manifest = _finished_manifest(directory)
    expected = manifest["arguments"]["fingerprint"]
    _require_match(
        fingerprint_of(model_path(model)), expected, model, directory
    )
    files = [directory / shard["file"] for shard in manifest["shards"]]
    return write_index(
        _read_vectors(files, expected),
        manifest["records"],
        output,
        model,
        kind,
        labels,
        templates,
        qdrant,
        collection,
    )


def write_index(
    rows,
    count,
    output,
    model,
    kind="auto",
    labels=(),
    templates=("{}",),
    qdrant=None,
    collection=None,
):
    """Make an index of vectors in memory or of a stream of them.

    Args:
        rows: iterable of tuples of a list of keys, a list of texts, a float
            array `(rows, dim)` and a list of JPEG files as bytes.
        count: int. Rows in all.
        output, model, kind, labels, templates, qdrant, collection: as in
            `build_index`.

    Returns:
        dict, that of `index.json`.

    Raises:
        FileExistsError: `output` exists.
        ValueError: there are no rows, or another number than `count`.
    """
    if kind not in KINDS:
        raise ValueError(
            f"`kind` must be one of {', '.join(KINDS)}. Received: kind={kind!r}"
        )
    _check_qdrant(kind, qdrant, collection)
    templates = check_templates(list(templates), "templates")
    if kind == "auto":
        kind = _kind_for(count)
    path = Path(output)
    if path.exists():
        raise FileExistsError(
            f"`{output}` exists already: choose another directory or remove it."
        )
    if count < 1:
        raise ValueError("There are no vectors to index.")
    with atomic_directory(path) as directory:
        vectors = _write_rows(rows, count, directory)
        shutil.copytree(model_path(model), directory / "model")
        about = {
            "format": FORMAT,
            "version": VERSION,
            "written_by": f"align_keras {__version__}",
            "count": count,
            "dim": vectors.shape[1],
            "kind": kind,
            "fingerprint": fingerprint_of(directory / "model"),
            "labels": list(labels),
            "templates": templates,
            "settings": _build(
                kind, vectors, directory, qdrant, collection, count
            ),
        }
        text = json.dumps(about, indent=2, ensure_ascii=False)
        (directory / "index.json").write_text(text + "\n", "utf-8")
    return about


def _kind_for(count):
    if count <= EXACT_UP_TO:
        return "exact"
    return "hnsw" if count <= GRAPH_UP_TO else "ivf-pq"


def _check_qdrant(kind, url, collection):
    for name, value in (("qdrant", url), ("collection", collection)):
        if value is not None and kind != "qdrant":
            raise ValueError(
                f"`{name}` is of the kind qdrant alone: leave it out, or "
                f"choose that kind. Received: kind={kind!r}, {name}={value!r}"
            )
    if url is not None:
        _check_url(url)


def _check_url(url):
    # Qdrant's client would take it for a directory, and make that.
    if not url.startswith(("http://", "https://")):
        raise ValueError(
            "`qdrant` must be a URL such as http://host:6333. "
            f"Received: qdrant={url!r}"
        )


def _finished_manifest(directory):
    path = directory / "manifest.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"`{directory}` has no manifest.json: give a directory that "
            "`align-keras embed` wrote."
        )
    manifest = json.loads(path.read_text("utf-8"))
    if not manifest.get("finished"):
        raise ValueError(
            f"The vectors in `{directory}` are not complete: run `align-keras "
            "embed` again, which goes on where it stopped."
        )
    return manifest


def _require_match(found, expected, model, owner):
    if found != expected:
        raise ValueError(
            f"The model `{model}` does not match `{owner}`: its fingerprint is "
            f"{found}, and that of the vectors {expected}. Give the model that "
            "embedded them, or embed them again."
        )


def _read_vectors(files, expected):
    import pyarrow.parquet

    for path in files:
        with pyarrow.parquet.ParquetFile(path) as file:
            about = json.loads(file.metadata.metadata[METADATA])
            if about["fingerprint"] != expected:
                raise ValueError(
                    f"`{path}` holds vectors of the model "
                    f"{about['fingerprint']}, the other files those of "
                    f"{expected}: embed it again."
                )
            for batch in file.iter_batches(batch_size=4096):
                vectors = batch["vector"].flatten().to_numpy()
                yield (
                    batch["key"].to_pylist(),
                    batch["text"].to_pylist(),
                    vectors.reshape(len(batch), -1),
                    batch["thumbnail"].to_pylist(),
                )


def _write_rows(rows, count, directory):
    """Write columns and vectors; return the vectors as a memory map."""
    path = directory / "vectors.npy"
    matrix, written = None, 0
    with contextlib.ExitStack() as stack:
        columns = [
            stack.enter_context(ColumnWriter(directory, name))
            for name in _COLUMNS
        ]
        for keys, texts, vectors, thumbnails in rows:
            vectors = unit_rows(as_vectors(vectors, "vectors"))
            if matrix is None:
                matrix = np.lib.format.open_memmap(
                    path, "w+", "float32", (count, vectors.shape[1])
                )
            matrix[written : written + len(vectors)] = vectors
            written += len(vectors)
            values = [
                [key.encode("utf-8", "replace") for key in keys],
                [text.encode("utf-8", "replace") for text in texts],
                thumbnails,
            ]
            for column, cells in zip(columns, values, strict=True):
                for cell in cells:
                    column.append(cell)
    if written != count:
        raise ValueError(
            f"There are {written} vectors where {count} were announced."
        )
    matrix.flush()
    return np.load(path, "r")


def _build(kind, vectors, directory, qdrant, collection, count):
    if kind == "exact":
        return {}
    if kind == "qdrant":
        from align_keras.search.qdrant import upload

        keys = Column(directory, "keys", count)
        names = (keys[row].decode("utf-8", "replace") for row in range(count))
        collection = collection or "align_keras"
        upload(vectors, names, qdrant or directory / "qdrant", collection)
        return {"location": qdrant, "collection": collection}
    from align_keras.search.approximate import build

    return build(kind, vectors, directory / "index.faiss")


class Index:
    """An index that `build_index` wrote, as memory maps.

    Args:
        directory: string or `pathlib.Path`.
        qdrant: string. The URL of the Qdrant server that holds the vectors of
            an index that was built with one. It is not taken from the index,
            which may be a stranger's: queries and `QDRANT_API_KEY` go there.
            Defaults to `None`, there is none.

    Raises:
        ConnectionError: the server does not answer.
        FileNotFoundError: there is no index.
        ValueError: it is damaged, or of a newer version, or its vectors are
            on a server that was not named.

    Example:

    ```python
    index = Index("index")
    ((rows, scores),) = index.search(query[None], k=10)
    index.key(rows[0])
    ```
    """

    def __init__(self, directory, qdrant=None):
        self.directory = Path(directory)
        about = _read_about(self.directory)
        self.count, self.dim = about["count"], about["dim"]
        self.kind, self.fingerprint = about["kind"], about["fingerprint"]
        self.labels = [str(label) for label in about["labels"]]
        self.templates = check_templates(about["templates"], directory)
        self.vectors = np.load(
            self.directory / "vectors.npy", "r", allow_pickle=False
        )
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
            Column(self.directory, name, self.count) for name in _COLUMNS
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
        """Where Qdrant is: a URL, or a directory of the index."""
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
        _check_url(qdrant)
        return qdrant

    def search(self, queries, k):
        """Find the vectors nearest to each query.

        Args:
            queries: float array `(num_queries, dim)` of unit vectors.
            k: int.

        Returns:
            A list with a pair of arrays for each query: int64 rows, best
            first, and float32 scores. Approximate search may find fewer than
            `k`.

        Raises:
            ValueError: the queries do not fit, or `k` is not positive.
        """
        queries = as_vectors(queries, "queries")
        if queries.shape[1] != self.dim:
            raise ValueError(
                f"The index holds vectors of {self.dim} values. Received: "
                f"queries of {queries.shape[1]}"
            )
        check_k(k)
        return self._nearest(queries, min(int(k), self.count))

    def key(self, row):
        """Return the key of a row, a string."""
        return self._keys[row].decode("utf-8", "replace")

    def text(self, row):
        """Return the caption of a row, a string that may be empty."""
        return self._texts[row].decode("utf-8", "replace")

    def thumbnail(self, row):
        """Return the JPEG file of a row as bytes, which may be empty."""
        return self._thumbnails[row]

    def load_model(self, model=None):
        """Load the model of the index.

        Args:
            model: string or `pathlib.Path`. Another copy of it. Defaults to
                `None`, the one in the index.

        Returns:
            An `align_keras.embedding.search_model.SearchModel`.

        Raises:
            ValueError: it is not the model that embedded the vectors.
        """
        model = model_path(model or self.directory / "model")
        _require_match(
            fingerprint_of(model), self.fingerprint, model, self.directory
        )
        return load_search_model(model)

    def close(self):
        """Let go of a database, where there is one."""
        if hasattr(self._nearest, "close"):
            self._nearest.close()


def _read_about(directory):
    path = directory / "index.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"`{os.fspath(directory)}` is no index: it has no index.json. "
            "Write one with `align-keras index`."
        )
    try:
        about = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"`{path}` is not valid JSON: {error}.") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(f"`{path}` does not describe an index of align_keras.")
    if about.get("version") != VERSION:
        raise ValueError(
            f"`{directory}` is an index of version {about.get('version')}, and "
            f"this align_keras ({__version__}) reads version {VERSION}: "
            "upgrade, or build the index again."
        )
    return about
