"""Packing folders and archives."""

import argparse
import collections
import glob
import hashlib
import io
import json
import re
import signal
import subprocess
import sys
import tarfile
import tracemalloc

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from align_keras.cli import pack as command
from align_keras.data import archives
from align_keras.data import open_records
from align_keras.data import open_source
from align_keras.data import pack
from align_keras.data import shuffle
from align_keras.data import sources
from align_keras.data.hold_out import choose_held_out
from align_keras.data.records import encode_record


def _bytes(seed, form="JPEG", size=(40, 30), **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3))
    file = io.BytesIO()
    Image.fromarray(pixels.astype("uint8")).save(file, form, **options)
    return file.getvalue()


def _folder(folder, count=7):
    folder.mkdir()
    lines = ["image,caption"]
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(_bytes(number))
        lines += [
            f"{number}.jpg,caption {number}",
            f"{number}.jpg,bis {number}",
        ]
    (folder / "captions.csv").write_text("\n".join(lines))
    return folder / "captions.csv"


def _read(output):
    return list(open_records(output))


def _in_order(keys, seed=0):
    """The order of packed records, as docs/training.md has it."""
    salt = seed.to_bytes(8, "little")

    def digest(key):
        return hashlib.blake2b(key.encode(), digest_size=8, key=salt).digest()

    return sorted(keys, key=digest)


def test_folder_with_captions(tmp_path):
    captions = _folder(tmp_path / "in")
    output = tmp_path / "out"
    manifest = pack(tmp_path / "in", output, captions, records_per_shard=3)
    assert manifest["records"] == 7 and manifest["captions"] == 14
    assert manifest["skipped_count"] == 0 and manifest["skipped"] == []
    assert [s["records"] for s in manifest["shards"]] == [3, 3, 1]
    names = [f"data-{i:05d}-of-00003.tfrecord" for i in range(3)]
    assert [s["file"] for s in manifest["shards"]] == names
    for shard in manifest["shards"]:
        contents = (output / shard["file"]).read_bytes()
        assert hashlib.sha256(contents).hexdigest() == shard["sha256"]
    assert json.loads((output / "manifest.json").read_text()) == manifest
    indexes = [name.replace(".tfrecord", ".idx") for name in names]
    assert sorted(p.name for p in output.iterdir()) == sorted(
        [*names, *indexes, "manifest.json"]
    )
    assert _read(output) == [
        {
            "key": key,
            "image": _bytes(int(key)),
            "captions": [f"caption {key}", f"bis {key}"],
        }
        for key in _in_order(map(str, range(7)))
    ]
    assert manifest["order"] == "random" and manifest["arguments"]["seed"] == 0
    assert open_records(output).total == 7


def test_fields_are_those_of_img2dataset(tmp_path):
    captions = _folder(tmp_path / "in", 1)
    pack(tmp_path / "in", tmp_path / "out", captions)
    shards = tf.data.TFRecordDataset(
        str(tmp_path / "out" / "data-00000-of-00001.tfrecord")
    )
    (record,) = shards.as_numpy_iterator()
    feature = tf.train.Example.FromString(record).features.feature
    assert set(feature) == {"key", "jpg", "txt", "width", "height"}
    assert feature["txt"].bytes_list.value == [b"caption 0", b"bis 0"]
    assert feature["width"].int64_list.value == [40]
    assert feature["height"].int64_list.value == [30]


def test_deterministic(tmp_path):
    captions = _folder(tmp_path / "in")
    first = pack(tmp_path / "in", tmp_path / "a", captions)
    second = pack(tmp_path / "in", tmp_path / "b", captions)
    assert first["shards"] == second["shards"]


def test_a_second_run_does_nothing_and_says_so(tmp_path, caplog):
    captions = _folder(tmp_path / "in")
    output = tmp_path / "out"
    first = pack(tmp_path / "in", output, captions)
    times = {p: p.stat().st_mtime_ns for p in output.iterdir()}
    assert pack(tmp_path / "in", output, captions) == first
    assert "nothing to do" in caplog.text
    assert {p: p.stat().st_mtime_ns for p in output.iterdir()} == times
    with pytest.raises(FileExistsError, match="other arguments"):
        pack(tmp_path / "in", output, captions, records_per_shard=2)
    (output / first["shards"][0]["file"]).unlink()
    with pytest.raises(FileExistsError, match="incomplete"):
        pack(tmp_path / "in", output, captions)


