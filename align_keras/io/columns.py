"""Names under which columns of tables are looked for, and what they may hold.

The same everywhere. Arrow's types are known by their names, so that nothing
here needs Arrow.
"""

from collections.abc import Iterable
from collections.abc import Sequence

# Compared without case and without blanks around; of several the first one
# that a table has is taken. Sizes before resizing come first: img2dataset's
# `width` is that of the small image.
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
        names: the table's columns, in order.
        candidates: list of names, such as an entry of `COLUMNS`.

    Returns:
        string, or `None` where there is none.

    Example:

    ```python
    find_column(["ID", "Caption"], COLUMNS["caption"])  # "Caption"
    ```
    """
    names = [name for name in names if isinstance(name, str)]
    # Of names that differ in case alone, the very one, else the first.
    spelled = {name.strip().lower(): name for name in reversed(names)}
    spelled |= {name: name for name in names}
    for name in candidates:
        found = spelled.get(name, spelled.get(name.strip().lower()))
        if found is not None:
            return found
    return None


def check_distinct(path, names: Sequence[str]):
    """Refuse a table that calls two columns alike: one would be lost.

    Raises:
        UnfitColumn: It does; columns without a name may be several.
    """
    twice = [name for name in names if name.strip() and names.count(name) > 1]
    if twice:
        raise UnfitColumn(
            f"The table `{path}` has several columns of the name `{twice[0]}`: "
            "give each its own."
        )


# === Types of Parquet ===


def holds_texts(kind) -> bool:
    """Return whether a column of an Arrow type may be one of captions."""
    values = value_type(kind)
    kind = _plain(kind) if values is None else values
    return is_string(kind) or is_binary(kind) or str(kind) == "null"


def image_kind(kind) -> str | None:
    """Tell what a column of images holds by its Arrow type.

    Returns:
        string. `"path"`, `"bytes"`, which may be paths, or `"struct"` of both;
        `None` for what is none of these.
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
    """A column is missing in a table, or has a type that cannot be used."""


def check_type(path, name: str, kind, fits: bool, what: str):
    """Refuse a column of Parquet, by name, unless its type fits.

    Raises:
        UnfitColumn: It does not.
    """
    if not fits:
        raise UnfitColumn(
            f"The column `{name}` of `{path}` has the type {kind}, which holds "
            f"no {what}. Paths and captions are strings or binary, captions "
            "also lists of those; images are binary or struct<bytes, path>."
        )


def is_path(value: bytes) -> bool:
    """Return whether bytes are a path: no image is text without a zero."""
    try:
        return b"\0" not in value and bool(value.decode())
    except UnicodeDecodeError:
        return False


def is_string(kind) -> bool:
    """Return whether an Arrow type is one of strings."""
    return str(_plain(kind)) in ("string", "large_string", "string_view")


def is_binary(kind) -> bool:
    """Return whether an Arrow type is one of bytes."""
    named = ("binary", "large_binary", "binary_view", "fixed_size_binary")
    return str(_plain(kind)).startswith(named)


def value_type(kind):
    """Return the type of the values of an Arrow list; `None` for others."""
    lists = ("list", "large_list", "fixed_size_list")
    named = tuple(f"{name}{view}<" for name in lists for view in ("", "_view"))
    return _plain(kind.value_type) if str(kind).startswith(named) else None


def _plain(kind):
    """The type of the values, where a dictionary encodes them."""
    is_dictionary = str(kind).startswith("dictionary<")
    return kind.value_type if is_dictionary else kind
