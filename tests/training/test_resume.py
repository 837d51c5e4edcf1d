"""Runs that were killed, preempted, or out of room, against whole ones."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from runs import checkpoint
from runs import metrics_of

from align_keras.data import open_records
from align_keras.data import records_of_step
from align_keras.training.checkpoints import Checkpoints

SCRIPT = Path(__file__).with_name("kill_runs.py")
STEPS = 80
KILLED = -9

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(
        keras.config.backend() != "tensorflow", reason="forks TensorFlow"
    ),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of all runs, and how each process ended."""
    folder = tmp_path_factory.mktemp("runs")
    done = subprocess.run(
        [sys.executable, SCRIPT, folder],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


def figures(workdir):
    """All of the log but what the clock says."""
    training, evaluation = metrics_of(workdir)
    for line in training:
        del line["images_per_second"]
    return training, evaluation


def assert_same_state(ours, theirs):
    ours, theirs = (Checkpoints(workdir).state() for workdir in (ours, theirs))
    for name in (
        "step",
        "random",
        "best",
        "metrics",
        "reported_step",
        "waited",
        "stopped",
    ):
        assert ours[name] == theirs[name], name


def assert_bitwise_equal(ours, theirs, step=STEPS):
    """Weights, moments, iterations; figures; random states."""
    one, other = checkpoint(ours, step), checkpoint(theirs, step)
    assert one.keys() == other.keys() and len(one) > 30
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    assert figures(ours) == figures(theirs)
    assert_same_state(ours, theirs)


def test_killed_while_it_saves(runs):
    """In each phase of what a thread writes while the run trains on."""
    folder, ended = runs
    assert ended["whole"] == 0 and ended["killed"] == [*[KILLED] * 5, 0]
    # It went on each time, from the last that was whole.
    said = (folder / "killed.txt").read_text()
    resumed = re.findall(r"Resuming after step (\d+)", said)
    assert resumed == ["10", "20", "30", "40", "50"]
    assert_bitwise_equal(folder / "killed", folder / "whole")
    # Nothing of the writes that were cut off is left.
    assert not list((folder / "killed").rglob(".*"))


def test_the_log_has_neither_gaps_nor_duplicates(runs):
    folder, _ = runs
    training, _ = metrics_of(folder / "killed")
    assert [line["step"] for line in training] == [1, *range(10, STEPS + 1, 10)]
    # The tests above would pass for a model that never changes.
    assert training[-1]["loss"] < 0.5 * training[0]["loss"]


def test_terminated_within_an_epoch(runs):
    """With no checkpoint in sight, and means that had been begun."""
    folder, ended = runs
    assert ended["far"] == 0 and ended["terminated"] == [75, 0]
    said = (folder / "terminated.txt").read_text()
    assert "Stopped by SIGTERM" in said
    step = int(said.partition("Resuming after step ")[2].partition(".")[0])
    assert 20 <= step < STEPS
    assert_bitwise_equal(folder / "terminated", folder / "far")
    for name, ours in checkpoint(folder / "far", STEPS).items():
        # How often a run is saved makes no difference to it.
        theirs = checkpoint(folder / "whole", STEPS)[name]
        np.testing.assert_array_equal(ours, theirs)


def test_killed_and_stopped_early(runs):
    """It has waited for one evaluation before it is killed."""
    folder, ended = runs
    assert ended["patient"] == 0 and ended["killed patient"] == [KILLED, 0]
    state = Checkpoints(folder / "patient").state()
    assert (state["step"], state["waited"]) == (40, 3) and state["stopped"]
    assert_bitwise_equal(folder / "killed_patient", folder / "patient", 40)
    said = (folder / "killed_patient.txt").read_text()
    assert f"stopped early after step 40 of {STEPS}" in said


def test_two_replicas(runs):
    folder, ended = runs
    assert ended["pair"] == 0 and ended["killed pair"] == [KILLED, 75, 0]
    said = (folder / "killed_pair.txt").read_text()
    assert said.count("Resuming after step") == 2
    ours = checkpoint(folder / "killed_pair", STEPS)
    theirs = checkpoint(folder / "pair", STEPS)
    for name in theirs:
        np.testing.assert_allclose(
            ours[name], theirs[name], rtol=1e-6, atol=1e-6, err_msg=name
        )
    one, other = (figures(folder / n)[0] for n in ("killed_pair", "pair"))
    assert len(one) == len(other)
    for line, expected in zip(one, other, strict=True):
        assert line == pytest.approx(expected, rel=1e-5)
    assert_same_state(folder / "killed_pair", folder / "pair")


def test_the_order_by_keys(runs):
    """What the runs above have read, epoch by epoch."""
    folder, _ = runs
    packed = folder / "packed"
    stream = [
        record["key"]
        for step in range(8)
        for record in records_of_step(packed, step, batch_size=8)
    ]
    keys = sorted(record["key"] for record in open_records(packed))
    for epoch in range(4):
        assert sorted(stream[16 * epoch : 16 * epoch + 16]) == keys
