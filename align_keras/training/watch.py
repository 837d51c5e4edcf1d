"""End all processes of a run when one of them dies.

Otherwise the others would wait for it within a collective operation, which
neither a signal nor a Python exception can interrupt.
"""

import contextlib
import os
import select
import socket
import sys
import threading
import time

from align_keras.training.safety import UNFINISHED

# Seconds between heartbeats, and seconds without one until a process counts as
# dead.
BEAT, SILENCE = 5, 45
# Seconds to wait after an error of the framework: the death of another process
# may be its cause.
PATIENCE = 10

_ALIVE, _ENDS, _FAILS = b".", b"q", b"f"
# Seconds that a failing process has to print its error before the others exit.
LAST_WORDS = 3


class Watch:
    """Connects the processes of a run, as a context manager.

    A process that leaves the context without an error notifies the others.
    When a process fails, disappears or sends no heartbeat, the others print a
    message, finish their pending writes and exit with status 75, on which a
    scheduler can restart all of them.

    Args:
        workers: `Workers`.

    Attributes:
        finish: callable. Called before the exit; it must return within a
            limited time.
    """

    def __init__(self, workers):
        self.workers = workers
        self.finish = lambda: None
        self._peers = {}
        self._left = set()
        self._ended = threading.Event()
        self._thread = None

    def __enter__(self):
        if self.workers.count > 1:
            self._connect()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind, error, trace):
        if self._thread is None:
            return
        well = kind is None or (
            kind is SystemExit and error.code in (None, 0, UNFINISHED)
        )
        if not well and _is_of_framework(error):
            # If another process is the cause, `_watch` exits meanwhile.
            time.sleep(PATIENCE)
        self._ended.set()
        self._thread.join()
        for peer in self._peers.values():
            with contextlib.suppress(OSError):
                peer.sendall(_ENDS if well else _FAILS)
                peer.close()

    def _connect(self):
        """Connect every other process to the first one."""
        workers = self.workers
        if workers.is_first:
            server = socket.create_server(("", 0), backlog=workers.count)
            workers.send([_own_addresses(), server.getsockname()[1]])
            server.settimeout(SILENCE)
            with server:
                for _ in range(workers.count - 1):
                    peer, _ = server.accept()
                    number = int.from_bytes(_receive(peer, 4), "big")
                    self._peers[number] = peer
            return
        hosts, port = workers.send()
        peer = _reach(hosts, port)
        peer.sendall(workers.index.to_bytes(4, "big"))
        self._peers[0] = peer

    def _watch(self):
        heard = dict.fromkeys(self._peers, time.monotonic())
        beat = 0.0
        while not self._ended.is_set():
            now = time.monotonic()
            if now - beat > BEAT:
                beat = now
                for peer in self._peers.values():
                    # A broken connection shows when it is read.
                    with contextlib.suppress(OSError):
                        peer.sendall(_ALIVE)
            there = {
                peer: number
                for number, peer in self._peers.items()
                if number not in self._left
            }
            readable, _, _ = select.select(list(there), [], [], 0.2)
            for peer in readable:
                said = _read(peer)
                heard[there[peer]] = time.monotonic()
                if _ENDS in said:
                    self._left.add(there[peer])
                elif _FAILS in said:
                    time.sleep(LAST_WORDS)
                    self._leave(there[peer], "has failed")
                elif not said:
                    self._leave(there[peer], "has ended")
            for number in there.values():
                if time.monotonic() - heard[number] > SILENCE:
                    self._leave(
                        number, f"has been silent for {SILENCE} seconds"
                    )

    def _leave(self, number, what):
        """End this process, which might wait for the other one forever."""
        if self._ended.is_set():
            return
        print(
            f"align-keras: process {number} of {self.workers.count} {what}, so "
            "this one ends too. Run the same command again in all of them to "
            "resume from the newest checkpoint.",
            file=sys.stderr,
            flush=True,
        )
        with contextlib.suppress(Exception):
            self.finish()
        os._exit(UNFINISHED)


def _own_addresses():
    """Return the host names and IP addresses of this machine."""
    name = socket.gethostname()
    found = [name]
    with contextlib.suppress(OSError):
        found += [entry[4][0] for entry in socket.getaddrinfo(name, None)]
    # If the host name does not resolve, all processes may be on this machine.
    return [*dict.fromkeys(found), "localhost"]


def _reach(hosts, port):
    reasons = []
    for host in hosts:
        try:
            return socket.create_connection((host, port), timeout=BEAT)
        except OSError as error:
            reasons.append(f"{host}: {error}")
    raise ValueError(
        "Process 0 of this run cannot be reached from here at port "
        f"{port} ({'; '.join(reasons)}). All processes of a run must be able "
        "to connect to one another at any port."
    )


def _receive(peer, size):
    peer.settimeout(SILENCE)
    data = b""
    while len(data) < size:
        part = peer.recv(size - len(data))
        if not part:
            raise ConnectionError("Another process ended while it connected.")
        data += part
    return data


def _read(peer):
    try:
        return peer.recv(4096)
    except OSError:
        return b""


def _is_of_framework(error):
    """Return whether an error comes from TensorFlow or JAX."""
    modules = {
        type(one).__module__.partition(".")[0]
        for one in (error, error.__cause__)
    }
    return not modules.isdisjoint(("tensorflow", "jax", "jaxlib"))
