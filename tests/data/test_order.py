"""The order of training, against what it promises; what resuming reads."""

import itertools
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from align_keras.data import open_records
from align_keras.data import records
from align_keras.data import records_of_step
from align_keras.data.order import RecordOrder
from align_keras.data.reading import read_shuffled

# Files of many sizes, in two groups.
COUNTS = {
    f"file{number:02d}": int(count)
    for number, count in enumerate(
        np.random.default_rng(0).integers(1, 200, 30)
    )
}
TOTAL = sum(COUNTS.values())


def _take(order, start, count):
    found = (w.records() for w in order.windows(start))
    found = itertools.chain.from_iterable(found)
    return list(itertools.islice(found, count))


def test_every_epoch_holds_every_record_once():
    order = RecordOrder(COUNTS, 3, 100)
    stream = _take(order, 0, 2 * TOTAL)
    expected = {(f, n) for f, count in COUNTS.items() for n in range(count)}
    assert order.size == TOTAL == len(expected)
    assert set(stream[:TOTAL]) == set(stream[TOTAL:]) == expected
    assert stream[:TOTAL] != stream[TOTAL:]
    assert _take(order, 0, TOTAL) == stream[:TOTAL]
    assert _take(RecordOrder(COUNTS, 4, 100), 0, 50) != stream[:50]


@pytest.mark.parametrize("part", [(0, 1), (1, 3)])
def test_any_position_is_a_place_to_start(part):
    order = RecordOrder(COUNTS, 3, 100, part)
    stream = _take(order, 0, 2 * order.size + 20)
    for start in (1, 99, order.size - 1, order.size, order.size + 777):
        rest = stream[start : start + 300]
        assert _take(order, start, len(rest)) == rest


def test_parts_share_an_epoch():
    parts = []
    for index in range(3):
        order = RecordOrder(COUNTS, 3, 100, (index, 3))
        parts += _take(order, 0, order.size)
    assert len(parts) == len(set(parts)) == TOTAL
    # Whole numbers of examples: the first part may hold one more.
    assert abs(RecordOrder(COUNTS, 3, 100, (0, 3)).size - TOTAL / 3) < 1


@pytest.mark.parametrize("buffer, files", [(100, 30), (2048, 30), (64, 1)])
def test_windows_are_small_and_mixed(buffer, files):
    counts = dict(list(COUNTS.items())[:files])
    order = RecordOrder(counts, 0, buffer)
    most = min(buffer, max(counts.values()))
    windows = list(itertools.islice(order.windows(), 40))
    assert all(len(w.order) == w.counts.sum() <= most for w in windows)
    if files > 1:
        # Records that stand together come from many files.
        mixed = [len(set(w.files)) for w in windows]
        assert np.median(mixed) >= 8
    else:
        # Of one file, places that lie apart.
        assert np.median([np.ptp(w.firsts) for w in windows]) > 64


def test_neighbours_part():
    """Where a record is shown depends little on where it is stored."""
    counts = {f"file{n}": 100 for n in range(64)}
    stream = _take(RecordOrder(counts, 0, 2048), 0, 6400)
    places = {record: place for place, record in enumerate(stream)}
    # Two records of one file, 50 apart: about as far apart as 1600 allow.
    apart = [
        abs(places[f, n] - places[f, n + 50]) for f in counts for n in range(50)
    ]
    assert np.median(apart) > 300
    batches = [{f for f, _ in stream[n : n + 32]} for n in range(0, 6400, 32)]
    assert np.mean([len(files) for files in batches]) > 8


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """Fifty files of forty records of about a kilobyte, with indexes."""
    folder = tmp_path_factory.mktemp("big")
    rng = np.random.default_rng(0)
    for number in range(50):
        path = folder / f"data-{number:05d}.tfrecord"
        offset, lines = 0, []
        with tf.io.TFRecordWriter(str(path)) as writer:
            for index in range(40):
                image = rng.bytes(int(rng.integers(500, 1500)))
                key = f"{number}/{index}"
                record = records.encode_record(key, image, ["a"], 1, 1)
                writer.write(record)
                lines.append(f"{offset} {len(record) + 16}\n")
                offset += len(record) + 16
        path.with_suffix(".idx").write_text("".join(lines))
    return folder


