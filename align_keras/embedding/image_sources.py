"""Images to embed: TFRecord files, WebDataset archives, or a folder."""

import glob
import os
import tarfile
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

from align_keras.data import sources
from align_keras.data.record_files import open_records
from align_keras.data.records import decode_record
from align_keras.data.records import read_shard


def plan_sources(
    source: str | Path, images_per_shard: int = 4096
) -> list[dict]:
    """Divide a source into parts that are embedded one by one.

    Args:
        source: string or `pathlib.Path`. A folder of images (divided by
            number), or TFRecord files or `.tar` archives of a WebDataset:
            a folder, a file or a glob of them (each is a part).
        images_per_shard: int. Images of a folder in one part. Defaults to
            `4096`.

    Returns:
        list of dicts: `"kind"`, which is records, archive or folder; `"path"`;
        and for a folder `"names"`. All of it fits into JSON.

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
    pattern = str(folder / "*.tar") if folder.is_dir() else source
    archives = [path for path in glob.glob(pattern) if path.endswith(".tar")]
    if archives:
        return [
            {"kind": "archive", "path": os.path.abspath(path)}
            for path in sorted(archives)
        ]
    if folder.is_dir() and not any(folder.glob("*.tfrecord")):
        return _plan_folder(folder, images_per_shard)
    return [
        {
            "kind": "records",
            "path": path if "://" in path else os.path.abspath(path),
        }
        for path in open_records(source).paths
    ]


def _plan_folder(folder, size):
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in sources.PICTURE_SUFFIXES and path.is_file()
    )
    if not names:
        raise FileNotFoundError(
            f"`{folder}` holds no images, no .tfrecord files and no .tar "
            "archives."
        )
    return [
        {
            "kind": "folder",
            "path": os.path.abspath(folder),
            "names": names[start : start + size],
        }
        for start in range(0, len(names), size)
    ]


def read_source(part: dict, skip: Callable) -> Iterator[tuple]:
    """Read the images of a part.

    Args:
        part: dict of `plan_inputs`.
        skip: callable of a key and a reason, for what cannot be read. What a
            damaged file holds before the damage is yielded.

    Yields:
        Tuples of the key, a string; a callable that reads the image's
        bytes; and the image's first caption, `""` without one.
    """
    path = part["path"]
    try:
        if part["kind"] == "folder":
            yield from _read_folder(Path(path), part["names"])
        elif part["kind"] == "archive":
            for name, read, texts in sources.from_archive(path):
                yield name, read, texts[0] if texts else ""
        else:
            yield from _read_records(path, skip)
    except (tarfile.TarError, EOFError) as error:
        skip(path, f"damaged archive: {error}")


def _read_folder(folder, names):
    for name in names:
        path = folder / name
        texts = path.with_suffix(".txt")
        caption = ""
        if texts.is_file():
            lines = texts.read_text("utf-8", "replace").strip().splitlines()
            caption = lines[0] if lines else ""
        yield name, path.read_bytes, caption


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
