import json
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from align_keras import AlignDualEncoder
from align_keras.data import pack

# As in multi_worker.py, which must not be imported here.
CASES = {"steps tail": "tail", "cached tail": "ghost tail"}

SCRIPT = Path(__file__).with_name("multi_worker.py")

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(
        keras.config.backend() != "tensorflow",
        reason="`multi-worker` is a strategy of TensorFlow",
    ),
]


def select(results, case):
    """Results of one case; the seeds are of no consequence."""
    start = f"{case}: "
    return {
        name.removeprefix(start): results[name]
        for name in results
        if name.startswith(start) and "seed" not in name
    }


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("localhost", 0))
    ports = [str(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def write_pictures(folder):
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
    write_pictures(workdir / "pictures")
    pack(
        workdir / "pictures",
        workdir / "packed",
        captions=workdir / "pictures" / "captions.csv",
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


@pytest.mark.parametrize("case, twin", [*CASES.items()])
def test_two_workers_equal_one_device(case, twin, workdir):
    one = select(np.load(workdir / "cases-0-of-0.npz"), twin)
    assert one
    for index in range(2):
        worker = select(np.load(workdir / f"cases-{index}-of-2.npz"), case)
        assert set(one) <= set(worker)
        for name, expected in one.items():
            np.testing.assert_allclose(
                worker[name],
                expected,
                rtol=1e-6,
                atol=1e-6 * max(np.abs(expected).max(), 1e-3),
                err_msg=name,
            )


def test_first_worker_writes_the_run(workdir):
    results = [
        json.loads((workdir / f"result-{i}.json").read_text()) for i in range(2)
    ]
    assert results[0]["model"] == str(workdir / "run" / "model")
    assert "worker-1" in results[1]["model"]
    assert results[0]["step"] == results[1]["step"] == 4
    models = [AlignDualEncoder.from_preset(r["model"]) for r in results]
    for ours, theirs in zip(*(m.get_weights() for m in models), strict=True):
        np.testing.assert_array_equal(ours, theirs)
