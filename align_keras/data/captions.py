"""Read caption tables, with one row per image or per caption."""

import functools
import logging
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from align_keras.data.tally import Tally
from align_keras.io import rows
from align_keras.io.columns import COLUMNS
from align_keras.io.columns import UnfitColumn
from align_keras.io.columns import check_type
from align_keras.io.columns import find_column
from align_keras.io.columns import holds_texts
from align_keras.io.columns import image_kind
from align_keras.io.columns import is_path
from align_keras.io.file_names import is_parquet
from align_keras.io.file_names import list_files
from align_keras.io.folders import resolve_within
from align_keras.io.kept_rows import kept_folder
from align_keras.io.mirrors import reads
from align_keras.io.text import as_text
from align_keras.io.text import as_texts

# URL columns come last: they hold file names only in the output of `curate`.
IMAGE_COLUMNS = COLUMNS["image"] + COLUMNS["url"]

logger = logging.getLogger("align_keras")


class NoUsableRow(ValueError):
    """A table in which every row is invalid or incomplete."""


class CaptionRow(NamedTuple):
    """One row of a caption table.

    Attributes:
        name: string. The normalised path of the image in the table; or a name
            made from the row number if the table holds the image unnamed.
        contents: bytes or `None`. The image, if the table holds it.
        captions: list of strings that are not blank.
        named: bool. Whether the name comes from the table.
    """

    name: str
    contents: bytes | None
    captions: list[str]
    named: bool = True

    def shows(self, other: "CaptionRow | None") -> bool:
        """Tell whether another row holds the same image."""
        if other is None:
            return False
        named = self.named or other.named
        same = self.name == other.name or not named
        return same and self.contents == other.contents


def find_caption_file(
    folder: str | Path, allow_outside: bool = False
) -> Path | None:
    """Find the `captions.csv` of a folder, or `.tsv`, `.jsonl` and so on.

    Raises:
        OutsideFolder: The file is a link that leads out of the folder.
        ValueError: There are several such files.
    """
    found = []
    for path in sorted(Path(folder).glob("captions.*")):
        # Do not ignore a broken link.
        is_file = path.is_file() or path.is_symlink()
        if is_file and is_caption_file(path):
            resolve_within(folder, path.name, allow_outside)
            found.append(path)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(
            f"`{folder}` holds several caption files, {names}: keep only one, "
            "or give one with `--captions`."
        )
    return found[0] if found else None


def is_caption_file(path: str | Path) -> bool:
    """Tell whether a file has the name that `find_caption_file` looks for."""
    path = Path(path)
    is_table = path.suffix.lower() in rows.ROW_READERS
    return path.stem == "captions" and is_table


