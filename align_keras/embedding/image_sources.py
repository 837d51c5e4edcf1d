"""Images to embed: TFRecord files, archives, Parquet files, or a folder."""

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
        source: string or `pathlib.Path`. A folder of images (divided by
            number), or TFRecord files or archives of a WebDataset,
            or Parquet files that hold images: a folder, a file or a glob of
            them (each is a part).
        images_per_shard: int. Images of a folder in one part. Defaults to
            `4096`.
        allow_outside: bool. Whether to read what names and links call outside
            the source. Defaults to `False`.
        captions: string or `pathlib.Path`. The table of captions of a folder,
            see `read_captions`. Defaults to the one in it that is called
            `captions`.
        columns: dict of `"image_column"` and `"caption_column"`, see
            `read_captions`. Defaults to the usual names.
        listed_only: bool. Whether images that a table does not list, and rows
            of it that cannot be used, are among what is not read. Defaults to
            `False`: those images have no caption.

    Returns:
        list of dicts: `"kind"`, which is records, archive, table or folder;
        `"path"`; for a folder `"names"` and perhaps `"captions"`; for others
        `"source"`; `"beside"`, what is not read, see `left_over`; and
        `"allow_outside"` where that is so. All of it fits into JSON.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: `images_per_shard` is not positive, or `columns` are given
            where there is no table.
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
            f"{' and '.join(f'`{name}`' for name in columns)} speak of a "
            "caption file; give one with `captions`."
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
            # Those that the table lists are of unknown suffixes, too.
            names |= {*list_images(source, allow_outside)}
        parts = _plan_folder(
            Path(source), sorted(names), listed, images_per_shard, allow_outside
        )
        looked_at = [*found.files, *(n for p in parts for n in p["names"])]
    beside = [*lost, *left_over(found, source, looked_at, allow_outside)]
    if beside and found.kind == "table":
        # The tables are read for it only where something else is there.
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
    """Images that tables name, which may lie in them or beside them."""
    for table in tables:
        # Of a damaged one the names are not known.
        with contextlib.suppress(OSError, ValueError):
            yield from read_captions(table)


def _part(kind, path, allow_outside):
    part = {"kind": kind, "path": absolute(path)}
    return {**part, "allow_outside": True} if allow_outside else part


def _plan_folder(folder, names, captions, size, allow_outside):
    """Parts of a folder; its table of captions is read once, before this."""
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
        part: dict of `plan_sources`.
        skip: callable of a key and a reason, for what cannot be read. What a
            damaged file holds before the damage is yielded.

    Yields:
        Tuples of the key, a string; a callable that reads the image's
        bytes; and the image's first caption, `""` without one.
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
