"""Build an index: one directory with everything that a search needs."""

import contextlib
import shutil
from collections.abc import Iterable
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from align_keras import __version__
from align_keras.embedding.similarity import as_vectors
from align_keras.embedding.similarity import unit_rows
from align_keras.embedding.vector_files import read_manifest
from align_keras.embedding.vector_files import read_vectors
from align_keras.io.atomic import atomic_directory
from align_keras.io.file_names import glob_visible
from align_keras.io.fingerprints import directory_fingerprint
from align_keras.io.fingerprints import file_digest
from align_keras.io.json_files import write_json
from align_keras.io.lists import check_list
from align_keras.io.lists import check_templates
from align_keras.io.mirrors import publish
from align_keras.io.mirrors import reads
from align_keras.io.mirrors import stored
from align_keras.io.optional import require
from align_keras.io.paths import local_path
from align_keras.search.approximate import CENTROIDS
from align_keras.search.columns import Column
from align_keras.search.columns import ColumnWriter
from align_keras.search.index import COLUMNS
from align_keras.search.index import FORMAT
from align_keras.search.index import VERSION
from align_keras.search.index import check_url
from align_keras.search.index import require_match

KINDS = ("auto", "exact", "ivf-pq", "hnsw", "qdrant")
# Above this count, `auto` uses FAISS: scanning this many vectors of 640 values
# reads 640 MB for each query.
EXACT_UP_TO = 250_000
# An HNSW graph is built in memory: 3.6 GB for this many vectors of 640 values.
GRAPH_UP_TO = 4_000_000


@reads("vectors", "model")
@stored("output")
def build_index(
    vectors: str | Path,
    output: str | Path,
    model: str | Path,
    kind: str = "auto",
    labels: Sequence[str | list[str]] = (),
    templates: Sequence[str] = ("{}",),
    qdrant: str | None = None,
    collection: str | None = None,
) -> dict:
    """Build a search index from the vectors that `embed` wrote.

    Args:
        vectors: string or `pathlib.Path`. The directory that `embed` wrote.
        output: string or `pathlib.Path`. The directory to write. If writing
            fails, it is not created.
        model: string or `pathlib.Path`. The model that `embed` used. It is
            copied into the index.
        kind: string. `"exact"` compares with every vector; `"ivf-pq"` and
            `"hnsw"` get candidates from FAISS; `"qdrant"` queries a Qdrant
            database; `"auto"` is `"exact"` up to 250,000 vectors, `"hnsw"` up
            to 4,000,000 and `"ivf-pq"` above.
        labels: list of strings, or of lists of strings if a class has several
            names. The classes into which the web page can classify an image.
            Defaults to none.
        templates: list of strings with `{}` in place of the class name; see
            `align_keras.classes.class_vectors`. Defaults to the bare name.
        qdrant: string. The URL of a Qdrant server, only for the kind
            `"qdrant"`. Defaults to `None`: embedded Qdrant, inside the index.
        collection: string. The name of the Qdrant collection, only for the
            kind `"qdrant"`. Defaults to `None`: `"align_keras"`.

    Returns:
        dict, the contents of `index.json`.

    Raises:
        FileExistsError: `output` exists.
        ValueError: the vectors are from another model or incomplete, or an
            argument is wrong.

    Example:

    ```python
    build_index("vectors", "index", model="run/model")
    ```
    """
    require("pyarrow.parquet", extra="search")
    from align_keras.embedding.loading import require_model

    directory = Path(vectors)
    manifest = read_manifest(directory)
    expected = manifest["arguments"]["fingerprint"]
    require_match(require_model(model), expected, directory)
    return write_index(
        read_vectors(directory, manifest),
        manifest["records"],
        output,
        model,
        kind,
        labels,
        templates,
        qdrant,
        collection,
    )


