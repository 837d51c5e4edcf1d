"""Find and read the inputs: tables, and Common Crawl's web archives."""

import contextlib
import glob
import hashlib
import os
import posixpath
from collections.abc import Generator
from collections.abc import Iterable
from pathlib import Path

from align_keras.curation.web_archives import read_archive
from align_keras.io.batches import BATCH_READERS
from align_keras.io.batches import COMPRESSIONS
from align_keras.io.batches import read_table_batches
from align_keras.io.batches import table_suffix
from align_keras.io.file_names import is_archive
from align_keras.io.file_names import is_junk
from align_keras.io.file_names import is_packed
from align_keras.io.file_names import is_records
from align_keras.io.file_names import sample_key
from align_keras.io.file_names import walk_folder
from align_keras.io.fingerprints import LENGTH
from align_keras.io.folders import OutsideFolder
from align_keras.io.folders import check_member
from align_keras.io.folders import require_regular
from align_keras.io.lists import path_list
from align_keras.io.stores import Store
from align_keras.io.stores import find_files
from align_keras.io.stores import is_directory
from align_keras.io.stores import is_store
from align_keras.io.stores import scheme_of
from align_keras.io.text import clean_text

_ARCHIVES = (".warc", ".wat")
_SUFFIXES = (*BATCH_READERS, *_ARCHIVES)
_NOT_READ = (
    "an archive, a file of records, or a compression that is not read here; "
    "unpack it, or write its captions as a table"
)
_UNDERSCORE = (
    "a name that begins with an underscore, as in the files that engines write "
    "next to their data; give it on its own, or rename it"
)
_FOLDER = "a folder among the files of a glob; give it on its own"


def find_inputs(
    patterns: str | Path | Iterable,
    allow_outside: bool = False,
    texts: bool = False,
) -> tuple[list[str], list[dict]]:
    """List the input files that files, folders and globs name.

    Args:
        patterns: string or list of strings: a file, a folder, a glob, or an
            address such as `s3://bucket/folder` or `s3://bucket/*.parquet`.
            A folder stands for all its files of a known format, except hidden
            ones, and JSON files that are not called `captions.json`.
        allow_outside: bool. Whether links may lead out of a folder. Defaults
            to `False`.
        texts: bool. Whether to take local `.txt` files, too. Those of a
            folder are taken only if it has no tables. Defaults to `False`.

    Returns:
        Tuple of the list of distinct files, sorted within each pattern, and a
        list of what is left out, as dicts of `"file"` and `"reason"`: links
        that lead out of a folder, files that may hold captions in another
        format, and folders that a glob matches.

    Raises:
        FileNotFoundError: A pattern matches nothing.
        OutsideFolder: All files lead out of their folder.
        ValueError: The suffix of a file is unknown.
    """
    files, outside, others = {}, {}, {}
    for pattern in map(str, path_list(patterns)):
        found, rest = _find(pattern, texts)
        if not found:
            told = f" `{next(iter(rest))}` is not read." if rest else ""
            suffixes = sorted((*_SUFFIXES, *([".txt"] if texts else ())))
            raise FileNotFoundError(
                f"No input matches `{pattern}`; give a file, a glob, or a "
                f"folder of {', '.join(suffixes)} files.{told}"
            )
        for file, reason in rest.items():
            others[file] = {"file": clean_text(file), "reason": reason}
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


def _find(pattern, texts):
    """Find the inputs that a pattern names, and why others are not read."""
    if is_store(pattern):
        return _find_stored(Store(pattern))
    if os.path.isdir(pattern):
        found = glob.glob(
            os.path.join(glob.escape(pattern), "**", "*"), recursive=True
        )
        # A broken link stays, and will be counted as damaged.
        inside = [f for f in sorted(found) if not os.path.isdir(f)]
        names = {f: os.path.relpath(f, pattern) for f in inside}
        tables, rest = _divide(names)
        beside = [f for f in inside if texts and is_text(f)]
        beside = [f for f in beside if not is_junk(names[f])]
        if beside and tables:
            told = f"{len(beside)} text files next to tables are not read; "
            rest[beside[0]] = told + "give them as a glob"
        return tables or beside, rest
    found = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern))
    rest = {f: _FOLDER for f in found if os.path.isdir(f) and not is_junk(f)}
    found = [f for f in found if not os.path.isdir(f)]
    for file in found:
        if not (texts and is_text(file)):
            check_format(file)
    return found, rest


