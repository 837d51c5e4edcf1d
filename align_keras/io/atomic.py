"""Write files and directories that appear complete or not at all."""

import contextlib
import errno
import functools
import os
import re
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterable
from collections.abc import Iterator
from pathlib import Path

from align_keras.io.locks import check_locks
from align_keras.io.locks import directory_lock
from align_keras.io.locks import remove_stale_locks
from align_keras.io.paths import local_path
from align_keras.io.stores import Store
from align_keras.io.stores import is_store

# No pattern for data files matches this suffix.
UNFINISHED = ".unfinished"
_HOST = re.sub(r"[^A-Za-z0-9]", "-", socket.gethostname())
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Errors that are not the fault of the file being read.
OF_THE_MACHINE = (
    *_NO_ROOM,
    errno.EROFS,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
)
# Names without directories, which may be written in several ways.
_writing: set[str] = set()
# The umask can only be read by changing it, so one thread at a time does.
_asking = threading.Lock()


@contextlib.contextmanager
def atomic_file(path: str | Path, suffix: str = "") -> Iterator[Path]:
    """Yield a temporary path that becomes `path` when the block succeeds.

    The temporary file is in the same directory, so the final step is a rename
    within one file system. If the block raises an error, the temporary file is
    removed, and an existing file at `path` is left as it is. Temporary files
    of a killed process are removed by the next one that writes into the
    directory.

    Args:
        path: string or `pathlib.Path`. The file to write, or an address such
            as `s3://bucket/vocab.txt`. Missing parent directories are created.
        suffix: string. The end of the temporary file's name, for writers that
            choose the format by it. Defaults to `""`: no pattern for data
            files matches the temporary file.

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
    _writing.add(temporary.name)
    try:
        with _named(path):
            yield temporary
        _make_public(temporary)
        check_locks(path)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        _writing.discard(temporary.name)


@contextlib.contextmanager
def _stored_file(store, suffix):
    with tempfile.TemporaryDirectory(prefix="align_keras-") as folder:
        name = store.address.rpartition("/")[2]
        temporary = Path(folder, name + suffix)
        yield temporary
        # In a store, a file appears only when it is complete.
        store.put(temporary, "")


@contextlib.contextmanager
def atomic_directory(
    path: str | Path, owned: Iterable[str] = ()
) -> Iterator[Path]:
    """Yield a temporary directory that becomes `path` on success.

    A new directory appears with a single rename. If `path` already exists,
    each new file replaces the file of the same name and other files stay,
    except those in `owned`. So readers never see half a file, and no files of
    the user are deleted. If two processes write the same directory, the
    second is refused.

    Args:
        path: string or `pathlib.Path`. The directory to write. Missing parent
            directories are created.
        owned: iterable of strings. Names of files in the directory that only
            this writer writes. Those that it did not write this time are
            removed from an existing directory. Defaults to none.

    Raises:
        BlockingIOError: Another process is writing it; see `directory_lock`.
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
            # Exclude processes that write into it without replacing it.
            stack.enter_context(directory_lock(path))
        name = tempfile.mkdtemp(
            dir=path.parent, prefix=_prefix(path), suffix=UNFINISHED
        )
        temporary = Path(name)
        _writing.add(temporary.name)
        stack.callback(_writing.discard, temporary.name)
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        with _named(path):
            yield temporary
        _make_public(temporary)
        check_locks(path)
        if path.exists():
            if not existed:
                # Another process made it in the meantime, and may be writing.
                stack.enter_context(directory_lock(path))
            # First, for new files must not be read together with these.
            for name in owned:
                if not (temporary / name).exists():
                    (path / name).unlink(missing_ok=True)
            _replace_files(temporary, path)
        else:
            os.replace(temporary, path)


@contextlib.contextmanager
def _named(path):
    """Name the path in errors of writing it, such as a full disk."""
    try:
        yield
    except shutil.Error as error:
        # The error holds a list of the files that could not be copied.
        reason = error.args[0][0][2]
        raise OSError(f"`{path}` could not be written: {reason}") from None
    except OSError as error:
        if error.errno in _NO_ROOM and error.filename is None:
            reason = os.strerror(error.errno)
            raise OSError(error.errno, reason, str(path)) from error
        raise


def _prefix(path):
    # File systems allow names of 255 bytes; leave room for the rest.
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
    """Replace the private mode of a temporary file by the one of the umask."""
    with _asking:
        umask = os.umask(0)
        os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def remove_leftovers(directory: str | Path) -> None:
    """Remove temporary files that killed processes left behind.

    Only files of processes of this host that have ended are removed, because
    others may still be writing into the same directory.

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


# Search a directory only once, not for each file written to it.
_look_once = functools.cache(remove_leftovers)


def _is_left(path):
    parts = path.name.partition(UNFINISHED)[0].rsplit(".", 3)
    if len(parts) != 4 or parts[1] != _HOST or not parts[2].isdigit():
        return False
    pid = int(parts[2])
    if pid == os.getpid():
        # In a container, a process may get the same id as an earlier one.
        return path.name not in _writing
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
