"""Files of rows to Arrow columns: Parquet, CSV, TSV, JSON lines, web archives.

A reader yields `(columns, bad_lines)`: a dict from a column's name to an
Arrow array, and the number of lines that could not be read between the batch
before and this one. It raises where the file as a whole is damaged.
"""

import contextlib
import json
import posixpath

from align_keras.io.optional import require

# What a batch may hold, in bytes of the file; a row must be shorter.
BATCH_BYTES = 32 * 2**20
BATCH_ROWS = 131_072

_COMPRESSIONS = (".gz", ".zst", ".bz2", ".lz4")
_FORMATS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".warc": "warc",
    ".wat": "wat",
}


def find_inputs(patterns):
    """List the input files that folders, files and globs name, sorted.

    Args:
        patterns: list of strings: a file, a folder (taken with all its files
            of a known format, hidden ones excepted), a glob, or an address
            such as `s3://bucket/folder` that Arrow's file systems know.

    Returns:
        list of strings without repetition.

    Raises:
        FileNotFoundError: A pattern names nothing.
        ValueError: A file's suffix is not known.
    """
    files = []
    for pattern in map(str, patterns):
        found = _find(pattern)
        if not found:
            raise FileNotFoundError(
                f"No input matches `{pattern}`; give a file, a glob, or a "
                f"folder of {', '.join(sorted(_FORMATS))} files."
            )
        files += found
    return list(dict.fromkeys(files))


def _find(pattern):
    import glob
    import os

    fs = require("pyarrow.fs", "curation")
    if "://" in pattern:
        system, path = fs.FileSystem.from_uri(pattern)
        info = system.get_file_info(path)
        if info.type != fs.FileType.Directory:
            file_format(pattern)
            return [pattern] if info.type == fs.FileType.File else []
        scheme = pattern.partition("://")[0]
        selector = fs.FileSelector(path, recursive=True)
        found = (i.path for i in system.get_file_info(selector) if i.is_file)
        found = [f for f in found if _is_input(posixpath.relpath(f, path))]
        return [f"{scheme}://{f}" for f in sorted(found)]
    if os.path.isdir(pattern):
        found = glob.glob(os.path.join(pattern, "**", "*"), recursive=True)
        inside = (f for f in sorted(found) if os.path.isfile(f))
        return [f for f in inside if _is_input(os.path.relpath(f, pattern))]
    found = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern))
    found = [f for f in found if os.path.isfile(f)]
    for file in found:
        file_format(file)
    return found


def _is_input(path):
    hidden = any(part[:1] in "._" for part in path.split("/"))
    return not hidden and _known_format(path) is not None


def file_format(path):
    """The format that a file's name tells: `"parquet"`, `"csv"` and so on."""
    found = _known_format(path)
    if found is None:
        raise ValueError(
            f"The format of `{path}` is not known from its name; the suffix "
            f"must be one of {', '.join(sorted(_FORMATS))}, and may be "
            f"followed by one of {', '.join(_COMPRESSIONS)}."
        )
    return found


def _known_format(path):
    base, suffix = posixpath.splitext(path.lower())
    if suffix in _COMPRESSIONS:
        base, suffix = posixpath.splitext(base)
    return _FORMATS.get(suffix)


def column_names(path):
    """The names of a file's columns, without reading its rows.

    Raises:
        OSError, ValueError: The file is damaged.
    """
    with contextlib.closing(read_batches(path)) as batches:
        return list(next(batches, ({}, 0))[0])


def read_batches(path, wanted=None):
    """Read one file in batches of bounded size.

    Args:
        path: string.
        wanted: set of column names to read. Defaults to all.

    Yields:
        `(columns, bad_lines)`, see the module.

    Raises:
        OSError, ValueError: The file is damaged or of an unknown format.
    """
    kind = file_format(path)
    if kind in ("warc", "wat"):
        from align_keras.curation.web import read_archive

        read = read_archive
    else:
        read = {
            "parquet": _read_parquet,
            "csv": _read_delimited,
            "tsv": _read_delimited,
            "jsonl": _read_json_lines,
        }[kind]
    return read(path, wanted)


