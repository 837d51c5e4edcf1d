"""Pack image–caption pairs into TFRecord files."""

import contextlib
import glob
import logging
import os
from pathlib import Path

from align_keras.data.captions import caption_tables
from align_keras.data.captions import find_caption_file
from align_keras.data.find_source import find_streams
from align_keras.data.open_source import key_of
from align_keras.data.open_source import open_source
from align_keras.data.parts import Part
from align_keras.data.parts import commit_parts
from align_keras.data.parts import other_divisions
from align_keras.data.parts import read_manifest
from align_keras.data.records import encode_record
from align_keras.data.records import index_path
from align_keras.data.records import join_records
from align_keras.data.shuffle import shuffle_stream
from align_keras.data.sources import OUTSIDE
from align_keras.data.stored_image import image_to_store
from align_keras.data.tally import Tally
from align_keras.io.atomic import atomic_directory
from align_keras.io.file_names import is_archive
from align_keras.io.file_names import is_image
from align_keras.io.file_names import is_parquet
from align_keras.io.file_names import is_records
from align_keras.io.file_names import walk_folder
from align_keras.io.fingerprints import file_digest
from align_keras.io.folders import OutsideFolder
from align_keras.io.images import TooManyPixels
from align_keras.io.images import UnknownRange
from align_keras.io.json_files import write_json
from align_keras.io.mirrors import local_copy
from align_keras.io.mirrors import stored
from align_keras.io.paths import local_path
from align_keras.io.rows import ROW_READERS
from align_keras.io.stores import Store
from align_keras.io.stores import absolute
from align_keras.io.stores import is_store
from align_keras.io.threads import map_ahead

# The folder within the output for images that training must not see.
HELD_OUT = "held_out"
# The folder for data that waits to be put into random order. No pattern
# `*.tfrecord` matches it, and it is removed before the output appears.
BUCKETS = "buckets"

logger = logging.getLogger("align_keras")


