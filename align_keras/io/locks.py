"""One writer at a time for each directory."""

import contextlib
import datetime
import errno
import hashlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from align_keras.io.paths import local_path

LOCK_NAME = ".align_keras.lock"
# Names of files that cannot be locked at all, on some network file systems.
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# Whoever asks whether a lock is stale holds it for that moment.
_ATTEMPTS, _PAUSE = 4, 0.05

logger = logging.getLogger("align_keras")
_held: list["_Lock"] = []


@contextlib.contextmanager
def directory_lock(
    directory: str | Path, beside: bool = False
) -> Iterator[None]:
    """Hold a directory, so that no other process writes into it.

    The operating system releases the lock when its holder dies, however it
    dies; the file that a killed holder leaves holds nobody up, and the next
    holder removes it.

    Args:
        directory: string or `pathlib.Path`. Made where it does not exist.
        beside: bool. Whether the lock lies beside the directory, which then
            need not exist, in the place of within it. Defaults to `False`.

    Raises:
        BlockingIOError: Another process holds it; the message names its
            host, its process id and when it began. Or the lock was taken
            away in the meantime.

    Example:

    ```python
    with directory_lock("packed"):
        write_shards("packed")
    ```
    """
    lock = _Lock(Path(os.path.abspath(local_path(directory))), beside)
    _held.append(lock)
    try:
        yield
        lock.check()
    finally:
        _held.remove(lock)
        lock.release()


def check_locks(path: str | Path) -> None:
    """Check before a commit that this process still holds what it took.

    Args:
        path: string or `pathlib.Path`. What is about to be written.

    Raises:
        BlockingIOError: A lock on a directory above `path` is gone, for the
            directory was removed, or another process has it.
    """
    path = Path(os.path.abspath(path))
    for lock in _held:
        if lock.directory == path or lock.directory in path.parents:
            lock.check()


def remove_stale_locks(directory: Path) -> None:
    """Remove locks beside others that killed processes left behind."""
    for path in directory.glob(f".*{LOCK_NAME}"):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            _flock(file)
            if _is_at(file, path):
                path.unlink()


class _Lock:
    """A lock that is held from its construction until it is released."""

    def __init__(self, directory: Path, beside: bool):
        self.directory = directory
        parent = directory.parent if beside else directory
        self._made = None if parent.exists() else parent
        self._path = parent / (_name_beside(directory) if beside else LOCK_NAME)
        self._file = self._acquire()
        try:
            self._file.truncate(0)
            self._file.write(json.dumps(myself()) + "\n")
            self._file.flush()
        except OSError as error:
            # On a full disk.
            self.release()
            raise OSError(error.errno, error.strerror, str(directory)) from None

    def _acquire(self):
        attempts = 0
        while True:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                file = open(self._path, "a+", encoding="utf-8")
            except FileNotFoundError:
                # Another one has just removed what it had made.
                continue
            try:
                _flock(file)
            except BlockingIOError:
                attempts += 1
                if attempts == _ATTEMPTS:
                    message = (
                        f"Another process writes to `{self.directory}`"
                        f"{_holder(file)}. Wait until it ends, or choose "
                        "another place."
                    )
                    file.close()
                    raise BlockingIOError(message) from None
                time.sleep(_PAUSE)
            else:
                if _is_at(file, self._path):
                    return file
            # Its holder has removed it between the two calls.
            file.close()

    def check(self):
        if _is_at(self._file, self._path):
            return
        holder = ""
        with contextlib.suppress(OSError), open(self._path) as file:
            holder = _holder(file)
        raise BlockingIOError(
            f"`{self.directory}` was removed, or taken by another process"
            f"{holder}, while this one wrote to it, which therefore ends. "
            "Start again when nothing else writes there."
        )

    def release(self):
        # While it is still held: nobody else holds a file of that name.
        if _is_at(self._file, self._path):
            self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._file.close()
        if self._made:
            # Whoever was refused leaves no empty directory.
            with contextlib.suppress(OSError):
                self._made.rmdir()


def _name_beside(directory):
    name = directory.name
    # A file system allows names of 255 bytes.
    if len(os.fsencode(name)) > 128:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f".{name}{LOCK_NAME}"


def _flock(file):
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        logger.warning(
            "`%s` lies where no file can be locked: see to it that no two "
            "processes write there at once.",
            os.path.dirname(file.name),
        )


def _is_at(file, path):
    """Whether an open file is the one that has this name."""
    try:
        # Opened, not asked by its name: network file systems remember names.
        with open(path, "rb") as found:
            return os.path.sameopenfile(file.fileno(), found.fileno())
    except OSError:
        return False


def myself() -> dict:
    """Return what tells this process from others."""
    now = datetime.datetime.now(datetime.UTC)
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "start": now.isoformat(timespec="seconds"),
    }


def read_holder(signature: str | bytes) -> dict:
    """Return what `myself` said of a holder, empty where it is none."""
    try:
        holder = json.loads(signature)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def describe_holder(holder: dict) -> str:
    """Return who holds a lock in words, nothing before it has signed."""
    if not {"host", "pid", "start"} <= holder.keys():
        return ""
    return (
        f": process {holder['pid']} on {holder['host']}, since "
        f"{holder['start']}"
    )


def _holder(file):
    file.seek(0)
    return describe_holder(read_holder(file.read()))
