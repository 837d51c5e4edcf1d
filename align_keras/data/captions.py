"""Tables of captions: one row for each image, or for each of its captions."""

import functools
import logging
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from align_keras.data.tally import Tally
from align_keras.io import rows
from align_keras.io.columns import COLUMNS
from align_keras.io.columns import find_column
from align_keras.io.folders import resolve_within
from align_keras.io.mirrors import reads
from align_keras.io.text import as_text
from align_keras.io.text import as_texts

# Addresses come last: they name files only where `curate` has put paths there.
IMAGE_COLUMNS = COLUMNS["image"] + COLUMNS["url"]

logger = logging.getLogger("align_keras")


class CaptionRow(NamedTuple):
    """One row of a table of captions.

    Attributes:
        name: string. The image's path as the table has it, normalised; or
            what the row itself is called where the table holds the image.
        contents: bytes or `None`. The image, where the table holds it.
        captions: list of strings that are not blank.
    """

    name: str
    contents: bytes | None
    captions: list[str]


def find_caption_file(
    folder: str | Path, allow_outside: bool = False
) -> Path | None:
    """Return the `captions.csv` of a folder, or `.tsv`, `.jsonl` and so on.

    Raises:
        OutsideFolder: It is a link that leads out of the folder.
    """
    found = {}
    for path in sorted(Path(folder).glob("captions.*")):
        if path.stem == "captions" and path.is_file():
            found[path.suffix.lower()] = path
    for suffix in rows.ROW_READERS:
        if suffix in found:
            resolve_within(folder, found[suffix].name, allow_outside)
            return found[suffix]
    return None


@reads("path")
def read_captions(
    path: str | Path,
    image_column: str | None = None,
    caption_column: str | None = None,
    split: str | None = None,
    tally: Tally | None = None,
) -> dict[str, list[str]]:
    """Read a table of captions.

    Args:
        path: string or `pathlib.Path`. The suffix tells the format: `.csv`
            and `.tsv` with a header line, `.jsonl` with one object per line,
            `.json` (Karpathy's form, or a list of objects), or `.parquet`
            (needs `align-keras[parquet]`). Text is UTF-8, or UTF-16 with a
            byte order mark.
        image_column: string. The column of image paths. Defaults to the first
            that exists of image, file_name, filename, filepath, image_path,
            image_name, path, file, url, image_url, ignoring case.
        caption_column: string. The column with a caption or a list of
            captions. Defaults to the first that exists of caption, captions,
            text, txt, sentence, sentences, alt_text, alt, top_caption,
            ignoring case.
        split: string. Take only rows whose `split` column is one of these
            names, separated by commas, as in `"train,restval"`. Defaults to
            all rows.
        tally: `Tally`. Counts the images, and the rows that cannot be used.
            Defaults to `None`, which logs those rows.

    Returns:
        dict from the image's path, normalised, to its list of captions.
        Images stand in the order of the file, and several rows of one image
        give one list. Blank captions are left out.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: Parquet needs pyarrow.
        ValueError: A column is missing or has an unfit type, the file is
            damaged or not UTF-8, or its format is not known.

    Example:

    ```python
    read_captions("captions.csv")  # {"bus.jpg": ["a red bus"], ...}
    ```
    """
    own = Tally()
    captions = {}
    found = iterate_captions(
        path, image_column, caption_column, split, tally or own, images=False
    )
    for row in found:
        captions.setdefault(row.name, []).extend(row.captions)
    if tally is not None:
        tally.seen += len(captions)
    elif own.reasons:
        logger.warning("Left out rows of `%s`: %s.", path, own.summary())
    return captions


def iterate_captions(
    path: str | Path,
    image_column: str | None = None,
    caption_column: str | None = None,
    split: str | None = None,
    tally: Tally | None = None,
    images: bool = True,
) -> Iterator[CaptionRow]:
    """Read a table of captions row by row; see `read_captions`.

    Args:
        path: string or `pathlib.Path`.
        image_column: string.
        caption_column: string.
        split: string.
        tally: `Tally` in which rows that cannot be used are left out.
        images: bool. Whether images that the table holds are read. Defaults
            to `True`.

    Yields:
        `CaptionRow`.
    """
    path = Path(path)
    tally = Tally() if tally is None else tally
    wanted = set(split.split(",")) if split else None
    columns = functools.partial(
        _find_columns, path, image_column, caption_column, wanted is not None
    )
    parts = None
    if path.suffix.lower() == ".parquet" and path.is_file():
        names, parts = _parquet_columns(path, columns, images)
    # Rows of one file have the same few sets of fields.
    columns = functools.lru_cache(maxsize=64)(columns)
    for number, row in enumerate(rows.read_rows(path, parts), start=1):
        if rows.SURPLUS in row:
            tally.leave_out(f"{path}, row {number}", "too many fields")
            continue
        names = columns(tuple(row))
        if wanted is not None and as_text(row[names["split"]]) not in wanted:
            continue
        name, contents = _image(path, number, names, row[names["image"]])
        if name is None:
            tally.leave_out(f"{path}, row {number}", "no image")
            continue
        yield CaptionRow(name, contents, as_texts(row[names["caption"]]))


