"""Batches from records: order, determinism, resuming, broken records."""

import collections
import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from align_keras.data import load_dataset
from align_keras.data import open_records
from align_keras.data import records
from align_keras.data import records_of_step
from align_keras.preprocessing import AlignImageConverter
from align_keras.preprocessing import AlignPreprocessor
from align_keras.preprocessing import AlignTokenizer

WORDS = [f"w{number}" for number in range(40)] + [f"x{n}" for n in range(40)]
FIRST = 5  # id of "w0"

pytestmark = pytest.mark.usefixtures("plain_decoder")


@pytest.fixture(scope="module")
def preprocessor():
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return AlignPreprocessor(
        AlignTokenizer(vocabulary),
        AlignImageConverter(image_size=8, resize_size=12),
        sequence_length=4,
    )


def _image(number):
    """A plain image whose grey level is its number."""
    file = io.BytesIO()
    Image.new("RGB", (20, 16), (number, number, number)).save(file, "PNG")
    return file.getvalue()


def _record(number, captions=None):
    if captions is None:
        captions = [f"w{number}", f"x{number}"]
    return records.encode_record(
        f"key{number}", _image(number), captions, 20, 16
    )


def _write(path, contents):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in contents:
            writer.write(record)


@pytest.fixture
def packed(tmp_path):
    """37 records in 4 files."""
    for shard in range(4):
        numbers = range(shard * 10, min(37, shard * 10 + 10))
        path = tmp_path / f"data-{shard:05d}-of-00004.tfrecord"
        _write(path, [_record(number) for number in numbers])
    return tmp_path


def _numbers(batch):
    """Which images a batch holds."""
    grey = (batch["images"].numpy()[:, 0, 0, 0] + 1) * 127.5
    return np.round(grey).astype(int).tolist()


def _captions(batch):
    return [WORDS[token - FIRST] for token in batch["token_ids"].numpy()[:, 1]]


def _batches(dataset, count):
    return [
        {name: value.numpy() for name, value in batch.items()}
        for batch in dataset.take(count)
    ]


def _assert_equal(first, second):
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        for name in ("images", "token_ids", "padding_mask"):
            np.testing.assert_array_equal(one[name], other[name])


def test_one_pass_in_order(packed, preprocessor):
    dataset = load_dataset(packed, preprocessor, 8, training=False)
    batches = list(dataset)
    assert [len(_numbers(b)) for b in batches] == [8, 8, 8, 8, 5]
    assert sum(map(_numbers, batches), []) == list(range(37))
    captions = sum(map(_captions, batches), [])
    assert captions == [f"w{n}" for n in range(37)]
    for name, value in preprocessor.tokenize(["w0", "w1"]).items():
        np.testing.assert_array_equal(batches[0][name][:2], value)


def test_training_batches_are_static_and_numeric(packed, preprocessor):
    spec = load_dataset(packed, preprocessor, 8).element_spec
    assert spec == {
        "images": tf.TensorSpec((8, 8, 8, 3), tf.float32),
        "token_ids": tf.TensorSpec((8, 4), tf.int32),
        "padding_mask": tf.TensorSpec((8, 4), tf.int32),
    }


def test_epochs_are_whole_and_shuffled(packed, preprocessor):
    dataset = load_dataset(packed, preprocessor, 37)
    first, second = (_numbers(batch) for batch in dataset.take(2))
    assert sorted(first) == sorted(second) == list(range(37))
    assert first != second != list(range(37)) != first
    # The shards' borders are gone.
    assert len({number // 10 for number in first[:10]}) > 1


def test_pairs_stay_together_and_every_caption_is_drawn(packed, preprocessor):
    drawn = collections.Counter()
    for batch in load_dataset(packed, preprocessor, 37).take(40):
        for number, caption in zip(
            _numbers(batch), _captions(batch), strict=True
        ):
            assert int(caption[1:]) == number
            drawn[caption[0]] += 1
    # Six standard deviations.
    assert abs(drawn["w"] - drawn["x"]) < 6 * np.sqrt(40 * 37)


def test_crops_differ_between_epochs(tmp_path, preprocessor):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), "uint8")
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    record = records.encode_record("a", file.getvalue(), ["w0"], 12, 12)
    _write(tmp_path / "a.tfrecord", [record])
    batch = next(iter(load_dataset(tmp_path, preprocessor, 64)))
    crops = {image.tobytes() for image in batch["images"].numpy()}
    # 25 places, each with its mirror image.
    assert 25 < len(crops) <= 50


