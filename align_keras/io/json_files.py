"""JSON, read without losing anything, and files of it written whole."""

import collections
import json
from pathlib import Path
from typing import Any

from align_keras.io.atomic import atomic_file
from align_keras.io.folders import MAX_FILE_BYTES
from align_keras.io.text import read_text


class RepeatedKey(ValueError):
    """An object of JSON with one key twice, of which parsers keep the last.

    Args:
        pairs: list of pairs of a key and a value, as the object has them.
    """

    def __init__(self, pairs: list[tuple[str, Any]]):
        counts = collections.Counter(key for key, _ in pairs)
        ((key, _),) = counts.most_common(1)
        values = [value for other, value in pairs if other == key]
        told = " and ".join(f"{value!r:.40}" for value in values[:2])
        super().__init__(f"an object has the key {key!r} twice, with {told}")


def _distinct(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        raise RepeatedKey(pairs)
    return found


# `json.loads` would make one for each line.
_decoder = json.JSONDecoder(object_pairs_hook=_distinct)


def parse_json(text: str) -> Any:
    """Parse JSON.

    Args:
        text: string.

    Raises:
        RepeatedKey: An object has a key twice.
        ValueError: It is not JSON, or too deep.
    """
    try:
        return _decoder.decode(text)
    except RecursionError as error:
        raise ValueError(str(error) or "RecursionError") from None


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Args:
        path: string or `pathlib.Path`. UTF-8, UTF-16 or UTF-32.

    Returns:
        What the file holds.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not JSON, or has a key twice; the message names the
            file, and the place or the key.
    """
    try:
        return parse_json(read_text(path, MAX_FILE_BYTES))
    except RepeatedKey as error:
        raise ValueError(f"In `{path}` {error}: remove one.") from None
    except ValueError as error:
        raise ValueError(f"`{path}` is not valid JSON: {error}.") from None


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file that appears whole or not at all.

    Args:
        path: string or `pathlib.Path`. Missing parent directories are
            created.
        value: JSON value.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False)
    with atomic_file(path) as temporary:
        # A name on disk may hold bytes that are not text.
        temporary.write_text(text + "\n", "utf-8", "backslashreplace")


def to_json(value: Any) -> Any:
    """Return `value` as it will be read again: tuples are lists."""
    return json.loads(json.dumps(value))
