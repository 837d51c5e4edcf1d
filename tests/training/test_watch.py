"""Processes of a run of which one dies: the others end, and say why."""

import json
import multiprocessing
import os
import signal
import sys
import time

import pytest

from align_keras.training import watch

# Each process is a fork of one that has imported what takes seconds.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([watch.__name__])


class Workers:
    """What processes of a run have in common: here, a folder."""

    count = 3

    def __init__(self, folder, number):
        self.index, self.is_first = number, number == 0
        self._path = folder / "sent"

    def send(self, value=None):
        if self.is_first:
            unfinished = self._path.with_suffix(".part")
            unfinished.write_text(json.dumps(value))
            unfinished.rename(self._path)
        while not self._path.exists():
            time.sleep(0.01)
        return json.loads(self._path.read_text())


class Member(FORKS.Process):
    """One process of three that watch one another."""

    def __init__(self, folder, number, how):
        super().__init__()
        self.folder, self.number, self.how = folder, number, how
        self.output = folder / f"output-{number}"
        self.errors = folder / f"errors-{number}"

    def run(self):
        for stream, path in (
            (sys.stdout, self.output),
            (sys.stderr, self.errors),
        ):
            with path.open("w") as file:
                os.dup2(file.fileno(), stream.fileno())
        watch.BEAT, watch.SILENCE, watch.LAST_WORDS = 0.2, 2, 0.5
        with watch.Watch(Workers(self.folder, self.number)) as watched:
            watched.finish = lambda: print("finished", flush=True)
            print("there", flush=True)
            if self.how == "error":
                wait_for(self.folder / "now")
                raise ValueError("of its own")
            if self.how == "leaves":
                raise SystemExit(0)
            if self.how == "waits":
                time.sleep(60)
        if self.how == "done":
            time.sleep(1)


def wait_for(path):
    """Wait until there is something in a file."""
    end = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size):
        assert time.monotonic() < end, path
        time.sleep(0.01)


@pytest.fixture
def start(tmp_path):
    started = []

    def run(*hows):
        for number, how in enumerate(hows):
            started.append(Member(tmp_path, number, how))
            started[-1].start()
        for process in started:
            if process.how in ("waits", "error"):
                wait_for(process.output)
        return started

    yield run
    for process in started:
        process.kill()
        process.join()


def ends(process, who, what):
    """It says who has left it in one sentence, and asks to be restarted."""
    process.join(20)
    errors = process.errors.read_text()
    assert process.exitcode == 75, errors
    assert f"process {who} of 3 {what}" in errors
    assert "Traceback" not in errors and len(errors.splitlines()) == 1
    assert process.output.read_text() == "there\nfinished\n"


@pytest.mark.multiprocess
@pytest.mark.parametrize("victim", [0, 2])
@pytest.mark.parametrize(
    "number, what",
    [
        (signal.SIGKILL, "has ended"),
        (signal.SIGSTOP, "has been silent for 2 seconds"),
    ],
)
def test_a_process_that_dies_ends_the_others(start, victim, number, what):
    processes = start("waits", "waits", "waits")
    begun = time.monotonic()
    os.kill(processes[victim].pid, number)
    if victim == 0:
        ends(processes[1], 0, what)
        ends(processes[2], 0, what)
    else:
        ends(processes[0], 2, what)
        # The first one has the connections.
        ends(processes[1], 0, "has ended")
    assert time.monotonic() - begun < 15


@pytest.mark.multiprocess
def test_an_error_of_one_ends_the_others(start, tmp_path):
    processes = start("waits", "error", "waits")
    (tmp_path / "now").write_text("now")
    ends(processes[0], 1, "has failed")
    ends(processes[2], 0, "has ended")
    processes[1].join(20)
    assert processes[1].exitcode == 1
    assert "of its own" in processes[1].errors.read_text()


@pytest.mark.multiprocess
def test_who_ends_well_harms_nobody(start):
    """Two are done or told to stop at once, and the last a little later."""
    for process in start("leaves", "done", "done"):
        process.join(20)
        errors = process.errors.read_text()
        assert process.exitcode == 0 and not errors, errors
