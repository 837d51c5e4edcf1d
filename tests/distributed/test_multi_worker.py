import json
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from comparison import OF_WORKERS
from comparison import assert_equal_to_twin
from PIL import Image

from align_keras import AlignDualEncoder
from align_keras.data import pack

SCRIPT = Path(__file__).with_name("multi_worker.py")

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(
        keras.config.backend() != "tensorflow",
        reason="`multi-worker` is a strategy of TensorFlow",
    ),
]


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("localhost", 0))
    ports = [str(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def write_images(folder):
    folder.mkdir()
    lines = ["image,caption"]
    for i in range(24):
        Image.new("RGB", (40, 40), (10 * i, 90, 250 - 10 * i)).save(
            folder / f"{i}.png"
        )
        lines.append(f"{i}.png,picture number {i} of them")
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Two workers, and one process with the same global batches."""
    workdir = tmp_path_factory.mktemp("multi_worker")
    write_images(workdir / "photos")
    pack(
        workdir / "photos",
        workdir / "packed",
        captions=workdir / "photos" / "captions.csv",
        records_per_shard=6,
    )
    ports = free_ports(2)
    workers = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(workdir), str(index), *ports],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    for worker in workers:
        output, errors = worker.communicate(timeout=600)
        assert worker.returncode == 0, errors
        path = workdir / f"result-{workers.index(worker)}.json"
        path.write_text(output.splitlines()[-1])
    subprocess.run(
        [sys.executable, str(SCRIPT), str(workdir), "0"],
        check=True,
        timeout=600,
    )
    return workdir


@pytest.mark.parametrize("case", OF_WORKERS)
def test_two_workers_equal_one_device(case, workdir):
    one = np.load(workdir / "cases-0-of-0.npz")
    for index in range(2):
        worker = np.load(workdir / f"cases-{index}-of-2.npz")
        assert_equal_to_twin(case, worker, one)


@pytest.fixture(scope="module")
def runs(workdir):
    """What `train` returned: of both workers, in one go and with a stop."""
    return [
        json.loads((workdir / f"result-{i}.json").read_text()) for i in range(2)
    ]


def weights_of(run):
    return AlignDualEncoder.from_preset(run["model"]).get_weights()


def test_first_worker_writes_the_run(workdir, runs):
    first, second = (results["stopped"] for results in runs)
    assert first["model"] == str(workdir / "run" / "model")
    assert "worker-1" in second["model"]
    assert first["step"] == second["step"] == 6
    for ours, theirs in zip(weights_of(first), weights_of(second), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_workers_stop_together_and_go_on(workdir, runs):
    """One was asked to, in an evaluation; the numbers are those of one go."""
    whole, stopped = runs[0]["whole"], runs[0]["stopped"]
    for ours, theirs in zip(
        weights_of(whole), weights_of(stopped), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)
    lines = [
        [json.loads(line) for line in (workdir / name / "metrics.jsonl").open()]
        for name in ("whole", "run")
    ]
    for one, other in zip(*lines, strict=True):
        assert one["step"] == other["step"]
        if "loss" in one:
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


def test_workers_with_disks_of_their_own_go_on_from_a_common_step(
    workdir, runs
):
    """The second has lost its newest checkpoint: both go back."""
    whole, apart = runs[0]["whole"], [run["apart"] for run in runs]
    assert [run["step"] for run in apart] == [6, 6]
    assert not (workdir / "disk-1" / "apart" / "checkpoints").exists()
    for run in apart:
        for one, other in zip(weights_of(whole), weights_of(run), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def test_a_worker_without_checkpoints_ends_the_run_in_a_sentence(runs):
    for run in runs:
        assert "(worker 0: step 4, worker 1: step 0; 0 is none)" in run["lost"]
        assert "a disk that all of them share" in run["lost"]
