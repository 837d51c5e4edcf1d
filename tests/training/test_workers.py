"""What the processes of a run tell one another, in threads of one process."""

import concurrent.futures
import threading

import numpy as np
import pytest

from align_keras.data import RecordFiles
from align_keras.data import record_files
from align_keras.training import make_strategy
from align_keras.training import workers as module
from align_keras.training.inputs import count_once
from align_keras.training.workers import Workers


def make(count):
    """Workers whose sums meet in this process."""
    barrier, votes = threading.Barrier(count), {}

    def total(index):
        def add(values):
            votes[index] = values
            barrier.wait(10)
            found = np.sum(list(votes.values()), axis=0, dtype="float32")
            barrier.wait(10)
            return found

        return add

    made = []
    for index in range(count):
        one = Workers(make_strategy("one-device"))
        one.index, one.count, one.is_first = index, count, index == 0
        one._total = total(index)
        made.append(one)
    return made


def each(workers, function):
    with concurrent.futures.ThreadPoolExecutor(len(workers)) as pool:
        return list(pool.map(function, workers))


@pytest.mark.parametrize(
    "value", [None, {}, {"step": 3, "names": ["ä"] * 50}, "x" * 1000, [2**40]]
)
def test_all_get_what_the_first_sends(monkeypatch, value):
    monkeypatch.setattr(module, "BLOCK", 16)
    found = each(
        make(3), lambda one: one.send(value if one.is_first else "other")
    )
    assert found == [value] * 3
    assert Workers(make_strategy("one-device")).send(value) == value


@pytest.mark.parametrize("size", [0, 1, 16, 1000])
def test_a_file_goes_to_those_that_ask(monkeypatch, tmp_path, size):
    monkeypatch.setattr(module, "BLOCK", 16)
    contents = np.random.default_rng(0).bytes(size)
    (tmp_path / "first").write_bytes(contents)

    def send(one):
        target = tmp_path / "third" if one.index == 2 else None
        one.send_file(tmp_path / "first", target)

    each(make(3), send)
    assert (tmp_path / "third").read_bytes() == contents
    assert not (tmp_path / "second").exists()


def test_sums():
    found = each(make(2), lambda one: one.sums(one.index, 0.5))
    assert found == [[1.0, 1.0]] * 2
    assert Workers(make_strategy("one-device")).sums(3.0) == [3.0]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_workers_count_each_file_once_together(monkeypatch, tmp_path, count):
    """Those that resume take part; one whose disk is new counts anew."""
    # More than float32 holds, and none.
    sizes = {f"{n}.tfrecord": n * (2**33 + 12_345) for n in range(5)}
    asked = []

    def count_file(listed, path):
        asked.append(path)
        return sizes[path]

    monkeypatch.setattr(record_files, "_count", count_file)
    workers = make(count)
    for one in workers:
        (tmp_path / str(one.index)).mkdir()

    def run(step):
        def one(worker):
            workdir = tmp_path / str(worker.index)
            return count_once(RecordFiles(sizes), workdir, step, worker).counts

        return each(workers, one)

    assert run(0) == [sizes] * count and sorted(asked) == sorted(sizes)
    assert run(1) == [sizes] * count and len(asked) == 5
    (tmp_path / "0" / "records.json").unlink()
    assert run(1) == [sizes] * count and len(asked) == 10


def test_a_worker_that_finds_other_files_says_so(tmp_path):
    def run(worker):
        files = [f"{name}.tfrecord" for name in ("a", "b"[: worker.index])]
        with pytest.raises(ValueError, match="must find the same") as error:
            count_once(RecordFiles(files), tmp_path, 0, worker)
        return str(error.value)

    workers = make(2)
    told = each(workers, run)
    assert "has 2 files here, and 1 workers have others" in told[0]
    assert (
        "has 2 files here, and the first worker has 2 with other names"
        in told[1]
    )