def holds_images(path: str | Path, image_column: str | None = None) -> bool:
    """Return whether a table holds images, and not their paths alone."""
    path = Path(path)
    if path.suffix.lower() != ".parquet" or not path.is_file():
        return False
    with rows.open_parquet(path) as file:
        schema = file.schema_arrow
    name = find_column(schema.names, _candidates("image", image_column))
    return name is not None and _image_kind(schema.field(name).type) != "path"


def _candidates(role, given):
    return (given,) if given else {**COLUMNS, "image": IMAGE_COLUMNS}[role]


def _find_columns(path, image_column, caption_column, by_split, names):
    """The columns that a row's fields tell, by their roles."""
    roles = {"image": image_column, "caption": caption_column}
    if by_split:
        roles["split"] = None
    found = {}
    for role, given in roles.items():
        candidates = _candidates(role, given)
        found[role] = find_column(names, candidates)
        if found[role] is None:
            argument = role if role == "split" else f"{role}_column"
            raise ValueError(
                f"The caption file `{path}` has no column "
                f"{' or '.join(candidates)} for `{argument}`; its columns "
                f"are: {', '.join(names)}."
            )
    return found


def _image(path, number, names, value):
    """The name and perhaps the bytes of a row's image, `None` without one."""
    contents = None
    if isinstance(value, dict) and value.keys() <= {"bytes", "path"}:
        contents, value = value.get("bytes"), value.get("path")
    elif isinstance(value, bytes) and not _is_path(value):
        contents, value = value, None
    elif isinstance(value, (dict, list)):
        raise ValueError(
            f"The column `{names['image']}` of `{path}` must hold paths of "
            f"images. Received in row {number}: {type(value).__name__}."
        )
    if value is None and contents is not None:
        value = f"{path.stem}-{number:08d}"
    # Surrogates stay: they are how the name of a file on disk may be read.
    name = value if isinstance(value, str) else as_text(value)
    name = posixpath.normpath(name or "")
    # A folder, even where it is said as `./`, is no image.
    return name if name.strip() not in ("", ".") else None, contents


def _is_path(value):
    """Whether bytes are a path: no image file is text without a zero."""
    try:
        return b"\0" not in value and bool(value.decode())
    except UnicodeDecodeError:
        return False


# === Parquet ===


def _parquet_columns(path, columns, images):
    """The columns by their roles, and what to read of them."""
    with rows.open_parquet(path) as file:
        schema = file.schema_arrow
    names = columns(tuple(schema.names))
    kind = _image_kind(schema.field(names["image"]).type)
    if kind is None:
        _refuse(path, schema, names["image"], "paths or images")
    if not _holds_text(schema.field(names["caption"]).type):
        _refuse(path, schema, names["caption"], "captions")
    parts = list(names.values())
    if kind == "struct" and not images:
        parts[parts.index(names["image"])] += ".path"
    return names, parts


def _refuse(path, schema, name, what):
    raise ValueError(
        f"The column `{name}` of `{path}` has the type "
        f"{schema.field(name).type}, which holds no {what}. Paths and captions "
        "are strings or binary, captions also lists of those; images are "
        "binary or struct<bytes, path>."
    )


def _image_kind(kind):
    """What a column of images holds: paths, bytes, or both in a struct."""
    kind = _plain(kind)
    if _is_string(kind):
        return "path"
    if _is_binary(kind):
        return "bytes"
    names = [kind.field(n).name for n in range(kind.num_fields)]
    both = sorted(names) == ["bytes", "path"]
    return "struct" if both and str(kind).startswith("struct") else None


def _holds_text(kind):
    kind = _plain(kind)
    if str(kind).startswith(("list<", "large_list<", "fixed_size_list<")):
        kind = _plain(kind.value_type)
    return _is_string(kind) or _is_binary(kind) or str(kind) == "null"


def _plain(kind):
    """The type of the values, where a dictionary encodes them."""
    is_dictionary = str(kind).startswith("dictionary<")
    return kind.value_type if is_dictionary else kind


def _is_string(kind):
    return str(kind) in ("string", "large_string", "string_view")


def _is_binary(kind):
    named = ("binary", "large_binary", "binary_view", "fixed_size_binary")
    return str(kind).startswith(named)