@reads("model")
@stored("output")
def write_index(
    rows: Iterable[tuple],
    count: int,
    output: str | Path,
    model: str | Path,
    kind: str = "auto",
    labels: Sequence[str | list[str]] = (),
    templates: Sequence[str] = ("{}",),
    qdrant: str | None = None,
    collection: str | None = None,
) -> dict:
    """Build a search index from vectors in memory or from a stream.

    Args:
        rows: iterable of batches. Each is a tuple of a list of keys, a list
            of texts, a float array `(rows, dim)` and a list of JPEG files as
            bytes.
        count: int. The total number of rows.
        output, model, kind, labels, templates, qdrant, collection: as in
            `build_index`.

    Returns:
        dict, the contents of `index.json`.

    Raises:
        FileExistsError: `output` exists.
        ValueError: there are no rows, or too few for `kind`, or their number
            is not `count`.
    """
    if kind not in KINDS:
        raise ValueError(
            f"`kind` must be one of {', '.join(KINDS)}. Received: kind={kind!r}"
        )
    check_list(labels, "labels")
    check_list(templates, "templates")
    _check_qdrant(kind, qdrant, collection)
    templates = check_templates(list(templates), "templates")
    if kind == "auto":
        kind = _kind_for(count)
    # Before all vectors are copied.
    if kind == "qdrant":
        require("qdrant_client", extra="qdrant")
    elif kind != "exact":
        require("faiss", extra="search")
    path = local_path(output)
    _require_new(path)
    if count < 1:
        raise ValueError("There are no vectors to index.")
    if kind == "ivf-pq" and count < CENTROIDS:
        raise ValueError(
            f"The kind ivf-pq needs at least {CENTROIDS} vectors: choose "
            f"another one, such as exact. Received: {count} vectors"
        )
    from align_keras.embedding.loading import require_model

    with contextlib.ExitStack() as undo:
        with atomic_directory(path) as directory:
            # Another process may have created it meanwhile.
            _require_new(path)
            vectors = _write_rows(rows, count, directory)
            shutil.copytree(require_model(model), directory / "model")
            about = {
                "format": FORMAT,
                "version": VERSION,
                "written_by": f"align_keras {__version__}",
                "count": count,
                "dim": vectors.shape[1],
                "kind": kind,
                "fingerprint": directory_fingerprint(directory / "model"),
                "labels": list(labels),
                "templates": templates,
                "settings": _build(
                    kind, vectors, directory, qdrant, collection, count, undo
                ),
            }
            about["sha256"] = {
                path.relative_to(directory).as_posix(): file_digest(path)
                for path in glob_visible(directory, "**/*")
                if path.is_file()
            }
            write_json(directory / "index.json", about)
        publish(path)
        undo.pop_all()
    return about


def _require_new(path):
    if path.exists():
        raise FileExistsError(
            f"`{path}` exists already: choose another directory or remove it."
        )


def _kind_for(count):
    if count <= EXACT_UP_TO:
        return "exact"
    return "hnsw" if count <= GRAPH_UP_TO else "ivf-pq"


def _check_qdrant(kind, url, collection):
    for name, value in (("qdrant", url), ("collection", collection)):
        if value is not None and kind != "qdrant":
            raise ValueError(
                f"`{name}` is only for the kind qdrant: leave it out, or "
                f"choose that kind. Received: kind={kind!r}, {name}={value!r}"
            )
    if url is not None:
        check_url(url)


def _write_rows(rows, count, directory):
    """Write columns and vectors; return the vectors as a memory map."""
    path = directory / "vectors.npy"
    matrix, written = None, 0
    with contextlib.ExitStack() as stack:
        columns = [
            stack.enter_context(ColumnWriter(directory, name))
            for name in COLUMNS
        ]
        for keys, texts, vectors, thumbnails in rows:
            vectors = unit_rows(as_vectors(vectors, "vectors"))
            if matrix is None:
                # No memory map for writing: on a full disk, it would crash
                # the process without a message.
                matrix, dim = open(path, "wb"), vectors.shape[1]
                stack.enter_context(matrix)
                header = {"descr": "<f4", "fortran_order": False}
                header["shape"] = (count, dim)
                np.lib.format.write_array_header_1_0(matrix, header)
            if vectors.shape[1] != dim:
                raise ValueError(
                    "The vectors differ in size: some have "
                    f"{dim} values and others {vectors.shape[1]}."
                )
            if written + len(vectors) > count:
                raise ValueError(
                    f"There are more vectors than the {count} expected."
                )
            matrix.write(np.ascontiguousarray(vectors, "<f4").tobytes())
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
            f"There are {written} vectors, but {count} were expected."
        )
    return np.load(path, "r")


def _build(kind, vectors, directory, qdrant, collection, count, undo):
    if kind == "exact":
        return {}
    if kind == "qdrant":
        from align_keras.search.qdrant import delete
        from align_keras.search.qdrant import upload

        keys = Column(directory, "keys", count)
        names = (keys[row].decode("utf-8", "replace") for row in range(count))
        collection = collection or "align_keras"
        upload(vectors, names, qdrant or directory / "qdrant", collection)
        if qdrant is not None:
            undo.callback(delete, qdrant, collection)
        return {"location": qdrant, "collection": collection}
    from align_keras.search.approximate import build

    return build(kind, vectors, directory / "index.faiss")
