"""What the name of a file tells: an image, an archive, or nothing of ours."""

import glob
import os
import posixpath
import re
from collections.abc import Callable
from collections.abc import Iterable
from pathlib import Path
from pathlib import PurePosixPath

from align_keras.io.folders import resolve_within

# Of the formats that Pillow decodes and `decode_with_pillow` allows.
IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".jif",
    ".jfi",
    ".pjpeg",
    ".pjp",
    ".mpo",
    ".png",
    ".apng",
    ".webp",
    ".gif",
    ".bmp",
    ".dib",
    ".tif",
    ".tiff",
    ".avif",
    ".avifs",
    ".jp2",
    ".j2k",
    ".j2c",
    ".jpc",
    ".jpf",
    ".jpx",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
)
# Of images that are not read: they are named and counted, not passed over.
UNREAD_SUFFIXES = (
    ".heic",
    ".heif",
    ".hif",
    ".heics",
    ".avci",
    ".jxl",
    ".jxr",
    ".wdp",
    ".hdp",
    ".qoi",
    ".dds",
    ".pcx",
    ".pfm",
    ".pam",
    ".hdr",
    ".icns",
    ".psd",
    ".svg",
    ".ico",
    ".tga",
    ".eps",
    ".exr",
    ".dng",
    ".cr2",
    ".cr3",
    ".nef",
    ".arw",
    ".orf",
    ".raf",
    ".rw2",
)
ARCHIVE_SUFFIXES = (
    ".tar",
    ".tar.gz",
    ".tgz",
    ".tar.bz2",
    ".tbz2",
    ".tar.xz",
    ".txz",
)
# Of what there may be as much as there are images or records.
OTHER_SUFFIXES = (
    ".txt",
    ".json",
    ".jsonl",
    ".csv",
    ".tsv",
    ".xml",
    ".html",
    ".idx",
    ".npy",
)
_ANY_IMAGE = frozenset((*IMAGE_SUFFIXES, *UNREAD_SUFFIXES))
# Addresses and programs append to it.
_IMAGE_SUFFIX = re.compile(r"\.[A-Za-z0-9]+")
# Of archives that are not read, and of compressed files of any kind.
_UNREAD_ARCHIVES = (".zip", ".rar", ".7z", ".tar.z", ".tar.lzma", ".arrow")
_COMPRESSIONS = (".zst", ".lz4", ".gz", ".bz2", ".xz")
# What programs call a file that they have not received whole.
_DOWNLOADS = (".part", ".partial", ".crdownload", ".download", ".filepart")
# Numbers may follow, as TensorFlow and TFDS call the shards of a data set.
_RECORDS = re.compile(r"\.(tfrecords?|tfrec)(-\d+-of-\d+)?", re.IGNORECASE)
# Suffixes of files that are no TFRecord file, and what to do with each.
_OTHERS = {
    (".zip", ".rar", ".7z", ".z", ".lzma", *_COMPRESSIONS): (
        "an archive that is not read: unpack it, and give the folder"
    ),
    (".arrow",): "a table that is not read: write it as Parquet",
    (".csv", ".tsv", ".jsonl", ".ndjson", ".json"): (
        "a table: give the folder of its images; the table is found there if "
        "it is called `captions`, or is given with `--captions`"
    ),
    tuple(sorted(_ANY_IMAGE)): "one image: give the folder that holds it",
    (".txt",): "a text: give the folder of the image that it belongs to",
}
# What operating systems and file servers leave among the files of a user;
# other names of the kind begin with a dot.
_JUNK = frozenset(
    (
        "__MACOSX",
        "@eaDir",
        "#recycle",
        "$RECYCLE.BIN",
        "System Volume Information",
        "Thumbs.db",
        "desktop.ini",
    )
)


def is_image(name: str | Path) -> bool:
    """Return whether the suffix of a name, in any case, is that of an image.

    Those count, too, of which none is read. What follows the suffix without a
    dot, as in `a.jpg?w=100`, `a.jpg_large` or `a.jpg~`, does not change it.
    """
    suffix = _IMAGE_SUFFIX.match(_last_suffix(name))
    return suffix is not None and suffix[0].lower() in _ANY_IMAGE


