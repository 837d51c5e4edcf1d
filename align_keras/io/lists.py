"""Check arguments that are lists, where users may pass a single string.

A string is also a sequence (of its characters), so it would be accepted.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from align_keras.io.text import clean_text


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


def check_templates(templates: Any, origin: str | Path) -> Any:
    """Check and clean templates; `None` stays `None`."""
    if templates is None:
        return None
    if not isinstance(templates, list) or not templates:
        raise ValueError(
            f"The templates of `{origin}` must be a list of strings. "
            f"Received: {templates!r}"
        )
    for template in templates:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise ValueError(
                f"A template of `{origin}` must hold `{{}}` once, where the "
                f"name of the class goes. Received: {template!r}"
            )
    return [clean_text(template) for template in templates]
