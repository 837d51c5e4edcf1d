"""What the name of a file tells: an image, an archive, or nothing of ours."""

import glob
import re
from collections.abc import Callable
from collections.abc import Iterable
from pathlib import Path
from pathlib import PurePosixPath

# Of the formats that Pillow decodes and `decode_with_pillow` allows.
IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".mpo",
    ".png",
    ".apng",
    ".webp",
    ".gif",
    ".bmp",
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
ARCHIVE_SUFFIXES = (
    ".tar",
    ".tar.gz",
    ".tgz",
    ".tar.bz2",
    ".tbz2",
    ".tar.xz",
    ".txz",
)
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
    """Return whether the suffix of a name, in any case, is that of an image."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def is_archive(name: str | Path) -> bool:
    """Return whether the suffix of a name is that of a WebDataset archive."""
    return str(name).lower().endswith(ARCHIVE_SUFFIXES)


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


def list_images(folder: str | Path) -> list[str]:
    """List the images of a folder and of the folders in it.

    Args:
        folder: string or `pathlib.Path`.

    Returns:
        Sorted list of paths relative to the folder. A link that leads nowhere
        is among them, so that whoever reads it can tell.
    """
    folder = Path(folder)
    found = (
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if is_image(path.name) and not path.is_dir()
    )
    return sorted(name for name in found if not is_junk(name))


def list_archives(source: str | Path) -> list[str]:
    """List the archives that a folder, a file or a glob names, sorted."""
    return list_files(source, is_archive)


def list_files(source: str | Path, wanted: Callable) -> list[str]:
    """List the files of a folder, a glob, or a file alone, sorted.

    Args:
        source: string or `pathlib.Path`. Folders within a folder are not
            looked into. The name of a file may hold what a glob would read
            otherwise, such as brackets.
        wanted: callable of a name that tells whether it is taken.

    Returns:
        List of strings.
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
        if wanted(path.name) and not is_junk(path.name) and path.is_file()
    )


def natural_order(names: Iterable[str]) -> list[str]:
    """Sort names so that numbers in them count as numbers: 1, 2, 10."""

    def key(name):
        parts = re.split(r"([0-9]+)", name)
        # Text and numbers take turns, so like is compared with like.
        parts[1::2] = map(int, parts[1::2])
        return parts, name

    return sorted(names, key=key)
