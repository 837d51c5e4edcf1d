"""The store of vectors: Parquet files in a directory, and their manifest."""

import json
from collections.abc import Iterable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from align_keras.io.claims import claim
from align_keras.io.file_names import glob_visible
from align_keras.io.fingerprints import check_digest
from align_keras.io.fingerprints import file_digest
from align_keras.io.folders import resolve_within
from align_keras.io.json_files import parse_json
from align_keras.io.json_files import write_json
from align_keras.io.optional import OptionalModule
from align_keras.io.part_files import check_manifest
from align_keras.io.rows import open_parquet

pyarrow = OptionalModule("pyarrow", extra="search")
parquet = OptionalModule("pyarrow.parquet", extra="search")

VERSION = 1
# Entry of the Parquet files' metadata, in JSON.
METADATA = b"align_keras"
# What a directory of vectors depends on, from the first file on; and what it
# holds, once all files are there.
ARGUMENTS, MANIFEST = "arguments.json", "manifest.json"


# === Files ===


class RowWriter:
    """Writes a Parquet file, one row group after the other.

    Args:
        path: string or `pathlib.Path`.
        schema: Arrow schema.
        about: dict. Goes into the file's metadata when it is closed.
        **options: of `pyarrow.parquet.ParquetWriter`.
    """

    # Rows of one group: 10 MiB of vectors of 640 values.
    GROUP = 4096

    def __init__(self, path: str | Path, schema: Any, about: dict, **options):
        self.about = about
        self.schema = schema
        self._pending: list = []
        self._writer = parquet.ParquetWriter(path, schema, **options)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self._flush()
            about = json.dumps({"version": VERSION, **self.about}).encode()
            self._writer.add_key_value_metadata({METADATA: about})
        self._writer.close()

    def write(self, batch: Any) -> None:
        """Add rows, an Arrow record batch."""
        self._pending.append(batch)
        if sum(len(batch) for batch in self._pending) >= self.GROUP:
            self._flush()

    def _flush(self):
        if self._pending:
            table = pyarrow.Table.from_batches(self._pending)
            self._writer.write_table(table, row_group_size=len(table))
            self._pending = []


def vector_writer(path: str | Path, dim: int, about: dict) -> RowWriter:
    """Return the writer of a file of vectors of `dim` values."""
    compression = {
        "key": "zstd",
        "text": "zstd",
        "vector.list.element": "none",
        "thumbnail": "none",
    }
    return RowWriter(
        path,
        schema(dim),
        about,
        compression=compression,
        use_dictionary=False,
        write_statistics=False,
    )


def read_vectors(
    directory: Path, manifest: dict
) -> Iterator[tuple[list, list, np.ndarray, list]]:
    """Read the files of a directory of vectors, and verify them.

    Args:
        directory: `pathlib.Path`.
        manifest: dict, what `read_manifest` returned.

    Yields:
        Tuples of a list of keys, a list of texts, float32 vectors `(rows,
        dim)` and a list of JPEG files.

    Raises:
        ValueError: a file is damaged or missing, or holds the vectors of
            another model; the message names it.
    """
    fingerprint = manifest["arguments"]["fingerprint"]
    for shard in manifest["shards"]:
        path = resolve_within(directory, shard["file"], None)
        check_digest(path, shard["sha256"], "delete it and embed it again")
        with open_parquet(path) as file:
            found = _about(path, file.metadata)["fingerprint"]
            if found != fingerprint:
                raise ValueError(
                    f"`{path}` holds vectors of the model {found}, the other "
                    f"files those of {fingerprint}: embed it again."
                )
            for batch in file.iter_batches(batch_size=4096):
                vectors = batch["vector"].flatten().to_numpy()
                yield (
                    batch["key"].to_pylist(),
                    batch["text"].to_pylist(),
                    vectors.reshape(len(batch), -1),
                    batch["thumbnail"].to_pylist(),
                )


def _about(path, metadata):
    try:
        about = parse_json(metadata.metadata[METADATA].decode())
        if not {"fingerprint", "skipped"} <= about.keys():
            raise ValueError
        return about
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(
            f"`{path}` is no file of `align-keras`: choose another directory, "
            "or remove it."
        ) from None