def test_what_cannot_be_used_is_counted_and_named(tmp_path):
    folder = tmp_path / "in"
    _folder(folder, 2)
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image")
    (folder / "half.jpg").write_bytes(_bytes(0)[:500])
    (folder / "huge.png").write_bytes(_bytes(0, "PNG", (200, 100)))
    (folder / "mute.jpg").write_bytes(_bytes(3))
    (folder / "0.png").write_bytes(_bytes(4, "PNG"))
    (folder / "folder.jpg").mkdir()
    names = [
        "0.jpg",
        "empty.jpg",
        "text.jpg",
        "half.jpg",
        "huge.png",
        "gone.jpg",
        "0.png",
        "folder.jpg",
        "",
        "1.jpg",
    ]
    rows = [f"{name},a caption" for name in names] + ["mute.jpg,  "]
    captions = folder / "captions.csv"
    captions.write_text("image,caption\n" + "\n".join(rows))
    manifest = pack(folder, tmp_path / "out", captions, max_pixels=10_000)
    assert _keys(tmp_path / "out") == _in_order(["0", "1"])
    assert manifest["skipped_reasons"] == {
        "duplicate key": 1,
        "missing file": 1,
        "no caption": 1,
        "no image": 1,
        "not an image": 3,
        "too many pixels": 1,
        "unreadable file": 1,
    }
    assert manifest["skipped_count"] == 9
    reasons = {entry["file"]: entry["reason"] for entry in manifest["skipped"]}
    assert reasons == {
        "0.png": "duplicate key",
        "gone.jpg": "missing file",
        "mute.jpg": "no caption",
        "empty.jpg": "not an image",
        "text.jpg": "not an image",
        "half.jpg": "not an image",
        "huge.png": "too many pixels",
        "folder.jpg": "unreadable file",
        f"{captions}, row 9": "no image",
    }
    details = {e["file"]: e.get("detail", "") for e in manifest["skipped"]}
    assert "0 bytes" in details["empty.jpg"]
    assert "200x100" in details["huge.png"]


@pytest.mark.parametrize("kind", ["folder", "table", "archive", "listed"])
def test_what_a_reader_loses_is_noticed(tmp_path, monkeypatch, kind):
    """Packing ends with an error, and no output, if one image gets lost."""
    source, captions = tmp_path / "in", None
    source.mkdir()
    if kind == "archive":
        _archive(source / "0.tar", _samples(4))
    elif kind == "folder":
        for name, contents in _samples(4):
            (source / name).write_bytes(contents)
    elif kind == "listed":
        source.rmdir()
        captions = _folder(source)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        rows = [{"image": c, "text": n} for n, c in _samples(4)[::2]]
        table = pyarrow.Table.from_pylist(rows)
        parquet.write_table(table, source / "0.parquet")
    reader = {
        "archive": "from_archive",
        "folder": "from_folder",
        "listed": "from_caption_file",
        "table": "from_table",
    }[kind]
    module = archives if kind == "archive" else sources
    read = getattr(module, reader)

    def lossy(*arguments, **options):
        pairs = read(*arguments, **options)
        next(pairs)
        yield from pairs

    monkeypatch.setattr(module, reader, lossy)
    with pytest.raises(RuntimeError, match="does not add up"):
        pack(source, tmp_path / "out", captions)
    assert not (tmp_path / "out").exists()


