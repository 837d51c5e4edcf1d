"""The order of training, against what it promises; what resuming reads."""

import collections
import itertools
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from align_keras.data import open_records
from align_keras.data import records
from align_keras.data import records_of_step
from align_keras.data.order import BalancedOrder
from align_keras.data.order import RecordOrder
from align_keras.data.order import language_shares
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


# Some files of each of three languages, of which one is rare.
LANGUAGES = {
    file: "aab"[n % 3] if n < 28 else "c" for n, file in enumerate(COUNTS)
}
RECORDS = {
    name: sum(COUNTS[f] for f in COUNTS if LANGUAGES[f] == name)
    for name in "abc"
}


@pytest.mark.parametrize("exponent", [0, 0.3, 1])
def test_shares_of_languages_are_as_asked(exponent):
    order = BalancedOrder(COUNTS, LANGUAGES, exponent, 3, 100)
    rounds = 5
    stream = _take(order, 0, rounds * order.size)
    weights = {name: RECORDS[name] ** exponent for name in "abc"}
    shares = language_shares(RECORDS, exponent)
    for number in range(rounds):
        part = stream[number * order.size : (number + 1) * order.size]
        found = collections.Counter(LANGUAGES[file] for file, _ in part)
        for name, taken in zip("abc", order.taken, strict=True):
            share = weights[name] / sum(weights.values())
            assert shares[name] == pytest.approx(share)
            assert found[name] == taken
            assert taken == pytest.approx(share * order.size, abs=1.5)
    # In any part of a round too, as far as chance lets it be.
    if exponent == 0:
        half = stream[: order.size // 2]
        found = collections.Counter(LANGUAGES[file] for file, _ in half)
        for count in found.values():
            assert count / len(half) == pytest.approx(1 / 3, abs=0.1)
    # Every record of a language comes as often as all its others, but one.
    seen = collections.Counter(stream)
    for name, taken in zip("abc", order.taken, strict=True):
        own = [
            seen[file, n]
            for file, count in COUNTS.items()
            for n in range(count)
            if LANGUAGES[file] == name
        ]
        passes = rounds * taken / RECORDS[name]
        assert sum(own) == rounds * taken
        assert set(own) <= {int(passes), int(passes) + 1}


@pytest.mark.parametrize("part", [(0, 1), (1, 3)])
def test_any_position_of_balanced_languages_is_a_place_to_start(part):
    order = BalancedOrder(COUNTS, LANGUAGES, 0.3, 3, 100, part)
    stream = _take(order, 0, 2 * order.size + 20)
    again = BalancedOrder(COUNTS, LANGUAGES, 0.3, 3, 100, part)
    assert _take(again, 0, len(stream)) == stream
    for start in (1, 99, order.size - 1, order.size, order.size + 777):
        rest = stream[start : start + 300]
        assert _take(again, start, len(rest)) == rest
    other = BalancedOrder(COUNTS, LANGUAGES, 0.3, 4, 100, part)
    assert _take(other, 0, 50) != stream[:50]


def test_parts_take_rounds_in_turn():
    """So that together they see what one alone would see."""
    whole = BalancedOrder(COUNTS, LANGUAGES, 0.3, 3, 100)
    stream = _take(whole, 0, 6 * whole.size)
    for index in range(3):
        part = BalancedOrder(COUNTS, LANGUAGES, 0.3, 3, 100, (index, 3))
        found = _take(part, 0, 2 * whole.size)
        for turn in range(2):
            begin = (3 * turn + index) * whole.size
            assert (
                found[turn * whole.size :][: whole.size]
                == stream[begin : begin + whole.size]
            )


def test_windows_of_languages_are_small_and_files_few():
    """A round opens about as many files as a group, whatever there is."""
    counts = {f"{n % 7}/{n}": 100 + n % 13 for n in range(7000)}
    languages = {file: file[0] for file in counts}
    order = BalancedOrder(counts, languages, 0.5, 0, 100)
    windows, shown = [], 0
    for window in order.windows():
        windows.append(window)
        shown += len(window.order)
        if shown >= order.size:
            break
    assert order.size < 64 * 113
    assert all(len(w.order) <= w.counts.sum() <= 100 for w in windows)
    files = set(itertools.chain.from_iterable(w.files for w in windows))
    assert 64 <= len(files) <= 64 + 2 * 7
    assert np.median([len(set(w.files)) for w in windows]) >= 8


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


def test_the_pipeline_follows_the_order_of_languages(big):
    """Pieces of which a part is taken, at the ends of rounds, are read too."""
    counts = open_records(big).counts
    languages = {file: file[-10] for file in counts}
    order = BalancedOrder(counts, languages, 0, 5, 64)
    start, count = order.size - 50, 300
    read = read_shuffled(order, start).take(count).as_numpy_iterator()
    found = [
        (file.decode(), int(index), records.record_key(record))
        for _, (file, index, record) in read
    ]
    assert [r[:2] for r in found] == _take(order, start, count)
    for file, index, key in found:
        assert key == f"{int(file[-14:-9])}/{index}"


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
        order.spans([next(order.windows())])


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


@pytest.mark.parametrize(
    "contents",
    [
        b"\xff\0",
        b"0 ten\n",
        b"0 9\n9",
        b"0 9\n8 9\n",
        b"1 9\n",
        b"0 " + b"9" * 30,
    ],
)
def test_a_damaged_index_is_named(big, tmp_path, contents):
    shard = shutil.copy(big / "data-00007.tfrecord", tmp_path)
    index = tmp_path / "data-00007.idx"
    index.write_bytes(contents)
    with pytest.raises(ValueError, match=f"`{index}` is damaged.* `{shard}`"):
        records.record_offsets(str(shard))
    # Of one that is cut between two lines, too.
    index.write_bytes(b"0 9\n")
    with pytest.raises(ValueError, match=f"`{shard}` is not .* `{index}`"):
        records.record_offsets(str(shard))