def pack(
    source: str | Path,
    output: str | Path,
    captions: str | Path | None = None,
    split: str | None = None,
    records_per_shard: int = 1000,
    image_column: str | None = None,
    caption_column: str | None = None,
    max_pixels: int = 64_000_000,
    hold_out: float = 0,
    seed: int = 0,
    resize: int | None = None,
    allow_outside: bool = False,
    progress: bool = False,
    part: str | tuple[int, int] | None = None,
) -> dict:
    """Pack images with captions into TFRecord files and a manifest.

    Every image is checked by decoding it. It is stored as it is if TensorFlow
    decodes it like Pillow, else as PNG. Images that cannot be used are left
    out, counted and named in the manifest. The output directory appears as a
    whole at the end. If it already holds the result of the same arguments,
    nothing is done.

    Records are written in random order, so that neighbours in the source,
    which are often similar, do not meet in a batch. The order depends only on
    the keys and `seed`; see `align_keras.data.shuffle`. Sources that are read
    as a stream (archives, records, and Parquet files with images) pass through
    temporary files within the output, which need as much disk space again
    until packing is finished.

    Several machines can pack a data set in parts. Each machine writes its own
    folder within `output`, and the last one to finish writes the manifest of
    the whole data set. Running any part again also writes it. The parts, one
    after the other, have the order of a single run. Streams are divided by
    files instead: each part is in random order by itself, and a key that
    occurs in two parts is kept twice.

    The source is one of:

    - a folder of images with a caption file (`captions`, or a `captions.csv`
      or similar file in the folder);
    - a folder of images, each with a `.txt` file of captions next to it;
    - a WebDataset: a `.tar` file, compressed or not, a glob of such files, or
      a folder that holds them;
    - Parquet files that hold images, given in the same ways;
    - records to put into random order: a `.tfrecord` file, a glob of such
      files, or a folder that holds them.

    Args:
        source: string or `pathlib.Path`.
        output: string or `pathlib.Path`. The directory to write:
            `data-00000-of-00004.tfrecord` and so on, an index for each
            (`.idx`, lines of `offset size`), and `manifest.json`.
        captions: string or `pathlib.Path`. A CSV, TSV, JSONL, JSON or Parquet
            file, or a directory that `align_keras.curation.curate` wrote; see
            `read_captions`. Image paths in it are relative to `source`. The
            captions are held in memory; images are not. Defaults to the file
            in `source` that is called `captions`, if there is one.
        split: string. Pack only these splits of the caption file, separated
            by commas. Defaults to `None`, all.
        records_per_shard: int. Defaults to 1000.
        image_column: string. The caption file's column of image paths.
        caption_column: string. The caption file's column of captions.
        max_pixels: int. Larger images are skipped before they are decoded,
            because they would fill the memory. Defaults to 64 million. Pillow
            itself refuses more than 179 million.
        hold_out: float from 0 to 0.5. The share of images to hold out for
            evaluation: at least 8, or a quarter if that is less, and at most
            1000. They are written to the folder `held_out` within `output`,
            in the same format. No image is on both sides, not even as a copy
            of the same bytes. Needs a caption file or Parquet files. Defaults
            to 0.
        seed: int. Another seed gives another order. Defaults to 0.
        resize: int. Height and width to which images are resized, in the same
            way as in training, before they are stored as JPEG. Use the
            `resize_size` of the recipe, 346 in the paper. Such records are
            read several times as fast. Defaults to `None`: image files are
            stored as they are.
        allow_outside: bool. Whether to read images and captions outside of
            `source` that names such as `../a.jpg`, absolute paths and links
            lead to. Defaults to `False`: they are skipped, named and counted.
        progress: bool. Whether to show a progress bar on standard error.
            Defaults to `False`.
        part: string such as `"3/64"`, or a pair of ints. The part to pack and
            the number of parts. Cannot be combined with `hold_out`. Defaults
            to `None`: pack everything.

    Returns:
        dict, the manifest: `"records"`, `"captions"` (numbers), `"shards"`
        (list of file, records, sha256), `"skipped_count"`,
        `"skipped_reasons"` (counts by reason), `"skipped"` (file and reason
        of the first 1000), `"held_out"` (number of records held out),
        `"order"` (`"random"`, or `"random within parts"` for the parts of a
        stream) and `"arguments"`, including the seed. With `part`, the
        manifest of the whole data set if it is complete; otherwise the
        manifest of the part with `"missing_parts"`, a list of numbers.

    Raises:
        FileNotFoundError: The source or caption file is missing or empty.
        BlockingIOError: Another process is writing to `output`.
        FileExistsError: `output` is a file, or holds records that were packed
            with other arguments.
        ValueError: No image could be used, or the caption file is invalid.

    Example:

    ```python
    pack("photos", "packed", captions="photos/captions.csv")
    ```
    """
    arguments: dict = {
        name: value
        for name, value in locals().items()
        if name not in ("output", "part")
    }
    if records_per_shard < 1:
        raise ValueError(
            "`records_per_shard` must be at least 1. "
            f"Received: {records_per_shard}."
        )
    if resize is not None and (resize != int(resize) or resize < 1):
        raise ValueError(
            "`resize` must be a whole number of pixels, at least 1. "
            f"Received: {resize}."
        )
    if part is None:
        return _pack(**arguments, output=output, part=None)
    part = Part.of(part)
    if hold_out:
        raise ValueError(
            "`hold_out` chooses among all images, and no part sees all of "
            "them: pack the images to measure on from a caption file of their "
            "own. Received: "
            f"hold_out={hold_out}, part={part.number}/{part.count}"
        )
    others = other_divisions(output, part.count)
    if others:
        raise FileExistsError(
            f"`{output}` holds `{others[0]}`, which belongs to another number "
            f"of parts than {part.count}; choose another directory or remove "
            "it."
        )
    own = f"{Store(output)}/" if is_store(output) else f"{output}{os.sep}"
    manifest = _pack(**arguments, output=own + part.folder, part=part)
    whole, missing = commit_parts(output, part.count)
    return whole or {**manifest, "missing_parts": missing}


