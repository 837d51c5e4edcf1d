"""Read rows of tables as dicts: CSV, TSV, JSON lines, JSON and Parquet.

Only Parquet needs a package besides the standard library. For large files,
`align_keras.io.batches` reads batches of columns.
"""

import collections
import contextlib
import csv
import json
import math
import os
import posixpath
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from align_keras.io.columns import check_distinct
from align_keras.io.folders import MAX_FILE_BYTES
from align_keras.io.folders import read_file
from align_keras.io.json_files import RepeatedKey
from align_keras.io.json_files import parse_json
from align_keras.io.optional import OptionalModule
from align_keras.io.text import MAX_LINE
from align_keras.io.text import decode_text
from align_keras.io.text import not_text
from align_keras.io.text import open_text
from align_keras.io.text import read_lines

arrow = OptionalModule("pyarrow", extra="parquet")
parquet = OptionalModule("pyarrow.parquet", extra="parquet")

# The approximate limits of a batch.
BATCH_BYTES = 32 * 2**20
BATCH_ROWS = 131_072
# No quoted text has this many lines, but a stray quotation mark would take all
# lines up to the end of the file.
_MAX_ROW_LINES = 1000


class RowError(ValueError):
    """The reason why a row of a table cannot be used.

    Args:
        reason: string. The kind of error, the same for all such rows.
        detail: string. What is wrong with this row. Defaults to `""`.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


def read_rows(
    path: str | Path,
    columns: list[str] | None = None,
    suffix: str | None = None,
) -> Iterator[dict | RowError]:
    """Read the rows of a table.

    Args:
        path: string or `pathlib.Path`. Its suffix determines the format, one
            of `ROW_READERS`. Text is UTF-8, UTF-16 or UTF-32, with or without
            a byte order mark.
        columns: list of strings. The columns to read of a Parquet file.
            Defaults to all.
        suffix: string. The format, if the name of the file does not show it.
            Defaults to the suffix of `path`.

    Yields:
        dict for each row. The values are strings for CSV and TSV, JSON values,
        or Arrow values converted to Python. In CSV and TSV, missing fields are
        `None`. A `RowError` in place of a row that is invalid or has more
        fields than there are columns.

    Raises:
        FileNotFoundError: The file does not exist.
        ImportError: The file is Parquet and pyarrow is not installed.
        ValueError: The file is damaged or its format is unknown.
    """
    path = Path(path)
    if not path.is_file():
        if path.exists():
            raise FileNotFoundError(
                f"`{path}` is not a file but a folder, a pipe or a device."
            )
        raise FileNotFoundError(f"There is no file `{path}`.")
    reader = ROW_READERS.get(suffix or path.suffix.lower())
    if reader is None:
        raise ValueError(
            f"The table `{path}` has an unknown suffix; use one of "
            f"{', '.join(sorted(ROW_READERS))}."
        )
    try:
        if reader is _read_parquet:
            yield from reader(path, columns)
        else:
            yield from reader(path)
    except UnicodeDecodeError as error:
        raise not_text(path, error) from error


def read_table(
    path: str | Path, suffix: str, needed: Sequence[str]
) -> list[dict]:
    """Read a table in which every row must be valid, such as one of ratings.

    Args:
        path: string or `pathlib.Path`.
        suffix: string. The format of the file; see `read_rows`.
        needed: list of strings. The columns that every row must fill.

    Returns:
        list of dicts.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The table has no rows, or a row is invalid or incomplete.
    """
    found = []
    for number, row in enumerate(read_rows(path, suffix=suffix), start=1):
        if isinstance(row, RowError):
            raise ValueError(f"`{path}`, row {number}: {row}.")
        for name in needed:
            if row.get(name) is None:
                lacks = "has no value for" if name in row else "lacks"
                raise ValueError(
                    f"`{path}` {lacks} the column `{name}` in row {number}; "
                    f"every row needs {', '.join(needed)}."
                )
        found.append(row)
    if not found:
        raise ValueError(f"The table `{path}` has no rows.")
    return found


def read_numbers(path: str | Path, rows: list[dict], name: str) -> np.ndarray:
    """Read a column of a table as numbers.

    Args:
        path: string or `pathlib.Path`. The name of the table in messages.
        rows: list of dicts from `read_table`.
        name: string. The column.

    Returns:
        float64 array `(num_rows,)`.

    Raises:
        ValueError: A value is not a finite number.
    """
    numbers = np.empty(len(rows))
    for number, row in enumerate(rows):
        try:
            numbers[number] = float(row[name])
            if not math.isfinite(numbers[number]):
                raise ValueError
        except ValueError:
            raise ValueError(
                f"`{path}` has the {name} {row[name]!r} in row {number + 1}, "
                "which is not a number."
            ) from None
    return numbers


# === CSV and TSV ===


def _read_csv(path):
    with open_text(path) as file:
        try:
            yield from _with_names(path, csv_rows(file))
        except csv.Error as error:
            raise ValueError(
                f"The table `{path}` is not valid CSV {error}. Quote a field "
                "that holds quotation marks and write each of them twice; or "
                "use TSV, where they are text."
            ) from error


def _read_tsv(path):
    with open_text(path) as file:
        yield from _with_names(path, tsv_rows(file))


def _with_names(path, rows):
    # The header may follow empty lines.
    names = next(filter(None, rows), [])
    if not isinstance(names, list):
        raise ValueError(f"The header line of `{path}` cannot be read: {names}")
    check_distinct(path, names)
    for row in rows:
        if isinstance(row, csv.Error):
            # Report a stray quotation mark, which would cost rows after it.
            raise row
        if isinstance(row, RowError):
            yield row
        elif len(row) > len(names):
            told = f"{len(row)} fields for {len(names)} columns"
            yield RowError("too many fields", told)
        elif row:
            yield dict.fromkeys(names) | dict(zip(names, row, strict=False))


def tsv_rows(file: Any) -> Iterator[list[str] | RowError]:
    """Yield the fields of each line, and a `RowError` for one too long.

    TSV fields cannot contain tabs or line ends, so quotation marks are plain
    text, as in Conceptual Captions.

    Args:
        file: a text file from `open_text`.
    """
    for line in read_lines(file):
        if line is None:
            yield _too_long()
        elif line := line.rstrip("\r\n"):
            yield line.split("\t")


def csv_rows(file: Any) -> Iterator[list[str] | RowError | csv.Error]:
    """Yield the fields of each row, and an error for an invalid row.

    A stray quotation mark would swallow the rows after it, up to the next one.
    These are read again, from the second line on.

    Args:
        file: a text file from `open_text`.

    Yields:
        List of strings. `RowError` for a line that is too long. `csv.Error`,
        which names the line, for a row with a stray quotation mark.
    """
    # The default limit of the module is less than a text of 20,000 words.
    csv.field_size_limit(MAX_LINE + 1)
    lines = _CsvLines(read_lines(file))
    reader = csv.reader(lines, strict=True)
    while True:
        lines.of_row, lines.size = [], 0
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            lines.again.extendleft(reversed(lines.of_row[1:]))
            row = csv.Error(f"in line {lines.number}: {error}")
            if lines.of_row == [None]:
                row = _too_long()
        if row != []:
            yield row


class _CsvLines:
    """Lines of a file; those of the last row can be read again.

    If a row has too many lines, the reader is told that the file ends, so it
    reports an unclosed quotation mark.
    """

    def __init__(self, lines: Iterable[str | None]):
        self.lines = iter(lines)
        self.again: collections.deque = collections.deque()
        self.of_row: list[str | None] = []
        self.number = self.size = 0

    def __iter__(self):
        return self

    def __next__(self):
        if len(self.of_row) == _MAX_ROW_LINES or self.size > MAX_LINE:
            raise StopIteration
        if self.again:
            line = self.again.popleft()
        else:
            line = next(self.lines)
            self.number += 1
        self.of_row.append(line)
        if line is None:
            raise csv.Error("the line is too long")
        self.size += len(line)
        return line


def _too_long():
    return RowError("line too long", f"more than {MAX_LINE} characters")


# === JSON ===


def _read_jsonl(path):
    with open_text(path, newline="\n") as file:
        for line in read_lines(file):
            if line is None:
                yield _too_long()
            elif line.strip():
                try:
                    yield _object(parse_json(line.rstrip()))
                except RepeatedKey as error:
                    yield RowError("repeated key", f"{error}")
                except ValueError as error:
                    yield RowError("not valid JSON", f"{error}")


def _read_json(path):
    yield from read_json_rows(path, read_file(path, MAX_FILE_BYTES + 1))


def read_json_rows(
    path: str | Path, contents: bytes
) -> Iterator[dict | RowError]:
    """Read rows from a JSON list of objects, or from Karpathy's format.

    Args:
        path: string or `pathlib.Path`. The name of the file in messages.
        contents: bytes of the file.

    Yields:
        dict or `RowError` for each row, as in `read_rows`.
    """
    if len(contents) > MAX_FILE_BYTES:
        raise ValueError(
            f"The table `{path}` has more than {MAX_FILE_BYTES} bytes of JSON, "
            "which is read as a whole: write one object on each line, and use "
            "the suffix `.jsonl`."
        )
    text = decode_text(contents, "strict")
    try:
        contents = parse_json(text)
    except RepeatedKey:
        # Only now look for the row with the error, because it takes longer.
        contents = _with_errors.decode(text)
    except ValueError as error:
        raise ValueError(
            f"The table `{path}` is not valid JSON: {error}."
        ) from error
    if isinstance(contents, RowError):
        raise ValueError(f"The table `{path}` has a {contents}.")
    if isinstance(contents, list):
        yield from map(_object, contents)
        return
    if not isinstance(contents, dict):
        raise ValueError(
            f"The table `{path}` must hold a list of objects or Karpathy's "
            f"form. Received: {type(contents).__name__}."
        )
    images = contents.get("images")
    if not isinstance(images, list) or "annotations" in contents:
        raise ValueError(
            f"The table `{path}` is neither a list of objects nor in "
            "Karpathy's form; its fields are: "
            f"{', '.join(sorted(contents)) or 'none'}."
        )
    yield from map(_karpathy_row, images)


def _karpathy_row(image):
    if isinstance(image, RowError):
        return image
    try:
        name = posixpath.join(image.get("filepath", ""), image["filename"])
        texts = [sentence["raw"] for sentence in image["sentences"]]
    except KeyError as error:
        told = f"no field {error}, which Karpathy's form needs"
        return RowError("not in Karpathy's form", told)
    except (AttributeError, TypeError) as error:
        return RowError("not in Karpathy's form", f"{error}")
    return {"image": name, "caption": texts, "split": image.get("split")}


def _error_if_repeated(pairs):
    """Return an object, or a `RowError` if it or a nested one repeats a key."""
    found = dict(pairs)
    if len(found) < len(pairs):
        return RowError("repeated key", f"{RepeatedKey(pairs)}")
    for name, value in found.items():
        for part in value if isinstance(value, list) else [value]:
            # In Karpathy's format, `images` are the rows.
            if isinstance(part, RowError) and name != "images":
                return part
    return found


_with_errors = json.JSONDecoder(object_pairs_hook=_error_if_repeated)


def _object(row):
    if isinstance(row, (dict, RowError)):
        return row
    received = f"{type(row).__name__} {row!r}"[:80]
    return RowError("not a JSON object", received)


# === Parquet ===


def _read_parquet(path, columns):
    with open_parquet(path) as file:
        for batch in parquet_batches(file, columns):
            yield from batch.to_pylist()


@contextlib.contextmanager
def open_parquet(path: str | Path, source: Any = None):
    """Open a Parquet file.

    Args:
        path: string or `pathlib.Path`.
        source: open binary file, for a file that is not local. Defaults to
            `None`: open `path`.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: The file is damaged, even if this is detected later.
    """
    try:
        # Arrow cannot take file names that are not UTF-8 as strings.
        source = source or arrow.OSFile(os.fsencode(path))
        with parquet.ParquetFile(source) as file:
            check_distinct(path, file.schema_arrow.names)
            yield file
    except (OSError, arrow.ArrowInvalid) as error:
        raise ValueError(
            f"`{path}` is not a complete Parquet file: {error}."
        ) from error


def iterate_parquet(path: str | Path, columns: list[str]) -> Iterator:
    """Yield Arrow batches of some columns of a local file.

    Errors in the code that uses the batches are not reported as damage of the
    file, unlike within `open_parquet`.
    """
    with open_parquet(path) as file:
        yield from parquet_batches(file, columns)


def parquet_batches(file, columns=None) -> Iterator:
    """Yield Arrow batches of limited size.

    Args:
        file: `pyarrow.parquet.ParquetFile`.
        columns: list of strings. Defaults to all.
    """
    metadata = file.metadata
    groups = range(metadata.num_row_groups)
    size = sum(metadata.row_group(g).total_byte_size for g in groups)
    row_bytes = max(1, size // max(1, metadata.num_rows))
    rows = max(1, min(BATCH_ROWS, BATCH_BYTES // row_bytes))
    yield from file.iter_batches(rows, columns=columns)


ROW_READERS: dict[str, Callable] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
