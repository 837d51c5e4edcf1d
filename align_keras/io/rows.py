"""Rows of tables as dicts: CSV, TSV, JSON lines, JSON and Parquet.

Nothing but Parquet needs more than Python itself. Files too large for that are
read in columns by `align_keras.io.batches`.
"""

import contextlib
import csv
import json
import posixpath
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from align_keras.io.optional import OptionalModule
from align_keras.io.text import decode_text
from align_keras.io.text import open_text

arrow = OptionalModule("pyarrow", extra="parquet")
parquet = OptionalModule("pyarrow.parquet", extra="parquet")

# Bytes of a Parquet file that are held at once; a row must be shorter.
BATCH_BYTES = 32 * 2**20
BATCH_ROWS = 131_072
# Fields of a CSV row beyond those that the first line names stand under this.
SURPLUS = None


def read_rows(
    path: str | Path, columns: list[str] | None = None
) -> Iterator[dict]:
    """Read the rows of a table.

    Args:
        path: string or `pathlib.Path`. Its suffix tells the format, one of
            `ROW_READERS`. Text is UTF-8, or UTF-16 with a byte order mark.
        columns: list of strings. Those to read of a Parquet file. Defaults to
            all.

    Yields:
        dict for each row: strings of CSV and TSV, JSON's values, or Arrow's
        as Python has them. In CSV fields beyond the columns are a list under
        the key `None`; those that are missing are `None`.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: Parquet needs pyarrow.
        ValueError: The file is damaged, or of a format that is not known.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file `{path}`.")
    reader = ROW_READERS.get(path.suffix.lower())
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
        raise ValueError(
            f"The table `{path}` is not UTF-8 (it holds the byte "
            f"{error.object[error.start]:#04x}); convert it first, for "
            "example with iconv."
        ) from error


# === CSV and TSV ===


def _read_csv(path):
    # The module's own limit is below a text of 20,000 words.
    csv.field_size_limit(2**31 - 1)
    with open_text(path) as file:
        # A stray quotation mark would swallow the rows after it in silence.
        reader = csv.reader(file, strict=True)
        try:
            yield from _with_names(reader)
        except csv.Error as error:
            raise ValueError(
                f"The table `{path}` is not valid CSV in line "
                f"{reader.line_num}: {error}. Quote a field that holds "
                "quotation marks and write each of them twice; or use TSV, "
                "where they are text."
            ) from error


def _read_tsv(path):
    # A tab or line end cannot stand in TSV, so a quotation mark is text, as
    # in Conceptual Captions.
    with open_text(path) as file:
        lines = (line.rstrip("\r\n") for line in file)
        yield from _with_names(line.split("\t") for line in lines if line)


def _with_names(rows):
    rows = iter(rows)
    names = next(rows, [])
    for row in rows:
        if not row:
            continue
        named = dict.fromkeys(names) | dict(zip(names, row, strict=False))
        if len(row) > len(names):
            named[SURPLUS] = row[len(names) :]
        yield named


# === JSON ===


def _read_jsonl(path):
    with open_text(path, newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                row = _parse(path, line, f" in line {number}")
                yield _check_object(path, row)


def _read_json(path):
    """Read a list of objects, or Karpathy's form."""
    contents = _parse(path, decode_text(path.read_bytes(), "strict"), "")
    if isinstance(contents, list):
        yield from (_check_object(path, row) for row in contents)
        return
    if not isinstance(contents, dict):
        raise ValueError(
            f"The table `{path}` must hold a list of objects or Karpathy's "
            f"form. Received: {type(contents).__name__}."
        )
    if "images" not in contents or "annotations" in contents:
        raise ValueError(
            f"The table `{path}` is neither a list of objects nor in "
            "Karpathy's form; its fields are: "
            f"{', '.join(sorted(contents)) or 'none'}."
        )
    for number, image in enumerate(contents["images"]):
        yield _karpathy_row(path, number, image)


def _karpathy_row(path, number, image):
    try:
        name = posixpath.join(image.get("filepath", ""), image["filename"])
        texts = [sentence["raw"] for sentence in image["sentences"]]
    except KeyError as error:
        raise ValueError(
            f"Image number {number} in `{path}` has no field {error}, which "
            "Karpathy's form needs."
        ) from error
    except (AttributeError, TypeError) as error:
        raise ValueError(
            f"Image number {number} in `{path}` is not in Karpathy's form: "
            f"{error}."
        ) from error
    return {"image": name, "caption": texts, "split": image.get("split")}


def _parse(path, text, place):
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"The table `{path}` is not valid JSON{place}: {reason}."
        ) from error


def _check_object(path, row):
    if not isinstance(row, dict):
        raise ValueError(
            f"The table `{path}` must hold objects. Received: {row!r}."
        )
    return row


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
        source: open binary file, where it is not a local one. Defaults to
            `None`.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: The file is damaged, also where that shows later.
    """
    try:
        with parquet.ParquetFile(path if source is None else source) as file:
            yield file
    except (OSError, arrow.ArrowInvalid) as error:
        raise ValueError(
            f"`{path}` is not a complete Parquet file: {error}."
        ) from error


def iterate_parquet(path: str | Path, columns: list[str]) -> Iterator:
    """Yield Arrow batches of some columns of a local file, as `open_parquet`.

    What goes wrong with the batches is not put down to the file.
    """
    with open_parquet(path) as file:
        yield from parquet_batches(file, columns)


def parquet_batches(file, columns=None) -> Iterator:
    """Yield Arrow batches that do not fill the memory.

    Args:
        file: a `pyarrow.parquet.ParquetFile`.
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