@stored("output")
def _pack(
    source,
    output,
    captions,
    split,
    records_per_shard,
    image_column,
    caption_column,
    max_pixels,
    hold_out,
    seed,
    resize,
    allow_outside,
    progress,
    part,
):
    """Pack a data set, or a part of it; see `pack`."""
    named = source
    streams: list[str] = []

    def choose(names):
        if not captions:
            is_folder = not glob.has_magic(os.fspath(named))
            streams.extend(find_streams(names, is_folder))
        return part.names(names, streams)

    source = local_copy(source, choose if part else None)
    if captions is None:
        captions = find_caption_file(source, allow_outside)
    asked, captions = captions, captions and local_copy(captions)
    arguments: dict = {
        "source": absolute(named),
        "captions": absolute(asked) if asked else None,
        "split": split,
        "image_column": image_column,
        "caption_column": caption_column,
        "records_per_shard": records_per_shard,
        "max_pixels": max_pixels,
        "seed": seed,
    }
    if hold_out:
        arguments["hold_out"] = hold_out
    if resize:
        arguments["resize"] = resize
    if allow_outside:
        arguments["allow_outside"] = True
    if part:
        arguments["part"] = [part.number, part.count]
    if captions:
        # Ignore missing tables here; reading them raises an error.
        tables = filter(os.path.isfile, caption_tables(captions))
        digests = [file_digest(table) for table in tables]
        arguments["captions_sha256"] = digests
    finished = _finished(local_path(output), arguments)
    if finished:
        logger.warning(
            "`%s` holds these %d records already; nothing to do.",
            output,
            finished["records"],
        )
        return finished
    tally = Tally()
    columns = {
        "image_column": image_column,
        "caption_column": caption_column,
        "split": split,
    }
    found = open_source(
        Path(source),
        captions,
        columns,
        hold_out,
        seed,
        tally,
        allow_outside,
        part,
        whole=not streams,
    )
    with atomic_directory(output) as directory:
        # Another process may have packed it in the meantime.
        finished = _finished(Path(output), arguments)
        if finished:
            return finished

        def write(pairs, total, directory):
            entries = _encode(pairs, max_pixels, resize, tally)
            if progress:
                entries = _show(entries, total)
            if found.stream_bytes is not None:
                entries = shuffle_stream(
                    entries, seed, directory / BUCKETS, found.stream_bytes
                )
            records = _distinct(entries, tally)
            return _write(records, directory, records_per_shard, tally)

        aside = {"records": 0}
        if found.held_out is not None:
            (directory / HELD_OUT).mkdir()
            aside = write(found.held_out, None, directory / HELD_OUT)
            _write_manifest(aside, directory / HELD_OUT, arguments)
        manifest = write(found.pairs, found.total, directory)
        if part and found.stream_bytes is not None:
            manifest["order"] = "random within parts"
        if not manifest["records"] and not part:
            hint = "" if captions else _what_else(source)
            raise ValueError(
                f"No image of `{source}` could be packed: "
                f"{tally.explain().rstrip('.')}." + hint
            )
        manifest["held_out"] = aside["records"]
        manifest["images"] = tally.seen
        tally.check(manifest["records"] + aside["records"])
        _write_manifest(manifest, directory, arguments)
    return manifest


def _what_else(source):
    """Suggest what to do if captions or images are in other files."""
    names = walk_folder(source, False)[0] if os.path.isdir(source) else []
    if not any(map(is_image, names)):
        for name in names:
            kinds = (is_archive, is_records, is_parquet)
            if "/" in name and any(kind(name) for kind in kinds):
                place = os.path.join(source, os.path.dirname(name))
                return (
                    f" There are images or records in `{place}`: give that "
                    "folder."
                )
    for name in names:
        if "/" not in name and Path(name).suffix.lower() in ROW_READERS:
            table = os.path.join(source, name)
            return (
                f" If `{table}` holds the captions, give it with `--captions`."
            )
    for name in names:
        if "/" not in name and name.lower().startswith("captions."):
            table = os.path.join(source, name)
            return (
                f" If `{table}` is a table of captions, give it the suffix of "
                f"its format: {', '.join(sorted(ROW_READERS))}."
            )
    return ""


