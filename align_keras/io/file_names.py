"""Recognize images, archives and other files by name, and list them."""

import glob
import os
import posixpath
import re
from collections.abc import Callable
from collections.abc import Iterable
from pathlib import Path
from pathlib import PurePosixPath

from align_keras.io.folders import resolve_within

# Formats that Pillow decodes and `decode_with_pillow` allows.
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
# Image formats that are not supported. Such files are reported, not ignored.
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
# Other files, of which there may be as many as images or records.
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
# URLs and programs append characters to the suffix.
_IMAGE_SUFFIX = re.compile(r"\.[A-Za-z0-9]+")
# Archives that are not supported, and compressed files of any kind.
_UNREAD_ARCHIVES = (".zip", ".rar", ".7z", ".tar.z", ".tar.lzma", ".arrow")
_COMPRESSIONS = (".zst", ".lz4", ".gz", ".bz2", ".xz")
# Suffixes of incomplete downloads.
_DOWNLOADS = (".part", ".partial", ".crdownload", ".download", ".filepart")
# Shard numbers may follow, as in the names that TensorFlow and TFDS use.
_RECORDS = re.compile(r"\.(tfrecords?|tfrec)(-\d+-of-\d+)?", re.IGNORECASE)
# Suffixes of files that are not TFRecord files, and what to do with each.
_OTHERS = {
    (".zip", ".rar", ".7z", ".z", ".lzma", *_COMPRESSIONS): (
        "an archive of a kind that is not read: unpack it, and give the folder"
    ),
    (".arrow",): "a table of a kind that is not read: write it as Parquet",
    (".csv", ".tsv", ".jsonl", ".ndjson", ".json"): (
        "a table: give the folder of its images; the table is found there if "
        "it is called `captions`; otherwise give it with `--captions`"
    ),
    tuple(sorted(_ANY_IMAGE)): "one image: give the folder that holds it",
    (".txt",): "a text file: give the folder of the image that it belongs to",
}
# Files that operating systems and file servers leave among those of the user.
# Other such names begin with a dot.
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
    """Return whether a name has the suffix of an image, ignoring case.

    Formats that are not supported also count. Characters after the suffix, as
    in `a.jpg?w=100`, `a.jpg_large` or `a.jpg~`, are ignored.
    """
    suffix = _IMAGE_SUFFIX.match(_last_suffix(name))
    return suffix is not None and suffix[0].lower() in _ANY_IMAGE


def is_unfinished_image(name: str | Path) -> bool:
    """Return whether a name is that of an incomplete download of an image."""
    inner, suffix = os.path.splitext(str(name))
    return suffix.lower() in _DOWNLOADS and is_image(inner)


def is_archive(name: str | Path) -> bool:
    """Return whether the suffix of a name is that of a WebDataset archive."""
    return str(name).lower().endswith(ARCHIVE_SUFFIXES)


def is_records(name: str | Path) -> bool:
    """Return whether the suffix of a name is that of a TFRecord file.

    It is `.tfrecord`, `.tfrecords` or `.tfrec`. TensorFlow's names of shards,
    such as `x.tfrecord-00000-of-00002`, also count.
    """
    return _RECORDS.fullmatch(_last_suffix(name)) is not None


