"""Check arguments that are lists, where users may pass a single string.

A string is also a sequence (of its characters), so it would be accepted.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def path_list(paths: str | Path | Iterable) -> list:
    """Return paths as a list; a single path becomes a list of one.

    Args:
        paths: string, `pathlib.Path`, or an iterable of paths or other values.
    """
    if isinstance(paths, (str, bytes, os.PathLike)):
        return [paths]
    return list(paths)


def check_list(values: Any, name: str) -> None:
    """Refuse a string given instead of a list of strings.

    Args:
        values: the value of the argument.
        name: string. The name of the argument.

    Raises:
        ValueError: The value is a string.
    """
    if isinstance(values, (str, bytes)):
        raise ValueError(
            f"`{name}` must be a list of strings, not a string. "
            f"Received: {values!r:.80}; give `[{values!r:.80}]`."
        )
