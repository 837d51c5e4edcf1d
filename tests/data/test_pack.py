"""Packing folders and archives."""

import argparse
import hashlib
import io
import json
import tarfile
import tracemalloc

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from align_keras.cli import pack as command
from align_keras.data import open_records
from align_keras.data import pack
from align_keras.data.hold_out import choose_held_out


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
            "key": str(number),
            "image": _bytes(number),
            "captions": [f"caption {number}", f"bis {number}"],
        }
        for number in range(7)
    ]
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
    (folder / "text.jpg").write_text("not a picture")
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
    assert [r["key"] for r in _read(tmp_path / "out")] == ["0", "1"]
    assert manifest["skipped_reasons"] == {
        "duplicate key": 1,
        "missing file": 1,
        "no caption": 1,
        "not a picture": 3,
        "too many pixels": 1,
        "unreadable file": 2,
    }
    assert manifest["skipped_count"] == 9
    reasons = {entry["file"]: entry["reason"] for entry in manifest["skipped"]}
    assert reasons == {
        "0.png": "duplicate key",
        "gone.jpg": "missing file",
        "mute.jpg": "no caption",
        "empty.jpg": "not a picture",
        "text.jpg": "not a picture",
        "half.jpg": "not a picture",
        "huge.png": "too many pixels",
        "folder.jpg": "unreadable file",
        ".": "unreadable file",
    }
    details = {e["file"]: e.get("detail", "") for e in manifest["skipped"]}
    assert "0 bytes" in details["empty.jpg"]
    assert "200x100" in details["huge.png"]


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
    first = next(tf.data.TFRecordDataset(str(shard)).as_numpy_iterator())
    feature = tf.train.Example.FromString(first).features.feature
    # Upright, the picture is higher than wide.
    assert feature["width"].int64_list.value == [30]
    assert feature["height"].int64_list.value == [40]


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
    keys = ["00", "01", "02", "10", "11", "12"]
    assert [r["key"] for r in records] == keys
    assert [r["captions"] for r in records] == [[f"caption {k}"] for k in keys]
    reasons = manifest["skipped_reasons"]
    assert reasons["damaged archive"] == 1 and reasons["duplicate key"] >= 1
    assert str(tmp_path / "2.tar") in [e["file"] for e in manifest["skipped"]]
    by_glob = pack(str(tmp_path / "[01].tar"), tmp_path / "out2")
    assert by_glob["records"] == 6 and by_glob["skipped_count"] == 0


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
        # A short picture with a long tail, which readers ignore.
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
    assert "2 pictures with 4 captions" in printed
    assert "1 missing file" in printed
    command.run(parser.parse_args([*arguments, *output, "--json"]))
    summary = json.loads(capsys.readouterr().out)
    assert summary["records"] == 2 and "skipped" not in summary


def _keys(output):
    return [record["key"] for record in _read(output)]


def test_some_pictures_are_set_aside(tmp_path):
    folder = tmp_path / "in"
    captions = _folder(folder, 100)
    # Copies under other names, one picture under two suffixes, and one that
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
    assert reasons["not a picture"] == reasons["missing file"] == 1
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
