"""Files and directories that appear whole or not at all."""

import contextlib
import errno
import functools
import os
import re
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from align_keras.io.locks import check_locks
from align_keras.io.locks import directory_lock
from align_keras.io.locks import remove_stale_locks
from align_keras.io.paths import local_path
from align_keras.io.stores import Store
from align_keras.io.stores import is_store

# No pattern for data files ends like this.
UNFINISHED = ".unfinished"
_HOST = re.sub(r"[^A-Za-z0-9]", "-", socket.gethostname())
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Errors that no file which is read can be blamed for.
OF_THE_MACHINE = (
    *_NO_ROOM,
    errno.EROFS,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
)
_writing: set[str] = set()
# The mode of new files can only be asked for by changing it.
_asking = threading.Lock()


@contextlib.contextmanager
def atomic_file(path: str | Path, suffix: str = "") -> Iterator[Path]:
    """Yield a temporary path that becomes `path` when the block succeeds.

    The temporary file lies in the same directory, so that the final step is a
    rename on one file system. When the block raises, the temporary file is
    removed and whatever stood at `path` before is untouched. What a killed
    process left is removed by the next one that writes into the directory.

    Args:
        path: string or `pathlib.Path`. The file to write, or the address of
            one such as `s3://bucket/vocab.txt`. Missing parent directories
            are created.
        suffix: string. The end of the temporary file's name, for writers that
            choose a format by it. Defaults to `""`: no pattern for data files
            takes a temporary file for one of them.

    Example:

    ```python
    with atomic_file("manifest.json") as temporary:
        temporary.write_text("{}")
    ```
    """
    if is_store(path):
        with _stored_file(Store(path), suffix) as temporary:
            yield temporary
        return
    path = local_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _look_once(path.parent)
    descriptor, name = tempfile.mkstemp(
        dir=path.parent, prefix=_prefix(path), suffix=UNFINISHED + suffix
    )
    os.close(descriptor)
    temporary = Path(name)
    _writing.add(name)
    try:
        with _named(path):
            yield temporary
        _make_public(temporary)
        check_locks(path)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        _writing.discard(name)


@contextlib.contextmanager
def _stored_file(store, suffix):
    with tempfile.TemporaryDirectory(prefix="align_keras-") as folder:
        name = store.address.rpartition("/")[2]
        temporary = Path(folder, name + suffix)
        yield temporary
        # Stores show a file when it is whole.
        store.put(temporary, "")


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield a temporary directory that becomes `path` on success.

    A new directory appears in one rename. Where `path` exists already, each
    file that was written replaces its namesake and other files stay, so that
    no reader ever sees half a file and nothing of the user's is deleted. Of
    two processes that write one directory, the second is refused.

    Args:
        path: string or `pathlib.Path`. The directory to write. Missing parent
            directories are created.

    Raises:
        BlockingIOError: Another process writes it, see `directory_lock`.
        FileExistsError: `path` is a file.

    Example:

    ```python
    with atomic_directory("my_preset") as temporary:
        (temporary / "config.json").write_text("{}")
    ```
    """
    path = local_path(path)
    if path.is_file():
        raise FileExistsError(
            f"`{path}` is a file, but a directory is to be written there. "
            "Choose another path or remove the file."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    _look_once(path.parent)
    with contextlib.ExitStack() as stack:
        stack.enter_context(directory_lock(path, beside=True))
        existed = path.exists()
        if existed:
            # Those that write into it without replacing it.
            stack.enter_context(directory_lock(path))
        name = tempfile.mkdtemp(
            dir=path.parent, prefix=_prefix(path), suffix=UNFINISHED
        )
        temporary = Path(name)
        _writing.add(name)
        stack.callback(_writing.discard, name)
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        with _named(path):
            yield temporary
        _make_public(temporary)
        check_locks(path)
        if path.exists():
            if not existed:
                # Made in the meantime, perhaps by who writes into it now.
                stack.enter_context(directory_lock(path))
            _replace_files(temporary, path)
        else:
            os.replace(temporary, path)


@contextlib.contextmanager
def _named(path):
    """Say what could not be written where the disk is full."""
    try:
        yield
    except shutil.Error as error:
        # A list of what could not be copied.
        reason = error.args[0][0][2]
        raise OSError(f"`{path}` could not be written: {reason}") from None
    except OSError as error:
        if error.errno in _NO_ROOM and error.filename is None:
            reason = os.strerror(error.errno)
            raise OSError(error.errno, reason, str(path)) from error
        raise


def _prefix(path):
    # A file system allows names of 255 bytes; the end needs some of them.
    name = path.name.encode(errors="surrogateescape")[:128]
    return f".{name.decode(errors='ignore')}.{_HOST}.{os.getpid()}."


def _replace_files(source, target):
    for file in sorted(source.rglob("*")):
        destination = target / file.relative_to(source)
        if file.is_dir():
            destination.mkdir(parents=True, exist_ok=True)
        else:
            os.replace(file, destination)


def _make_public(path):
    """Undo the private mode of temporary files, as the umask would have."""
    with _asking:
        umask = os.umask(0)
        os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def remove_leftovers(directory: str | Path) -> None:
    """Remove what killed processes left of files that they were writing.

    Only those of this host are removed whose process has ended: another one
    may be writing into the same directory.

    Args:
        directory: string or `pathlib.Path`. Need not exist.
    """
    directory = Path(directory)
    remove_stale_locks(directory)
    for path in directory.glob(f".*{UNFINISHED}*"):
        if not _is_left(path):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


# A directory of many files is not searched again for each of them.
_look_once = functools.cache(remove_leftovers)


def _is_left(path):
    parts = path.name.partition(UNFINISHED)[0].rsplit(".", 3)
    if len(parts) != 4 or parts[1] != _HOST or not parts[2].isdigit():
        return False
    pid = int(parts[2])
    if pid == os.getpid():
        # In a container a process may have the number of the one before it.
        return str(path) not in _writing
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