@reads("path")
def read_captions(
    path: str | Path,
    image_column: str | None = None,
    caption_column: str | None = None,
    split: str | None = None,
    tally: Tally | None = None,
) -> dict[str, list[str]]:
    """Read a caption table.

    Args:
        path: string or `pathlib.Path`. The suffix determines the format:
            `.csv` and `.tsv` with a header line, `.jsonl` with one object per
            line, `.json` (Karpathy's format, or a list of objects), or
            `.parquet` (needs `align-keras[parquet]`). Text is UTF-8, UTF-16 or
            UTF-32, with or without a byte order mark. The path may also be a
            directory that `align_keras.curation.curate` wrote; its kept rows
            are read.
        image_column: string. The column of image paths. Defaults to the first
            that exists of image, file_name, filename, filepath, image_path,
            image_name, path, file, url, image_url, ignoring case.
        caption_column: string. The column with a caption or a list of
            captions. Defaults to the first that exists of caption, captions,
            text, txt, sentence, sentences, alt_text, alt, top_caption,
            ignoring case.
        split: string. Read only rows whose `split` column has one of these
            values, separated by commas, as in `"train,restval"`. Defaults to
            all rows.
        tally: `Tally`. Counts the images and the rows that cannot be used.
            Defaults to `None`, which logs those rows.

    Returns:
        dict from the normalised path of each image to its list of captions,
        in the order of the file. Rows of the same image are merged. Blank
        captions are left out.

    Raises:
        FileNotFoundError: The file does not exist.
        ImportError: The file is Parquet and pyarrow is not installed.
        ValueError: A column is missing or has the wrong type, the file is
            damaged or its text cannot be decoded, or its format is unknown.

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
    """Read a caption table row by row; see `read_captions`.

    Args:
        path: string or `pathlib.Path`.
        image_column: string.
        caption_column: string.
        split: string.
        tally: `Tally`. Counts the rows that cannot be used.
        images: bool. Whether to read images that the table holds. Defaults to
            `True`.

    Yields:
        `CaptionRow`.

    Raises:
        ValueError: See `read_captions`. Also if no row can be used.
    """
    given = {"image": image_column, "caption": caption_column}
    tables = caption_tables(path)
    if tables != [Path(path)]:
        # Kept rows use these columns, whatever other columns are called.
        given = {"image": image_column or "url"}
        given["caption"] = caption_column or "text"
    tally = Tally() if tally is None else tally
    wanted = set(split.split(",")) if split else None
    for table in tables:
        yield from _iterate_table(table, given, wanted, tally, images)


def caption_tables(path: str | Path) -> list[Path]:
    """List the files of a caption table.

    Args:
        path: string or `pathlib.Path`. See `read_captions`.

    Returns:
        list of `pathlib.Path`: the files of kept rows if `path` is the output
        of `curate`, else only `path`, whether it exists or not.

    Raises:
        FileNotFoundError: `curate` has not finished there.
        OutsideFolder: A link in its output leads out of it.
    """
    kept = kept_folder(path)
    if kept is None:
        return [Path(path)]
    tables = [Path(file) for file in list_files(kept, is_parquet)]
    for table in tables:
        resolve_within(kept.parent, f"kept/{table.name}", None)
    return tables


def _iterate_table(path, given, wanted, tally, images):
    """Read one file, see `iterate_captions`."""
    columns = functools.partial(_find_columns, **given)
    parts = None
    if path.suffix.lower() == ".parquet" and path.is_file():
        parts = _parquet_columns(path, given, wanted, images)
    # The rows of a file have few different sets of fields.
    columns = functools.lru_cache(maxsize=64)(columns)
    usable, first, fields = False, None, {}
    for number, row in enumerate(rows.read_rows(path, parts), start=1):
        name = None
        try:
            if isinstance(row, rows.RowError):
                raise row
            fields |= row
            names = columns(tuple(row))
            name, contents, named = _image(path, number, row, names["image"])
            if names["caption"] is None:
                raise _missing("caption", row)
        except rows.RowError as error:
            first = first or f"row {number}, {error}"
            tally.looked_at.add(name or "")
            tally.leave_out(f"{path}, row {number}", error.reason, error.detail)
            continue
        usable = True
        # A row without a split belongs to no split.
        if wanted and as_text(row.get(names["split"])) not in wanted:
            # Do not count it: the caller asked for other splits.
            tally.looked_at.add(name or "")
            continue
        if name is None:
            tally.leave_out(f"{path}, row {number}", "no image")
            continue
        texts = as_texts(row[names["caption"]])
        yield CaptionRow(name, contents, texts, named)
    if fields and (wanted or not usable):
        # A column that no row has is the fault of the table.
        found = columns(tuple(fields))
        _require(path, found, fields, wanted, given)
    if first is not None and not usable:
        raise NoUsableRow(
            f"No row of the caption file `{path}` can be used. The first: "
            f"{first}."
        )


def holds_images(path: str | Path, image_column: str | None = None) -> bool:
    """Return whether a table holds images and not only their paths."""
    path = Path(path)
    if path.suffix.lower() != ".parquet" or not path.is_file():
        return False
    with rows.open_parquet(path) as file:
        schema = file.schema_arrow
    name = find_column(schema.names, _candidates("image", image_column))
    return name is not None and image_kind(schema.field(name).type) != "path"


def _candidates(role, given):
    return (given,) if given else {**COLUMNS, "image": IMAGE_COLUMNS}[role]


def _find_columns(names, **given):
    """Return the column for each role; `None` where there is none."""
    return {
        role: find_column(names, _candidates(role, given.get(role)))
        for role in ("image", "caption", "split")
    }


def _require(path, found, columns, wanted, given):
    """Refuse a table that lacks a required column."""
    for role in ("image", "caption", *(("split",) if wanted else ())):
        if found[role] is None:
            argument = role if role == "split" else f"{role}_column"
            raise UnfitColumn(
                f"The caption file `{path}` has no column "
                f"{' or '.join(_candidates(role, given.get(role)))} for "
                f"`{argument}`; its columns are: {', '.join(columns)}."
            )


def _missing(role, row):
    told = f"the fields are: {', '.join(row)}"
    return rows.RowError(f"no {role}", told[:200])


def _image(path, number, row, column):
    """Return the name of a row's image, its bytes, and whether it is named.

    The name is `None` if the row has no image, and the bytes are `None` if it
    holds only a path.
    """
    if column is None:
        raise _missing("image", row)
    contents, value = None, row[column]
    if isinstance(value, dict) and value.keys() <= {"bytes", "path"}:
        contents, value = value.get("bytes"), value.get("path")
    elif isinstance(value, bytes) and not is_path(value):
        contents, value = value, None
    if isinstance(value, (dict, list)) or not isinstance(
        contents, (bytes, type(None))
    ):
        kind = type(value if contents is None else contents).__name__
        raise rows.RowError(
            "no path of an image", f"`{column}` holds an object of type {kind}"
        )
    # Keep surrogates: the name of a file on disk may contain them.
    name = value if isinstance(value, str) else as_text(value)
    name = posixpath.normpath(name or "")
    # A folder, even if written as `./`, is not an image.
    named = name.strip() not in ("", ".")
    if not named:
        found = contents is not None
        name = f"{path.stem}-{number:08d}" if found else None
    return name, contents, named


# === Parquet ===


def _parquet_columns(path, given, wanted, images):
    """Choose the columns to read of a file, and refuse unsuitable types."""
    with rows.open_parquet(path) as file:
        schema = file.schema_arrow
    found = _find_columns(schema.names, **given)
    _require(path, found, schema.names, wanted, given)
    parts = [found["image"], found["caption"]]
    images_are, texts_are = (schema.field(name).type for name in parts)
    kind = image_kind(images_are)
    check_type(path, parts[0], images_are, kind is not None, "paths or images")
    check_type(path, parts[1], texts_are, holds_texts(texts_are), "captions")
    if kind == "struct" and not images:
        parts[0] += ".path"
    return parts + ([found["split"]] if wanted else [])
