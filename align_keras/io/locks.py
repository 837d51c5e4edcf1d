"""Allow only one writer at a time in each directory."""

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
# Errors of file systems, such as some network ones, that support no locks.
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# Retry: a process that checks whether a lock is stale holds it for a moment.
_ATTEMPTS, _PAUSE = 4, 0.05

logger = logging.getLogger("align_keras")
_held: list["_Lock"] = []


@contextlib.contextmanager
def directory_lock(
    directory: str | Path, beside: bool = False
) -> Iterator[None]:
    """Lock a directory, so that no other process writes into it.

    The operating system releases the lock when its holder exits or is killed.
    The lock file that a killed holder leaves behind blocks nobody, and the
    next holder removes it.

    Args:
        directory: string or `pathlib.Path`. Created if it does not exist.
        beside: bool. Whether to put the lock file next to the directory
            instead of into it. The directory then need not exist. Defaults to
            `False`.

    Raises:
        BlockingIOError: Another process holds the lock; the message names its
            host, its process id and its start time. Or the lock was lost in
            the meantime.

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
    """Check before a commit that this process still holds its locks.

    Args:
        path: string or `pathlib.Path`. The path about to be written.

    Raises:
        BlockingIOError: A lock on `path` or a directory above it is lost,
            because the directory was removed or another process locked it.
    """
    path = Path(os.path.abspath(path))
    for lock in _held:
        if lock.directory == path or lock.directory in path.parents:
            lock.check()


def remove_stale_locks(directory: Path) -> None:
    """Remove lock files next to directories that killed processes left."""
    for path in directory.glob(f".*{LOCK_NAME}"):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            _flock(file)
            if _is_at(file, path):
                path.unlink()


class _Lock:
    """A lock that is acquired on construction and held until released."""

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
            # The disk may be full.
            self.release()
            raise OSError(error.errno, error.strerror, str(directory)) from None

    def _acquire(self):
        attempts = 0
        while True:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                file = open(self._path, "a+", encoding="utf-8")
            except FileNotFoundError:
                # Another process has just removed the directory.
                continue
            try:
                _flock(file)
            except BlockingIOError:
                attempts += 1
                if attempts == _ATTEMPTS:
                    message = (
                        f"Another process is writing to `{self.directory}`"
                        f"{_holder(file)}. Wait until it ends, or choose "
                        "another place."
                    )
                    file.close()
                    raise BlockingIOError(message) from None
                time.sleep(_PAUSE)
            else:
                if _is_at(file, self._path):
                    return file
            # The holder removed the file between the two calls.
            file.close()

    def check(self):
        if _is_at(self._file, self._path):
            return
        holder = ""
        with contextlib.suppress(OSError), open(self._path) as file:
            holder = _holder(file)
        raise BlockingIOError(
            f"`{self.directory}` was removed, or taken by another process"
            f"{holder}, while this process was writing to it. This process "
            "therefore ends. Start it again when nothing else writes there."
        )

    def release(self):
        # Remove the file while the lock is held, so it cannot be another's.
        if _is_at(self._file, self._path):
            self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._file.close()
        if self._made:
            # Leave no empty directory behind.
            with contextlib.suppress(OSError):
                self._made.rmdir()


def _name_beside(directory):
    name = directory.name
    # File systems allow names of 255 bytes.
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
            "Files in `%s` cannot be locked: make sure that no two processes "
            "write there at once.",
            os.path.dirname(file.name),
        )


def _is_at(file, path):
    """Whether an open file is the one at this path."""
    try:
        # Open the path instead of `stat`: network file systems cache names.
        with open(path, "rb") as found:
            return os.path.sameopenfile(file.fileno(), found.fileno())
    except OSError:
        return False


def myself() -> dict:
    """Return the host, id and current time that identify this process."""
    now = datetime.datetime.now(datetime.UTC)
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "start": now.isoformat(timespec="seconds"),
    }


def read_holder(signature: str | bytes) -> dict:
    """Parse the signature of a holder (see `myself`); empty if invalid."""
    try:
        holder = json.loads(signature)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def describe_holder(holder: dict) -> str:
    """Describe the holder of a lock; empty if it has not signed yet."""
    if not {"host", "pid", "start"} <= holder.keys():
        return ""
    return (
        f": process {holder['pid']} on {holder['host']}, since "
        f"{holder['start']}"
    )


def _holder(file):
    file.seek(0)
    return describe_holder(read_holder(file.read()))
