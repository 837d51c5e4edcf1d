"""Read JSON without losing repeated keys, and write JSON files atomically."""

import collections
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from align_keras.io.atomic import atomic_file
from align_keras.io.folders import MAX_FILE_BYTES
from align_keras.io.text import read_text


class RepeatedKey(ValueError):
    """A JSON object has a key twice; parsers would keep only the last value.

    Args:
        pairs: list of pairs of a key and a value. The items of the object.
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


# Shared, because `json.loads` would make a decoder for each call.
_decoder = json.JSONDecoder(object_pairs_hook=_distinct)


def parse_json(text: str) -> Any:
    """Parse JSON.

    Args:
        text: string.

    Raises:
        RepeatedKey: An object has a key twice.
        ValueError: The text is not JSON, or is nested too deeply.
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
        The value in the file.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: It is not JSON, or has a key twice. The message names the
            file, and the place or the key.
    """
    try:
        return parse_json(read_text(path, MAX_FILE_BYTES))
    except RepeatedKey as error:
        raise ValueError(f"In `{path}` {error}: remove one.") from None
    except ValueError as error:
        raise ValueError(f"`{path}` is not valid JSON: {error}.") from None


def read_object(
    path: str | Path, form: dict[str, Any], what: str, remedy: str
) -> dict:
    """Read a JSON object and check the types of its fields.

    Args:
        path: string or `pathlib.Path`.
        form: dict from field to its form. A form is a type, a callable that
            tells whether a value fits, a dict of the forms of an object's
            fields, or a list with the form of a list's items, followed by
            `...` if the list must not be empty. A field whose name ends in
            `?` may be missing. `*` stands for all other fields; without it,
            they may hold anything.
        what: string. What error messages call the file.
        remedy: string. What error messages tell the user to do.

    Returns:
        dict.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: It is damaged or was written by another program. The
            message names the file and the field.
    """
    value = read_json(path)
    check_form(value, form, path, what, remedy)
    return value


def check_form(
    value: Any, form: Any, path: str | Path, what: str, remedy: str
) -> None:
    """Refuse a JSON value of a file that does not have the expected form.

    Args:
        value: JSON value. The contents of the file.
        form: any form, see `read_object`, such as a dict or a list.
        path: string or `pathlib.Path`, for the message.
        what: string. What error messages call the file.
        remedy: string. What error messages tell the user to do.

    Raises:
        ValueError: The value has another form. The message names the field.
    """
    told = unfit_field(value, form)
    if told is not None:
        raise ValueError(f"`{path}` is not a valid {what}: it {told}. {remedy}")


def unfit_field(value: Any, form: Any, name: str = "") -> str | None:
    """Describe the first part of a JSON value that does not fit its form.

    Args:
        value: JSON value.
        form: see `read_object`.
        name: string. The name of the value in the description. Defaults to
            `""`.

    Returns:
        string such as `"has shards[0].file=None"`, or `None` if all fits.
    """
    found: Iterator[str | None] = iter(())
    if isinstance(form, dict) and isinstance(value, dict):
        begin = f"{name}." if name else ""
        found = (
            unfit_field(value.get(field), inner, f"{begin}{field}")
            for field, inner in _expected(form, value)
        )
    elif isinstance(form, list) and isinstance(value, list):
        found = (
            unfit_field(item, form[0], f"{name}[{number}]")
            for number, item in enumerate(value)
        )
        if not value and form[1:]:
            return f"has {name}=[]"
    elif isinstance(form, (dict, list)) or not _fits(value, form):
        return f"has {name}={value!r:.80}" if name else f"holds {value!r:.80}"
    return next((told for told in found if told), None)


def _expected(form, value):
    """Yield the required fields, and those optional ones that are present."""
    for field, inner in form.items():
        if field == "*":
            named = {name.removesuffix("?") for name in form}
            yield from ((name, inner) for name in value.keys() - named)
        elif not field.endswith("?"):
            yield field, inner
        elif field[:-1] in value:
            yield field[:-1], inner


def _fits(value, form):
    return isinstance(value, form) if isinstance(form, type) else form(value)


def is_count(value: Any) -> bool:
    """Return whether a JSON value is a non-negative integer."""
    return type(value) is int and value >= 0


def is_number(value: Any) -> bool:
    """Return whether a JSON value is a finite number."""
    return type(value) in (int, float) and math.isfinite(value)


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file that appears whole or not at all.

    Args:
        path: string or `pathlib.Path`. Missing parent directories are
            created.
        value: JSON value.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False)
    with atomic_file(path) as temporary:
        # A file name may hold bytes that are not valid text.
        temporary.write_text(text + "\n", "utf-8", "backslashreplace")


def to_json(value: Any) -> Any:
    """Return `value` as it would be read from JSON: tuples become lists."""
    return json.loads(json.dumps(value))