def is_text(path: str) -> bool:
    """Return whether the name is that of a `.txt` file, one text per line."""
    return path.lower().endswith(".txt")


def _find_stored(store):
    if is_directory(store.address):
        names = sorted(store.sizes())
        return _divide({f"{store}/{name}": name for name in names})
    found = find_files(store.address)
    for file in found:
        check_format(file)
    return found, {}


def _divide(names):
    """Divide a folder's files into inputs and files that are not read."""
    found = [file for file, name in names.items() if _is_input(name)]
    # img2dataset writes a table beside each archive; the table suffices.
    tables = {sample_key(file) for file in found}
    rest = {
        file: _NOT_READ
        for file, name in names.items()
        if _may_be_input(name) and sample_key(file) not in tables
    }
    for file, name in names.items():
        if not (is_junk(name) or _is_input(name)) and _is_table(name):
            rest[file] = _UNDERSCORE
    return found, rest


def _may_be_input(path):
    """Return whether a file that is not read may hold captions."""
    if _is_input(path) or is_junk(path):
        return False
    packed = path.lower().endswith(".xz") or is_packed(path)
    return packed or is_archive(path) or is_records(path)


def _is_input(path):
    # Engines write metadata beside their data, with a leading underscore.
    if is_junk(path) or any(part[0] == "_" for part in path.split("/")):
        return False
    return _is_table(path)


def _is_table(path):
    # Most JSON files are reports or settings of other programs.
    if path.lower().endswith(".json"):
        return posixpath.basename(path).lower() == "captions.json"
    return table_suffix(path) in _SUFFIXES


def check_format(path: str):
    """Raise a `ValueError` unless the file's suffix names a known format."""
    if table_suffix(path) not in _SUFFIXES:
        raise ValueError(
            f"The format of `{path}` is not known from its name; the suffix "
            f"must be one of {', '.join(sorted(_SUFFIXES))}, and may be "
            f"followed by one of {', '.join(COMPRESSIONS)}."
        )


def describe_paths(paths: Iterable[str]) -> list[list]:
    """Return names, sizes and modification times of files.

    Args:
        paths: list of strings: files, folders (with all files below) or globs.
    """
    described = []
    for path in map(str, paths):
        found = [path] if os.path.isfile(path) else sorted(glob.glob(path))
        if os.path.isdir(path):
            found = sorted(str(f) for f in Path(path).rglob("*") if f.is_file())
        for file in found:
            state = os.stat(file)
            described.append([file, state.st_size, state.st_mtime_ns])
    return described


def describe_folder(folder: str, allow_outside: bool = False) -> str:
    """Return the fingerprint of a folder: names, sizes and times of its files.

    Args:
        folder: string. Need not exist.
        allow_outside: bool. See `walk_folder`. Defaults to `False`.
    """
    digest = hashlib.sha256()
    for name in sorted(walk_folder(folder, allow_outside)[0]):
        state = os.stat(os.path.join(folder, name))
        told = f"{name}\n{state.st_size} {state.st_mtime_ns}\n"
        digest.update(os.fsencode(told))
    return digest.hexdigest()[:LENGTH]


def column_types(path: str) -> dict:
    """Return the Arrow types of a file's columns from its first batch.

    Raises:
        OSError, ValueError: The file is damaged.
    """
    with contextlib.closing(read_batches(path)) as batches:
        columns, _ = next(batches, ({}, 0))
    return {name: column.type for name, column in columns.items()}


def read_batches(
    path: str, wanted: set | dict | None = None, text: str | None = None
) -> Generator[tuple[dict, int], None, None]:
    """Read one file in batches of bounded size.

    Args:
        path: string.
        wanted: set or dict of the columns to read, see `read_table_batches`.
            Defaults to all.
        text: string. The column of captions, see `read_table_batches`.

    Yields:
        `(columns, bad_lines)`, see `align_keras.io.batches`.

    Raises:
        OSError, ValueError: The file is damaged or of an unknown format.
    """
    check_format(path)
    if not scheme_of(path):
        require_regular(path)
    if table_suffix(path) in _ARCHIVES:
        return read_archive(path, wanted)
    return read_table_batches(path, wanted, text)