def is_unfinished_image(name: str | Path) -> bool:
    """Return whether a name is that of an image that is not yet received."""
    inner, suffix = os.path.splitext(str(name))
    return suffix.lower() in _DOWNLOADS and is_image(inner)


def is_archive(name: str | Path) -> bool:
    """Return whether the suffix of a name is that of a WebDataset archive."""
    return str(name).lower().endswith(ARCHIVE_SUFFIXES)


def is_records(name: str | Path) -> bool:
    """Return whether the suffix of a name is that of a TFRecord file.

    That is `.tfrecord`, `.tfrecords` or `.tfrec`, and what TensorFlow calls
    shards, such as `x.tfrecord-00000-of-00002`.
    """
    return _RECORDS.fullmatch(_last_suffix(name)) is not None


def records_stem(path: str | Path) -> str:
    """Return the path of a TFRecord file without its suffix.

    What shards are numbered by stays: that of `x.tfrecord-00000-of-00002` is
    `x-00000-of-00002`.
    """
    stem, suffix = os.path.splitext(os.fspath(path))
    found = _RECORDS.fullmatch(suffix)
    return stem + (found[2] or "" if found else "")


def is_parquet(name: str | Path) -> bool:
    """Return whether the suffix of a name is that of a Parquet file."""
    return str(name).lower().endswith(".parquet")


def suffix_of(name: str) -> str:
    """Return the suffix of a name, in lower case."""
    return posixpath.splitext(name)[1].lower()


def stem_of(name: str) -> str:
    """Return a name, or a path, without its suffix."""
    return posixpath.splitext(name)[0]


def sample_key(path: str) -> str:
    """Return a path up to the first dot of its name.

    Files of one sample of a WebDataset share it, and those that img2dataset
    writes of one shard.
    """
    folder, name = posixpath.split(path)
    return posixpath.join(folder, name.partition(".")[0])


def is_packed(name: str | Path) -> bool:
    """Return whether a name is that of an archive that is not read.

    Compressed images and records count, too; compressed tables do not.
    """
    name = str(name).lower()
    if name.endswith(_UNREAD_ARCHIVES):
        return True
    inner, suffix = os.path.splitext(name)
    kinds = (is_image, is_archive, is_records, is_parquet)
    packed = suffix in _COMPRESSIONS and any(kind(inner) for kind in kinds)
    return packed and not is_archive(name)


def may_hold_images(name: str | Path) -> bool:
    """Return whether a name is that of an image or of a file of several."""
    return is_image(name) or holds_several(name)


def holds_several(name: str | Path) -> bool:
    """Return whether a name is that of a file which may hold several images.

    Archives that are not read count, too.
    """
    kinds = (is_archive, is_records, is_parquet, is_packed)
    return any(kind(name) for kind in kinds)


def is_arrow(name: str | Path) -> bool:
    """Return whether the suffix of a name is that of an Arrow file."""
    return _last_suffix(name).lower() == ".arrow"


def _last_suffix(name):
    return PurePosixPath(name).suffix


def refuse_others(path: str | Path):
    """Refuse a file as TFRecord file whose name says that it is another.

    Raises:
        ValueError: It does; the message says what to do.
    """
    suffix = _last_suffix(path).lower()
    for suffixes, told in _OTHERS.items():
        if suffix in suffixes:
            raise ValueError(f"`{path}` is {told}.")


def is_junk(name: str | Path) -> bool:
    """Return whether a file is hidden, or was left by an operating system.

    Args:
        name: string or `pathlib.Path`, relative to the folder or archive that
            the user gave: where that lies does not matter.

    Returns:
        bool. True for `._0.jpg`, `__MACOSX/0.jpg`, `.ipynb_checkpoints` and
        the like.
    """
    return any(
        part in _JUNK or (part[0] == "." and part != "..")
        for part in PurePosixPath(name).parts
    )