def test_formats_are_kept_or_become_png(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    forms = {
        "a.jpg": _bytes(0, "JPEG", exif=exif),
        "b.png": _bytes(1, "PNG"),
        "c.webp": _bytes(2, "WEBP", lossless=True),
        "d.tiff": _bytes(3, "TIFF"),
        "e.gif": _bytes(4, "GIF"),
        "f.bmp": _bytes(5, "BMP"),
    }
    for name, contents in forms.items():
        (folder / name).write_bytes(contents)
        (folder / name).with_suffix(".txt").write_text("one\ntwo\n")
    pack(folder, tmp_path / "out")
    records = {record["key"]: record for record in _read(tmp_path / "out")}
    assert sorted(records) == list("abcdef")
    for key, name in zip("abcdef", forms, strict=True):
        assert records[key]["captions"] == ["one", "two"]
        stored = records[key]["image"]
        if key in "abc":
            assert stored == forms[name]
            continue
        assert stored.startswith(b"\x89PNG")
        np.testing.assert_array_equal(
            np.asarray(Image.open(io.BytesIO(stored))),
            np.asarray(Image.open(io.BytesIO(forms[name])).convert("RGB")),
        )
    shard = next((tmp_path / "out").glob("*.tfrecord"))
    stored = tf.data.TFRecordDataset(str(shard)).as_numpy_iterator()
    rotated = list(stored)[list(records).index("a")]
    feature = tf.train.Example.FromString(rotated).features.feature
    # Upright, the image is higher than wide.
    assert feature["width"].int64_list.value == [30]
    assert feature["height"].int64_list.value == [40]


def test_resized_images_are_what_training_would_see(tmp_path):
    """Against Pillow's decoder and interpolation by hand, in float."""
    folder = tmp_path / "in"
    folder.mkdir()
    y, x = np.mgrid[:60, :80]
    smooth = np.stack([3 * x, 4 * y, 255 - 3 * x], -1).astype("uint8")
    file = io.BytesIO()
    Image.fromarray(smooth).save(file, "JPEG", quality=98, subsampling=0)
    small = io.BytesIO()
    Image.fromarray(smooth[:24, :24]).save(small, "JPEG")
    contents = {"a.jpg": file.getvalue(), "b.jpg": small.getvalue()}
    for name, value in contents.items():
        (folder / name).write_bytes(value)
        (folder / name).with_suffix(".txt").write_text("one")
    manifest = pack(folder, tmp_path / "out", resize=24)
    assert manifest["arguments"]["resize"] == 24
    images = {r["key"]: r["image"] for r in _read(tmp_path / "out")}
    # What has the size is not encoded a second time.
    assert images["b"] == contents["b.jpg"]
    stored = Image.open(io.BytesIO(images["a"]))
    assert stored.format == "JPEG" and stored.size == (24, 24)
    pixels = np.asarray(Image.open(file), "float64")
    for axis, size in ((0, 60), (1, 80)):
        # Centres of pixels fall on centres of pixels.
        places = (np.arange(24) + 0.5) * size / 24 - 0.5
        low = np.floor(places).astype(int)
        share = (places - low).reshape(-1, *[1] * (2 - axis))
        below, above = (np.take(pixels, low + n, axis) for n in (0, 1))
        pixels = below * (1 - share) + above * share
    # Quality 95 on a smooth image.
    error = np.abs(np.asarray(stored, "float64") - pixels)
    assert error.mean() < 1 and error.max() < 6
    shard = next((tmp_path / "out").glob("*.tfrecord"))
    for record in tf.data.TFRecordDataset(str(shard)).as_numpy_iterator():
        feature = tf.train.Example.FromString(record).features.feature
        assert feature["width"].int64_list.value == [24]
        assert feature["height"].int64_list.value == [24]
    with pytest.raises(FileExistsError, match="other arguments"):
        pack(folder, tmp_path / "out", resize=32)
    for wrong in (0, 2.5):
        with pytest.raises(ValueError, match=f"Received: {wrong}"):
            pack(folder, tmp_path / "other", resize=wrong)


def test_rotated_png_is_stored_upright(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 3
    for form in ("PNG", "WEBP"):
        name = folder / f"{form.lower()}.{form.lower()}"
        options = {"lossless": True} if form == "WEBP" else {}
        name.write_bytes(_bytes(0, form, exif=exif, **options))
        name.with_suffix(".txt").write_text("one")
    pack(folder, tmp_path / "out")
    plain = np.asarray(Image.open(io.BytesIO(_bytes(0, "PNG"))))
    records = _read(tmp_path / "out")
    assert len(records) == 2
    for record in records:
        stored = np.asarray(Image.open(io.BytesIO(record["image"])))
        np.testing.assert_array_equal(stored, plain[::-1, ::-1])


def _archive(path, samples):
    with tarfile.open(path, "w") as tar:
        for name, contents in samples:
            member = tarfile.TarInfo(name)
            member.size = len(contents)
            tar.addfile(member, io.BytesIO(contents))


def test_archives(tmp_path):
    for tar in range(2):
        samples = []
        for number in range(3):
            key = f"{tar}{number}"
            samples.append((f"{key}.jpg", _bytes(number)))
            samples.append((f"{key}.txt", f"caption {key}".encode()))
        _archive(tmp_path / f"{tar}.tar", samples)
    broken = (tmp_path / "1.tar").read_bytes()[:8000]
    (tmp_path / "2.tar").write_bytes(broken)
    manifest = pack(tmp_path, tmp_path / "out", records_per_shard=4)
    records = _read(tmp_path / "out")
    keys = _in_order(["00", "01", "02", "10", "11", "12"])
    assert [r["key"] for r in records] == keys
    assert [r["captions"] for r in records] == [[f"caption {k}"] for k in keys]
    reasons = manifest["skipped_reasons"]
    assert reasons["damaged archive"] == 1 and reasons["duplicate key"] >= 1
    assert str(tmp_path / "2.tar") in [e["file"] for e in manifest["skipped"]]
    by_glob = pack(str(tmp_path / "[01].tar"), tmp_path / "out2")
    assert by_glob["records"] == 6 and by_glob["skipped_count"] == 0


def _samples(count):
    """Tiny images in a sorted order, as of an archive."""
    return [
        sample
        for number in range(count)
        for sample in (
            (f"{number:03d}.png", _bytes(number, "PNG", (2, 2))),
            (f"{number:03d}.txt", f"caption {number}".encode()),
        )
    ]


def test_any_source_gives_one_random_order(tmp_path, monkeypatch):
    """A folder, archives through many files, and records in another order."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name, contents in _samples(60):
        (folder / name).write_bytes(contents)
    _archive(tmp_path / "0.tar", _samples(60)[:70])
    _archive(tmp_path / "1.tar", _samples(60)[70:])
    expected = _in_order((f"{n:03d}" for n in range(60)), seed=5)
    whole = pack(folder, tmp_path / "a", seed=5, records_per_shard=16)
    assert _keys(tmp_path / "a") == expected
    # Some records wait in memory; a dozen buckets; all of it tidied up.
    monkeypatch.setattr(shuffle, "BUCKET_BYTES", 2000)
    opened = []
    sort = shuffle._sorted_bucket
    monkeypatch.setattr(
        shuffle,
        "_sorted_bucket",
        lambda path: opened.append(path) or sort(path),
    )
    archives = str(tmp_path / "?.tar")
    mixed = pack(archives, tmp_path / "b", seed=5, records_per_shard=16)
    assert mixed["shards"] == whole["shards"] and len(opened) > 10
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == sorted(
        p.name for p in (tmp_path / "a").iterdir()
    )
    # Another seed, packed again.
    pack(folder, tmp_path / "c", seed=6)
    assert _keys(tmp_path / "c") == _in_order(expected, seed=6) != expected
    again = pack(tmp_path / "c", tmp_path / "d", seed=5, records_per_shard=16)
    assert again["shards"] == whole["shards"] and not again["skipped"]


def test_the_first_of_a_key_is_taken_from_archives(tmp_path, monkeypatch):
    monkeypatch.setattr(shuffle, "BUCKET_BYTES", 500)
    samples = [
        ("a.jpg", b"broken"),
        ("a.txt", b"one"),
        ("b.jpg", _bytes(0)),
        ("b.txt", b"two"),
        ("a.jpg", _bytes(1)),
        ("a.txt", b"three"),
        ("a.png", _bytes(2, "PNG")),
        ("a.txt", b"four"),
    ]
    # Names stand together up to the first dot, so that each has a file.
    for number in range(4):
        part = samples[2 * number : 2 * number + 2]
        _archive(tmp_path / f"{number}.tar", part)
    manifest = pack(tmp_path, tmp_path / "out")
    captions = {r["key"]: r["captions"] for r in _read(tmp_path / "out")}
    # The first of the name was none; the others have their digests.
    assert captions.pop("b") == ["two"]
    assert sorted(captions.values()) == [["four"], ["three"]]
    assert all(re.fullmatch("a-[0-9a-f]{16}", key) for key in captions)
    assert manifest["skipped_reasons"] == {"not an image": 1}


def test_records_that_cannot_be_used_are_counted(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    records = [
        encode_record("a.b", _bytes(0), ["one"], 40, 30),
        encode_record("", _bytes(1), ["two"], 40, 30),
        encode_record("mute", _bytes(2), [], 40, 30),
        encode_record("empty", b"", ["three"], 40, 30),
        b"no record",
    ]
    with tf.io.TFRecordWriter(str(folder / "x.tfrecord")) as writer:
        for record in records:
            writer.write(record)
    (folder / "y.tfrecord").write_bytes(b"no records at all")
    manifest = pack(folder, tmp_path / "out")
    found = {r["key"]: r["captions"] for r in _read(tmp_path / "out")}
    assert found == {"a.b": ["one"], "x[1]": ["two"]}
    assert manifest["skipped_reasons"] == {
        "broken record": 2,
        "damaged archive": 1,
        "no caption": 1,
    }


def test_every_order_is_as_likely_as_another():
    """All 24 orders of four keys, over 4800 seeds, by chi-square."""
    keys = ["a", "b", "c/d", "e"]
    orders = collections.Counter(
        tuple(sorted(keys, key=lambda key: shuffle.random_place(key, seed)))
        for seed in range(4800)
    )
    assert len(orders) == 24
    # 23 degrees of freedom: above 60 once in 40,000 sets of seeds.
    assert sum((n - 200) ** 2 / 200 for n in orders.values()) < 60


DIE = """
import os
import signal
import sys
from align_keras.data import pack
from align_keras.data import shuffle

sort = shuffle._sorted_bucket


def die(path):
    yield from sort(path)
    os.kill(os.getpid(), signal.SIGKILL)


shuffle.BUCKET_BYTES = 2000
shuffle._sorted_bucket = die
pack(sys.argv[1] + "/0.tar", sys.argv[1] + "/out")
"""


@pytest.mark.multiprocess
def test_killed_and_begun_again(tmp_path, monkeypatch):
    """Between two buckets; what appears later is what would have."""
    _archive(tmp_path / "0.tar", _samples(40))
    whole = pack(tmp_path / "0.tar", tmp_path / "whole")
    monkeypatch.setattr(shuffle, "BUCKET_BYTES", 2000)
    # TensorFlow does not survive a fork.
    run = subprocess.run([sys.executable, "-c", DIE, tmp_path], check=False)
    assert run.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    # What is left of it is hidden, and no record of anybody's.
    assert not glob.glob(str(tmp_path / "*" / "bucket-*"))
    assert glob.glob(str(tmp_path / ".out.*" / "buckets" / "bucket-*"))
    assert (
        pack(tmp_path / "0.tar", tmp_path / "out")["shards"]
        == (whole["shards"])
    )


@pytest.mark.multiprocess
def test_first_image_that_needs_no_tensorflow(tmp_path):
    """A thread imports it for the second, while the first is written."""
    samples = [("0.gif", _bytes(0, "GIF")), ("0.txt", b"a text")]
    for number in range(1, 5):
        samples.append((f"{number}.jpg", _bytes(number)))
        samples.append((f"{number}.txt", b"a text"))
    _archive(tmp_path / "0.tar", samples)
    code = "import sys; from align_keras.data import pack; pack(*sys.argv[1:])"
    arguments = [tmp_path / "0.tar", tmp_path / "out"]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)
    assert len(_read(tmp_path / "out")) == 5


def test_memory_does_not_grow_with_an_archive(tmp_path, monkeypatch):
    monkeypatch.setattr(shuffle, "BUCKET_BYTES", 2 * 10**6)
    count, size = 100, 400_000
    samples = [
        sample
        for number in range(count)
        for sample in (
            (f"{number}.jpg", _bytes(number) + b"\0" * size),
            (f"{number}.txt", b"a"),
        )
    ]
    _archive(tmp_path / "0.tar", samples)
    pack(tmp_path / "0.tar", tmp_path / "first", max_pixels=10**6)
    tracemalloc.start()
    try:
        pack(tmp_path / "0.tar", tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A bucket and what waits for threads, of forty million bytes.
    assert peak < count * size / 2


def test_wrong_sources(tmp_path):
    captions = _folder(tmp_path / "in", 1)
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match="absent"):
        pack(tmp_path / "absent", out)
    with pytest.raises(FileNotFoundError, match="absent"):
        pack(tmp_path / "absent", out, captions)
    with pytest.raises(FileNotFoundError, match="absent.csv"):
        pack(tmp_path / "in", out, tmp_path / "absent.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty"):
        pack(tmp_path / "empty", out)
    with pytest.raises(ValueError, match="captions"):
        pack(tmp_path / "in", out, split="train")
    with pytest.raises(ValueError, match="Received: 0"):
        pack(tmp_path / "in", out, captions, records_per_shard=0)
    with pytest.raises(ValueError, match="1 missing file"):
        captions.write_text("image,caption\ngone.jpg,a\n")
        pack(tmp_path / "in", out, captions)
    assert not out.exists()


def test_memory_does_not_grow_with_the_data(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    count, size = 120, 400_000
    rows = []
    for number in range(count):
        # A short image with a long tail, which readers ignore.
        contents = _bytes(number) + b"\0" * size
        (folder / f"{number}.jpg").write_bytes(contents)
        rows.append(f"{number}.jpg,a")
    captions = folder / "captions.csv"
    captions.write_text("image,caption\n" + "\n".join(rows))
    pack(folder, tmp_path / "first", captions, max_pixels=10**6)
    tracemalloc.start()
    try:
        pack(folder, tmp_path / "out", captions)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < count * size / 2


def test_command(tmp_path, capsys):
    captions = _folder(tmp_path / "in", 3)
    (tmp_path / "in" / "1.jpg").unlink()
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    arguments = [str(tmp_path / "in"), "--captions", str(captions)]
    output = ["--output", str(tmp_path / "out")]
    command.run(parser.parse_args([*arguments, *output]))
    printed = capsys.readouterr().out
    assert "2 images with 4 captions" in printed
    assert _keys(tmp_path / "out") == _in_order(["0", "2"])
    assert "1 missing file" in printed
    command.run(parser.parse_args([*arguments, *output, "--json"]))
    summary = json.loads(capsys.readouterr().out)
    assert summary["records"] == 2 and "skipped" not in summary


def _keys(output):
    return [record["key"] for record in _read(output)]


def test_some_images_are_set_aside(tmp_path):
    folder = tmp_path / "in"
    captions = _folder(folder, 100)
    # Copies under other names, one image under two suffixes, and one that
    # stands for all that were not found.
    rows = [captions.read_text()]
    for number in range(20):
        (folder / f"copy{number}.jpg").write_bytes(_bytes(number))
        (folder / f"{number + 20}.png").write_bytes(_bytes(0, "PNG"))
        rows += [f"copy{number}.jpg,c", f"{number + 20}.png,c"]
    (folder / "99.jpg").write_bytes(b"broken")
    (folder / "98.jpg").unlink()
    captions.write_text("\n".join(rows))
    output = tmp_path / "out"
    manifest = pack(folder, output, captions, hold_out=0.1)
    kept, aside = _keys(output), _keys(output / "held_out")
    # A tenth of 139 files.
    assert 12 <= len(aside) <= 14 and manifest["held_out"] == len(aside)
    assert not set(kept) & set(aside)
    assert {*kept, *aside} <= {str(n) for n in range(98)} | {
        f"copy{n}" for n in range(20)
    }
    for number in range(20):
        sides = [str(number) in aside, f"copy{number}" in aside]
        assert sides[0] == sides[1]
    assert open_records(output / "held_out").total == len(aside)
    reasons = manifest["skipped_reasons"]
    assert reasons["not an image"] == reasons["missing file"] == 1
    # Again, under another name: the same choice.
    again = tmp_path / "again"
    pack(folder, again, captions, hold_out=0.1)
    assert _keys(again / "held_out") == aside
    # Other arguments are other data.
    with pytest.raises(FileExistsError):
        pack(folder, output, captions)


@pytest.mark.parametrize(
    "count, share, expected",
    [(3, 0.1, 0), (4, 0.1, 1), (16, 0.1, 4), (40, 0.1, 8), (90, 0.1, 9)],
)
def test_how_many_are_set_aside(tmp_path, count, share, expected):
    names = [f"{number}.jpg" for number in range(count)]
    for name in names:
        (tmp_path / name).write_text(name)
    chosen = choose_held_out(tmp_path, names, share)
    assert len(chosen) == expected and chosen <= set(names)
    assert not choose_held_out(tmp_path, names, 0)
    with pytest.raises(ValueError, match="hold_out=0.6"):
        choose_held_out(tmp_path, names, 0.6)


@pytest.mark.parametrize("latest", [1, 7, 1000])
def test_the_first_value_of_each_key_is_kept(monkeypatch, latest):
    monkeypatch.setattr(open_source, "LATEST", latest)
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 60, 300).astype("uint64") << np.uint64(58)
    keys += rng.integers(0, 3, 300).astype("uint64")
    values = rng.integers(0, 2**64, 300, dtype="uint64")
    first, expected = open_source._FirstValues(), {}
    for key, value in zip(keys, values, strict=True):
        assert first.of(key, value) == expected.setdefault(int(key), value)


def test_keys_take_little_memory(monkeypatch):
    monkeypatch.setattr(open_source, "LATEST", 1000)
    keys = np.random.default_rng(0).permutation(100_000).astype("uint64")
    tracemalloc.start()
    first = open_source._FirstValues()
    for key in keys:
        first.of(key, key)
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert taken < 20 * len(keys)