class Mapped(AlignImageConverter):
    """Uses what a graph cannot hold itself: a variable, and many numbers."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain = tf.Variable(0.5)
        self.table = tf.range(1000.0)

    def decode_random_crop(self, contents, seed):
        crop = super().decode_random_crop(contents, seed)
        return crop * self.gain * self.table[2]


def test_a_converter_of_ones_own_may_hold_tensors(packed, preprocessor):
    files = open_records(packed)
    own = AlignPreprocessor(preprocessor.tokenizer, Mapped(8, 12), 4)
    batch = next(iter(load_dataset(files, own, 4)))
    expected = next(iter(load_dataset(files, preprocessor, 4)))
    np.testing.assert_allclose(batch["images"], expected["images"], rtol=1e-6)
    assert not files.skipped


def test_determinism(packed, preprocessor):
    first = _batches(load_dataset(packed, preprocessor, 8, seed=3), 12)
    # The program's own seed has no influence.
    tf.random.set_seed(99)
    dataset = load_dataset(packed, preprocessor, 8, seed=3)
    _assert_equal(first, _batches(dataset, 12))
    _assert_equal(first, _batches(dataset, 12))
    other = _batches(load_dataset(packed, preprocessor, 8, seed=4), 1)
    assert np.abs(first[0]["images"] - other[0]["images"]).max() > 0


@pytest.mark.parametrize("broken", [False, True])
def test_start_step_continues_exactly(packed, preprocessor, broken):
    if broken:
        _write(packed / "data-bad.tfrecord", [b"?", _record(5)[:-30]])
    options = {"batch_size": 12, "seed": 3, "shuffle_buffer": 16}
    whole = _batches(load_dataset(packed, preprocessor, **options), 16)
    # In the first epoch, across its end, and far into the third.
    for step in (1, 5, 13):
        dataset = load_dataset(packed, preprocessor, **options, start_step=step)
        _assert_equal(whole[step:], _batches(dataset, 16 - step))


@pytest.mark.parametrize("by_file", [True, False])
def test_parts_are_disjoint_and_complete(packed, preprocessor, by_file):
    """By file; or by record, where there are fewer files than parts."""
    if not by_file:
        for path in packed.iterdir():
            path.unlink()
        _write(packed / "one.tfrecord", [_record(n) for n in range(37)])
    numbers = []
    for index in range(2):
        options = {"shard_index": index, "shard_count": 2}
        part = load_dataset(packed, preprocessor, 8, training=False, **options)
        numbers.append([n for batch in part for n in _numbers(batch)])
    assert sorted(sum(numbers, [])) == list(range(37))
    # Training reads the same parts and can go on in the middle.
    size = len(numbers[-1])
    whole = load_dataset(packed, preprocessor, size, **options)
    batches = list(whole.take(3))
    for batch in batches:
        if by_file:
            assert sorted(_numbers(batch)) == numbers[-1]
        assert len(set(_numbers(batch))) == size
    resumed = load_dataset(packed, preprocessor, size, start_step=2, **options)
    _assert_equal(_batches(whole.skip(2), 1), _batches(resumed, 1))


def test_languages_are_balanced_by_their_folders(tmp_path, preprocessor):
    """A folder of parts is one language."""
    for folder, numbers in (
        ("de", range(30)),
        ("fr/part-00001-of-00002", range(30, 32)),
        ("fr/part-00002-of-00002", range(32, 34)),
    ):
        (tmp_path / folder).mkdir(parents=True)
        path = tmp_path / folder / "data.tfrecord"
        _write(path, [_record(number) for number in numbers])
    found = open_records([tmp_path / "de", *sorted(tmp_path.glob("fr/*"))])
    options = {"seed": 3, "shuffle_buffer": 16, "language_exponent": 0}
    whole = load_dataset(found, preprocessor, 17, **options)
    batches = list(whole.take(6))
    numbers = sum(map(_numbers, batches), [])
    assert sum(number >= 30 for number in numbers) == len(numbers) / 2
    resumed = load_dataset(found, preprocessor, 17, start_step=4, **options)
    _assert_equal(_batches(whole.skip(4), 2), _batches(resumed, 2))
    named = records_of_step(found, 5, 17, **options)
    assert [int(r["key"].removeprefix("key")) for r in named] == numbers[-17:]
    with pytest.raises(ValueError, match="are in one. Give a glob"):
        load_dataset(tmp_path / "de", preprocessor, 17, **options)


def _img2dataset_record(number):
    """One row as img2dataset's TFRecord writer stores it."""

    def text(value):
        value = tf.train.BytesList(value=[value.encode()])
        return tf.train.Feature(bytes_list=value)

    def integer(value):
        value = tf.train.Int64List(value=[value])
        return tf.train.Feature(int64_list=value)

    feature = {
        "key": text(f"{number:09d}"),
        "jpg": tf.train.Feature(
            bytes_list=tf.train.BytesList(value=[_image(number)])
        ),
        "txt": text(f"w{number}"),
        "caption": text(f"w{number}"),
        "url": text("https://example.com/a.jpg"),
        "status": text("success"),
        "error_message": text("None"),
        "width": integer(20),
        "height": integer(16),
        "original_width": integer(200),
        "original_height": integer(160),
        "similarity": tf.train.Feature(
            float_list=tf.train.FloatList(value=[0.3])
        ),
        "exif": text("{}"),
        "sha256": text("0" * 64),
    }
    if number % 2:
        del feature["txt"]
    if number % 3 == 0:
        feature["webp"] = feature.pop("jpg")
    example = tf.train.Example(features=tf.train.Features(feature=feature))
    return example.SerializeToString()


