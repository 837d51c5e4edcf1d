"""Ends the processes of a run when one of them has died.

The others would wait for it within a collective operation, which no signal
and no exception of Python reaches.
"""

import contextlib
import os
import select
import socket
import sys
import threading
import time

# The exit status of a process that others have left alone; it is that of a
# failure which may pass (EX_TEMPFAIL).
LEFT_ALONE = 75
# Seconds between signs of life, and without one until a process counts as dead.
BEAT, SILENCE = 5, 45
# Seconds for which an error of the framework waits to be explained.
PATIENCE = 10

_ALIVE, _ENDS, _FAILS = b".", b"q", b"f"
# Seconds in which one that fails may tell why, before the others are gone.
LAST_WORDS = 3


class Watch:
    """Connects the processes of a run while a context lasts.

    A process that leaves the context without an error says so. Where one goes
    without, or gives no sign of life, the others print a sentence, finish
    what they are writing, and exit with status 75, from which a scheduler
    starts all of them again.

    Args:
        workers: `Workers`.

    Attributes:
        finish: callable. What is done before the exit, and must not take
            longer than some seconds.
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
        well = kind is None or (kind is SystemExit and not error.code)
        if not well and _is_of_framework(error):
            # Perhaps another process is the reason, and this one ends here.
            time.sleep(PATIENCE)
        self._ended.set()
        self._thread.join()
        for peer in self._peers.values():
            with contextlib.suppress(OSError):
                peer.sendall(_ENDS if well else _FAILS)
                peer.close()

    def _connect(self):
        """Connect all others with the first, which all can reach."""
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
                    # What is wrong with it shows when it is read.
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
                    self._leave(number, f"is silent for {SILENCE} seconds")

    def _leave(self, number, what):
        """End this process, which may wait for the other for ever."""
        if self._ended.is_set():
            return
        print(
            f"align-keras: process {number} of {self.workers.count} {what}, so "
            "that this one ends, too. Run the same command again in all of "
            "them to resume from the newest checkpoint.",
            file=sys.stderr,
            flush=True,
        )
        with contextlib.suppress(Exception):
            self.finish()
        os._exit(LEFT_ALONE)


def _own_addresses():
    """Return under what names and numbers this machine may be reached."""
    name = socket.gethostname()
    found = [name]
    with contextlib.suppress(OSError):
        found += [entry[4][0] for entry in socket.getaddrinfo(name, None)]
    # Alone on a machine without a name, the processes are all on it.
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
    """Whether an error comes from TensorFlow or JAX, not from this package."""
    modules = {
        type(one).__module__.partition(".")[0]
        for one in (error, error.__cause__)
    }
    return not modules.isdisjoint(("tensorflow", "jax", "jaxlib"))
