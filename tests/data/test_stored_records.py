"""Records of an object store are those of the same files on a disk."""

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest
from colors import write_images
from stores import new_address
from stores import s3_server
from tiny_align import tiny_align

from align_keras.data import load_dataset
from align_keras.data import open_records
from align_keras.data import pack
from align_keras.data import reading
from align_keras.data import record_files
from align_keras.data import records
from align_keras.data.order import RecordOrder
from align_keras.data.reading import read_in_order
from align_keras.data.records import record_offsets
from align_keras.io.stores import Store


@pytest.fixture(scope="module", autouse=True)
def server():
    with s3_server():
        yield


@pytest.fixture(scope="module", params=["s3", "memory", "ram"])
def packed(request, server, tmp_path_factory):
    """The same records here and in a store, in files of five."""
    folder = tmp_path_factory.mktemp("packed")
    write_images(folder / "photos")
    pack(folder / "photos", folder / "records", records_per_shard=5)
    store = Store(new_address(request.param))
    for path in (folder / "records").iterdir():
        store.put(path, path.name)
    return str(folder / "records"), store.address


def test_they_are_found_and_counted_alike(packed):
    here, there = packed
    for pattern in ("", "/*.tfrecord", "/data-00000*.tfrecord"):
        found = [open_records(f"{root}{pattern}") for root in packed]
        names = [[Path(p).name for p in one.paths] for one in found]
        assert names[0] == names[1] and names[0]
        assert list(found[0].counts.values()) == list(found[1].counts.values())
        assert found[0].in_random_order == found[1].in_random_order
        assert list(found[0]) == list(found[1])
    with pytest.raises(FileNotFoundError, match=f"{there}/nothing"):
        open_records(f"{there}/nothing*")


def test_they_are_counted_without_what_pack_wrote_beside(packed):
    store = Store(new_address(packed[1].partition(":")[0]))
    path = open_records(packed[0]).paths[0]
    store.put(path, "one.tfrecord")
    address = f"{store}/one.tfrecord"
    np.testing.assert_array_equal(record_offsets(address), record_offsets(path))
    assert open_records(address).total == open_records(path).total


def test_many_are_counted_at_the_same_time(monkeypatch):
    paths = [f"memory://bucket/{n}.tfrecord" for n in range(64)]
    # None goes on before sixteen are there.
    together = threading.Barrier(16, timeout=60)

    def offsets(path):
        together.wait()
        return np.arange(2 + paths.index(path) % 5)

    monkeypatch.setattr(record_files, "record_offsets", offsets)
    counts = record_files.RecordFiles(paths).counts
    assert counts == {p: 1 + n % 5 for n, p in enumerate(paths)}


@pytest.mark.usefixtures("plain_decoder")
@pytest.mark.parametrize("start", [0, 3])
def test_batches_of_training_are_the_same(packed, start):
    preprocessor = tiny_align().preprocessor
    batches = [
        list(
            itertools.islice(
                load_dataset(
                    root, preprocessor, 4, seed=7, start_step=start
                ).as_numpy_iterator(),
                6,
            )
        )
        for root in packed
    ]
    assert len(batches[0]) == 6
    for one, other in zip(*batches, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_one_pass_is_the_same(packed):
    passes = [
        list(read_in_order(open_records(root).paths, part).as_numpy_iterator())
        for root in packed
        for part in ((0, 1), (1, 2))
    ]
    for one, other in ((passes[0], passes[2]), (passes[1], passes[3])):
        assert [row[1:] for row in one] == [row[1:] for row in other]
        assert len(one) > 5


def test_damage_is_named(packed, tmp_path):
    """A flipped bit, a cut file, and a length that is none."""
    path = open_records(packed[0]).paths[0]
    whole = Path(path).read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    length = bytearray(whole)
    length[0] ^= 255
    store = Store(new_address(packed[1].partition(":")[0]))
    for name, contents in (
        ("flipped", flipped),
        ("cut", whole[:-3]),
        ("length", length),
    ):
        (tmp_path / name).write_bytes(contents)
        store.put(tmp_path / name, f"{name}.tfrecord")
        address = f"{store}/{name}.tfrecord"
        with pytest.raises(ValueError, match=f"{address}` is not a complete"):
            list(records.read_shard(address))


def test_only_the_pieces_that_are_asked_for_are_read(packed, monkeypatch):
    if packed[1].startswith("ram"):
        pytest.skip("TensorFlow reads these by itself")
    asked = []

    def counted(shard, begin, end, count):
        asked.append((shard, int(begin), int(end), int(count)))
        return records.read_span(shard, begin, end, count)

    monkeypatch.setattr(reading, "read_span", counted)
    opened = open_records(packed[1])
    order = RecordOrder(opened.counts, 1, window_records=4)
    dataset = reading.read_shuffled(order, 0)
    taken = list(dataset.take(opened.total).as_numpy_iterator())
    assert len({(row[0], row[1]) for _, row in taken}) == opened.total
    # A piece is one request, of its own bytes.
    for shard, begin, end, count in asked:
        offsets = list(record_offsets(shard))
        assert (count, end) == (1, offsets[offsets.index(begin) + 1])
    # Three blocks of 1, 2 and 4 windows hold what was taken, and the next two,
    # of 8 and 16, are read ahead; blocks end to grow at 2,048 records.
    assert opened.total <= len(asked) <= 4 * (1 + 2 + 4 + 8 + 16)


def test_pieces_are_asked_for_at_the_same_time(packed, monkeypatch):
    """Whatever the number of processors: a store is slow to answer."""
    if packed[1].startswith("ram"):
        pytest.skip("TensorFlow reads these by itself")
    opened = open_records(packed[1])
    # Of the first eight none goes on before all are there.
    together, calls = threading.Barrier(8, timeout=60), itertools.count()

    def read(*piece):
        if next(calls) < 8:
            together.wait()
        return records.read_span(*piece)

    monkeypatch.setattr(reading, "read_span", read)
    order = RecordOrder(opened.counts, 1, window_records=8)
    dataset = reading.read_shuffled(order, 0)
    taken = list(dataset.take(8).as_numpy_iterator())
    assert len({(row[0], row[1]) for _, row in taken}) == 8
