"""JSON, read without losing anything, and files of it written whole."""

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


def read_object(
    path: str | Path, form: dict[str, Any], what: str, remedy: str
) -> dict:
    """Read a JSON object whose fields are what is made of them.

    Args:
        path: string or `pathlib.Path`.
        form: dict from field to its form: a type, a callable that tells
            whether a value fits, a dict of the forms of an object's fields,
            or a list of the one form of a list's items, followed by `...`
            where there has to be one. A name that ends in `?` is that of a
            field that may be missing, and `*` stands for all that are not
            named, which may hold anything where it is not given.
        what: string. What error messages call the file.
        remedy: string. What error messages tell to do.

    Returns:
        dict.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or another program's; the message names the
            file and the field.
    """
    value = read_json(path)
    check_form(value, form, path, what, remedy)
    return value


def check_form(
    value: Any, form: Any, path: str | Path, what: str, remedy: str
) -> None:
    """Refuse what was read from a file and is not what is made of it.

    Args:
        value: what the file holds.
        form: see `read_object`; also a list of one form.
        path: string or `pathlib.Path`, for the message.
        what: string. What error messages call the file.
        remedy: string. What error messages tell to do.

    Raises:
        ValueError: It has not that form; the message names the field.
    """
    told = unfit_field(value, form)
    if told is not None:
        raise ValueError(
            f"`{path}` is no {what}, or damaged: it {told}. {remedy}"
        )


def unfit_field(value: Any, form: Any, name: str = "") -> str | None:
    """Tell which part of a JSON value has not its form, see `read_object`.

    Returns:
        string such as `"has shards[0].file=None"`, or `None`.
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
    """The fields that an object must have, or has."""
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
    """Return whether a JSON value is a whole number that is not negative."""
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
        # A name on disk may hold bytes that are not text.
        temporary.write_text(text + "\n", "utf-8", "backslashreplace")


def to_json(value: Any) -> Any:
    """Return `value` as it will be read again: tuples are lists."""
    return json.loads(json.dumps(value))
