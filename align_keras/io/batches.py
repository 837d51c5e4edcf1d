"""Read large tables in batches of Arrow columns: local, remote or compressed.

A reader yields `(columns, bad_lines)`: a dict from column name to Arrow array,
and the number of lines since the last batch that could not be read. It raises
an error if the file as a whole is damaged.
"""

import contextlib
import csv
import os
import posixpath
import re
from collections.abc import Generator

from align_keras.io.columns import COLUMNS
from align_keras.io.columns import check_distinct
from align_keras.io.columns import find_column
from align_keras.io.columns import is_binary
from align_keras.io.columns import value_type
from align_keras.io.folders import MAX_FILE_BYTES
from align_keras.io.json_files import parse_json
from align_keras.io.optional import OptionalModule
from align_keras.io.rows import BATCH_BYTES
from align_keras.io.rows import BATCH_ROWS
from align_keras.io.rows import csv_rows
from align_keras.io.rows import open_parquet
from align_keras.io.rows import parquet_batches
from align_keras.io.rows import read_json_rows
from align_keras.io.rows import tsv_rows
from align_keras.io.stores import Store
from align_keras.io.stores import is_store
from align_keras.io.text import as_text
from align_keras.io.text import decode_text
from align_keras.io.text import encoding_of
from align_keras.io.text import open_text
from align_keras.io.text import read_lines

arrow = OptionalModule("pyarrow", extra="curation")
fs = OptionalModule("pyarrow.fs", extra="curation")
parquet = OptionalModule("pyarrow.parquet", extra="curation")

# Arrow's names of the compressions.
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
# Surrogates stand for invalid bytes of the file, and may also occur in JSON.
_SURROGATES = re.compile("[\ud800-\udfff]")


def table_suffix(path: str) -> str:
    """Return the suffix of a name in lower case, ignoring compression."""
    base, suffix = posixpath.splitext(path.lower())
    return posixpath.splitext(base)[1] if suffix in COMPRESSIONS else suffix


def read_table_batches(
    path: str, wanted: set | dict | None = None, text: str | None = None
) -> Generator[tuple[dict, int], None, None]:
    """Read one table in batches of bounded size.

    Args:
        path: string. A local path, or an address of a store or of Hadoop.
        wanted: set of column names to read. Or a dict from these to other
            names that a row of JSON may use instead. Defaults to all.
        text: string. The column of captions. Defaults to the first with one
            of the usual names.

    Yields:
        `(columns, bad_lines)`, see the module. Except for Parquet, text is
        returned as bytes, so an invalid byte affects only one text.

    Raises:
        OSError, ValueError: The file is damaged.
    """
    return BATCH_READERS[table_suffix(path)](path, wanted, text)


@contextlib.contextmanager
def open_stream(path):
    """Open a local or remote file as a stream of bytes, decompressed."""
    compression = COMPRESSIONS.get(posixpath.splitext(path.lower())[1])
    system, path = file_system(path)
    with system.open_input_stream(path, compression) as stream:
        yield stream


def file_system(path):
    """Return the Arrow file system of a path or address, and its path there."""
    if path.startswith(("hdfs://", "viewfs://")):
        return fs.FileSystem.from_uri(path)
    if is_store(path):
        store = Store(path)
        return fs.PyFileSystem(fs.FSSpecHandler(store.files)), store.root
    # Arrow cannot take file names that are not UTF-8 as strings.
    return fs.LocalFileSystem(), os.fsencode(path)


def _read_parquet(path, wanted, text):
    system, inner = file_system(path)
    with (
        system.open_input_file(inner) as source,
        open_parquet(path, source) as file,
    ):
        schema = file.schema_arrow
        names = [n for n in schema.names if wanted is None or n in wanted]
        if not file.metadata.num_rows:
            empty = schema.empty_table()
            yield {name: empty[name].combine_chunks() for name in names}, 0
        if wanted is not None:
            names = [_without_bytes(schema.field(name)) for name in names]
        text = text or find_column(schema.names, COLUMNS["caption"])
        for batch in parquet_batches(file, names):
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            if text in columns:
                columns[text] = _as_utf8(columns[text])
            yield columns, 0


def _as_utf8(column):
    """Convert texts that are bytes to UTF-8 without a byte order mark."""
    values = value_type(column.type)
    if not is_binary(values or column.type):
        return column

    def utf8(value):
        if isinstance(value, list):
            return list(map(utf8, value))
        marked = value is not None and encoding_of(value) != "utf-8"
        return decode_text(value).encode() if marked else value

    kind = arrow.list_(arrow.binary()) if values else arrow.binary()
    return arrow.array(map(utf8, column.to_pylist()), kind)


