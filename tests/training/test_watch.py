"""Processes of a run of which one dies: the others end, and say why."""

import os
import signal
import subprocess
import sys
import time

import pytest

SCRIPT = """
import json, os, sys, time
from align_keras.training import watch

folder, number, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
watch.BEAT, watch.SILENCE, watch.LAST_WORDS = 0.2, 2, 0.5
path = os.path.join(folder, "sent")

class Workers:
    index, count, is_first = number, 3, number == 0

    def send(self, value=None):
        if self.is_first:
            with open(path + "-", "w") as file:
                json.dump(value, file)
            os.rename(path + "-", path)
        while not os.path.exists(path):
            time.sleep(0.01)
        return json.load(open(path))

with watch.Watch(Workers()) as watched:
    watched.finish = lambda: print("finished", flush=True)
    print("there", flush=True)
    if how == "error":
        sys.stdin.readline()
        raise ValueError("of its own")
    if how == "leaves":
        raise SystemExit(0)
    if how == "waits":
        time.sleep(60)
if how == "done":
    time.sleep(1)
"""


@pytest.fixture
def start(tmp_path):
    started = []

    def run(*hows):
        for number, how in enumerate(hows):
            process = subprocess.Popen(
                [sys.executable, "-c", SCRIPT, tmp_path, str(number), how],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "KERAS_BACKEND": "numpy"},
            )
            started.append(process)
        for process in started:
            if hows[started.index(process)] in ("waits", "error"):
                assert process.stdout.readline() == "there\n"
        return started

    yield run
    for process in started:
        process.kill()
        process.communicate()


def ends(process, who, what):
    """It says who has left it in one sentence, and asks to be restarted."""
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 75, errors
    assert f"process {who} of 3 {what}" in errors
    assert "Traceback" not in errors and len(errors.splitlines()) == 1
    assert output.endswith("finished\n")


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
    processes[victim].send_signal(number)
    if victim == 0:
        ends(processes[1], 0, what)
        ends(processes[2], 0, what)
    else:
        ends(processes[0], 2, what)
        # The first one has the connections.
        ends(processes[1], 0, "has ended")
    assert time.monotonic() - begun < 15


@pytest.mark.multiprocess
def test_an_error_of_one_ends_the_others(start):
    processes = start("waits", "error", "waits")
    processes[1].stdin.write("now\n")
    processes[1].stdin.flush()
    ends(processes[0], 1, "has failed")
    ends(processes[2], 0, "has ended")
    assert "of its own" in processes[1].communicate()[1]
    assert processes[1].returncode == 1


@pytest.mark.multiprocess
def test_who_ends_well_harms_nobody(start):
    """Two are done or told to stop at once, and the last a little later."""
    processes = start("leaves", "done", "done")
    for process in processes:
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 0 and not errors, errors
