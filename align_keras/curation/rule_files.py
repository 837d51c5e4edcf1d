"""What rules take from files: test sets, lists of words."""

import glob
import os
from pathlib import Path

import numpy as np

from align_keras.curation.stages import fingerprint
from align_keras.curation.text import normalize_text
from align_keras.io.optional import require
from align_keras.io.text import decode_text
from align_keras.io.text import split_lines


def rule_files(rule, rows, stages, key):
    """Make the tables that a rule's `files` parameter holds.

    Args:
        rule: `Rule`.
        rows: Ibis table of the rows to be judged.
        stages: `Stages` that keep the tables.
        key: string. A fingerprint of the rule and the rows.

    Returns:
        dict from a name to an Ibis table.
    """
    given = rule.parameters
    if rule.kind == "forbidden_words":
        words = _read_words(given["words"])
        name, state = f"{rule.name}-words", fingerprint(words)
        table = stages.arrow(name, state, lambda: _table(gram=_strings(words)))
        return {"words": table}
    state = fingerprint(key, describe(given["test_images"]))
    if rule.kind == "near_duplicate":
        from align_keras.curation.test_images import hash_test_images

        def hashes():
            found = hash_test_images(given["test_images"], given["mirrored"])
            return _table(
                phash=_integers(found.keys()),
                test_image=_strings(found.values()),
            )

        name = f"{rule.name}-test_hashes"
        return {"test_hashes": stages.arrow(name, state, hashes)}
    from align_keras.curation.embedding_duplicates import find_near_images

    return {"near_images": find_near_images(rule, rows, stages, state)}


def describe(paths):
    """Names, sizes and times of change of files, those in folders too."""
    described = []
    for path in map(str, paths):
        found = [path] if os.path.isfile(path) else sorted(glob.glob(path))
        if os.path.isdir(path):
            found = sorted(str(f) for f in Path(path).rglob("*") if f.is_file())
        for file in found:
            state = os.stat(file)
            described.append([file, state.st_size, state.st_mtime_ns])
    return described


def _read_words(paths):
    words = set()
    for path in paths:
        try:
            lines = decode_text(Path(path).read_bytes(), "strict")
        except UnicodeDecodeError:
            raise ValueError(
                f"The list of words `{path}` is not UTF-8; convert it first."
            ) from None
        words |= {normalize_text(line) for line in split_lines(lines)}
    words.discard("")
    if not words:
        raise ValueError(f"There are no words in {', '.join(map(str, paths))}.")
    return sorted(words)


# `pyarrow.array` would import pandas, which takes as long as a rule takes for
# a million rows.


def _table(**columns):
    arrow = require("pyarrow", "curation")
    return arrow.Table.from_arrays(list(columns.values()), list(columns))


def _integers(values):
    return _array("int64", len(values), np.fromiter(values, "int64"))


def _strings(values):
    encoded = [value.encode(errors="replace") for value in values]
    ends = np.cumsum([0, *map(len, encoded)], dtype="int32")
    return _array("string", len(values), ends, b"".join(encoded))


def _array(kind, length, *parts):
    arrow = require("pyarrow", "curation")
    buffers = [None, *map(arrow.py_buffer, parts)]
    kind = arrow.type_for_alias(kind)
    return arrow.Array.from_buffers(kind, length, buffers)
