"""JSON files, read with their name in the error and written whole."""

import json
from pathlib import Path
from typing import Any

from align_keras.io.atomic import atomic_file
from align_keras.io.folders import MAX_FILE_BYTES
from align_keras.io.text import read_text


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Args:
        path: string or `pathlib.Path`. UTF-8, or UTF-16 with a byte order
            mark.

    Returns:
        What the file holds.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not JSON; the message names the file and the place.
    """
    try:
        return json.loads(read_text(path, MAX_FILE_BYTES))
    except (ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"`{path}` is not valid JSON: {reason}.") from None


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
