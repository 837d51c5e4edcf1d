"""One writer at a time for each directory."""

import contextlib
import datetime
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from align_keras.io.atomic import remove_leftovers
from align_keras.io.paths import local_path

LOCK_NAME = ".align_keras.lock"


@contextlib.contextmanager
def directory_lock(directory: str | Path) -> Iterator[None]:
    """Hold a directory, so that no other process writes into it.

    The operating system releases the lock when its holder dies, however it
    dies, so no lock is ever left behind. The lock file stays: it says who
    wrote last, and removing it would let two processes lock two files of one
    name.

    Args:
        directory: string or `pathlib.Path`. Made where it does not exist.

    Raises:
        BlockingIOError: Another process holds it; the message names its
            host, its process id and when it began.

    Example:

    ```python
    with directory_lock("packed"):
        write_shards("packed")
    ```
    """
    import fcntl

    directory = local_path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / LOCK_NAME, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"Another process writes to `{directory}`{_holder(file)}. "
                "Wait until it ends, or choose another directory."
            ) from None
        file.truncate(0)
        file.write(json.dumps(_myself()) + "\n")
        file.flush()
        remove_leftovers(directory)
        yield


def _myself():
    now = datetime.datetime.now(datetime.UTC)
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "start": now.isoformat(timespec="seconds"),
    }


def _holder(file):
    file.seek(0)
    try:
        holder = json.loads(file.read())
        return (
            f": process {holder['pid']} on {holder['host']}, since "
            f"{holder['start']}"
        )
    except (ValueError, KeyError, TypeError):
        # It has the lock and has not signed yet.
        return ""
