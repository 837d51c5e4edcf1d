"""Damaged checkpoints, and a full disk."""

import collections
import json
import logging
import os
import threading
import time

import h5py
import keras
import numpy as np
import pytest

from align_keras.models.snapshot import Snapshot
from align_keras.training import checkpoints as module
from align_keras.training.checkpoints import Checkpoints


def build():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(keras.optimizers.Adam(0.1), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.fixture
def saved(tmp_path):
    """Two checkpoints, and the weights of each."""
    keras.utils.set_random_seed(0)
    model = build()
    checkpoints = Checkpoints(tmp_path)
    kernels = {}
    for step in (10, 20, 30):
        model.weights[0].assign_add(np.ones((4, 3)))
        checkpoints.save(model, step, best={"step": step})
        checkpoints.wait()
        kernels[step] = np.array(model.weights[0])
    return tmp_path, kernels


def restore(workdir):
    model = build()
    step = Checkpoints(workdir).restore(model)
    return step, np.array(model.weights[0])


def flip_bit(path):
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 1
    path.write_bytes(contents)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def test_the_newest_is_taken_and_two_are_kept(saved, caplog):
    workdir, kernels = saved
    step, kernel = restore(workdir)
    assert step == 30 and not caplog.records
    np.testing.assert_array_equal(kernel, kernels[30])
    assert Checkpoints(workdir).state()["best"] == {"step": 30}
    names = [path.name for path in (workdir / "checkpoints").iterdir()]
    assert sorted(names) == [
        f"step-0000000{step}.{suffix}"
        for step in (20, 30)
        for suffix in ("json", "weights.h5")
    ]


@pytest.mark.parametrize("suffix", ["weights.h5", "json"])
@pytest.mark.parametrize("damage", [flip_bit, cut, os.unlink])
def test_a_damaged_one_is_passed_over(saved, caplog, suffix, damage):
    workdir, kernels = saved
    path = workdir / "checkpoints" / f"step-000000030.{suffix}"
    damage(path)
    step, kernel = restore(workdir)
    assert step == 20
    np.testing.assert_array_equal(kernel, kernels[20])
    assert str(path) in caplog.text and len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.WARNING
    # What is saved next counts again.
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(build(), 30, best=None)
    assert Checkpoints(workdir).state()["step"] == 30


def test_damaged_ones_do_not_count_among_those_kept(saved):
    """Neither of higher steps, nor between."""
    workdir, _ = saved
    folder = workdir / "checkpoints"
    with Checkpoints(workdir, keep=4) as checkpoints:
        for step in (40, 50):
            checkpoints.save(build(), step)
    for step in (40, 50):
        flip_bit(folder / f"step-0000000{step}.weights.h5")

    def steps():
        return sorted(int(f.stem[5:]) for f in folder.glob("*.json"))

    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.restore(build()) == 30
        # As SIGTERM asks, before the step that was damaged is reached.
        checkpoints.save(build(), 35)
        checkpoints.wait()
        assert steps() == [30, 35]
        checkpoints.save(build(), 40)
        checkpoints.wait()
        assert steps() == [35, 40]
    assert Checkpoints(workdir).state()["step"] == 40


def test_before_the_first_none_is_promised(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Checkpoints, "_write_checkpoint", fail)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(build(), 10)
    with pytest.raises(OSError, match="No space.*There is no checkpoint yet"):
        checkpoints.wait()


def test_none_is_whole(saved):
    workdir, _ = saved
    for path in (workdir / "checkpoints").glob("*.h5"):
        flip_bit(path)
    with pytest.raises(ValueError, match="No checkpoint in .* is complete"):
        Checkpoints(workdir).state()


def test_a_first_one_that_was_cut_off_binds_nobody(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-000000010.weights.h5").touch()
    assert Checkpoints(tmp_path).state() == {"step": 0}


def test_what_it_says_may_change(saved):
    workdir, kernels = saved
    with Checkpoints(workdir) as checkpoints:
        checkpoints.update(best=None, pending=False)
    state = Checkpoints(workdir).state()
    assert state["best"] is None and state["pending"] is False
    np.testing.assert_array_equal(restore(workdir)[1], kernels[30])


def test_metrics_go_on(tmp_path):
    model = build()
    data = np.ones((2, 4)), np.zeros((2, 3))
    model.train_on_batch(*data)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(model, 1)
    other = build()
    other.train_on_batch(*data)
    other.reset_metrics()
    Checkpoints(tmp_path).restore_metrics(other)
    for ours, theirs in zip(
        other.metrics_variables, model.metrics_variables, strict=True
    ):
        np.testing.assert_array_equal(np.array(ours), np.array(theirs))
    assert other.get_metrics_result()["loss"] > 0


def test_a_full_disk(saved, monkeypatch):
    workdir, kernels = saved
    usage = collections.namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(
            module.shutil, "disk_usage", lambda path: usage(1000, 900, 100)
        )
        with pytest.raises(OSError, match="No space left.*step 30 is kept"):
            Checkpoints(workdir).save(build(), 40)
    assert restore(workdir)[0] == 30
    names = [path.name for path in (workdir / "checkpoints").iterdir()]
    assert len(names) == 4


@pytest.mark.multiprocess
def test_a_disk_that_is_really_full(tmp_path, run_script):
    """On a file system of its own, which takes the rights to mount one."""
    script = tmp_path / "fill.py"
    script.write_text(
        f"""
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
disk = sys.argv[1].encode()
user, group = os.getuid(), os.getgid()
if libc.unshare(0x10020000):
    print("refused"); raise SystemExit
open("/proc/self/setgroups", "w").write("deny")
open("/proc/self/uid_map", "w").write(f"0 {{user}} 1")
open("/proc/self/gid_map", "w").write(f"0 {{group}} 1")
if libc.mount(b"none", disk, b"tmpfs", 0, b"size=4m"):
    print("refused"); raise SystemExit
sys.path.insert(0, {str(os.path.dirname(__file__))!r})
from test_checkpoints import Checkpoints, build
checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(build(), 1)
checkpoints.wait()
model = build()
with open(os.path.join(sys.argv[1], "other"), "wb") as file:
    file.write(bytes((os.statvfs(sys.argv[1]).f_bavail - 2) * 4096))
try:
    checkpoints.save(model, 2)
    checkpoints.wait()
except OSError as error:
    print(error)
step = Checkpoints(sys.argv[1]).restore(model)
print(step, sorted(os.listdir(checkpoints.directory)))
"""
    )
    disk = tmp_path / "disk"
    disk.mkdir()
    said = run_script(script, disk).stdout.splitlines()
    if said == ["refused"]:
        pytest.skip("no rights to mount a file system")
    assert "could not be written: No space left on device" in said[0]
    assert "step 1 is kept" in said[0]
    assert said[1].startswith("1 ['step-000000001.")
    assert "step-000000002" not in said[1]


def test_numbers_of_numpy_survive(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with checkpoints:
        checkpoints.save(build(), 5, best={"score": np.float32(0.1)})
    path = tmp_path / "checkpoints" / "step-000000005.json"
    assert json.loads(path.read_text())["best"]["score"] == np.float32(0.1)
    assert Checkpoints(tmp_path).state() == checkpoints.state()


def contents(path):
    """All that an HDF5 file holds: arrays and attributes."""
    found = {}

    def collect(name, item):
        value = item[()] if isinstance(item, h5py.Dataset) else None
        found[name] = value, dict(item.attrs)

    with h5py.File(path) as file:
        file.visititems(collect)
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "mixed_float16"])
@pytest.mark.parametrize("shards", [None, 5e-6])
def test_a_snapshot_is_the_file_that_keras_writes(tmp_path, dtype, shards):
    layer = keras.layers.Dense(30, dtype=dtype, name="a_layer")
    model = keras.Sequential([keras.Input((40,)), layer])
    optimizer = keras.optimizers.Adam(0.1)
    if dtype == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(optimizer, "mse")
    model.optimizer.build(model.trainable_variables)
    end = "h5" if shards is None else "json"
    for folder in ("theirs", "ours"):
        (tmp_path / folder).mkdir()
    name = f"model.weights.{end}"
    model.save_weights(tmp_path / "theirs" / name, max_shard_size=shards)
    snapshot = Snapshot(model)
    assert "save_own_variables" not in vars(model.optimizer)
    model.train_on_batch(np.ones((2, 40)), np.zeros((2, 30)))
    snapshot.write(tmp_path / "ours" / name, shards)
    theirs = sorted((tmp_path / "theirs").iterdir())
    ours = sorted((tmp_path / "ours").iterdir())
    assert [p.name for p in ours] == [p.name for p in theirs]
    assert len(ours) == 1 if shards is None else len(ours) > 2
    for one, other in zip(ours, theirs, strict=True):
        if one.suffix == ".json":
            assert one.read_text() == other.read_text()
            continue
        one, other = contents(one), contents(other)
        assert one.keys() == other.keys() and one
        for key, (value, attributes) in other.items():
            np.testing.assert_array_equal(one[key][0], value)
            assert one[key][1] == attributes


def test_training_goes_on_while_it_is_written(tmp_path):
    """What is restored is what was there when saving began."""
    data = np.ones((2, 4)), np.zeros((2, 3))
    model, gate = build(), threading.Event()
    model.fit(*data, epochs=3, verbose=0)
    before = [np.array(v) for v in (*model.weights, *model.optimizer.variables)]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(model, 1, inspect=lambda snapshot: gate.wait(60))
        checkpoints.update(best={"step": 1})
        model.fit(*data, epochs=3, verbose=0)
        # Neither has to wait, and nothing has been written yet.
        checkpoints.check()
        assert checkpoints.state() == {"step": 0}
        gate.set()
        checkpoints.save(model, 2)
        assert checkpoints.state()["step"] == 1
        assert checkpoints.state()["best"] == {"step": 1}
    assert checkpoints.state()["step"] == 2
    (tmp_path / "checkpoints" / "step-000000002.json").unlink()
    other = build()
    assert Checkpoints(tmp_path).restore(other) == 1
    after = [np.array(v) for v in (*other.weights, *other.optimizer.variables)]
    for one, expected in zip(after, before, strict=True):
        np.testing.assert_array_equal(one, expected)


def fails(snapshot):
    raise FloatingPointError("not worth it")


@pytest.mark.parametrize("then", ["check", "wait", "save"])
def test_an_error_comes_later_and_nothing_after_it(saved, then):
    workdir, _ = saved
    model, done = build(), []
    checkpoints = Checkpoints(workdir)
    checkpoints.state()
    checkpoints.save(model, 40, inspect=fails)
    checkpoints.after(lambda: done.append("preset"))
    checkpoints.update(best={"step": 40})
    with pytest.raises(FloatingPointError, match="not worth it"):
        for _ in range(600):
            getattr(checkpoints, then)(*[model, 50][: 2 * (then == "save")])
            time.sleep(0.05)
    assert not done and Checkpoints(workdir).state()["best"] == {"step": 30}
    # It has been told, and the run may go on.
    with checkpoints:
        checkpoints.save(model, 60)
    assert Checkpoints(workdir).state()["step"] == 60


def test_what_ends_a_run_is_told_first(saved):
    workdir, _ = saved
    with pytest.raises(InterruptedError):
        with Checkpoints(workdir) as checkpoints:
            checkpoints.save(build(), 40, inspect=fails)
            raise InterruptedError
    with pytest.raises(InterruptedError):
        with Checkpoints(workdir) as checkpoints:
            checkpoints.save(build(), 40)
            raise InterruptedError
    assert Checkpoints(workdir).state()["step"] == 40
