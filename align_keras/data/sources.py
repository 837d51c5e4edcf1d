"""Read image–caption pairs from caption files, folders, tables and records.

Every source yields tuples `(name, image, captions)`: the path of the image in
the source, a function that reads its bytes, and its captions. A `Tally` counts
every image of the source, including those that cannot be used.
"""

import functools
import os
import posixpath
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from align_keras.data.captions import iterate_captions
from align_keras.data.records import decode_record
from align_keras.data.records import read_shard
from align_keras.data.tally import Tally
from align_keras.io.file_names import list_images
from align_keras.io.file_names import records_stem
from align_keras.io.file_names import stem_of
from align_keras.io.file_names import suffix_of
from align_keras.io.file_names import walk_folder
from align_keras.io.folders import OutsideFolder
from align_keras.io.folders import read_within
from align_keras.io.folders import resolve_within
from align_keras.io.text import as_texts
from align_keras.io.text import clean_text
from align_keras.io.text import decode_text
from align_keras.io.text import split_lines

# The reason for leaving out a file that is outside the folder.
OUTSIDE = "outside the folder"
# The reason for leaving out an image whose name does not look like one.
UNNAMED = "image without its suffix"
# The maximum size of a caption file of one image.
MAX_TEXT_BYTES = 8 * 2**20

Pairs = Iterator[tuple[str, Callable[[], bytes], list[str]]]


def from_caption_file(
    folder: str | Path,
    captions: dict[str, list[str]],
    allow_outside: bool = False,
    tally: Tally | None = None,
) -> Pairs:
    """Read the images of a folder that a caption file lists.

    Args:
        folder: string or `pathlib.Path` to which the names are relative.
        captions: dict from `read_captions`, which has counted the images.
        allow_outside: bool. Whether to read files outside the folder that
            names and links lead to. Defaults to `False`.
        tally: `Tally`.

    Yields:
        `(name, image, captions)`, see the module.
    """
    tally = Tally() if tally is None else tally
    for name, texts in captions.items():
        tally.looked_at.add(name)
        yield clean_text(name), _reader(folder, name, allow_outside), texts


def from_table(
    path: str | Path,
    tally: Tally | None = None,
    folder: str | Path | None = None,
    allow_outside: bool = False,
    **columns: Any,
) -> Pairs:
    """Read the images that a table holds or refers to, with their captions.

    Consecutive rows of the same image are merged, with all their captions.

    Args:
        path: string or `pathlib.Path`. A Parquet file, such as Hugging Face's
            `datasets` writes.
        tally: `Tally`.
        folder: string or `pathlib.Path`. The folder that paths in the table
            are relative to. Defaults to the folder of the table.
        allow_outside: bool. See `from_caption_file`.
        **columns: `image_column`, `caption_column` and `split`, see
            `read_captions`.

    Yields:
        `(name, image, captions)`, see the module.
    """
    path, tally = Path(path), Tally() if tally is None else tally
    for row in _joined(iterate_captions(path, tally=tally, **columns)):
        tally.seen += 1
        read = _reader(folder or path.parent, row.name, allow_outside)
        if row.contents is not None:
            read = Contents(row.contents)
        else:
            tally.looked_at.add(row.name)
        yield clean_text(row.name), read, row.captions


def _joined(rows):
    """Merge consecutive rows of the same image."""
    last = damage = None
    try:
        for row in rows:
            if row.shows(last):
                last.captions.extend(row.captions)
                continue
            if last is not None:
                yield last
            last = row
    except (OSError, ValueError) as error:
        # Yield the last complete row before raising the error.
        damage = error
    if last is not None:
        yield last
    if damage is not None:
        raise damage