def _write_manifest(manifest, directory, arguments):
    manifest["arguments"] = arguments
    write_json(directory / "manifest.json", manifest)


def _finished(output, arguments):
    """Return the manifest of an earlier run with the same arguments, if any."""
    path = output / "manifest.json"
    if path.is_file():
        manifest = read_manifest(path)
        files = [entry["file"] for entry in manifest["shards"]]
        if manifest.get("arguments") == arguments and all(
            (output / file).is_file() for file in files
        ):
            return manifest
    if list(output.glob("*.tfrecord")) or path.exists():
        raise FileExistsError(
            f"`{output}` holds records that were packed with other arguments "
            "or captions, or are incomplete; choose another directory or "
            "remove it."
        )
    return None


# === Reading ===


def _encode(pairs, max_pixels, resize, tally):
    """Yield `(key, name, number of captions, record)`, in the same order."""

    def check(pair):
        name, read, captions = pair
        try:
            found = captions and image_to_store(read, max_pixels, resize)
            return name, captions, found, None
        except Exception as error:  # noqa: BLE001, it is raised below.
            return name, captions, None, error

    # Pillow releases the GIL.
    for name, captions, found, failure in map_ahead(check, pairs):
        if not captions:
            tally.skip(name, "no caption")
            continue
        try:
            if failure:
                raise failure
        except FileNotFoundError:
            tally.skip(name, "missing file")
        except OutsideFolder as error:
            tally.skip(name, OUTSIDE, str(error))
        except OSError as error:
            tally.skip(name, "unreadable file", str(error))
        except TooManyPixels as error:
            tally.skip(name, "too many pixels", str(error))
        except UnknownRange as error:
            tally.skip(name, "pixels of no known range", str(error))
        except ValueError as error:
            tally.skip(name, "not an image", str(error))
        else:
            image, width, height = found
            key = key_of(name)
            record = encode_record(key, image, captions, width, height)
            yield key, name, len(captions), record


def _distinct(entries, tally):
    """Yield one record per key, and merge the captions of identical images.

    Records in random order with the same key follow each other.
    """
    last = None
    for key, name, count, record in entries:
        if last is None or key != last[0]:
            if last is not None:
                yield last[1:]
            last = key, count, record
            continue
        joined = join_records(last[2], record)
        if joined is None:
            tally.skip(name, "duplicate key")
        else:
            tally.seen -= 1  # It was the same image.
            last = key, *joined
    if last is not None:
        yield last[1:]


# === Writing ===


def _write(records, directory, records_per_shard, tally):
    shards = []
    caption_count = 0
    with contextlib.ExitStack() as stack:
        for count, record in records:
            if not shards or shards[-1]["records"] == records_per_shard:
                stack.close()
                path = _shard_path(directory, len(shards))
                writer = stack.enter_context(_writer(path))
                index = stack.enter_context(open(index_path(path), "w"))
                offset = 0
                shards.append({"records": 0})
            writer.write(record)
            # The framing: a length of eight bytes, two checksums of four.
            index.write(f"{offset} {len(record) + 16}\n")
            offset += len(record) + 16
            shards[-1]["records"] += 1
            caption_count += count
    for number, shard in enumerate(shards):
        name = f"data-{number:05d}-of-{len(shards):05d}.tfrecord"
        path = _shard_path(directory, number)
        os.rename(index_path(path), index_path(directory / name))
        path = path.rename(directory / name)
        shard.update(file=name, sha256=file_digest(path))
    return {
        "records": sum(shard["records"] for shard in shards),
        "captions": caption_count,
        "order": "random",
        "skipped_count": tally.reasons.total(),
        "skipped_reasons": dict(sorted(tally.reasons.items())),
        "skipped": tally.listed,
        "shards": shards,
    }


def _shard_path(directory, number):
    # The number of shards is known only at the end.
    return directory / f"unfinished-{number:05d}"


def _writer(path):
    import tensorflow as tf

    return tf.io.TFRecordWriter(str(path))


def _show(records, total):
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("Packing", total=total)
        for record in records:
            bar.advance(task)
            yield record
