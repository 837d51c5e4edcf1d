"""Determine the kind of a source of images, alike for all commands."""

import glob
import os
from collections.abc import Iterable
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from align_keras.data.captions import find_caption_file
from align_keras.data.captions import holds_images
from align_keras.data.captions import is_caption_file
from align_keras.data.record_files import open_records
from align_keras.data.sources import UNNAMED
from align_keras.data.sources import why_closed
from align_keras.io.file_names import OTHER_SUFFIXES
from align_keras.io.file_names import is_archive
from align_keras.io.file_names import is_arrow
from align_keras.io.file_names import is_image
from align_keras.io.file_names import is_junk
from align_keras.io.file_names import is_packed
from align_keras.io.file_names import is_parquet
from align_keras.io.file_names import is_records
from align_keras.io.file_names import is_unfinished_image
from align_keras.io.file_names import list_files
from align_keras.io.file_names import may_hold_images
from align_keras.io.file_names import sample_key
from align_keras.io.file_names import suffix_of
from align_keras.io.file_names import walk_folder
from align_keras.io.folders import require_regular
from align_keras.io.folders import resolve_within
from align_keras.io.image_parts import HEAD_BYTES
from align_keras.io.image_parts import begins_as_image
from align_keras.io.stores import scheme_of
from align_keras.io.text import clean_text

# Why files of a folder are left out, by the kind of source it is read as.
BESIDE = "beside archives or records"
_BESIDE = {
    "archive": BESIDE,
    "records": BESIDE,
    "table": "beside Parquet files",
    "listed": "beside a caption file",
    "folder": "beside images",
}
NOT_LISTED = "no usable row in the caption file"
WITHIN = "archive or records in a folder within"
PACKED = "archive of a kind that is not read"
UNFINISHED = "unfinished download"


class Found(NamedTuple):
    """The kind and the files of a source.

    Attributes:
        kind: string. `"listed"`: a folder of images that a table lists;
            `"table"`: Parquet files that hold images; `"archive"`: WebDataset
            archives; `"records"`: TFRecord files; `"folder"`: images with
            text files next to them.
        files: list of strings. The table, or the files.
        holds: list of strings. Everything in the source that may hold images,
            judged by its name, and the folders that are not searched. Names
            are relative to the folder; for a glob, they are its matches.
    """

    kind: str
    files: list
    holds: list = []


def find_source(
    source: str | Path,
    captions: str | Path | None = None,
    image_column: str | None = None,
    allow_outside: bool = False,
) -> Found:
    """Determine the kind of a source and list its files.

    Args:
        source: string or `pathlib.Path`. A folder, a file, or a glob.
        captions: string or `pathlib.Path`. The caption table. Defaults to the
            one in the folder that is called `captions`, if there is one.
        image_column: string. See `read_captions`.
        allow_outside: bool. Whether to follow links out of the folder.
            Defaults to `False`.

    Returns:
        `Found`.

    Raises:
        FileNotFoundError: The source does not exist or is empty.
        ValueError: It is a file of another kind. The message says what to do.
    """
    folder = Path(source)
    captions = captions or find_caption_file(folder, allow_outside)
    if captions:
        if not folder.is_dir():
            raise FileNotFoundError(
                f"There is no folder `{folder}` for the images that "
                f"`{captions}` lists."
            )
        inside = holds_images(captions, image_column)
        kind = "table" if inside else "listed"
        return Found(kind, [str(captions)], _candidates(folder, allow_outside))
    holds = _candidates(source, allow_outside)
    for kind, wanted in (("archive", is_archive), ("records", is_records)):
        if files := list_files(folder, wanted):
            return Found(kind, files, holds)
    if not (folder.is_dir() and any(map(is_image, holds))):
        if files := list_files(folder, is_parquet):
            return Found("table", files, holds)
    if folder.is_dir():
        if not (holds or any(walk_folder(folder, allow_outside))):
            raise FileNotFoundError(f"The folder `{folder}` is empty.")
        return Found("folder", [], holds)
    if scheme_of(source) is None and not glob.glob(str(source)):
        if not os.path.lexists(source):
            raise FileNotFoundError(f"No folder or archive matches `{source}`.")
    # Accept any name, unless its suffix is that of something else.
    return Found("records", open_records(source, allow_outside).paths)


def find_streams(names: Iterable[str], is_folder: bool) -> list[str]:
    """List the files of a store that `find_source` would read as streams.

    Args:
        names: iterable of strings. All files of a folder, relative to it, or
            the matches of a glob.
        is_folder: bool. Whether they are those of a folder.

    Returns:
        Sorted list of strings. Empty if only the contents show what is read,
        such as those of a caption file.
    """
    names = sorted(name for name in names if not is_junk(name))
    # Subfolders are not searched for streams.
    found = [n for n in names if not (is_folder and "/" in n)]
    kinds = [is_archive, is_records, is_parquet]
    if is_folder and any(map(is_caption_file, found)):
        return []
    if is_folder and any(map(is_image, names)):
        kinds.remove(is_parquet)
    chosen = (list(filter(kind, found)) for kind in kinds)
    return next(filter(None, chosen), [])