def _without_bytes(field):
    """Return what to read of a column; of images with paths, only the paths."""
    inner = {field.type.field(n).name for n in range(field.type.num_fields)}
    return f"{field.name}.path" if inner == {"bytes", "path"} else field.name


def _read_delimited(path, wanted, text):
    split = csv_rows if table_suffix(path) == ".csv" else tsv_rows
    with open_stream(path) as stream:
        rows = split(open_text(stream, "surrogateescape"))
        names = next(rows, None)
        if not names or not isinstance(names, list):
            raise ValueError(f"The table `{path}` has no header line.")
        check_distinct(path, names)
        places = {n: i for i, n in enumerate(names) if n in (wanted or names)}
        taken, size, bad, astray = [], 0, 0, False

        def columns():
            return {
                _decodable(name): arrow.array(
                    [_bytes(row[place]) for row in taken], "binary"
                )
                for name, place in places.items()
            }

        for row in rows:
            if not isinstance(row, list):
                # Lines read again after a stray quote may be part of a text.
                astray |= isinstance(row, csv.Error)
                bad += 1
                continue
            missing = len(names) - len(row)
            if missing < 0 or (missing and astray):
                bad += 1
                continue
            astray = False
            # Missing fields become null, as in `read_rows`.
            row += [None] * missing
            taken.append(row)
            size += sum(len(field or "") for field in row)
            if size >= BATCH_BYTES or len(taken) == BATCH_ROWS:
                yield columns(), bad
                taken, size, bad = [], 0, 0
        yield columns(), bad


def _decodable(name):
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _read_json_lines(path, wanted, text):
    rows, size, bad = [], 0, 0
    with open_stream(path) as stream:
        # Keep invalid bytes as they are; the caller counts them.
        text_file = open_text(stream, "surrogateescape", newline="\n")
        for line in read_lines(text_file):
            if line is None:
                bad += 1
                continue
            try:
                row = parse_json(line.rstrip())
                if not isinstance(row, dict):
                    raise ValueError("no object")
            except ValueError:
                bad += bool(line.strip())
                continue
            rows.append(_only(row, wanted))
            size += len(line)
            if size >= BATCH_BYTES or len(rows) == BATCH_ROWS:
                yield columns_of(rows, text), bad
                rows, size, bad = [], 0, 0
    if rows or bad:
        yield columns_of(rows, text), bad


def _read_json(path, wanted, text):
    """Read a list of objects, or Karpathy's format, into memory."""
    with open_stream(path) as stream:
        contents = stream.read(MAX_FILE_BYTES + 1)
        found = list(read_json_rows(path, contents))
    rows = [_only(row, wanted) for row in found if isinstance(row, dict)]
    if found:
        yield columns_of(rows, text), len(found) - len(rows)


def _only(row, wanted):
    if wanted is None:
        return row
    taken = {name: row[name] for name in wanted if name in row}
    if isinstance(wanted, dict):
        for name in wanted.keys() - row.keys():
            other = find_column(row, wanted[name])
            if other is not None:
                taken[name] = row[other]
    return taken


def columns_of(rows: list[dict], text: str | None = None) -> dict:
    """Turn a list of dicts into columns of bytes.

    Objects, lists, NaN and null become null. In the column of captions,
    infinity and booleans also become null, and lists become lists of bytes.

    Args:
        rows: list of dicts.
        text: string. The column of captions; see `read_table_batches`.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    text = text or find_column(names, COLUMNS["caption"])
    return {
        name: (_texts if name == text else _values)(
            [row.get(name) for row in rows]
        )
        for name in names
    }


def _values(values):
    return arrow.array([_bytes(value) for value in values], "binary")


def _texts(values):
    if not any(isinstance(value, list) for value in values):
        values = [_bytes_of_text(value) for value in values]
        return arrow.array(values, "binary")
    lists = [v if isinstance(v, list) else [v] for v in values]
    lists = [[_bytes_of_text(value) for value in one] for one in lists]
    return arrow.array(lists, arrow.list_(arrow.binary()))


def _bytes_of_text(value):
    """Return the bytes of a value that `as_text` accepts, else `None`."""
    is_text = isinstance(value, str) or as_text(value) is not None
    return _bytes(value) if is_text else None


def _bytes(value):
    if isinstance(value, str):
        # Turn each into one invalid byte, so that it is counted.
        value = _SURROGATES.sub("\udcff", value)
        return value.encode("utf-8", "surrogateescape")
    if isinstance(value, (bool, int, float)) and value == value:
        return str(value).encode()
    return None


BATCH_READERS = {
    ".parquet": _read_parquet,
    ".csv": _read_delimited,
    ".tsv": _read_delimited,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
}
