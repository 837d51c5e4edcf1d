"""How far a batch is from a uniform draw, on data that was sorted."""

import itertools
import json
import re

import numpy as np
import pytest
import tensorflow as tf

from align_keras.data import mixing
from align_keras.data import pack
from align_keras.data.mixing import crowding
from align_keras.data.mixing import describe_order
from align_keras.data.order import RecordOrder
from align_keras.data.record_files import RecordFiles
from align_keras.data.records import encode_record
from align_keras.data.shuffle import random_place


def _pairs(labels):
    return sum(a == b for a, b in itertools.combinations(labels, 2))


def test_crowding_against_counting_pairs():
    rng = np.random.default_rng(0)
    for size in (2, 7, 30):
        labels = np.sort(rng.integers(0, 9, 100))
        rng.shuffle(labels[30:])
        batches = [labels[n : n + size] for n in range(0, 101 - size, size)]
        chance = _pairs(labels) / (100 * 99 / 2) * (size * (size - 1) / 2)
        expected = np.mean([_pairs(batch) for batch in batches]) / chance
        assert crowding(labels, size) == pytest.approx(expected, rel=1e-12)
    assert crowding(["cat", "cat", "dog", "dog"], 2) == pytest.approx(3)
    assert crowding(["cat", "dog", "cat", "dog"], 2) == 0


@pytest.mark.parametrize("labels, size", [("abc", 2), ("aab", 4), ("aab", 1)])
def test_crowding_needs_pairs(labels, size):
    with pytest.raises(ValueError, match=f"batch_size={size}"):
        crowding(list(labels), size)


def _trained(files, size, run, seeds, packed=False):
    """Labels of some epochs: sorted records, sixty or so of one label."""
    names = [f"{number:06d}" for number in range(files * size)]
    if packed:
        names.sort(key=lambda name: random_place(name, 0))
    labels = np.array([int(name) // run for name in names])
    counts = {number: size for number in range(files)}
    for seed in seeds:
        windows = RecordOrder(counts, seed, 2048).windows()
        records = itertools.chain.from_iterable(w.records() for w in windows)
        taken = itertools.islice(records, files * size)
        yield labels[[file * size + number for file, number in taken]]


# The mean of four epochs of a uniform draw varies by 0.01 to 0.05.
@pytest.mark.parametrize("batch_size", [64, 256, 1024])
@pytest.mark.parametrize("files, size", [(6, 1000), (100, 500), (2, 5000)])
def test_sorted_data_that_we_packed(files, size, batch_size):
    epochs = _trained(files, size, 60, range(4), packed=True)
    found = np.mean([crowding(labels, batch_size) for labels in epochs])
    assert abs(found - 1) < 0.15


# Without any mixing it is 66 in the first line; pieces of sixty
# neighbours, sixteen at a time, gave 4.8 in the first line, 46 in the third,
# 23 in the fourth, and 82 in the last.
@pytest.mark.parametrize(
    "files, size, run, batch_size, most",
    [
        (6, 1000, 60, 64, 1.15),
        (6, 1000, 60, 256, 1.45),
        (64, 1000, 60, 64, 2.4),
        (200, 1000, 1000, 64, 3.6),
        (200, 1000, 10_000, 64, 1.3),
        (200, 1000, 10_000, 4096, 1.3),
        (20, 10_000, 60, 64, 1.15),
    ],
)
def test_sorted_data_of_others(files, size, run, batch_size, most):
    epochs = list(_trained(files, size, run, range(2)))
    found = np.mean([crowding(labels, batch_size) for labels in epochs])
    assert found < most


def _write(folder, captions, shards):
    folder.mkdir()
    for number, part in enumerate(np.array_split(captions, shards)):
        path = str(folder / f"{number:03d}.tfrecord")
        with tf.io.TFRecordWriter(path) as writer:
            for index, text in enumerate(part):
                key = f"{number}-{index}"
                writer.write(encode_record(key, PIXEL, [str(text)], 1, 1))


PIXEL = tf.io.encode_png(np.zeros((1, 1, 3), "uint8")).numpy()


@pytest.mark.parametrize("shards", [1, 5, 40])
def test_neighbours_with_like_captions_are_told(tmp_path, shards):
    kinds = [f"a kind {n} thing" for n in range(40)]
    ordered = [f"{kind} seen" for kind in kinds for _ in range(30)]
    _write(tmp_path / "sorted", ordered, shards)
    sentence = describe_order(tmp_path / "sorted")
    # Five words, one of which tells the kind: all of them, or four in six. One
    # in thirty neighbours is of another kind, or one in fifteen in short files.
    near, far = map(int, re.findall(r"(\d+)%", sentence))
    assert 97 <= near <= 100 and 66 <= far <= 68
    assert str(tmp_path / "sorted") in sentence
    assert sentence.count(".") == 1 and "align-keras pack" in sentence
    mixed = np.random.default_rng(1).permutation(ordered)
    _write(tmp_path / "mixed", mixed, shards)
    assert describe_order(tmp_path / "mixed") is None
    # All alike, and none the more for being neighbours.
    _write(tmp_path / "same", ["one caption for all"] * 300, shards)
    assert describe_order(tmp_path / "same") is None


def test_what_pack_has_mixed_is_not_looked_at(tmp_path, monkeypatch):
    captions = [f"number {n // 30} here" for n in range(600)]
    _write(tmp_path / "sorted", captions, 3)
    assert describe_order(tmp_path / "sorted")
    pack(tmp_path / "sorted", tmp_path / "packed", records_per_shard=200)
    monkeypatch.setattr(RecordFiles, "in_random_order", False)
    # It would not have been told either.
    assert describe_order(tmp_path / "packed") is None
    monkeypatch.undo()
    monkeypatch.setattr(mixing, "_runs", lambda shards: 1 / 0)
    assert describe_order(tmp_path / "packed") is None
    manifest = tmp_path / "packed" / "manifest.json"
    written = json.loads(manifest.read_text())
    del written["order"]
    manifest.write_text(json.dumps(written))
    with pytest.raises(ZeroDivisionError):
        describe_order(tmp_path / "packed")


def test_few_and_broken_records_say_nothing(tmp_path):
    _write(tmp_path / "one", ["a caption"], 1)
    assert describe_order(tmp_path / "one") is None
    path = str(tmp_path / "broken.tfrecord")
    with tf.io.TFRecordWriter(path) as writer:
        for _ in range(100):
            writer.write(b"no record")
    assert describe_order(path) is None