def held_in(source: str | Path, allow_outside: bool = False) -> list[str]:
    """List everything in a folder, or matched by a glob, that may hold images.

    Args:
        source: string or `pathlib.Path`. The list is empty for a single file.
        allow_outside: bool. See `find_source`.

    Returns:
        List of strings, see `Found`.
    """
    names = _candidates(source, allow_outside)
    return _without_tables_of_texts(names, names, _folder_of(source))


def _folder_of(source):
    """Return the folder that the names of `Found` are relative to."""
    return source if os.path.isdir(source) else ""


def _candidates(source, allow_outside):
    """As `held_in`, including all Parquet files without opening them."""
    if os.path.isdir(source):
        files, closed = walk_folder(source, allow_outside)
        found = [
            name
            for name in files
            if may_hold_images(name) or _is_unnamed(source, name, allow_outside)
        ]
        return sorted((*found, *closed))
    if os.path.isfile(source) or scheme_of(source):
        return []
    found = [name for name in glob.glob(str(source)) if not is_junk(name)]
    return sorted(n for n in found if os.path.isdir(n) or may_hold_images(n))


def _is_unnamed(folder, name, allow_outside):
    """Whether a file is an image without the suffix of one."""
    if is_unfinished_image(name):
        return True
    if suffix_of(name) in OTHER_SUFFIXES:
        return False
    try:
        path = resolve_within(folder, name, allow_outside)
        require_regular(path)
        with open(path, "rb") as file:
            return begins_as_image(file.read(HEAD_BYTES))
    except OSError:
        # The code that reads the file reports the error.
        return False


def _without_tables_of_texts(names, candidates, folder):
    """Leave out Parquet files that hold no images."""
    # img2dataset writes a table describing each of its archives, of which
    # there may be thousands. Skip these without opening them.
    described = {
        sample_key(n) for n in candidates if is_archive(n) or is_records(n)
    }
    return [
        name
        for name in names
        if not is_parquet(name)
        or (
            sample_key(name) not in described
            and _may_hold_images(os.path.join(folder, name))
        )
    ]


def left_over(
    found: Found,
    source: str | Path,
    looked_at: Iterable[str],
    allow_outside: bool = False,
) -> Iterator[tuple[str, str, str | None]]:
    """Find the files of a source that were neither read nor counted.

    Args:
        found: `Found`.
        source: string or `pathlib.Path`.
        looked_at: iterable of strings. Files of `found`, and names of images
            in the folder.
        allow_outside: bool. See `find_source`.

    Yields:
        Tuples of a printable name, the reason why the file was not read, and
        what to do about it, or `None`.

    Raises:
        RuntimeError: There is no reason, which is a bug in this package.
    """
    folder = _folder_of(source)
    looked_at = set(looked_at)
    rest = [
        name
        for name in found.holds
        if looked_at.isdisjoint((name, os.path.join(folder, name)))
    ]
    rest = _without_tables_of_texts(rest, found.holds, folder)
    # The same file may have another name through a link.
    others = looked_at.difference(found.holds) if rest else ()
    others = {_real(folder, name) for name in others}
    places = {os.path.dirname(name) for name in looked_at}
    root = os.path.realpath(folder)
    for name in rest:
        path = os.path.join(folder, name)
        real = _real(folder, name)
        if real in others or os.path.relpath(real, root) in looked_at:
            continue
        if os.path.isdir(path) and any(
            f"{place}/".startswith(f"{name}/") for place in places
        ):
            # The folder is not searched, but a table lists files in it.
            continue
        reason = _why(found, path, name, folder, allow_outside)
        yield clean_text(name), *reason


def _real(folder, name):
    try:
        return os.path.realpath(os.path.join(folder, name))
    except ValueError:
        # A table may hold names that are not valid file names.
        return name


def _why(found, path, name, folder, allow_outside):
    """Return why a file of a source was not read, and what to do."""
    if os.path.isdir(path) and not folder:
        return "folder among files", "give it on its own"
    if os.path.isdir(path) or not os.path.exists(path):
        return why_closed(folder, name, allow_outside)
    if is_image(name):
        if found.kind == "folder":
            raise RuntimeError(
                f"The image `{path}` was neither read nor counted. Please "
                "report this as a bug in align_keras."
            )
        listed = found.kind == "listed"
        return NOT_LISTED if listed else _BESIDE[found.kind], None
    if is_unfinished_image(name):
        return UNFINISHED, None
    if not may_hold_images(name):
        return UNNAMED, "rename it, as in `0.jpg`"
    if is_arrow(name):
        return PACKED, "write it as Parquet"
    if is_packed(name):
        return PACKED, "unpack it, and give the folder"
    if folder and os.path.dirname(name):
        return WITHIN, f"give `{os.path.dirname(path)}`"
    return _BESIDE[found.kind], f"give `{path}` on its own"


def _may_hold_images(path):
    """Whether a Parquet file holds images; `True` if it is damaged."""
    try:
        return holds_images(path)
    except ImportError:
        return False
    except ValueError:
        # The code that reads the file reports the damage.
        return True