def test_img2dataset_files_train_without_packing(tmp_path, preprocessor):
    path = tmp_path / "00000.tfrecord"
    _write(path, [_img2dataset_record(number) for number in range(12)])
    _write(tmp_path / "00001.tfrecord", [_img2dataset_record(12)])
    batch = next(iter(load_dataset(tmp_path, preprocessor, 13)))
    assert sorted(_numbers(batch)) == list(range(13))
    assert _captions(batch) == [f"w{number}" for number in _numbers(batch)]
    files = open_records(tmp_path)
    found = list(files)
    assert [r["captions"] for r in found] == [[f"w{n}"] for n in range(13)]
    assert found[3]["key"] == "000000003"
    assert found[3]["image"] == _image(3)
    assert not files.skipped


def _broken_records():
    """Records 0..8 of which six are broken, and the reasons."""
    truncated = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), "uint8")
    Image.fromarray(noise).save(truncated, "JPEG")
    contents = [
        _record(0),
        records.encode_record("empty", b"", ["w1"], 1, 1),
        records.encode_record("text", b"no image", ["w2"], 1, 1),
        records.encode_record("half", truncated.getvalue()[:700], ["w3"], 1, 1),
        _record(4),
        records.encode_record("mute", _image(5), [], 1, 1),
        records.encode_record("blank", _image(6), ["", " "], 1, 1),
        b"no record",
        _record(8),
    ]
    reasons = {
        "[1] empty": "no image",
        "[2] text": "cannot be decoded",
        "[3] half": "cannot be decoded",
        "[5] mute": "no caption",
        "[6] blank": "no caption",
        "[7]": "no tf.train.Example",
    }
    return contents, reasons


def _assert_reported(files, path, reasons):
    assert len(files.skipped) == len(reasons)
    for place, reason in reasons.items():
        assert reason in files.skipped[f"{path}{place}"]


