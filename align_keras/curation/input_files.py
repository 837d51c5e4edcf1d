"""The input files of curation: tables, and the web archives of Common Crawl."""

import contextlib
import glob
import os
import posixpath
from collections.abc import Generator
from collections.abc import Iterable

from align_keras.curation.web_archives import read_archive
from align_keras.io.batches import BATCH_READERS
from align_keras.io.batches import COMPRESSIONS
from align_keras.io.batches import read_table_batches
from align_keras.io.batches import table_suffix
from align_keras.io.file_names import is_archive
from align_keras.io.file_names import is_junk
from align_keras.io.file_names import is_packed
from align_keras.io.file_names import is_records
from align_keras.io.folders import OutsideFolder
from align_keras.io.folders import check_member
from align_keras.io.stores import Store
from align_keras.io.stores import find_files
from align_keras.io.stores import is_directory
from align_keras.io.stores import is_store
from align_keras.io.text import clean_text

_ARCHIVES = (".warc", ".wat")
_SUFFIXES = (*BATCH_READERS, *_ARCHIVES)
_NOT_READ = (
    "archives, records and files of this compression are not read here; "
    "unpack it, or write its captions as a table"
)


def find_inputs(
    patterns: Iterable, allow_outside: bool = False
) -> tuple[list[str], list[dict]]:
    """List the input files that folders, files and globs name, sorted.

    Args:
        patterns: list of strings: a file, a folder (taken with all its files
            of a known format, hidden ones excepted, and JSON alone where it
            is called `captions.json`), a glob, or an address such as
            `s3://bucket/folder` and `s3://bucket/*.parquet`.
        allow_outside: bool. Whether links may lead out of a folder. Defaults
            to `False`.

    Returns:
        Tuple of a list of strings without repetition, and of a list of what
        leads out of its folder, or may hold captions in another form, dicts
        of `"file"` and `"reason"`.

    Raises:
        FileNotFoundError: A pattern names nothing.
        OutsideFolder: All that there is leads out of its folder.
        ValueError: A file's suffix is not known.
    """
    files, outside, others = {}, {}, {}
    for pattern in map(str, patterns):
        found, rest = _find(pattern)
        if not found:
            told = f" `{rest[0]}` is not read." if rest else ""
            raise FileNotFoundError(
                f"No input matches `{pattern}`; give a file, a glob, or a "
                f"folder of {', '.join(sorted(_SUFFIXES))} files.{told}"
            )
        for file in rest:
            others[file] = {"file": clean_text(file), "reason": _NOT_READ}
        for file in found:
            try:
                check_member(pattern, file, allow_outside)
                files[file] = None
            except OutsideFolder as error:
                outside[file] = {"file": file, "reason": str(error)}
    if outside and not files:
        raise OutsideFolder(next(iter(outside.values()))["reason"])
    left_out = (outside | others).items()
    return list(files), [told for file, told in left_out if file not in files]


def _find(pattern):
    """The inputs that a pattern names, and what may hold others."""
    if is_store(pattern):
        return _find_stored(Store(pattern))
    if os.path.isdir(pattern):
        found = glob.glob(
            os.path.join(glob.escape(pattern), "**", "*"), recursive=True
        )
        # A link that leads nowhere will be counted as damaged.
        # A link that leads nowhere will be counted as damaged.
        inside = [f for f in sorted(found) if not os.path.isdir(f)]
        return _divide({f: os.path.relpath(f, pattern) for f in inside})
    found = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern))
    found = [f for f in found if os.path.isfile(f)]
    for file in found:
        check_format(file)
    return found, []


def _find_stored(store):
    if is_directory(store.address):
        names = sorted(store.sizes())
        return _divide({f"{store}/{name}": name for name in names})
    found = find_files(store.address)
    for file in found:
        check_format(file)
    return found, []


def _divide(names):
    """Divide the files of a folder, given their names in it."""
    found = [file for file, name in names.items() if _is_input(name)]
    # img2dataset writes a table of what each of its archives holds.
    tables = {_stem(file) for file in found}
    rest = [
        file
        for file, name in names.items()
        if _may_be_input(name) and _stem(file) not in tables
    ]
    return found, rest


def _stem(file):
    folder, name = posixpath.split(file)
    return posixpath.join(folder, name.partition(".")[0])


def _may_be_input(path):
    """Whether a file that is not read may hold captions."""
    if _is_input(path) or is_junk(path):
        return False
    packed = path.lower().endswith(".xz") or is_packed(path)
    return packed or is_archive(path) or is_records(path)


def _is_input(path):
    # Engines write files that begin with an underscore beside their data.
    if is_junk(path) or any(part[0] == "_" for part in path.split("/")):
        return False
    # Other programs write reports and settings in JSON.
    if path.lower().endswith(".json"):
        return posixpath.basename(path).lower() == "captions.json"
    return table_suffix(path) in _SUFFIXES


def check_format(path: str):
    """Raise a `ValueError` unless a file's name tells a format."""
    if table_suffix(path) not in _SUFFIXES:
        raise ValueError(
            f"The format of `{path}` is not known from its name; the suffix "
            f"must be one of {', '.join(sorted(_SUFFIXES))}, and may be "
            f"followed by one of {', '.join(COMPRESSIONS)}."
        )


def column_types(path: str) -> dict:
    """Return Arrow's types of a file's columns, without reading its rows.

    Raises:
        OSError, ValueError: The file is damaged.
    """
    with contextlib.closing(read_batches(path)) as batches:
        columns, _ = next(batches, ({}, 0))
    return {name: column.type for name, column in columns.items()}


def read_batches(
    path: str, wanted: set | None = None, text: str | None = None
) -> Generator[tuple[dict, int], None, None]:
    """Read one file in batches of bounded size.

    Args:
        path: string.
        wanted: set of column names to read. Defaults to all.
        text: string. The column of captions, see `read_table_batches`.

    Yields:
        `(columns, bad_lines)`, see `align_keras.io.batches`.

    Raises:
        OSError, ValueError: The file is damaged or of an unknown format.
    """
    check_format(path)
    if table_suffix(path) in _ARCHIVES:
        return read_archive(path, wanted)
    return read_table_batches(path, wanted, text)
