"""Large tables as Arrow columns, batch by batch: local or remote, compressed.

A reader yields `(columns, bad_lines)`: a dict from a column's name to an
Arrow array, and the number of lines that could not be read between the batch
before and this one. It raises where the file as a whole is damaged.
"""

import contextlib
import json
import posixpath
import re
from collections.abc import Generator

from align_keras.io.optional import OptionalModule
from align_keras.io.rows import BATCH_BYTES
from align_keras.io.rows import BATCH_ROWS
from align_keras.io.rows import open_parquet
from align_keras.io.rows import parquet_batches
from align_keras.io.rows import read_rows

arrow = OptionalModule("pyarrow", extra="curation")
csv = OptionalModule("pyarrow.csv", extra="curation")
fs = OptionalModule("pyarrow.fs", extra="curation")
parquet = OptionalModule("pyarrow.parquet", extra="curation")

# A longer line of JSON is counted as unreadable: its lists and dicts could be
# twenty times as large.
MAX_LINE_BYTES = 8 * 2**20
COMPRESSIONS = (".gz", ".zst", ".bz2", ".lz4")
# They stand for wrong bytes of the file, and JSON can write them.
_SURROGATES = re.compile("[\ud800-\udfff]")


def table_suffix(path: str) -> str:
    """Return a name's suffix in lower case, before that of a compression."""
    base, suffix = posixpath.splitext(path.lower())
    return posixpath.splitext(base)[1] if suffix in COMPRESSIONS else suffix


def read_table_batches(
    path: str, wanted: set | None = None
) -> Generator[tuple[dict, int], None, None]:
    """Read one table in batches of bounded size.

    Args:
        path: string. A local path, or an address that Arrow's file systems
            know.
        wanted: set of column names to read. Defaults to all.

    Yields:
        `(columns, bad_lines)`, see the module. Text of other formats than
        Parquet is bytes, so that one wrong byte spoils one text.

    Raises:
        OSError, ValueError: The file is damaged.
    """
    return BATCH_READERS[table_suffix(path)](path, wanted)


@contextlib.contextmanager
def open_stream(path):
    """Open a local or remote file as a stream of bytes, decompressed."""
    system, path = file_system(path)
    with system.open_input_stream(path) as stream:
        yield stream


def file_system(path):
    """Return the Arrow file system of a path or address, and the path there."""
    if "://" in path:
        return fs.FileSystem.from_uri(path)
    return fs.LocalFileSystem(), path


def _read_parquet(path, wanted):
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
        for batch in parquet_batches(file, names):
            yield dict(zip(batch.schema.names, batch.columns, strict=True)), 0


def _without_bytes(field):
    """What to read of a column: of images and their paths the paths alone."""
    inner = {field.type.field(n).name for n in range(field.type.num_fields)}
    return f"{field.name}.path" if inner == {"bytes", "path"} else field.name


def _read_delimited(path, wanted):
    bad = []

    def count(row):
        bad.append(row.number)
        return "skip"

    # As in `align_keras.io.rows`, TSV has no quotation.
    quoted = table_suffix(path) == ".csv"
    parsing = {
        "delimiter": "," if quoted else "\t",
        "quote_char": '"' if quoted else False,
        "newlines_in_values": quoted,
    }
    reading = csv.ReadOptions(block_size=BATCH_BYTES)
    with open_stream(path) as stream:
        skipping = csv.ParseOptions(
            **parsing, invalid_row_handler=lambda row: "skip"
        )
        first = csv.open_csv(stream, reading, skipping)
        names = first.schema.names
        first.close()
    with open_stream(path) as stream:
        reader = csv.open_csv(
            stream,
            reading,
            csv.ParseOptions(**parsing, invalid_row_handler=count),
            csv.ConvertOptions(
                check_utf8=False,
                column_types={name: arrow.binary() for name in names},
                include_columns=[n for n in names if n in (wanted or names)],
            ),
        )
        for batch in reader:
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            yield columns, len(bad)
            bad.clear()
        if bad:
            yield {}, len(bad)


def _read_json_lines(path, wanted):
    rows, size, bad = [], 0, 0
    with open_stream(path) as stream:
        for line in _lines(stream):
            if line is None:
                bad += 1
                continue
            try:
                # Wrong bytes survive as they are; who reads them counts them.
                row = json.loads(line.decode("utf-8", "surrogateescape"))
                if not isinstance(row, dict):
                    raise ValueError("no object")
            except (ValueError, RecursionError):
                bad += bool(line.strip())
                continue
            rows.append(_only(row, wanted))
            size += len(line)
            if size >= BATCH_BYTES or len(rows) == BATCH_ROWS:
                yield columns_of(rows), bad
                rows, size, bad = [], 0, 0
    if rows or bad:
        yield columns_of(rows), bad


def _read_json(path, wanted):
    """A list of objects or Karpathy's form, which fits into the memory."""
    rows = [_only(row, wanted) for row in read_rows(path)]
    if rows:
        yield columns_of(rows), 0


def _only(row, wanted):
    return {k: v for k, v in row.items() if wanted is None or k in wanted}


def _lines(stream):
    """Yield lines; `None` for one that is too long to be a row."""
    block = stream.read(3)
    if block == b"\xef\xbb\xbf":
        block = stream.read(2**20)
    parts, size = [], 0
    while block:
        *ends, rest = block.split(b"\n")
        for end in ends:
            size += len(end)
            yield b"".join([*parts, end]) if size <= MAX_LINE_BYTES else None
            parts, size = [], 0
        size += len(rest)
        if size > MAX_LINE_BYTES:
            parts = []
        else:
            parts.append(rest)
        block = stream.read(2**20)
    if size:
        yield b"".join(parts) if size <= MAX_LINE_BYTES else None


def columns_of(rows: list[dict]) -> dict:
    """Turn a list of dicts into columns of bytes, and of lists of bytes.

    Objects, NaN and null become null.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _column([row.get(name) for row in rows]) for name in names}


def _column(values):
    if not any(isinstance(value, list) for value in values):
        return arrow.array([_bytes(value) for value in values], "binary")
    lists = [v if isinstance(v, list) else [v] for v in values]
    lists = [[_bytes(value) for value in one] for one in lists]
    return arrow.array(lists, arrow.list_(arrow.binary()))


def _bytes(value):
    if isinstance(value, str):
        # One wrong byte each, so that they are counted.
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
