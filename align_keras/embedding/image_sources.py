"""Read images to embed from TFRecords, archives, Parquet or a folder."""

import contextlib
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

from align_keras.data import archives
from align_keras.data import sources
from align_keras.data.captions import read_captions
from align_keras.data.find_source import find_source
from align_keras.data.find_source import left_over
from align_keras.data.open_source import key_of
from align_keras.data.open_source import read_files
from align_keras.data.tally import Tally
from align_keras.io.file_names import list_images
from align_keras.io.stores import absolute


def plan_sources(
    source: str | Path,
    images_per_shard: int = 4096,
    allow_outside: bool = False,
    captions: str | Path | None = None,
    columns: dict | None = None,
    listed_only: bool = False,
) -> list[dict]:
    """Divide a source into parts that are embedded one by one.

    Args:
        source: string or `pathlib.Path`. A folder of images, which is divided
            into parts of `images_per_shard`; or TFRecord files, WebDataset
            archives or Parquet files that hold images, given as a folder, a
            file or a glob. Each such file is a part.
        images_per_shard: int. Images of a folder in one part. Defaults to
            `4096`.
        allow_outside: bool. Whether to read files outside the source that
            names or links point to. Defaults to `False`.
        captions: string or `pathlib.Path`. A table with the captions of a
            folder, see `read_captions`. Defaults to the table in the folder
            that is called `captions`.
        columns: dict of `"image_column"` and `"caption_column"`, see
            `read_captions`. Defaults to the usual names.
        listed_only: bool. Whether to leave out and report images that the
            table does not list, and to report rows that cannot be used.
            Defaults to `False`: images that are not listed have no caption.

    Returns:
        A list of dicts that JSON can hold: `"kind"` (records, archive, table
        or folder); `"path"`; for a folder `"names"` and perhaps
        `"captions"`, otherwise `"source"`; `"beside"`, what is not read, see
        `left_over`; and `"allow_outside"` if it is true.

    Raises:
        FileNotFoundError: there are no images.
        ValueError: `images_per_shard` is not positive, or `columns` are given
            but there is no table.
    """
    if images_per_shard < 1:
        raise ValueError(
            f"`images_per_shard` must be positive. Received: {images_per_shard}"
        )
    columns = columns or {}
    image_column = columns.get("image_column")
    found = find_source(source, captions, image_column, allow_outside)
    if columns and found.kind not in ("listed", "table"):
        raise ValueError(
            f"{' and '.join(f'`{name}`' for name in columns)} can be used only "
            "with a caption file; pass one as `captions`."
        )
    lost: list = []
    if found.kind not in ("listed", "folder"):
        parts = [
            _part(found.kind, path, allow_outside)
            | {"source": absolute(captions or source)}
            | ({"columns": columns} if columns else {})
            for path in found.files
        ]
        looked_at = found.files
    else:
        listed = None
        if found.kind == "listed":
            tally = Tally(lambda *told: lost.append((*told, None)))
            tally = tally if listed_only else None
            listed = read_captions(found.files[0], **columns, tally=tally)
        names = {*(listed or {})}
        if listed is None or not listed_only:
            # The table may also list files without an image suffix.
            names |= {*list_images(source, allow_outside)}
        parts = _plan_folder(
            Path(source), sorted(names), listed, images_per_shard, allow_outside
        )
        looked_at = [*found.files, *(n for p in parts for n in p["names"])]
    beside = [*lost, *left_over(found, source, looked_at, allow_outside)]
    if beside and found.kind == "table":
        # Reading the tables takes time, so only if something is left over.
        looked_at = [*looked_at, *_listed(found.files)]
        beside = [*left_over(found, source, looked_at, allow_outside)]
    if beside and not parts:
        name, reason, detail = beside[0]
        raise FileNotFoundError(
            f"`{source}` holds no images that can be read here; {name}: "
            f"{reason}" + (f" ({detail})." if detail else ".")
        )
    if not parts:
        raise FileNotFoundError(
            f"`{source}` holds no images, no .tfrecord files, no archives and "
            "no Parquet files."
        )
    if beside:
        parts[0]["beside"] = beside
    return parts


def _listed(tables):
    """Yield the images that tables list, inside them or beside them."""
    for table in tables:
        # A damaged table is reported when its images are read.
        with contextlib.suppress(OSError, ValueError):
            yield from read_captions(table)


def _part(kind, path, allow_outside):
    part = {"kind": kind, "path": absolute(path)}
    return {**part, "allow_outside": True} if allow_outside else part


def _plan_folder(folder, names, captions, size, allow_outside):
    """Divide the images of a folder, whose captions are already read."""
    parts = []
    for start in range(0, len(names), size):
        chosen = names[start : start + size]
        part = _part("folder", folder, allow_outside)
        part["names"] = chosen
        if captions is not None:
            part["captions"] = [captions.get(name, []) for name in chosen]
        parts.append(part)
    return parts


def read_source(part: dict, skip: Callable) -> Iterator[tuple]:
    """Read the images of a part.

    Args:
        part: dict. A part that `plan_sources` returned.
        skip: callable. Takes the key of what cannot be read, and the reason.
            Images that precede the damage in a damaged file are still
            yielded.

    Yields:
        Tuples of the key, a string; a callable that reads the image's
        bytes; and the image's first caption, or `""` if it has none.
    """
    for name, image, texts in read_pairs(part, skip):
        yield name, image, texts[0] if texts else ""


def read_pairs(part: dict, skip: Callable) -> Iterator[tuple]:
    """Read the images of a part with all their captions, see `read_source`."""

    def read(path, tally):
        return _pairs(part, path, tally)

    for name, reason, detail in part.get("beside", ()):
        skip(name, f"{reason}: {detail}" if detail else reason)
    outside = part.get("allow_outside", False)
    source = part.get("source", part["path"])
    yield from read_files(source, [part["path"]], read, Tally(skip), outside)


def _pairs(part, path, tally):
    if part["kind"] == "archive":
        return archives.from_archive(path, tally)
    if part["kind"] == "records":
        found = sources.from_records(path, tally)
        return ((key_of(name), image, texts) for name, image, texts in found)
    outside = {"allow_outside": part.get("allow_outside", False)}
    if part["kind"] == "table":
        columns = part.get("columns", {})
        return sources.from_table(path, tally, **outside, **columns)
    if "captions" in part:
        listed = zip(part["names"], part["captions"], strict=True)
        return sources.from_caption_file(path, dict(listed), **outside)
    return sources.from_folder(path, tally, part["names"], **outside)
