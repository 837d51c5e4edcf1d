"""The names and types of table columns, shared by all readers.

Arrow types are recognized by their names, so nothing here needs Arrow.
"""

from collections.abc import Iterable
from collections.abc import Sequence

# Names are compared ignoring case and surrounding blanks. The first one that a
# table has is used. Sizes before resizing come first: img2dataset's `width` is
# that of the resized image.
COLUMNS = {
    "id": ("id", "sample_id", "key"),
    "image": (
        "image",
        "file_name",
        "filename",
        "filepath",
        "image_path",
        "image_name",
        "path",
        "file",
    ),
    "url": ("url", "image_url"),
    "caption": (
        "caption",
        "captions",
        "text",
        "txt",
        "sentence",
        "sentences",
        "alt_text",
        "alt",
        "top_caption",
    ),
    "split": ("split",),
    "width": ("original_width", "width"),
    "height": ("original_height", "height"),
    "phash": ("image_phash", "phash"),
}


def find_column(names: Iterable, candidates: Sequence[str]) -> str | None:
    """Return the first candidate that a table has, as the table spells it.

    Args:
        names: iterable. The table's columns, in order.
        candidates: list of names, such as an entry of `COLUMNS`.

    Returns:
        string, or `None` if the table has none of them.

    Example:

    ```python
    find_column(["ID", "Caption"], COLUMNS["caption"])  # "Caption"
    ```
    """
    names = [name for name in names if isinstance(name, str)]
    # Of names that differ only in case, prefer an exact match, then the first.
    spelled = {name.strip().lower(): name for name in reversed(names)}
    spelled |= {name: name for name in names}
    for name in candidates:
        found = spelled.get(name, spelled.get(name.strip().lower()))
        if found is not None:
            return found
    return None


def check_distinct(path, names: Sequence[str]):
    """Refuse a table with two columns of the same name: one would be lost.

    Several columns without a name are allowed.

    Raises:
        UnfitColumn: Two columns have the same name.
    """
    twice = [name for name in names if name.strip() and names.count(name) > 1]
    if twice:
        raise UnfitColumn(
            f"The table `{path}` has several columns named `{twice[0]}`: give "
            "each its own name."
        )


# === Types of Parquet ===


def holds_texts(kind) -> bool:
    """Return whether a column of an Arrow type can hold captions."""
    values = value_type(kind)
    kind = _plain(kind) if values is None else values
    return is_string(kind) or is_binary(kind) or str(kind) == "null"


def image_kind(kind) -> str | None:
    """Tell from its Arrow type what a column of images holds.

    Returns:
        string. `"path"`; `"bytes"`, which may also be paths; or `"struct"` of
        both. `None` for other types.
    """
    kind = _plain(kind)
    if is_string(kind):
        return "path"
    if is_binary(kind):
        return "bytes"
    names = [kind.field(n).name for n in range(kind.num_fields)]
    both = sorted(names) == ["bytes", "path"]
    return "struct" if both and str(kind).startswith("struct") else None


class UnfitColumn(ValueError):
    """A column of a table is missing or has an unsuitable type."""


def check_type(path, name: str, kind, fits: bool, what: str):
    """Refuse a Parquet column, by name, unless its type is suitable.

    Raises:
        UnfitColumn: The type is not suitable.
    """
    if not fits:
        raise UnfitColumn(
            f"The column `{name}` of `{path}` has the type {kind}, which "
            f"cannot hold {what}. Paths and captions are strings or binary, "
            "captions also lists of these; images are binary or struct<bytes, "
            "path>."
        )


def is_path(value: bytes) -> bool:
    """Return whether bytes are a path: images are never text without zeros."""
    try:
        return b"\0" not in value and bool(value.decode())
    except UnicodeDecodeError:
        return False


def is_string(kind) -> bool:
    """Return whether an Arrow type is a string type."""
    return str(_plain(kind)) in ("string", "large_string", "string_view")


def is_binary(kind) -> bool:
    """Return whether an Arrow type is a binary type."""
    named = ("binary", "large_binary", "binary_view", "fixed_size_binary")
    return str(_plain(kind)).startswith(named)


def value_type(kind):
    """Return the type of the values of an Arrow list; `None` for others."""
    lists = ("list", "large_list", "fixed_size_list")
    named = tuple(f"{name}{view}<" for name in lists for view in ("", "_view"))
    return _plain(kind.value_type) if str(kind).startswith(named) else None


def _plain(kind):
    """Return the value type of a dictionary-encoded type."""
    is_dictionary = str(kind).startswith("dictionary<")
    return kind.value_type if is_dictionary else kind
