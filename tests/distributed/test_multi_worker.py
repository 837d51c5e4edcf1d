import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from comparison import OF_WORKERS
from comparison import assert_equal_to_twin
from PIL import Image
from ports import free_ports

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


def files_of_second(folder):
    """What it writes is what it would have to make again."""
    return {
        path.name
        for path in folder.rglob("*")
        if path.is_file() and "packed" not in path.parts
    }


def test_the_first_worker_alone_writes_the_run(workdir, runs):
    first, second = (results["stopped"] for results in runs)
    assert first["model"] == second["model"] == str(workdir / "run" / "model")
    assert first["step"] == second["step"] == 6
    assert first["best"] == second["best"]
    own = {"records.json", "vocabulary.txt"}
    assert files_of_second(workdir / "run" / "worker-1") == own
    assert files_of_second(workdir / "disk-1") == own


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


def test_workers_with_disks_of_their_own_go_on(workdir, runs):
    """The second has no checkpoint, and gets that of the first."""
    whole, apart = runs[0]["whole"], [run["apart"] for run in runs]
    assert [run["step"] for run in apart] == [6, 6]
    assert not (workdir / "disk-0" / "apart" / "worker-1").exists()
    for one, other in zip(weights_of(whole), weights_of(apart[0]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def test_damaged_checkpoints_end_all_workers_in_one_sentence(runs):
    for run in runs:
        assert "No checkpoint in `" in run["damaged"]
        assert "disk-0" in run["damaged"] and "is complete" in run["damaged"]
