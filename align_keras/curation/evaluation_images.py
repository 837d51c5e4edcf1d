"""Read test images, whose near-duplicates must not be trained on.

A test set is a folder of images, one image, TFRecord files, or a file of
perceptual hashes: a `.txt` file with 16 hexadecimal digits per line, or a table
with a column `phash`.
"""

import functools
import glob
import logging
import os
from collections.abc import Iterable
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from align_keras.curation.ingest import find_columns
from align_keras.curation.ingest import parse_hash
from align_keras.curation.ingest import read_hashes
from align_keras.curation.input_files import column_types
from align_keras.curation.input_files import read_batches
from align_keras.curation.perceptual_hash import perceptual_hash
from align_keras.io.batches import BATCH_READERS
from align_keras.io.batches import table_suffix
from align_keras.io.file_names import is_image
from align_keras.io.file_names import is_records
from align_keras.io.file_names import may_hold_images
from align_keras.io.file_names import walk_folder
from align_keras.io.folders import OutsideFolder
from align_keras.io.folders import read_file
from align_keras.io.folders import read_within
from align_keras.io.folders import resolve_within
from align_keras.io.images import decode_with_pillow
from align_keras.io.text import clean_text
from align_keras.io.text import read_text
from align_keras.io.threads import map_ahead

logger = logging.getLogger("align_keras")


def hash_evaluation_images(
    paths: Iterable, mirrored: bool = True, allow_outside: bool = False
) -> dict[int, str]:
    """Hash all images of test sets.

    Args:
        paths: list of strings. The test sets; see the module docstring.
        mirrored: bool. Whether to add the hashes of the mirrored images. This
            is not possible for a file of hashes. Defaults to `True`.
        allow_outside: bool. See `read_evaluation_images`.

    Returns:
        dict from each hash, an int, to the name of an image that has it.

    Raises:
        FileNotFoundError: A path does not exist.
        ValueError: A file has no hashes, or no image is readable.
    """
    named = {}
    for path in map(str, paths):
        if _holds_hashes(path):
            for number, value in enumerate(_read_hash_file(path), start=1):
                named.setdefault(value, f"{path}, hash {number}")
            continue

        def hash_one(image):
            name, pixels = image
            views = {perceptual_hash(pixels): name}
            if mirrored:
                mirror = perceptual_hash(pixels[:, ::-1])
                views.setdefault(mirror, f"{name}, mirrored")
            return views

        images = read_evaluation_images(path, allow_outside)
        for views in map_ahead(hash_one, images):
            for value, view in views.items():
                named.setdefault(value, view)
    return named


def read_evaluation_images(
    path: str, allow_outside: bool = False
) -> Iterator[tuple[str, np.ndarray]]:
    """Decode the images of one test set.

    Args:
        path: string. A folder, an image, or a glob of TFRecord files.
        allow_outside: bool. Whether to follow links that lead out of the
            folder. Defaults to `False`: they are named and not read.

    Yields:
        Tuples of a name and a uint8 array `(height, width, 3)`. Files that
        are not images are left out, and their number is logged.

    Raises:
        FileNotFoundError: The path does not exist.
        ValueError: No image is readable.
    """
    good = bad = 0
    for name, read in _contents(path, allow_outside):
        try:
            pixels = decode_with_pillow(read())
        except OutsideFolder as error:
            logger.warning("Left out `%s`: %s", name, error)
            bad += 1
            continue
        except (OSError, ValueError):
            bad += 1
            continue
        good += 1
        yield name, pixels
    if bad:
        logger.warning(
            "%d entries of `%s` are left out: not readable as images.",
            bad,
            path,
        )
    if not good:
        raise ValueError(
            f"The test set `{path}` holds no image that can be read."
        )


def _contents(path, allow_outside):
    """Yield the name of each image of a test set, and its reader."""
    if os.path.isdir(path):
        found, closed = walk_folder(path, allow_outside)
        for name in filter(may_hold_images, found):
            if not (is_image(name) or is_records(name)):
                logger.warning(
                    "Left out `%s`: its images are not read here; unpack it.",
                    clean_text(name),
                )
        for name in [*filter(is_image, found), *closed]:
            read = functools.partial(read_within, path, name, allow_outside)
            yield str(Path(path, name)), read
        records = []
        for name in filter(is_records, found):
            try:
                records.append(str(resolve_within(path, name, allow_outside)))
            except OutsideFolder as error:
                logger.warning("Left out `%s`: %s", name, error)
        if records:
            yield from _records(records)
    elif is_image(path):
        yield path, functools.partial(read_file, path)
    elif glob.glob(path):
        yield from _records(path, allow_outside)
    else:
        raise FileNotFoundError(
            f"No test images match `{path}`; give a folder of images, "
            "TFRecord files, or a file of hashes."
        )


def _records(shards, allow_outside=False):
    # This needs TensorFlow, but nothing else here does.
    from align_keras.data.record_files import open_records

    for record in open_records(shards, allow_outside):
        yield record["key"], functools.partial(bytes, record["image"])


def _holds_hashes(path):
    if not os.path.isfile(path):
        return False
    return path.lower().endswith(".txt") or table_suffix(path) in BATCH_READERS


def _read_hash_file(path):
    if path.lower().endswith(".txt"):
        lines = read_text(path).split()
        try:
            return [parse_hash(line) for line in lines]
        except ValueError as error:
            raise ValueError(f"`{path}`: {error}") from None
    column = find_columns(list(column_types(path)))["phash"]
    if column is None:
        raise ValueError(f"The file of hashes `{path}` has no column `phash`.")
    found = []
    for columns, _ in read_batches(path, {column}):
        if columns:
            hashes, known = read_hashes(columns[column])
            found.append(hashes[known])
    return np.concatenate(found).tolist() if found else []