@contextlib.contextmanager
def open_stream(path):
    """Open a local or remote file as a stream of bytes, decompressed."""
    fs = require("pyarrow.fs", "curation")
    if "://" in path:
        system, path = fs.FileSystem.from_uri(path)
    else:
        system = fs.LocalFileSystem()
    with system.open_input_stream(path) as stream:
        yield stream


def _read_parquet(path, wanted):
    fs = require("pyarrow.fs", "curation")
    parquet = require("pyarrow.parquet", "curation")
    system, inner = fs.LocalFileSystem(), path
    if "://" in path:
        system, inner = fs.FileSystem.from_uri(path)
    with (
        system.open_input_file(inner) as source,
        parquet.ParquetFile(source) as file,
    ):
        metadata = file.metadata
        groups = range(metadata.num_row_groups)
        size = sum(metadata.row_group(g).total_byte_size for g in groups)
        row_bytes = max(1, size // max(1, metadata.num_rows))
        rows = max(1, min(BATCH_ROWS, BATCH_BYTES // row_bytes))
        names = file.schema_arrow.names
        if wanted is not None:
            names = [name for name in names if name in wanted]
        if not metadata.num_rows:
            empty = file.schema_arrow.empty_table()
            yield {name: empty[name].combine_chunks() for name in names}, 0
        for batch in file.iter_batches(rows, columns=names):
            yield dict(zip(batch.schema.names, batch.columns, strict=True)), 0


def _read_delimited(path, wanted):
    arrow = require("pyarrow", "curation")
    from pyarrow import csv

    bad = []

    def count(row):
        bad.append(row.number)
        return "skip"

    # A tab or line end cannot stand in TSV, so a quotation mark is text, as
    # in Conceptual Captions: one alone would swallow the rows after it.
    quoted = file_format(path) == "csv"
    parsing = {
        "delimiter": "," if quoted else "\t",
        "quote_char": '"' if quoted else False,
        "newlines_in_values": quoted,
    }
    # Bytes, so that one wrong byte spoils one text and not the file.
    with open_stream(path) as stream:
        first = csv.open_csv(
            stream,
            csv.ReadOptions(block_size=BATCH_BYTES),
            csv.ParseOptions(**parsing, invalid_row_handler=lambda row: "skip"),
        )
        names = first.schema.names
        first.close()
    with open_stream(path) as stream:
        reader = csv.open_csv(
            stream,
            csv.ReadOptions(block_size=BATCH_BYTES),
            csv.ParseOptions(**parsing, invalid_row_handler=count),
            csv.ConvertOptions(
                check_utf8=False,
                column_types={name: arrow.binary() for name in names},
                include_columns=None
                if wanted is None
                else [name for name in names if name in wanted],
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
            try:
                # Wrong bytes survive as they are; `ingest` counts them.
                row = json.loads(line.decode("utf-8", "surrogateescape"))
                if not isinstance(row, dict):
                    raise ValueError("no object")
            except (ValueError, RecursionError):
                bad += bool(line.strip())
                continue
            if wanted is not None:
                row = {k: v for k, v in row.items() if k in wanted}
            rows.append(row)
            size += len(line)
            if size >= BATCH_BYTES or len(rows) == BATCH_ROWS:
                yield columns_of(rows), bad
                rows, size, bad = [], 0, 0
    if rows or bad:
        yield columns_of(rows), bad


def _lines(stream):
    rest = b""
    while block := stream.read(2**20):
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
    if rest:
        yield rest


def columns_of(rows):
    """Turn a list of dicts into columns; what is no scalar becomes null.

    Text is kept as bytes, so that a lone surrogate does no harm here.
    """
    arrow = require("pyarrow", "curation")
    names = dict.fromkeys(name for row in rows for name in row)
    return {
        name: arrow.array([_bytes(row.get(name)) for row in rows], "binary")
        for name in names
    }


def _bytes(value):
    if isinstance(value, str):
        try:
            return value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            return value.encode("utf-8", "surrogatepass")
    if isinstance(value, (bool, int, float)):
        return str(value).encode()
    return None