def glob_visible(folder: str | Path, pattern: str) -> list[Path]:
    """List what matches a pattern, but for what `is_junk` tells of.

    Args:
        folder: string or `pathlib.Path`.
        pattern: string, relative to the folder, as `pathlib` takes it.

    Returns:
        Sorted list of `pathlib.Path`.
    """
    folder = Path(folder)
    found = sorted(folder.glob(pattern))
    return [path for path in found if not is_junk(path.relative_to(folder))]


def list_images(
    folder: str | Path, allow_outside: bool, place: str = ""
) -> list[str]:
    """List the images of a folder and of the folders in it.

    Args:
        folder: string or `pathlib.Path`.
        allow_outside: bool, see `walk_folder`.
        place: string, see `walk_folder`.

    Returns:
        Sorted list of paths relative to the folder. Links that lead nowhere,
        and folders that are not looked into, are among them, so that whoever
        reads them can tell.
    """
    files, closed = walk_folder(folder, allow_outside, place)
    return sorted([*filter(is_image, files), *closed])


def walk_folder(
    folder: str | Path, allow_outside: bool, place: str = ""
) -> tuple[list[str], list[str]]:
    """List the files of a folder and of the folders in it.

    Links to folders are followed, but no folder is listed twice, so that links
    may lead in circles.

    Args:
        folder: string or `pathlib.Path`.
        allow_outside: bool. Whether to follow links that lead out of the
            folder.
        place: string. Where in the folder to begin. Defaults to `""`.

    Returns:
        Two lists of paths relative to the folder: those of files, and those of
        folders that are not looked into, as they lie outside or cannot be
        read, and of links that lead nowhere. What systems leave behind is in
        neither. Both are empty where there is no such folder.
    """
    folder = Path(folder)
    files, closed, seen = [], [], set()
    # A folder's own name comes before those that links give it.
    start = place
    waiting, links = [start] if (folder / start).is_dir() else [], []
    while waiting or links:
        place = waiting.pop() if waiting else links.pop()
        try:
            real = resolve_within(folder, place, allow_outside)
            entries = [] if real in seen else list(os.scandir(real))
        except OSError:
            if place == start == "":
                raise
            closed.append(place)
            continue
        seen.add(real)
        for entry in entries:
            name = posixpath.join(place, entry.name)
            if is_junk(name):
                continue
            # `DirEntry.is_dir` raises where a link leads to itself.
            link = entry.is_symlink()
            if not (os.path.isdir(entry) if link else entry.is_dir()):
                found = not link or os.path.exists(entry)
                (files if found else closed).append(name)
            elif link:
                links.append(name)
            else:
                waiting.append(name)
        links.sort(reverse=True)
    return sorted(files), sorted(closed)


def list_files(source: str | Path, wanted: Callable) -> list[str]:
    """List the files of a folder, a glob, or a file alone, sorted.

    Args:
        source: string or `pathlib.Path`. Folders within a folder are not
            looked into. The name of a file may hold what a glob would read
            otherwise, such as brackets.
        wanted: callable of a name that tells whether it is taken.

    Returns:
        List of strings. Links that lead nowhere are among them, so that
        whoever reads them can tell.
    """
    source = Path(source)
    if source.is_dir():
        found = source.iterdir()
    elif source.is_file():
        found = [source]
    else:
        found = map(Path, glob.glob(str(source)))
    return sorted(
        str(path)
        for path in found
        if wanted(path.name)
        and not is_junk(path.name)
        and (path.is_file() or not path.exists())
    )


def natural_order(names: Iterable[str]) -> list[str]:
    """Sort names so that numbers in them count as numbers: 1, 2, 10."""

    def key(name):
        parts = re.split(r"([0-9]+)", name)
        # Text and numbers take turns, so like is compared with like.
        parts[1::2] = map(int, parts[1::2])
        return parts, name

    return sorted(names, key=key)
