"""Open the source to pack: a folder, a caption file, archives or records."""

import contextlib
import hashlib
import os
import posixpath
import tarfile
import typing

import numpy as np

from align_keras.data import archives as tars
from align_keras.data import sources
from align_keras.data.captions import NoUsableRow
from align_keras.data.captions import read_captions
from align_keras.data.find_source import find_source
from align_keras.data.find_source import left_over
from align_keras.data.hold_out import choose_by_digest
from align_keras.data.hold_out import choose_held_out
from align_keras.data.shuffle import random_place
from align_keras.data.tally import Tally
from align_keras.io.columns import UnfitColumn
from align_keras.io.folders import OutsideFolder
from align_keras.io.folders import check_member
from align_keras.io.text import clean_text

# Number of keys to hold in a dict before they are moved to the arrays.
LATEST = 1 << 18


def key_of(name):
    """Return the key of a record: the path of its image without suffix."""
    return posixpath.splitext(name)[0]


def keep_apart(pairs):
    """Give different images of a stream that share a key different names.

    Names in archives, tables and records are often not unique: `image.jpg` in
    each row, `0.jpg` in each archive. The first image keeps its name; the
    names of the others get a digest of their bytes. Copies of an image share
    a name.
    """
    first = _FirstValues()
    for name, read, captions in pairs:
        if isinstance(read, sources.Contents):
            key, own = _digest(key_of(name).encode()), _digest(read.contents)
            if first.of(key, own) != own:
                stem, suffix = posixpath.splitext(name)
                name = f"{stem}-{own:016x}{suffix}"
        yield name, read, captions


def _digest(contents):
    digest = hashlib.blake2b(contents, digest_size=8).digest()
    return np.frombuffer(digest, "uint64")[0]


class _FirstValues:
    """Stores the first value of each key in about 16 bytes.

    A dict would take 100 bytes per key, and there may be very many images.
    """

    def __init__(self):
        self._keys = self._values = np.zeros(0, "uint64")
        self._latest = {}

    def of(self, key, value):
        """Return the first value given for a key, which may be this one."""
        if len(self._latest) == LATEST:
            self._settle()
        place = np.searchsorted(self._keys, key)
        if place < len(self._keys) and self._keys[place] == key:
            return self._values[place]
        return self._latest.setdefault(key, value)

    def _settle(self):
        new = np.array(sorted(self._latest.items()), "uint64")
        places = np.searchsorted(self._keys, new[:, 0])
        self._keys = np.insert(self._keys, places, new[:, 0])
        self._values = np.insert(self._values, places, new[:, 1])
        self._latest.clear()


class Source(typing.NamedTuple):
    """Pairs to pack, as `sources` yields them.

    Attributes:
        pairs: iterator, in random order unless it is a stream.
        total: int. The number of pairs, if known.
        held_out: iterator of the pairs that are held out, also in random order
            unless it is a stream; `None` if there are none.
        stream_bytes: int. The size of a stream that still has to be put into
            random order; `None` if the pairs are in random order.
    """

    pairs: typing.Iterator
    total: int | None = None
    held_out: typing.Iterator | None = None
    stream_bytes: int | None = None


def open_source(
    source,
    captions,
    columns,
    hold_out,
    seed,
    tally,
    allow_outside=False,
    part=None,
    whole=True,
):
    """Determine the kind of a source, and list or open it.

    Args:
        source: `pathlib.Path`.
        captions: string or `pathlib.Path`, or `None`.
        columns: dict of `"image_column"`, `"caption_column"` and `"split"`.
        hold_out: float. The share to hold out.
        seed: int. The seed of the order.
        tally: `Tally`. Counts the images seen and those left out.
        allow_outside: bool. Whether to read files outside the folder that
            names and links lead to. Defaults to `False`.
        part: `Part`. The part to pack. Defaults to `None`: all.
        whole: bool. Whether the source holds the stream files of all parts,
            and not only those of this one. Defaults to `True`.

    Returns:
        A `Source`. See `pack` for the arguments and the errors.
    """

    def place(name):
        return random_place(key_of(clean_text(name)), seed)

    def holds(name):
        return part is None or part.holds(key_of(clean_text(name)), seed)

    found = find_source(
        source, captions, columns["image_column"], allow_outside
    )
    files = found.files
    if part and whole and found.kind not in ("folder", "listed"):
        files = part.files(files)
        # The other parts read and count these.
        tally.looked_at.update(set(found.files).difference(files))
    counts_others = part is None or part.is_first
    has_table = found.kind in ("listed", "table")
    if not has_table and (hold_out or any(columns.values())):
        raise ValueError(
            "`split`, `image_column`, `caption_column` and `hold_out` apply "
            "to a caption file; give one with `captions`."
        )
    if found.kind == "listed":
        listed = _read_listed(captions, columns, holds, tally, part)
        opened = _open_listed(
            source, listed, hold_out, place, tally, allow_outside
        )
    elif found.kind == "table":
        named = captions or source
        opened = _open_tables(
            files, tally, source, named, columns, hold_out, allow_outside
        )
    elif found.kind == "folder":
        opened = Source(
            sources.from_folder(
                source,
                tally,
                order=place,
                allow_outside=allow_outside,
                holds=holds,
                counts_others=counts_others,
            )
        )
    else:
        archives = found.kind == "archive"
        read = tars.from_archive if archives else sources.from_records
        pairs = keep_apart(
            read_files(source, files, read, tally, allow_outside)
        )
        opened = Source(pairs, stream_bytes=_size(files))
    if not counts_others:
        return opened

    def and_the_rest():
        yield from opened.pairs
        looked_at = tally.looked_at
        for rest in left_over(found, source, looked_at, allow_outside):
            tally.leave_out(*rest)

    return opened._replace(pairs=and_the_rest())


