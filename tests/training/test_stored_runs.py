"""Runs whose data and working directory lie in an object store."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from colors import FIELDS
from colors import VOCABULARY
from colors import tiny_model
from colors import write_images
from colors import write_vocabulary
from stores import new_bucket
from stores import s3_server

from align_keras.cli import main
from align_keras.data import open_records
from align_keras.data import pack
from align_keras.io.mirrors import LISTING
from align_keras.io.mirrors import local_copy
from align_keras.io.stores import Store

STEPS = 60


@pytest.fixture(scope="module")
def server():
    with s3_server() as settings:
        yield settings


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGN_KERAS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def inputs(server, tmp_path_factory):
    """The same data, model and vocabulary here and in a bucket."""
    folder, bucket = tmp_path_factory.mktemp("inputs"), new_bucket()
    write_images(folder / "photos")
    write_vocabulary(folder / "words.txt")
    fields = {**FIELDS, "optimizer": "adam", "steps": STEPS}
    (folder / "recipe.yaml").write_text(
        json.dumps({**fields, "checkpoint_every": 10})
    )
    tiny_model(len(VOCABULARY), dropout=0.05).save_to_preset(
        str(folder / "preset")
    )
    pack(folder / "photos", folder / "packed", records_per_shard=5)
    store = Store(bucket)
    store.files.put(str(folder), store.root, recursive=True)
    return folder, f"{bucket}/{folder.name}"


def command(inputs, workdir, data="packed/*.tfrecord"):
    words = ["train", "--preset", f"{inputs}/preset", "--data"]
    words += [f"{inputs}/{data}", "--vocabulary", f"{inputs}/words.txt"]
    words += ["--recipe", f"{inputs}/recipe.yaml", "--workdir", str(workdir)]
    return [*words, "--strategy", "one-device", "--no-export"]


def weights(workdir):
    """The weights and the optimizer's state of the last checkpoint."""
    path = Path(local_copy(str(workdir))) / "checkpoints"
    with h5py.File(path / f"step-{STEPS:09d}.weights.h5") as file:
        found = {}
        file.visititems(
            lambda name, entry: (
                found.update({name: entry[()]})
                if isinstance(entry, h5py.Dataset)
                else None
            )
        )
    return found


def killed_at(step, words, workdir, environment):
    """Run a command in a process, and kill it once a step is stored."""
    run = subprocess.Popen(
        [sys.executable, "-m", "align_keras", *words],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    store, name = Store(workdir), f"checkpoints/step-{step:09d}.json"
    while name not in json.loads(store.read_with_tag(LISTING)[0] or "{}").get(
        "files", ()
    ):
        if run.poll() is not None:
            pytest.fail(run.stdout.read().decode())
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.communicate()


@pytest.mark.usefixtures("optimised_graphs")
def test_a_killed_run_ends_with_the_weights_of_a_local_one(
    server, inputs, cache, tmp_path, capsys
):
    local, stored = inputs
    assert main(command(local, tmp_path / "run")) == 0
    workdir = f"{stored}/run"
    killed_at(20, command(stored, workdir), workdir, server)
    assert Store(workdir).sizes()  # And nothing on this machine.
    assert not (Path.cwd() / "s3:").exists()
    assert main(command(stored, workdir)) == 0
    assert f"The model is in {workdir}/model" in capsys.readouterr().out
    expected, found = weights(tmp_path / "run"), weights(workdir)
    assert found.keys() == expected.keys() and len(found) > 20
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    metrics = [
        [json.loads(line) for line in Path(p, "metrics.jsonl").open()]
        for p in (tmp_path / "run", local_copy(workdir))
    ]
    losses = [[m["loss"] for m in run if "loss" in m] for run in metrics]
    assert losses[0] == losses[1] and len(losses[0]) == 7
    # It is finished, and says so.
    assert main(command(stored, workdir)) == 0


def test_a_second_run_in_one_place_is_refused(server, inputs, cache, capsys):
    _, stored = inputs
    workdir = f"{stored}/twice"
    lease = {"host": "elsewhere", "pid": 7, "start": "noon"}
    store = Store(workdir)
    taken = json.dumps(lease).encode()
    store.replace(".align_keras.lock", taken, None)
    renewed = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\n"
            "from align_keras.io.stores import Store\n"
            "store = Store(sys.argv[1])\n"
            "for n in range(600):\n"
            "    store.files.pipe_file(store._path('.align_keras.lock'),\n"
            "        sys.argv[2].encode() + b' ' * n)\n"
            "    time.sleep(0.1)\n",
            workdir,
            taken.decode(),
        ],
        env={**os.environ, **server},
    )
    try:
        assert main(command(stored, workdir)) == 2
    finally:
        renewed.kill()
        renewed.wait()
    assert "process 7 on elsewhere, since noon" in capsys.readouterr().err
    assert set(store.sizes()) == {".align_keras.lock"}


def test_a_folder_of_images_in_a_store_is_packed_first(server, inputs, cache):
    local, stored = inputs
    words = command(stored, f"{stored}/photos_run", data="photos")
    assert main([*words, "--set", "steps=2"]) == 0
    kept = open_records(f"{stored}/photos_run/packed")
    here = open_records(str(local / "packed"))
    assert {r["key"] for r in kept} <= {r["key"] for r in here}
    assert kept.total