def _raw(counts, start):
    """The records as training reads them, before they are decoded."""
    for _, (file, index, record) in read_shuffled(
        RecordOrder(counts, 5, 2048), start
    ).as_numpy_iterator():
        yield file.decode(), int(index), records.record_key(record)


def test_the_pipeline_follows_the_order(big):
    counts = open_records(big).counts
    read = list(itertools.islice(_raw(counts, 1970), 70))
    assert [r[:2] for r in read] == _take(
        RecordOrder(counts, 5, 2048), 1970, 70
    )
    # The index in the file is the one in the key.
    for file, index, key in read:
        assert key == f"{int(file[-14:-9])}/{index}"
    named = records_of_step(big, 197, 10, seed=5, shuffle_buffer=2048)
    assert [r["key"] for r in named] == [key for _, _, key in read[:10]]
    assert [(r["file"], r["index"]) for r in named] == [
        r[:2] for r in read[:10]
    ]


@pytest.mark.parametrize("index", [True, False])
def test_resuming_reads_no_more_than_a_file(big, tmp_path, index):
    """Bytes that this process reads from files, as the system counts them."""
    if not index:
        for path in big.glob("*.tfrecord"):
            shutil.copy(path, tmp_path)
    folder = big if index else tmp_path
    counts = open_records(folder).counts
    largest = max(path.stat().st_size for path in folder.glob("*.tfrecord"))

    def read_at(start):
        before = _bytes_read()
        stream = _raw(counts, start)
        next(stream)
        stream.close()
        return _bytes_read() - before

    read_at(0)  # What TensorFlow loads when it runs for the first time.
    # Two windows are on their way: that of the position, and the next.
    for start in (0, 700, 1990):
        # Whatever else the process reads meanwhile only adds to it.
        assert min(read_at(start) for _ in range(3)) < 2.5 * largest


def _bytes_read():
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])


def test_a_wrong_number_of_records_is_named(big, tmp_path):
    for path in sorted(big.iterdir())[:4]:
        shutil.copy(path, tmp_path)
    shards = [
        {"file": f"data-{n:05d}.tfrecord", "records": 41} for n in range(2)
    ]
    (tmp_path / "manifest.json").write_text(json.dumps({"shards": shards}))
    counts = open_records(tmp_path).counts
    assert list(counts.values()) == [41, 41]
    order = RecordOrder(counts, 0, 2048)
    with pytest.raises(ValueError, match="should hold 41.*Received: 40"):
        order.spans(next(order.windows()))


def test_counts_of_img2dataset_are_believed(big, tmp_path):
    shutil.copy(big / "data-00000.tfrecord", tmp_path / "00000.tfrecord")
    shutil.copy(big / "data-00001.tfrecord", tmp_path / "00001.tfrecord")
    stats = {"count": 50, "successes": 17, "failed_to_download": 33}
    (tmp_path / "00000_stats.json").write_text(json.dumps(stats))
    (tmp_path / "00001_stats.json").write_text("damaged")
    assert list(open_records(tmp_path).counts.values()) == [17, 40]


def test_the_index_equals_the_framing(big, tmp_path):
    path = big / "data-00007.tfrecord"
    shutil.copy(path, tmp_path)
    walked = records.record_offsets(str(tmp_path / path.name))
    np.testing.assert_array_equal(walked, records.record_offsets(str(path)))
    contents = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    assert records.read_record(str(path), 11) == contents[11]
    # A cut file is found out either way.
    short = path.read_bytes()[:-9]
    (tmp_path / path.name).write_bytes(short)
    with pytest.raises(ValueError, match="not a complete TFRecord file"):
        records.record_offsets(str(tmp_path / path.name))
    shutil.copy(path.with_suffix(".idx"), tmp_path)
    with pytest.raises(ValueError, match="not a complete TFRecord file"):
        records.record_offsets(str(tmp_path / path.name))
