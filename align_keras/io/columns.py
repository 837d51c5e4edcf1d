"""Names under which columns of tables are looked for, the same everywhere."""

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