def _size(files):
    return sum(os.path.getsize(file) for file in files if os.path.exists(file))


def _read_listed(captions, columns, holds, tally, part):
    """Read the captions of a part. The first part counts unusable rows."""
    if part is None:
        return read_captions(captions, **columns, tally=tally)
    seen = tally if part.is_first else Tally()
    listed = read_captions(captions, **columns, tally=seen)
    own = {name: texts for name, texts in listed.items() if holds(name)}
    # The other parts read and count these.
    tally.looked_at.update(listed.keys() - own.keys())
    tally.seen += len(own) - (len(listed) if part.is_first else 0)
    return own


def _open_listed(source, listed, hold_out, place, tally, allow_outside):
    """Open the images that a caption file lists."""
    aside = choose_held_out(source, listed, hold_out, allow_outside)
    # The sort is stable: images with the same key keep the order of the file.
    placed = sorted(listed, key=place)
    held_out, kept = (
        {name: listed[name] for name in placed if (name in aside) == wanted}
        for wanted in (True, False)
    )

    def pairs(names):
        return sources.from_caption_file(source, names, allow_outside, tally)

    return Source(pairs(kept), len(kept), pairs(held_out) if held_out else None)


def _open_tables(
    tables, tally, source, named, columns, hold_out, allow_outside
):
    """Open the images in tables; `named` is the source that names these."""
    folder = source if source.is_dir() else None
    size = _size(tables)

    def read_table(table, tally):
        return sources.from_table(
            table, tally, folder, allow_outside, **columns
        )

    def pairs(tally):
        return keep_apart(
            read_files(named, tables, read_table, tally, allow_outside)
        )

    if not hold_out:
        return Source(pairs(tally), stream_bytes=size)
    digests = {}
    for name, read, _ in pairs(Tally()):
        with contextlib.suppress(OSError):
            digests[name] = hashlib.sha256(read()).digest()
    chosen = choose_by_digest(digests, hold_out)
    kept = (pair for pair in pairs(tally) if pair[0] not in chosen)
    # Images that are held out have been counted with the others.
    held_out = (pair for pair in pairs(Tally()) if pair[0] in chosen)
    return Source(
        kept, held_out=held_out if chosen else None, stream_bytes=size
    )


def read_files(source, files, read, tally, allow_outside=False):
    """Read files one after the other, and count damaged ones.

    Args:
        source: string or `pathlib.Path`. The folder or glob of the files.
        files: list of strings.
        read: callable. Takes a file and a `Tally`, and yields pairs.
        tally: `Tally`.
        allow_outside: bool. Whether to read files that lead out of `source`;
            otherwise they are counted as left out. Defaults to `False`.

    Yields:
        The pairs of `read`.
    """
    for file in files:
        tally.looked_at.add(file)
        try:
            check_member(source, file, allow_outside)
            if os.path.isfile(file):
                # Tell missing permissions from a damaged file.
                open(file, "rb").close()
        except OutsideFolder as error:
            tally.leave_out(clean_text(file), sources.OUTSIDE, str(error))
            continue
        except FileNotFoundError as error:
            tally.leave_out(clean_text(file), "missing file", str(error))
            continue
        except OSError as error:
            tally.leave_out(clean_text(file), "unreadable file", str(error))
            continue
        try:
            yield from read(file, tally)
        except UnfitColumn as error:
            tally.leave_out(clean_text(file), "unfit column", str(error))
        except NoUsableRow as error:
            tally.leave_out(clean_text(file), "no usable row", str(error))
        except FileNotFoundError as error:
            tally.leave_out(clean_text(file), "missing file", str(error))
        except (OSError, ValueError, tarfile.TarError) as error:
            tally.leave_out(clean_text(file), "damaged archive", str(error))
