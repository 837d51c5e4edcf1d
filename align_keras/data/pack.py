"""Pack raw picture–text pairs into TFRecord files."""

import collections
import concurrent.futures
import contextlib
import hashlib
import io
import logging
import os
import posixpath
import tarfile
from pathlib import Path

from align_keras.data import sources
from align_keras.data.captions import find_caption_file
from align_keras.data.captions import holds_images
from align_keras.data.captions import read_captions
from align_keras.data.hold_out import choose_by_digest
from align_keras.data.hold_out import choose_held_out
from align_keras.data.records import encode_record
from align_keras.data.records import index_path
from align_keras.data.tally import Tally
from align_keras.io.atomic import atomic_directory
from align_keras.io.file_names import list_archives
from align_keras.io.file_names import list_files
from align_keras.io.file_names import list_images
from align_keras.io.images import TooManyPixels
from align_keras.io.images import decode_and_describe
from align_keras.io.json_files import read_json
from align_keras.io.json_files import write_json

# The folder within the output for pictures that training must not see.
HELD_OUT = "held_out"

logger = logging.getLogger("align_keras")


def pack(
    source,
    output,
    captions=None,
    split=None,
    records_per_shard=1000,
    image_column=None,
    caption_column=None,
    max_pixels=64_000_000,
    hold_out=0,
    progress=False,
):
    """Pack pictures with captions into TFRecord files and a manifest.

    Pictures are checked by decoding them and stored as they are where
    TensorFlow reads the format, else as PNG. Those that cannot be used are
    left out, counted and named in the manifest. The output directory appears
    as a whole at the end. When it holds the result of the same arguments
    already, nothing is done.

    The source is one of:

    - a folder of pictures, together with a caption file (`captions`);
    - a folder of pictures with a `.txt` file of captions beside each;
    - a WebDataset: a `.tar` file, a glob of them, or a folder that holds
      them.

    Args:
        source: string or `pathlib.Path`.
        output: string or `pathlib.Path`. The directory to write:
            `data-00000-of-00004.tfrecord` and so on, an index of each
            (`.idx`, lines of `offset size`), and `manifest.json`.
        captions: string or `pathlib.Path`. A CSV, TSV, JSONL, JSON or Parquet
            file, see `read_captions`. Picture paths in it are relative to
            `source`. Held in memory as a whole; pictures never are.
        split: string. Only these splits of the caption file, separated by
            commas. Defaults to `None`, all.
        records_per_shard: int. Defaults to 1000.
        image_column: string. The caption file's column of picture paths.
        caption_column: string. The caption file's column of captions.
        max_pixels: int. Larger pictures are skipped before they are decoded;
            they would fill the memory. Defaults to 64 million. Pillow itself
            refuses more than 179 million.
        hold_out: float from 0 to 0.5. Set this share of the pictures aside
            to measure on: at least 8, or a quarter where that is less, and
            at most 1000. They go to the folder `held_out` within `output`,
            in the same form, and no picture is on both sides, not even as a
            copy of the same bytes. Needs `captions`. Defaults to 0.
        progress: bool. Show a progress bar on standard error. Defaults to
            `False`.

    Returns:
        dict, the manifest: `"records"`, `"captions"` (numbers), `"shards"`
        (list of file, records, sha256), `"skipped_count"`,
        `"skipped_reasons"` (counts by reason), `"skipped"` (file and reason
        of the first 1000), `"held_out"` (number of records set aside) and
        `"arguments"`.

    Raises:
        FileNotFoundError: Source or caption file is missing or empty.
        FileExistsError: `output` holds something else.
        ValueError: No picture could be used, or the caption file is wrong.

    Example:

    ```python
    pack("photos", "packed", captions="photos/captions.csv")
    ```
    """
    if records_per_shard < 1:
        raise ValueError(
            "`records_per_shard` must be at least 1. "
            f"Received: {records_per_shard}."
        )
    if captions is None:
        captions = find_caption_file(source)
    arguments = {
        "source": os.path.abspath(source),
        "captions": os.path.abspath(captions) if captions else None,
        "split": split,
        "image_column": image_column,
        "caption_column": caption_column,
        "records_per_shard": records_per_shard,
        "max_pixels": max_pixels,
    }
    if hold_out:
        arguments["hold_out"] = hold_out
    if captions and os.path.isfile(captions):
        with open(captions, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        arguments["captions_sha256"] = digest
    finished = _finished(Path(output), arguments)
    if finished:
        logger.warning(
            "`%s` holds these %d records already; nothing to do.",
            output,
            finished["records"],
        )
        return finished
    tally = Tally()
    pairs, held_out, total = _open(
        Path(source),
        captions,
        split,
        image_column,
        caption_column,
        hold_out,
        tally,
    )
    with atomic_directory(output) as directory:

        def write(pairs, directory, total):
            records = _encode(pairs, max_pixels, tally)
            if progress:
                records = _show(records, total)
            return _write(records, directory, records_per_shard, tally)

        aside = {"records": 0}
        if held_out:
            (directory / HELD_OUT).mkdir()
            aside = write(held_out, directory / HELD_OUT, None)
            _write_manifest(aside, directory / HELD_OUT, arguments)
        manifest = write(pairs, directory, total)
        if not manifest["records"]:
            raise ValueError(
                f"No picture of `{source}` could be packed: {tally.summary()}."
            )
        manifest["held_out"] = aside["records"]
        manifest["images"] = tally.seen
        tally.check(manifest["records"] + aside["records"])
        _write_manifest(manifest, directory, arguments)
    return manifest


def _write_manifest(manifest, directory, arguments):
    manifest["arguments"] = arguments
    write_json(directory / "manifest.json", manifest)


def _finished(output, arguments):
    """The manifest of an earlier run with the same arguments, or `None`."""
    path = output / "manifest.json"
    if path.is_file():
        manifest = read_json(path)
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


def _open(
    source, captions, split, image_column, caption_column, hold_out, tally
):
    """An iterator of pairs; captions held out; how many pairs, if known."""
    columns = {
        "image_column": image_column,
        "caption_column": caption_column,
        "split": split,
    }
    tables = []
    if captions:
        if not source.is_dir():
            raise FileNotFoundError(
                f"There is no folder `{source}` for the images that "
                f"`{captions}` lists."
            )
        if not holds_images(captions, image_column):
            listed = read_captions(captions, **columns, tally=tally)
            aside = choose_held_out(source, listed, hold_out)
            held_out = {name: listed.pop(name) for name in sorted(aside)}
            pairs = sources.from_caption_file(source, listed)
            held_out = held_out and sources.from_caption_file(source, held_out)
            return pairs, held_out, len(listed)
        tables = [captions]
    archives = [] if tables else list_archives(source)
    if not (tables or archives) and not list_images(source):
        tables = list_files(source, lambda name: name.endswith(".parquet"))
    if not tables and (hold_out or any(columns.values())):
        raise ValueError(
            "`split`, `image_column`, `caption_column` and `hold_out` speak "
            "of a caption file; give one with `captions`."
        )
    if tables:
        return *_open_tables(tables, tally, source, columns, hold_out), None
    if archives:
        return _from_archives(archives, tally), None, None
    if not source.is_dir():
        raise FileNotFoundError(f"No folder or archive matches `{source}`.")
    if not any(source.iterdir()):
        raise FileNotFoundError(f"The folder `{source}` is empty.")
    return sources.from_folder(source, tally), None, None


def _open_tables(tables, tally, source, columns, hold_out):
    """Pairs of tables that hold their images; those held out, or `None`."""
    folder = source if source.is_dir() else None

    def pairs(tally):
        for table in tables:
            yield from sources.from_table(table, tally, folder, **columns)

    if not hold_out:
        return pairs(tally), None
    digests = {}
    for name, read, _ in pairs(Tally()):
        with contextlib.suppress(OSError):
            digests[name] = hashlib.sha256(read()).digest()
    chosen = choose_by_digest(digests, hold_out)
    kept = (pair for pair in pairs(tally) if pair[0] not in chosen)
    # What is held out has been seen among the others.
    held_out = (pair for pair in pairs(Tally()) if pair[0] in chosen)
    return kept, held_out if chosen else None


def _from_archives(archives, tally):
    for archive in archives:
        try:
            yield from sources.from_archive(archive, tally)
        except tarfile.TarError as error:
            tally.leave_out(archive, "damaged archive", str(error))


def _encode(pairs, max_pixels, tally):
    """Yield `(number of captions, record)` in the order of the pairs."""
    seen = set()
    for name, key, captions, work in _in_threads(pairs, max_pixels):
        if not captions:
            tally.skip(name, "no caption")
        elif key in seen:
            tally.skip(name, "duplicate key")
        else:
            try:
                image, width, height = work.result()
            except FileNotFoundError:
                tally.skip(name, "missing file")
            except OSError as error:
                tally.skip(name, "unreadable file", str(error))
            except TooManyPixels as error:
                tally.skip(name, "too many pixels", str(error))
            except ValueError as error:
                tally.skip(name, "not a picture", str(error))
            else:
                seen.add(key)
                record = encode_record(key, image, captions, width, height)
                yield len(captions), record


def _in_threads(pairs, max_pixels):
    """Check pictures in threads, a few ahead; Pillow frees the lock."""
    workers = os.cpu_count() or 1
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        waiting = collections.deque()
        for name, read, captions in pairs:
            key = posixpath.splitext(name)[0]
            work = pool.submit(_check, read, max_pixels) if captions else None
            waiting.append((name, key, captions, work))
            if len(waiting) > 4 * workers:
                yield waiting.popleft()
        yield from waiting


def _check(read, max_pixels):
    """The bytes to store, width and height of one picture."""
    contents = read()
    pixels, keep = decode_and_describe(contents, max_pixels)
    height, width = pixels.shape[:2]
    if not keep:
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        contents = file.getvalue()
    return contents, width, height


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
            # Eight bytes of length and two checksums of four.
            index.write(f"{offset} {len(record) + 16}\n")
            offset += len(record) + 16
            shards[-1]["records"] += 1
            caption_count += count
    for number, shard in enumerate(shards):
        name = f"data-{number:05d}-of-{len(shards):05d}.tfrecord"
        path = _shard_path(directory, number)
        os.rename(index_path(path), index_path(directory / name))
        path = path.rename(directory / name)
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        shard.update(file=name, sha256=digest)
    return {
        "records": sum(shard["records"] for shard in shards),
        "captions": caption_count,
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
