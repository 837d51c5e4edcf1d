"""Write and read a directory of vectors: Parquet files and a manifest."""

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
# Key of our JSON in the metadata of the Parquet files.
METADATA = b"align_keras"
# The first is written before any vectors, with what they depend on; the second
# once all files are complete, with what they hold.
ARGUMENTS, MANIFEST = "arguments.json", "manifest.json"


# === Files ===


class RowWriter:
    """Write a Parquet file, one row group after the other.

    Args:
        path: string or `pathlib.Path`.
        schema: Arrow schema.
        about: dict. Written to the file's metadata when the file is closed.
        **options: Options of `pyarrow.parquet.ParquetWriter`.
    """

    # Rows per group: 10 MiB for vectors of 640 values.
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
        """Add the rows of an Arrow record batch."""
        self._pending.append(batch)
        if sum(len(batch) for batch in self._pending) >= self.GROUP:
            self._flush()

    def _flush(self):
        if self._pending:
            table = pyarrow.Table.from_batches(self._pending)
            self._writer.write_table(table, row_group_size=len(table))
            self._pending = []


def vector_writer(path: str | Path, dim: int, about: dict) -> RowWriter:
    """Return a writer for a file of vectors of `dim` values."""
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
    """Verify and read the files of a directory of vectors.

    Args:
        directory: `pathlib.Path`.
        manifest: dict. What `read_manifest` returned.

    Yields:
        Tuples of a list of keys, a list of texts, float32 vectors `(rows,
        dim)` and a list of JPEG files.

    Raises:
        ValueError: a file is damaged or missing, or holds vectors of another
            model; the message names it.
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
            f"`{path}` was not written by `align-keras`: choose another "
            "directory, or remove it."
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
    """Return an Arrow array of strings, some of which may be `None`."""
    # File names may hold bytes that are not valid UTF-8.
    values = [
        value and value.encode("utf-8", "replace").decode("utf-8")
        for value in values
    ]
    return pyarrow.array(values, pyarrow.string())


# === Directories ===


def claim_vectors(
    directory: Path, arguments: dict, what: str = "vectors"
) -> None:
    """Record what a directory of vectors depends on, or check the record.

    Args:
        directory: `pathlib.Path`.
        arguments: dict of JSON values.
        what: string. What error messages call the contents.

    Raises:
        FileExistsError: the directory holds Parquet files of another origin.
        ValueError: it holds vectors made with other arguments.
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
    """Summarize files of vectors, and write the manifest once all exist.

    Args:
        files: list of `pathlib.Path`. All files that the directory will have.
        arguments: dict of JSON values. What the files depend on.
        written: list of `pathlib.Path`. The new files. The others keep their
            recorded checksums, so that damage is detected.

    Returns:
        The manifest, a dict. Its entry `"finished"` is false as long as
        another worker has not written all of its files.
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
        The dict that `write_manifest` returned.

    Raises:
        FileNotFoundError: there are no vectors.
        ValueError: some of the vectors or their checksums are missing.
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