def records_stem(path: str | Path) -> str:
    """Return the path of a TFRecord file without its suffix.

    The number of a shard is kept: the stem of `x.tfrecord-00000-of-00002` is
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
    """Return a path up to the first dot of its file name.

    It is the same for all files of a sample of a WebDataset, and for all files
    that img2dataset writes for a shard.
    """
    folder, name = posixpath.split(path)
    return posixpath.join(folder, name.partition(".")[0])


def is_packed(name: str | Path) -> bool:
    """Return whether a name is that of an archive that is not supported.

    Compressed images, records and Parquet files also count; compressed text
    tables do not.
    """
    name = str(name).lower()
    if name.endswith(_UNREAD_ARCHIVES):
        return True
    inner, suffix = os.path.splitext(name)
    kinds = (is_image, is_archive, is_records, is_parquet)
    packed = suffix in _COMPRESSIONS and any(kind(inner) for kind in kinds)
    return packed and not is_archive(name)


def may_hold_images(name: str | Path) -> bool:
    """Return whether a name is that of an image or of a file of images."""
    return is_image(name) or holds_several(name)


def holds_several(name: str | Path) -> bool:
    """Return whether a name is that of a file that may hold several images.

    Archives that are not supported also count.
    """
    kinds = (is_archive, is_records, is_parquet, is_packed)
    return any(kind(name) for kind in kinds)


def is_arrow(name: str | Path) -> bool:
    """Return whether the suffix of a name is that of an Arrow file."""
    return _last_suffix(name).lower() == ".arrow"


def _last_suffix(name):
    return PurePosixPath(name).suffix


def refuse_others(path: str | Path):
    """Refuse a TFRecord file whose suffix is that of another kind of file.

    Raises:
        ValueError: The suffix is another one. The message says what to do.
    """
    suffix = _last_suffix(path).lower()
    for suffixes, told in _OTHERS.items():
        if suffix in suffixes:
            raise ValueError(f"`{path}` is {told}.")


def is_junk(name: str | Path) -> bool:
    """Return whether a file is hidden, or was left by an operating system.

    Args:
        name: string or `pathlib.Path`, relative to the folder or archive that
            the user gave, so that hidden parent folders do not matter.

    Returns:
        bool. True for `._0.jpg`, `__MACOSX/0.jpg`, `.ipynb_checkpoints` and
        the like.
    """
    return any(
        part in _JUNK or (part[0] == "." and part != "..")
        for part in PurePosixPath(name).parts
    )


def glob_visible(folder: str | Path, pattern: str) -> list[Path]:
    """List the files that match a pattern, except those of `is_junk`.

    Args:
        folder: string or `pathlib.Path`.
        pattern: string. A `pathlib` pattern relative to the folder.

    Returns:
        Sorted list of `pathlib.Path`.
    """
    folder = Path(folder)
    found = sorted(folder.glob(pattern))
    return [path for path in found if not is_junk(path.relative_to(folder))]


def list_images(
    folder: str | Path, allow_outside: bool, place: str = ""
) -> list[str]:
    """List the images of a folder and its subfolders.

    Args:
        folder: string or `pathlib.Path`.
        allow_outside: bool. See `walk_folder`.
        place: string. See `walk_folder`. Defaults to `""`.

    Returns:
        Sorted list of paths relative to the folder. It includes broken links
        and folders that are not searched, so that the caller can report them.
    """
    files, closed = walk_folder(folder, allow_outside, place)
    return sorted([*filter(is_image, files), *closed])


def walk_folder(
    folder: str | Path, allow_outside: bool, place: str = ""
) -> tuple[list[str], list[str]]:
    """List the files of a folder and its subfolders.

    Links to folders are followed. No folder is listed twice, so circular links
    do no harm.

    Args:
        folder: string or `pathlib.Path`.
        allow_outside: bool. Whether to follow links that lead out of the
            folder.
        place: string. The subfolder to start at. Defaults to `""`.

    Returns:
        Two lists of paths relative to the folder: files; and broken links and
        folders that are not searched because they are outside or cannot be
        read. Files of `is_junk` are in neither. Both are empty if the folder
        does not exist.
    """
    folder = Path(folder)
    files, closed, seen = [], [], set()
    # Visit real folders before links, to list them under their own names.
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
            # `DirEntry.is_dir` raises an error for a link to itself.
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
    """List the files of a folder or a glob, or a single file, sorted.

    Args:
        source: string or `pathlib.Path`. Subfolders are not searched. The
            name of an existing file may contain glob characters such as
            brackets.
        wanted: callable. Takes a name and returns whether to list the file.

    Returns:
        List of strings. It includes broken links, so that the caller can
        report them.
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
    """Sort names with numbers in them in numeric order: 1, 2, 10."""

    def key(name):
        parts = re.split(r"([0-9]+)", name)
        # Text and numbers alternate, so only equal types are compared.
        parts[1::2] = map(int, parts[1::2])
        return parts, name

    return sorted(names, key=key)