def from_folder(
    folder: str | Path,
    tally: Tally | None = None,
    names: Iterable[str] | None = None,
    order: Callable[[str], Any] | None = None,
    allow_outside: bool = False,
    holds: Callable[[str], bool] = lambda name: True,
    counts_others: bool = True,
) -> Pairs:
    """Read the images of a folder with a `.txt` file of captions next to each.

    The text file has the same name as the image. Each line is a caption.

    Args:
        folder: string or `pathlib.Path`.
        tally: `Tally`.
        names: list of strings. The images to read. Defaults to all; then text
            files without an image are also counted.
        order: callable. Takes a name and returns its sort key. Defaults to
            `None`, the order of the paths.
        allow_outside: bool. See `from_caption_file`.
        holds: callable. Takes a name and returns whether to read the image.
            Defaults to all.
        counts_others: bool. Whether to count text files without an image if
            `names` is not given. Defaults to `True`.

    Yields:
        `(name, image, captions)`, see the module.
    """
    folder, tally = Path(folder), Tally() if tally is None else tally
    found = list_images(folder, allow_outside) if names is None else names
    listed: dict[str, dict[str, list[str]]] = {}
    # The others belong to other parts, which read and count them.
    tally.looked_at.update(found)
    taken = list(filter(holds, found))
    for name in taken if order is None else sorted(taken, key=order):
        try:
            texts = _texts_beside(folder, name, allow_outside, listed)
        except OSError as error:
            reason, detail = _why_unread(folder, name, error)
            tally.leave_out(clean_text(name), reason, detail)
            continue
        tally.seen += 1
        yield clean_text(name), _reader(folder, name, allow_outside), texts
    if names is None and counts_others:
        stems = set(map(stem_of, found))
        for name in walk_folder(folder, allow_outside)[0]:
            if suffix_of(name) == ".txt" and stem_of(name) not in stems:
                tally.leave_out(clean_text(name), "no image of that name")


def why_closed(
    folder: str | Path, name: str, allow_outside: bool = False
) -> tuple[str, str]:
    """Explain why a folder was not searched, or a link is broken.

    Args:
        folder: string or `pathlib.Path`.
        name: string from `walk_folder`.
        allow_outside: bool. See `from_caption_file`.

    Returns:
        A pair of strings: reason and detail.
    """
    try:
        _look_into(folder, name, allow_outside)
    except OSError as error:
        return _why_unread(Path(folder), name, error)
    # It has become readable in the meantime.
    return "unreadable folder", name


def _why_unread(folder, name, error):
    reason = "unreadable captions"
    if isinstance(error, OutsideFolder):
        reason = OUTSIDE
    elif (folder / name).is_dir():
        reason = "unreadable folder"
    elif not (folder / name).exists():
        reason = "missing file"
    return reason, str(error)


def _look_into(folder, name, allow_outside):
    # Raise the error for a folder or link that was listed but not searched.
    path = Path(folder, name)
    if path.is_dir():
        os.listdir(resolve_within(folder, name, allow_outside))
    elif not path.exists():
        os.stat(resolve_within(folder, name, allow_outside))


def _texts_beside(folder, name, allow_outside, listed):
    _look_into(folder, name, allow_outside)
    place, base = posixpath.split(name)
    if place not in listed:
        listed[place] = _texts_in(folder / place)
    lines = []
    for text in listed[place].get(stem_of(base), ()):
        text = posixpath.join(place, text)
        contents = read_within(folder, text, allow_outside, MAX_TEXT_BYTES)
        lines += split_lines(decode_text(contents))
    return as_texts(lines)


def _texts_in(folder):
    """Return the names of a folder's text files, by name without suffix."""
    found = {}
    for name in sorted(os.listdir(folder)):
        if suffix_of(name) == ".txt":
            found.setdefault(stem_of(name), []).append(name)
    return found


def _reader(folder, name, allow_outside):
    return functools.partial(read_within, folder, name, allow_outside)


class Contents:
    """Bytes in memory that can be read like those of a file."""

    def __init__(self, contents):
        self.contents = contents

    def __call__(self):
        return self.contents


def from_records(shard: str | Path, tally: Tally | None = None) -> Pairs:
    """Read the pairs of a TFRecord file of img2dataset or `pack`.

    Args:
        shard: string or `pathlib.Path`.
        tally: `Tally`.

    Yields:
        `(name, image, captions)`, see the module.

    Raises:
        ValueError: The file is damaged. Everything before the damage has been
            yielded.
    """
    tally = Tally() if tally is None else tally
    for number, record in enumerate(read_shard(shard)):
        tally.seen += 1
        try:
            example = decode_record(record, require_captions=False)
        except ValueError as error:
            tally.skip(
                f"{Path(shard).name}[{number}]", "broken record", str(error)
            )
            continue
        stem = os.path.basename(records_stem(shard))
        name = example["key"] or f"{stem}[{number}]"
        # Callers remove the suffix again to get the key.
        yield f"{name}.jpg", Contents(example["image"]), example["captions"]
