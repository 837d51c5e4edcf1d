"""What is to be packed: a folder, a caption file, archives, or records."""

import glob
import os
import posixpath
import tarfile
import typing

from align_keras.data import sources
from align_keras.data.hold_out import choose_held_out
from align_keras.data.shuffle import random_place


def key_of(name):
    """The key of a record: the path of its picture without the suffix."""
    return posixpath.splitext(name)[0]


class Source(typing.NamedTuple):
    """Pairs to pack, as `sources` yields them.

    Attributes:
        pairs: iterator, in random order unless it is a stream.
        total: int. How many there are, if that is known.
        held_out: dict from names of pictures to captions, set aside.
        stream_bytes: int. The size of a stream that is yet to be put into
            random order; `None` for what has been.
    """

    pairs: typing.Iterator
    total: int | None = None
    held_out: dict = {}
    stream_bytes: int | None = None


def open_source(
    source,
    captions,
    split,
    image_column,
    caption_column,
    hold_out,
    seed,
    skips,
):
    """Find out what a source is, and list or open it.

    Args:
        skips: object. Its `add(file, reason, detail)` is told what is damaged.

    Returns:
        A `Source`. See `pack` for the other arguments and what is raised.
    """

    def place(name):
        return random_place(key_of(name), seed)

    if captions:
        if not source.is_dir():
            raise FileNotFoundError(
                f"There is no folder `{source}` for the pictures that "
                f"`{captions}` lists."
            )
        listed = sources.read_captions(
            captions, image_column, caption_column, split
        )
        aside = choose_held_out(source, listed, hold_out)
        held_out, kept = (
            {n: listed[n] for n in sorted(names, key=place)}
            for names in (
                [name for name in listed if name in aside],
                [name for name in listed if name not in aside],
            )
        )
        pairs = sources.from_caption_file(source, kept)
        return Source(pairs, len(kept), held_out)
    if split or image_column or caption_column or hold_out:
        raise ValueError(
            "`split`, `image_column`, `caption_column` and `hold_out` speak "
            "of a caption file; give one with `captions`."
        )
    for suffix, read in (
        (".tar", sources.from_archive),
        (".tfrecord", sources.from_records),
    ):
        pattern = source / f"*{suffix}" if source.is_dir() else source
        files = sorted(glob.glob(str(pattern)))
        if files and files[0].endswith(suffix):
            size = sum(os.path.getsize(file) for file in files)
            pairs = _from_files(files, read, skips)
            return Source(pairs, stream_bytes=size)
    if not source.is_dir():
        raise FileNotFoundError(f"No folder or archive matches `{source}`.")
    if not any(source.iterdir()):
        raise FileNotFoundError(f"The folder `{source}` is empty.")
    return Source(sources.from_folder(source, place))


def _from_files(files, read, skips):
    for file in files:
        try:
            yield from read(file)
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            skips.add(file, "damaged archive", str(error))
