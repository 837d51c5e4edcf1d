"""What rules take from files: test sets, lists of words."""

import glob
import os
from pathlib import Path

from align_keras.curation.extras import require
from align_keras.curation.stages import fingerprint
from align_keras.curation.text import normalize_text


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
        return {"words": _strings(stages, rule.name, words)}
    state = fingerprint(key, describe(given["test_images"]))
    if rule.kind == "near_duplicate":
        from align_keras.curation.test_images import hash_test_images

        def hashes():
            found = hash_test_images(given["test_images"], given["mirrored"])
            arrow = require("pyarrow", "curation")
            hashes = arrow.array(found.keys(), "int64")
            names = arrow.array(found.values(), "string")
            return arrow.table({"phash": hashes, "test_image": names})

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
            lines = Path(path).read_text("utf-8").splitlines()
        except UnicodeDecodeError:
            raise ValueError(
                f"The list of words `{path}` is not UTF-8; convert it first."
            ) from None
        words |= {normalize_text(line) for line in lines}
    words.discard("")
    if not words:
        raise ValueError(f"There are no words in {', '.join(map(str, paths))}.")
    return sorted(words)


def _strings(stages, name, values):
    arrow = require("pyarrow", "curation")
    return stages.arrow(
        f"{name}-words",
        fingerprint(values),
        lambda: arrow.table({"gram": arrow.array(values, "string")}),
    )
