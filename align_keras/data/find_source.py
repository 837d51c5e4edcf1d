"""What a source of images with captions is, the same for every command."""

import glob
import os
from pathlib import Path
from typing import NamedTuple

from align_keras.data.captions import find_caption_file
from align_keras.data.captions import holds_images
from align_keras.data.record_files import open_records
from align_keras.io.file_names import is_archive
from align_keras.io.file_names import is_image
from align_keras.io.file_names import is_parquet
from align_keras.io.file_names import is_records
from align_keras.io.file_names import list_files
from align_keras.io.file_names import walk_folder
from align_keras.io.stores import scheme_of
from align_keras.io.text import clean_text

# Why images of a folder are left out whose archives or records are read.
BESIDE = "beside archives or records"


class Found(NamedTuple):
    """What a source is.

    Attributes:
        kind: string. `"listed"`: a folder of images that a table lists;
            `"table"`: Parquet files that hold images; `"archive"`: those of
            WebDatasets; `"records"`: TFRecord files; `"folder"`: images with
            text files beside them.
        files: list of strings: the table, or the files.
        beside: list of strings: images of the folder that are not read, for
            it holds archives or records.
    """

    kind: str
    files: list
    beside: list = []


def find_source(
    source: str | Path,
    captions: str | Path | None = None,
    image_column: str | None = None,
    allow_outside: bool = False,
) -> Found:
    """Find out what a source is.

    Args:
        source: string or `pathlib.Path`. A folder, a file, or a glob.
        captions: string or `pathlib.Path`. The table of captions. Defaults to
            the one in the folder that is called `captions`, if there is one.
        image_column: string, see `read_captions`.
        allow_outside: bool. Whether to follow links out of the folder.
            Defaults to `False`.

    Returns:
        `Found`.

    Raises:
        FileNotFoundError: There is nothing, or nothing in it.
        ValueError: It is a file of another kind; the message says what to do.
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
        return Found("table" if inside else "listed", [str(captions)])
    for kind, wanted in (("archive", is_archive), ("records", is_records)):
        if files := list_files(folder, wanted):
            return Found(kind, files, images_beside(folder, allow_outside))
    inside = walk_folder(folder, allow_outside)
    if not any(map(is_image, inside[0])):
        if files := list_files(folder, is_parquet):
            return Found("table", files)
    if folder.is_dir():
        if not any(inside):
            raise FileNotFoundError(f"The folder `{folder}` is empty.")
        return Found("folder", [])
    if scheme_of(source) is None and not glob.glob(str(source)):
        if not os.path.lexists(source):
            raise FileNotFoundError(f"No folder or archive matches `{source}`.")
    # Whatever it is called, unless that says that it is something else.
    return Found("records", open_records(source, allow_outside).paths)


def images_beside(folder: str | Path, allow_outside: bool = False) -> list[str]:
    """List the images of a folder of which something else is read.

    Args:
        folder: string or `pathlib.Path`. Of a file or glob there are none.
        allow_outside: bool. See `find_source`.

    Returns:
        List of strings that can be printed.
    """
    names, _ = walk_folder(folder, allow_outside)
    return [clean_text(name) for name in names if is_image(name)]
