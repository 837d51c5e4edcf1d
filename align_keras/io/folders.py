"""Read untrusted file names safely: in a folder, regular, and limited in size.

The author of a caption table, or of an archive with links, chooses which files
are opened. A name such as `../../secret.txt`, a link to a file elsewhere,
`/dev/zero` or a pipe is refused here before any byte of it is read.
"""

import errno
import os
import re
import stat
from pathlib import Path

from align_keras.io.stores import scheme_of

# No photograph is larger. Several threads hold such files in memory.
MAX_FILE_BYTES = 256 * 2**20


class OutsideFolder(PermissionError):
    """A name or link that leads out of the folder that was given."""


def read_file(path: str | Path, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Read a regular file of limited size.

    Args:
        path: string or `pathlib.Path`.
        max_bytes: int. Defaults to 256 MiB.

    Returns:
        bytes.

    Raises:
        FileNotFoundError: The file does not exist, or its name is invalid.
        OSError: It is a device, a pipe or a directory, or too large.
    """
    try:
        # Opening a pipe without this flag would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except ValueError as error:
        # The name contains a null byte or a lone surrogate.
        raise FileNotFoundError(str(error)) from None
    with open(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "It is not a regular file", str(path))
        if about.st_size <= max_bytes:
            contents = file.read(about.st_size + 1)
            # It may have grown, and some system files report no size.
            while len(contents) <= max_bytes and (more := file.read(2**20)):
                contents += more
            if len(contents) <= max_bytes:
                return contents
    raise OSError(errno.EFBIG, f"It has more than {max_bytes} bytes", str(path))


def require_regular(path: str | Path) -> None:
    """Refuse devices, pipes and directories; reading them may never end.

    Args:
        path: string or `pathlib.Path`. Links are followed.

    Raises:
        OSError: The file does not exist or is not a regular file.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "It is not a regular file", str(path))


def stays_inside(name: str) -> bool:
    """Whether a relative path leads to no other place than its folder."""
    path = Path(name)
    return not path.is_absolute() and ".." not in path.parts


def read_within(
    folder: str | Path,
    name: str | Path,
    allow_outside: bool = False,
    max_bytes: int = MAX_FILE_BYTES,
) -> bytes:
    """Read a file of a folder; see `resolve_within` and `read_file`."""
    path = resolve_within(folder, name, allow_outside)
    return read_file(path, max_bytes)


def resolve_within(
    folder: str | Path, name: str | Path, allow_outside: bool | None = False
) -> Path:
    """Resolve a name and its links, and refuse one that leads out of a folder.

    Links in Hugging Face's cache, from `snapshots/…` to `blobs`, stay within
    their repository and are followed.

    Args:
        folder: string or `pathlib.Path`. May itself be a link.
        name: string or `pathlib.Path`, relative to `folder`.
        allow_outside: bool. Whether to allow files outside the folder. `None`
            means `False` where the user has no such option. Defaults to
            `False`.

    Returns:
        `pathlib.Path` without links.

    Raises:
        FileNotFoundError: The name is not a valid file name.
        OutsideFolder: It leads out of the folder. The message says where to.
    """
    path = Path(folder, name)
    try:
        found = os.path.realpath(path)
    except ValueError as error:
        raise FileNotFoundError(str(error)) from None
    if allow_outside or any(
        f"{found}{os.sep}".startswith(f"{root.rstrip(os.sep)}{os.sep}")
        for root in _roots(os.path.realpath(folder))
    ):
        return Path(found)
    option = "" if allow_outside is None else ", or give `--allow-outside`"
    raise OutsideFolder(
        f"`{path}` leads out of `{folder}`, to `{found}`: copy the file into "
        f"the folder{option}, if this is intended."
    )


def check_member(
    source: str | Path, path: str | Path, allow_outside: bool = False
) -> None:
    """Refuse a file of a source that leads out of the source's folder.

    The folder of a glob is the part before its first wildcard. A source that
    is a single file or an address is always allowed.

    Args:
        source: string or `pathlib.Path`. A folder, a glob, or a file.
        path: string or `pathlib.Path`. One of the files in it.
        allow_outside: bool. See `resolve_within`.

    Raises:
        OutsideFolder: It leads out of the folder. The message says where to.
    """
    if scheme_of(source) or os.path.isfile(source):
        return
    folder = Path(source).absolute()
    if not folder.is_dir():
        parts = folder.parts
        wild = [bool(re.search(r"[*?[]", part)) for part in parts]
        folder = Path(*parts[: wild.index(True) if any(wild) else -1])
    resolve_within(folder, Path(path).absolute(), allow_outside)


def check_links(folder: str | Path) -> None:
    """Refuse a folder that contains a link leading out of it.

    Args:
        folder: string or `pathlib.Path`. It may itself be a link. Links in
            Hugging Face's cache are followed; see `resolve_within`.

    Raises:
        OutsideFolder: There is such a link. The message names it.
    """
    for path in Path(folder).rglob("*"):
        if path.is_symlink():
            resolve_within(folder, path.relative_to(folder), None)


def is_file_within(
    folder: str | Path, name: str | Path, allow_outside: bool = False
) -> bool:
    """Return whether `read_within` would find a regular file of any size."""
    try:
        return resolve_within(folder, name, allow_outside).is_file()
    except OSError:
        # Also if the name is too long.
        return False


def _roots(folder):
    roots = [folder]
    parents = Path(folder).parents
    for parent in (Path(folder), *parents):
        blobs = parent.parent / "blobs"
        if parent.name == "snapshots" and not blobs.is_symlink():
            roots.append(str(blobs))
    return roots
