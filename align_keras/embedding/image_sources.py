"""Images to embed: TFRecord files, archives, Parquet files, or a folder."""

import os
import tarfile
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

from align_keras.data import sources
from align_keras.data.captions import find_caption_file
from align_keras.data.captions import holds_images
from align_keras.data.captions import read_captions
from align_keras.data.record_files import open_records
from align_keras.data.records import decode_record
from align_keras.data.records import read_shard
from align_keras.data.tally import Tally
from align_keras.io.file_names import is_parquet
from align_keras.io.file_names import is_records
from align_keras.io.file_names import list_archives
from align_keras.io.file_names import list_files
from align_keras.io.file_names import list_images


def plan_sources(
    source: str | Path,
    images_per_shard: int = 4096,
    allow_outside: bool = False,
) -> list[dict]:
    """Divide a source into parts that are embedded one by one.

    Args:
        source: string or `pathlib.Path`. A folder of images (divided by
            number), or TFRecord files or archives of a WebDataset,
            or Parquet files that hold images: a folder, a file or a glob of
            them (each is a part).
        images_per_shard: int. Images of a folder in one part. Defaults to
            `4096`.
        allow_outside: bool. Whether to read what names and links call outside
            a folder. Defaults to `False`.

    Returns:
        list of dicts: `"kind"`, which is records, archive, table or folder;
        `"path"`; for a folder `"names"` and perhaps `"captions"`; and
        `"allow_outside"` where that is so. All of it fits into JSON.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: `images_per_shard` is not positive.
    """
    if images_per_shard < 1:
        raise ValueError(
            f"`images_per_shard` must be positive. Received: {images_per_shard}"
        )
    source = os.fspath(source)
    folder = Path(source)
    if archives := list_archives(source):
        return _plan_files("archive", archives)
    if folder.is_dir() and not list_files(source, is_records):
        parts = _plan_folder(folder, images_per_shard, allow_outside)
        tables = [] if parts else list_files(source, is_parquet)
        if not (parts or tables):
            raise FileNotFoundError(
                f"`{folder}` holds no images, no .tfrecord files, no archives "
                "and no Parquet files."
            )
        return parts or _plan_files("table", tables, allow_outside)
    if not folder.is_dir() and (tables := list_files(source, is_parquet)):
        return _plan_files("table", tables, allow_outside)
    return _plan_files("records", open_records(source).paths)


def _plan_files(kind, paths, allow_outside=False):
    paths = [p if "://" in str(p) else os.path.abspath(p) for p in paths]
    return [_part(kind, path, allow_outside) for path in paths]


def _part(kind, path, allow_outside):
    part = {"kind": kind, "path": path}
    return {**part, "allow_outside": True} if allow_outside else part


def _plan_folder(folder, size, allow_outside):
    """Parts of a folder; its table of captions is read once, and here."""
    table = find_caption_file(folder, allow_outside)
    if table is not None and holds_images(table):
        return _plan_files("table", [table], allow_outside)
    captions = read_captions(table) if table is not None else {}
    # Those that the table lists beside images of unknown suffixes, too.
    names = sorted({*captions, *list_images(folder, allow_outside)})
    parts = []
    for start in range(0, len(names), size):
        chosen = names[start : start + size]
        part = _part("folder", os.path.abspath(folder), allow_outside)
        part["names"] = chosen
        if table is not None:
            part["captions"] = [captions.get(name, [])[:1] for name in chosen]
        parts.append(part)
    return parts


def read_source(part: dict, skip: Callable) -> Iterator[tuple]:
    """Read the images of a part.

    Args:
        part: dict of `plan_sources`.
        skip: callable of a key and a reason, for what cannot be read. What a
            damaged file holds before the damage is yielded.

    Yields:
        Tuples of the key, a string; a callable that reads the image's
        bytes; and the image's first caption, `""` without one.
    """
    path = part["path"]
    try:
        if part["kind"] == "records":
            yield from _read_records(path, skip)
            return
        for name, read, texts in _pairs(part, Tally(skip)):
            yield name, read, texts[0] if texts else ""
    except tarfile.TarError as error:
        skip(path, f"damaged archive: {error}")


def _pairs(part, tally):
    path = part["path"]
    if part["kind"] == "archive":
        return sources.from_archive(path, tally)
    outside = {"allow_outside": part.get("allow_outside", False)}
    if part["kind"] == "table":
        return sources.from_table(path, tally, **outside)
    if "captions" in part:
        listed = zip(part["names"], part["captions"], strict=True)
        return sources.from_caption_file(path, dict(listed), **outside)
    return sources.from_folder(path, tally, part["names"], **outside)


def _read_records(path, skip):
    name = os.path.basename(path)
    try:
        for index, record in enumerate(read_shard(path)):
            place = f"{name}[{index}]"
            try:
                record = decode_record(record, require_captions=False)
            except ValueError as error:
                skip(place, str(error))
                continue
            image = record["image"]
            texts = record["captions"]
            yield (
                record["key"] or place,
                lambda image=image: image,
                texts[0] if texts else "",
            )
    except ValueError as error:
        skip(path, str(error))
