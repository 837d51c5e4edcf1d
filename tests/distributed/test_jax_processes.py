"""`train` in two processes of JAX, and in one that has as many devices."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from colors import write_images
from ports import free_ports
from stores import new_bucket
from stores import s3_server

from align_keras.data import pack
from align_keras.io.mirrors import local_copy

SCRIPT = Path(__file__).with_name("jax_processes.py")
sys.path.append(str(SCRIPT.parents[1] / "training"))
from runs import checkpoint
from runs import metrics_of

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(
        keras.config.backend() != "jax", reason="processes of JAX"
    ),
]


def named_by_us(number, port):
    return {
        "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"localhost:{port}",
        "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
        "KERAS_DISTRIBUTION_PROCESS_ID": str(number),
    }


def named_by_slurm(number, port):
    return {
        # JAX takes the port from it, among the last 4096.
        "SLURM_JOB_ID": str(port),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(number),
    }


def start(folder, name, devices, **environment):
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder), name, str(devices)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def said(process, status=0):
    output, errors = process.communicate(timeout=600)
    assert process.returncode == status, output + errors
    return output


def together(folder, name, named, **environment):
    """Start two processes."""
    (port,) = free_ports(1)
    return [
        start(folder, name, 1, **named(number, port), **environment)
        for number in range(2)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of one process, and of two, which keep theirs in a store."""
    folder = tmp_path_factory.mktemp("processes")
    write_images(folder / "photos")
    pack(folder / "photos", folder / "packed", records_per_shard=5)
    one = start(folder, "one", 2)
    with s3_server() as settings, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGN_KERAS_CACHE", str(folder / "cache"))
        address = new_bucket()
        store = {**settings, "WORKDIR": f"{address}/two"}
        # They are told to stop after step 4, and resume.
        texts = [
            [said(p, status) for p in together(folder, "two", named, **store)]
            for named, status in ((named_by_us, 75), (named_by_slurm, 0))
        ]
        copy = local_copy(f"{address}/two")
        (folder / "two").symlink_to(copy, target_is_directory=True)
    (folder / "said.json").write_text(json.dumps(texts))
    said(one)
    # Adam makes full steps of the rounding in a gradient that is zero.
    one = start(folder, "one, sgd", 2)
    # They stay in parts when they go on.
    for status in (75, 0):
        pair = together(folder, "in parts, sgd", named_by_us)
        texts = [said(process, status) for process in pair]
    (folder / "in_parts.txt").write_text(texts[0])
    said(one)
    return folder


@pytest.mark.parametrize(
    "runs", [("two", "one"), ("in parts, sgd", "one, sgd")]
)
def test_two_processes_equal_one_with_two_devices(folder, runs):
    """Weights, moments and metrics, though they were stopped meanwhile."""
    two, one = (checkpoint(folder / run, 10) for run in runs)
    assert one.keys() == two.keys() and len(one) > 20
    for name, value in one.items():
        np.testing.assert_allclose(
            two[name], value, rtol=1e-5, atol=1e-5, err_msg=name
        )
    assert np.abs(one["optimizer/vars/2"]).max() > 0
    both = [metrics_of(folder / run) for run in runs]
    for ours, theirs in zip(*both, strict=True):
        assert [m["step"] for m in ours] == [m["step"] for m in theirs]
        for line, expected in zip(ours, theirs, strict=True):
            line.pop("images_per_second", None)
            expected.pop("images_per_second", None)
            assert line == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_processes_tell_how_much_a_device_holds(folder):
    text = (folder / "in_parts.txt").read_text()
    part, whole = re.search(
        r"Each of 2 devices holds ([\d.]+) MB .* take ([\d.]+) MB", text
    ).groups()
    assert 0.4 < float(part) / float(whole) < 0.7


def test_they_stop_and_resume_together(folder):
    stopped, resumed = json.loads((folder / "said.json").read_text())
    assert "This is process 0 of 2." in stopped[0]
    assert "Stopped by SIGTERM" in stopped[0]
    assert "Resuming after step" in resumed[0]
    results = [json.loads(text.splitlines()[-1]) for text in resumed]
    assert [result["step"] for result in results] == [10, 10]


def test_the_first_process_alone_writes(folder):
    """The other had no checkpoint to resume from, and got it sent."""
    names = {path.name for path in (folder / "two").iterdir()}
    assert "worker-1" not in names and "model" in names
    assert names == {path.name for path in (folder / "one").iterdir()}
    assert not (folder / "s3:").exists()


def test_a_process_that_is_killed_ends_the_other(folder):
    """It is the one that the others know of one another by."""
    killed, left = together(folder, "killed 0", named_by_us)
    killed.communicate(timeout=600)
    assert killed.returncode == -signal.SIGKILL
    begun = time.monotonic()
    _, errors = left.communicate(timeout=60)
    assert left.returncode == 75, errors
    assert time.monotonic() - begun < 30
    assert "process 0 of 2 has ended" in errors
    assert "Traceback" not in errors
