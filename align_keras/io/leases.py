"""One writer at a time for each directory of a store."""

import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator

from align_keras.io.locks import LOCK_NAME
from align_keras.io.locks import myself
from align_keras.io.stores import StaleWriter
from align_keras.io.stores import Store

# Seconds between renewals, and without one until a lease is free.
RENEWED, FREE = 10, 45

logger = logging.getLogger("align_keras")
# When the leases of this process began.
_held: list[str] = []


class Lease:
    """What a lock is where no operating system releases it.

    Its holder writes the lease anew all the time. One that is not renewed
    while another process watches is free, and so is that of a process of
    this host that has ended; no clock is compared with another one's. Of two
    that take a free lease at once, the store refuses the second.

    Args:
        store: `Store`. The directory to hold.

    Raises:
        BlockingIOError: Another process holds it; the message names its
            host, its process id and when it began.
    """

    def __init__(self, store: Store):
        self.store = store
        self._signature = myself()
        self._renewals = 0
        self._lost = threading.Event()
        self._ended = threading.Event()
        self._tag = self._take()
        _held.append(self._signature["start"])
        self._renewed = time.monotonic()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def _take(self):
        holder, tag = self.store.read_with_tag(LOCK_NAME)
        if holder is not None and not self._is_free(holder, tag):
            raise BlockingIOError(self._describe(holder))
        try:
            return self.store.replace(LOCK_NAME, self._contents(), tag)
        except StaleWriter:
            holder, _ = self.store.read_with_tag(LOCK_NAME)
            raise BlockingIOError(self._describe(holder)) from None

    def _is_free(self, holder, tag):
        if _is_of_this_host(holder):
            return not _runs(holder)
        logger.info("Watching whether `%s` is still written to.", self.store)
        for _ in range(FREE):
            time.sleep(1)
            if self.store.read_with_tag(LOCK_NAME)[1] != tag:
                return False
        return True

    def _contents(self):
        # Other contents each time: some stores tell no more than that.
        self._renewals += 1
        lease = {**self._signature, "renewals": self._renewals}
        return json.dumps(lease).encode()

    def _describe(self, holder):
        try:
            found = json.loads(holder)
            who = (
                f": process {found['pid']} on {found['host']}, since "
                f"{found['start']}"
            )
        except (ValueError, KeyError, TypeError):
            who = ""
        return (
            f"Another process writes to `{self.store}`{who}. Wait until it "
            "ends, or choose another directory."
        )

    def _renew(self):
        while not self._ended.wait(RENEWED):
            try:
                self._tag = self.store.replace(
                    LOCK_NAME, self._contents(), self._tag
                )
                self._renewed = time.monotonic()
            except StaleWriter:
                self._lost.set()
                return
            except Exception:  # noqa: BLE001, the network may come back.
                continue

    def check(self) -> None:
        """Check before a commit that the lease is still held.

        Raises:
            BlockingIOError: It was taken over.
        """
        late = time.monotonic() - self._renewed > FREE
        if late or self._lost.is_set():
            raise BlockingIOError(
                f"`{self.store}` was taken by another process, or could not "
                f"be reached for {FREE} seconds, while this one wrote to it, "
                "which therefore ends. Start again when nothing else writes "
                "there."
            )

    def release(self) -> None:
        """Let the directory go."""
        self._ended.set()
        self._thread.join()
        _held.remove(self._signature["start"])
        if not self._lost.is_set():
            with contextlib.suppress(OSError):
                self.store.remove(LOCK_NAME)


@contextlib.contextmanager
def store_lease(store: Store) -> Iterator[Lease]:
    """Hold a directory of a store while a block runs.

    Args:
        store: `Store`.

    Raises:
        BlockingIOError: Another process holds it, or took it over.
    """
    lease = Lease(store)
    try:
        yield lease
    finally:
        lease.release()


def _is_of_this_host(holder):
    return _field(holder, "host") == socket.gethostname()


def _runs(holder):
    """Whether the process of this host that wrote a lease is alive."""
    pid = _field(holder, "pid")
    if pid == os.getpid():
        # In a container a process may have the number of the one before it.
        return _field(holder, "start") in _held
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, TypeError):
        return False
    except OSError:
        return True
    return True


def _field(holder, name):
    try:
        return json.loads(holder)[name]
    except (ValueError, KeyError, TypeError):
        return None