def schema(dim: int) -> Any:
    """Return the Arrow schema of files of vectors."""
    return pyarrow.schema(
        [
            ("key", pyarrow.string()),
            ("text", pyarrow.string()),
            ("vector", pyarrow.list_(pyarrow.float32(), dim)),
            ("thumbnail", pyarrow.binary()),
        ]
    )


def record_batch(
    schema: Any, keys: list, texts: list, vectors: np.ndarray, thumbnails: list
) -> Any:
    """Make an Arrow record batch of rows."""
    dim = schema.field("vector").type.list_size
    values = np.ascontiguousarray(vectors, "float32").reshape(-1)
    return pyarrow.record_batch(
        [
            string_array(keys),
            string_array(texts),
            pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values), dim),
            pyarrow.array(thumbnails, pyarrow.binary()),
        ],
        schema=schema,
    )


def string_array(values: list) -> Any:
    """Return an Arrow array of strings, of which some may be `None`."""
    # Names on disk may hold bytes that are not text.
    values = [
        value and value.encode("utf-8", "replace").decode("utf-8")
        for value in values
    ]
    return pyarrow.array(values, pyarrow.string())


# === Directories ===


def claim_vectors(
    directory: Path, arguments: dict, what: str = "vectors"
) -> None:
    """Write down what a directory of vectors depends on, or check it.

    Args:
        directory: `pathlib.Path`.
        arguments: dict of JSON values.
        what: string. What error messages call the contents.

    Raises:
        FileExistsError: it holds Parquet files of another origin.
        ValueError: it holds vectors of other arguments.
    """
    path = directory / ARGUMENTS
    if not path.is_file() and glob_visible(directory, "*.parquet"):
        raise FileExistsError(
            f"`{directory}` holds Parquet files but no {ARGUMENTS}: choose "
            "another directory."
        )
    claim(path, arguments, what)


def write_manifest(
    files: list[Path], arguments: dict, written: Iterable[Path] = ()
) -> dict:
    """Sum up files of vectors, and write it down once all of them are there.

    Args:
        files: list of `pathlib.Path`, all files of a directory.
        arguments: dict of JSON values. What they depend on.
        written: list of `pathlib.Path`. Those that are new: the checksums of
            the others stay what they were, so that damage shows.

    Returns:
        dict, the manifest. Its entry `"finished"` is false where another
        worker has not come to a file yet.
    """
    shards = []
    manifest_path = files[0].parent / MANIFEST
    known = {}
    if manifest_path.is_file():
        known = {
            shard["file"]: shard["sha256"]
            for shard in check_manifest(manifest_path)["shards"]
            if "sha256" in shard
        }
    for path in written:
        known.pop(path.name, None)
    for path in filter(Path.is_file, files):
        with open_parquet(path) as file:
            shards.append(
                {
                    "file": path.name,
                    "records": file.metadata.num_rows,
                    "skipped": _about(path, file.metadata)["skipped"],
                    "sha256": known.get(path.name) or file_digest(path),
                }
            )
    manifest = {
        "version": VERSION,
        "finished": len(shards) == len(files),
        "records": sum(shard["records"] for shard in shards),
        "skipped": sum(shard["skipped"] for shard in shards),
        "arguments": arguments,
        "shards": shards,
    }
    if manifest["finished"]:
        write_json(manifest_path, manifest)
    return manifest


def read_manifest(directory: Path) -> dict:
    """Read the manifest of a directory of vectors.

    Args:
        directory: `pathlib.Path`.

    Returns:
        dict, as `write_manifest` returned it.

    Raises:
        FileNotFoundError: there are no vectors.
        ValueError: some of them are missing.
    """
    if (directory / MANIFEST).is_file():
        manifest = check_manifest(directory / MANIFEST)
        if "thumbnail_size" in manifest["arguments"]:
            if all("sha256" in shard for shard in manifest["shards"]):
                return manifest
            raise ValueError(
                f"`{directory / MANIFEST}` has no checksums: run `align-keras "
                "embed` again, which adds them."
            )
    elif (directory / ARGUMENTS).is_file():
        raise ValueError(
            f"The vectors in `{directory}` are not complete: run `align-keras "
            "embed` again, which resumes where it stopped."
        )
    raise FileNotFoundError(
        f"`{directory}` has no {MANIFEST} of vectors: give a directory that "
        "`align-keras embed` wrote."
    )
