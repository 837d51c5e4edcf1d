"""Arguments that are lists of strings, where one string is soon given.

A string is a sequence, too, of its characters.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def path_list(paths: str | Path | Iterable) -> list:
    """Return paths as a list, of one where a single path is given.

    Args:
        paths: string, `pathlib.Path`, or iterable of these and of others.
    """
    if isinstance(paths, (str, bytes, os.PathLike)):
        return [paths]
    return list(paths)


def check_list(values: Any, name: str) -> None:
    """Refuse a string in the place of a list of strings.

    Args:
        values: what was given.
        name: string. The name of the argument.

    Raises:
        ValueError: It is a string.
    """
    if isinstance(values, (str, bytes)):
        raise ValueError(
            f"`{name}` must be a list of strings, not a string. "
            f"Received: {values!r:.80}; give `[{values!r:.80}]`."
        )