def test_broken_records_are_skipped_counted_and_named(
    tmp_path, preprocessor, caplog
):
    path = tmp_path / "a.tfrecord"
    contents, reasons = _broken_records()
    _write(path, contents)
    files, others = open_records(tmp_path), open_records(tmp_path)
    dataset = load_dataset(files, preprocessor, 2, training=False)
    assert not files.skipped
    assert [_numbers(batch) for batch in dataset] == [[0, 4], [8]]
    _assert_reported(files, path, reasons)
    # What one reader skips is not another's.
    assert not others.skipped
    for place in reasons:
        assert f"{path}{place}" in caplog.text


def _random_record(rng):
    """A record whose fields are absent, empty, blank, several or no bytes."""
    values = [
        b"",
        b" ",
        b"\t\n",
        "\u3000\u00a0".encode(),
        b"\xff",
        b"a bus",
        b"b",
    ]

    def feature():
        kind = rng.integers(8)
        if kind == 0:
            value = tf.train.Int64List(value=[1])
            return tf.train.Feature(int64_list=value)
        if kind == 1:
            return tf.train.Feature()
        value = rng.choice(values, rng.integers(4)).tolist()
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=value))

    names = [*records.IMAGE_FIELDS, *records.CAPTION_FIELDS, "key"]
    features = {name: feature() for name in names if rng.random() < 0.6}
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return example.SerializeToString()


def test_both_readers_of_records_follow_the_same_rules():
    rng = np.random.default_rng(0)
    parse = tf.function(
        records.parse_record, input_signature=[tf.TensorSpec((), tf.string)]
    )
    usable = 0
    for number in range(2000):
        record = _random_record(rng) if number else b"no record"
        try:
            found = records.decode_record(record)
        except ValueError:
            found = None
        try:
            image, captions = (part.numpy() for part in parse(record))
        except tf.errors.InvalidArgumentError:
            image, captions = b"", []
        if found is None:
            assert not image or not len(captions)
            continue
        usable += 1
        assert image == found["image"]
        texts = [text.decode("utf-8", "replace") for text in captions]
        assert texts == found["captions"]
    assert 200 < usable < 1800


def test_broken_records_in_training(tmp_path, preprocessor):
    path = tmp_path / "a.tfrecord"
    contents, reasons = _broken_records()
    _write(path, contents)
    seen = set()
    files = open_records(tmp_path)
    for batch in load_dataset(files, preprocessor, 9).take(4):
        assert batch["images"].shape == (9, 8, 8, 3)
        numbers = _numbers(batch)
        assert set(numbers) == {0, 4, 8}
        pairs = zip(numbers, _captions(batch), strict=True)
        assert all(number == int(caption[1:]) for number, caption in pairs)
        seen.update(numbers)
    assert seen == {0, 4, 8}
    # Four epochs, and each record is listed once.
    _assert_reported(files, path, reasons)


def test_batches_without_any_usable_pair_are_left_out(tmp_path, preprocessor):
    _write(tmp_path / "a.tfrecord", [b"?", _record(1), b"?"])
    dataset = load_dataset(tmp_path, preprocessor, 1)
    assert [_numbers(batch) for batch in dataset.take(3)] == [[1]] * 3


def test_a_batch_without_any_usable_pair_keeps_its_step(tmp_path, preprocessor):
    _write(tmp_path / "a.tfrecord", [b"?", _record(3), _record(4)])
    whole = _batches(load_dataset(tmp_path, preprocessor, 1), 6)
    keys = [records_of_step(tmp_path, n, 1)[0]["key"] for n in range(6)]
    for key, batch in zip(keys, whole, strict=True):
        # The first pair of the data set stands in.
        number = int(key.removeprefix("key") or 3)
        np.testing.assert_allclose(batch["images"][0], number / 127.5 - 1)
        assert WORDS[batch["token_ids"][0, 1] - FIRST][1:] == str(number)
    lost = keys.index("")
    for step in (lost, lost + 1):
        rest = load_dataset(tmp_path, preprocessor, 1, start_step=step)
        _assert_equal(whole[step:], _batches(rest, 6 - step))


