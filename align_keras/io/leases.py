"""Allow only one writer at a time in each directory of a store."""

import contextlib
import json
import logging
import os
import threading
import time
import uuid
from pathlib import Path

from align_keras.io.locks import LOCK_NAME
from align_keras.io.locks import describe_holder
from align_keras.io.locks import myself
from align_keras.io.locks import read_holder
from align_keras.io.stores import StaleWriter
from align_keras.io.stores import Store

# Seconds between renewals, and seconds without one after which a lease is free.
RENEWED, FREE = 10, 45

logger = logging.getLogger("align_keras")
# Start times of the leases that this process holds.
_held: list[str] = []


class Lease:
    """A lock for a store, where no operating system can release it.

    The holder renews the lease periodically. A lease is free if it is not
    renewed while another process watches it, or if its process ran on this
    host, in the same container, and has ended. Clocks of different machines
    are never compared. If two processes take a free lease at the same time,
    the store refuses the second.

    Args:
        store: `Store`. The directory to hold.

    Raises:
        BlockingIOError: Another process holds it. The message names its host,
            its process id and its start time.
    """

    def __init__(self, store: Store):
        self.store = store
        self._signature = {
            **myself(),
            "process_ids": _process_ids(),
            "id": uuid.uuid4().hex,
        }
        self._renewals = 0
        self._lost = threading.Event()
        self._ended = threading.Event()
        self._take()
        _held.append(self._signature["start"])
        self._renewed = time.monotonic()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def _take(self):
        contents, tag = self.store.read_with_tag(LOCK_NAME)
        if contents is not None and not self._is_free(contents, tag):
            raise self._refusal(contents)
        try:
            self.store.replace(LOCK_NAME, self._contents(), tag)
        except StaleWriter:
            contents, _ = self.store.read_with_tag(LOCK_NAME)
            raise self._refusal(contents or b"") from None

    def _is_free(self, contents, tag):
        holder = read_holder(contents)
        # Containers may share the name of a host, but not its process ids.
        same = ("host", "process_ids")
        if all(holder.get(n) == self._signature[n] for n in same):
            return not _runs(holder)
        logger.info(
            "Checking whether another process still writes to `%s`.", self.store
        )
        for _ in range(FREE):
            time.sleep(1)
            if self.store.read_with_tag(LOCK_NAME)[1] != tag:
                return False
        return True

    def _is_mine(self, contents):
        return read_holder(contents or b"").get("id") == self._signature["id"]

    def _contents(self):
        # Change the contents each time: some stores detect only that.
        self._renewals += 1
        lease = {**self._signature, "renewals": self._renewals}
        return json.dumps(lease).encode()

    def _refusal(self, contents):
        return BlockingIOError(
            f"Another process is writing to `{self.store}`"
            f"{describe_holder(read_holder(contents))}. Wait until it ends, or "
            "choose another directory."
        )

    def _renew(self):
        while not self._ended.wait(RENEWED):
            try:
                # A tag kept from the last renewal would be outdated if its
                # answer was lost.
                contents, tag = self.store.read_with_tag(LOCK_NAME)
                if not self._is_mine(contents):
                    self._lost.set()
                    return
                self.store.replace(LOCK_NAME, self._contents(), tag)
                self._renewed = time.monotonic()
            except Exception:  # noqa: BLE001, the network may come back.
                continue

    def check(self) -> None:
        """Check before a commit that the lease is still held.

        Raises:
            BlockingIOError: Another process has taken it, or it could not be
                renewed in time.
        """
        late = time.monotonic() - self._renewed > FREE
        if late or self._lost.is_set():
            raise BlockingIOError(
                f"`{self.store}` was taken by another process, or could not "
                f"be reached for {FREE} seconds, while this process was "
                "writing to it. This process therefore ends. Start it again "
                "when nothing else writes there."
            )

    def release(self) -> None:
        """Release the directory, unless another process holds it by now."""
        self._ended.set()
        self._thread.join()
        _held.remove(self._signature["start"])
        with contextlib.suppress(OSError):
            if self._is_mine(self.store.read_with_tag(LOCK_NAME)[0]):
                self.store.remove(LOCK_NAME)


def _process_ids():
    """Identify the boot and the container within which process ids differ.

    Returns:
        string; `None` on systems other than Linux.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _runs(holder):
    """Whether the process that wrote a lease on this host is alive."""
    pid = holder.get("pid")
    if pid == os.getpid():
        # In a container, a process may get the same id as an earlier one.
        return holder.get("start") in _held
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, TypeError):
        return False
    except OSError:
        return True
    return True