def test_one_pass_starts_at_a_step_of_usable_pairs(tmp_path, preprocessor):
    contents = [b"?", *map(_record, range(3))]
    _write(tmp_path / "a.tfrecord", contents)
    options = {"training": False, "start_step": 1}
    dataset = load_dataset(tmp_path, preprocessor, 2, **options)
    assert [_numbers(batch) for batch in dataset] == [[2]]


@pytest.mark.parametrize("counts", [[2], [0, 1, 0], [1, 0, 1, 0, 0]])
def test_each_input_worker_needs_a_record(tmp_path, preprocessor, counts):
    for file, count in enumerate(counts):
        _write(tmp_path / f"{file}.tfrecord", [_record(file)] * count)
    total = sum(counts)
    # Empty files are dealt to nobody.
    for index in range(total):
        options = {"shard_index": index, "shard_count": total}
        assert len(records_of_step(tmp_path, 0, 1, **options)) == 1
    options = {"shard_index": 0, "shard_count": total + 1}
    message = f"{tmp_path}` holds {total} records.*shard_count={total + 1}"
    with pytest.raises(ValueError, match=message):
        load_dataset(tmp_path, preprocessor, 1, **options)
    with pytest.raises(ValueError, match=message):
        records_of_step(tmp_path, 0, 1, **options)


def test_data_without_a_usable_record_is_refused(tmp_path, preprocessor):
    _write(tmp_path / "a.tfrecord", [b"?", _record(1, [])])
    with pytest.raises(ValueError, match="None of the 2.*key1: no caption"):
        load_dataset(tmp_path, preprocessor, 1)
    _write(tmp_path / "a.tfrecord", [])
    with pytest.raises(ValueError, match="None of the 0"):
        load_dataset(tmp_path, preprocessor, 1)


def test_iterating_names_broken_records(tmp_path):
    path = tmp_path / "a.tfrecord"
    _write(path, [_record(0), _record(1, []), b"?"])
    files = open_records(path)
    assert [r["key"] for r in files] == ["key0"]
    reasons = ["no caption", "no tf.train.Example"]
    assert list(files.skipped.values()) == reasons


def test_a_very_long_caption(tmp_path, preprocessor):
    _write(tmp_path / "a.tfrecord", [_record(0, ["w1 " * 10_000])])
    batch = next(iter(load_dataset(tmp_path, preprocessor, 2)))
    np.testing.assert_array_equal(
        batch["token_ids"], [[2, FIRST + 1, FIRST + 1, 3]] * 2
    )


def test_patterns(packed, preprocessor):
    shards = sorted(packed.glob("*.tfrecord"))
    for pattern in (packed, f"{packed}/data-*", shards, str(packed)):
        assert open_records(pattern).total == 37
    assert open_records(shards[3]).total == 7
    assert open_records([shards[3], packed]).total == 37
    opened = open_records(shards)
    assert open_records(opened) is opened
    for pattern in (packed / "absent", f"{packed}/absent-*"):
        with pytest.raises(FileNotFoundError, match="absent"):
            load_dataset(pattern, preprocessor, 1)
    with pytest.raises(FileNotFoundError, match="empty"):
        open_records([])


def test_count_reads_the_framing(packed):
    # A wrong length in the header of the last record would be followed.
    path = packed / "data-00003-of-00004.tfrecord"
    contents = path.read_bytes()
    length = struct.unpack("<Q", contents[:8])[0]
    path.write_bytes(contents[: 12 + length + 4])
    assert open_records(path).total == 1


def test_incomplete_preprocessor(packed, preprocessor):
    half = AlignPreprocessor(tokenizer=preprocessor.tokenizer)
    with pytest.raises(ValueError, match="image_converter"):
        load_dataset(packed, half, 1)


@pytest.mark.parametrize("kept", [-7, 30])
def test_a_damaged_file_is_named(packed, preprocessor, kept):
    shard = sorted(packed.glob("*.tfrecord"))[0]
    shard.write_bytes(shard.read_bytes()[:kept])
    with pytest.raises(
        ValueError, match=f"`{shard}` is not a complete TFRecord"
    ):
        list(open_records(shard))
