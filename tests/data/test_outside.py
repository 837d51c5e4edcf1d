"""What leads out of a data folder is not read: by name, and counted."""

import contextlib
import io
import json
import os
import shutil

import hostile
import pytest
from PIL import Image
from tiny_align import image_file

from align_keras.cli import main
from align_keras.data import open_records
from align_keras.data import pack
from align_keras.data.captions import find_caption_file
from align_keras.data.hold_out import choose_held_out
from align_keras.data.sources import OUTSIDE
from align_keras.data.sources import from_folder
from align_keras.data.tally import Tally
from align_keras.embedding.image_sources import plan_sources
from align_keras.embedding.image_sources import read_source
from align_keras.evaluation.datasets import find_image
from align_keras.io.folders import OutsideFolder
from align_keras.io.folders import check_links
from align_keras.io.folders import read_file
from align_keras.io.folders import read_within
from align_keras.models.presets import find_preset
from align_keras.training.inputs import find_records


@pytest.fixture
def ways(tmp_path):
    return hostile.folder_with_ways_out(tmp_path)


def test_every_way_out_is_refused_and_every_way_within_is_not(ways, tmp_path):
    secret = ways.secret.read_bytes()
    for name in ways.outside:
        with pytest.raises(OutsideFolder, match="leads out of") as caught:
            read_within(ways.data, name)
        assert str(ways.secret) in str(caught.value)
        assert read_within(ways.data, name, allow_outside=True) == secret
        with pytest.raises(OutsideFolder):
            find_image(ways.data, name)
    for name in ways.good:
        assert read_within(ways.data, name)
        assert find_image(ways.data, name).is_file()
    # The folder may itself be a link, and may be all there is.
    (tmp_path / "alias").symlink_to(ways.data)
    assert read_within(tmp_path / "alias", "inner.png")
    assert read_within("/", str(ways.secret)) == secret


def test_the_cache_of_hugging_face_is_followed_and_no_imitation(tmp_path):
    repository = tmp_path / "models--who--what"
    snapshot = repository / "snapshots" / "abc"
    (snapshot / "assets").mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "123").write_text("vocabulary")
    (snapshot / "assets" / "words.txt").symlink_to("../../../blobs/123")
    (snapshot / "words.txt").symlink_to("../../blobs/123")
    assert read_within(snapshot, "words.txt") == b"vocabulary"
    assert read_within(snapshot / "assets", "words.txt") == b"vocabulary"
    check_links(snapshot)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "123").write_text("of another")
    (snapshot / "other.txt").symlink_to("../../../blobs/123")
    with pytest.raises(OutsideFolder, match="other.txt"):
        check_links(snapshot)
    # A `blobs` that is a link would make all of its target the cache's.
    shutil.rmtree(repository / "blobs")
    (repository / "blobs").symlink_to(tmp_path / "blobs")
    with pytest.raises(OutsideFolder):
        read_within(snapshot, "words.txt")


@pytest.mark.parametrize("hold_out", [0, 0.5])
def test_pack_names_and_counts_what_lies_outside(ways, tmp_path, hold_out):
    names = ways.good + ways.outside
    captions = hostile.write_captions(tmp_path / "c.csv", names)
    output = tmp_path / "out"
    manifest = pack(ways.data, output, captions, hold_out=hold_out)
    # Two of the good are one file.
    assert manifest["records"] + manifest["held_out"] == 3
    assert manifest["skipped_reasons"] == {"outside the folder": 6}
    for entry in manifest["skipped"]:
        assert str(ways.secret) in entry["detail"]
        assert "--allow-outside" in entry["detail"]
    assert len({entry["file"] for entry in manifest["skipped"]}) == 6
    assert ways.secret.read_bytes() not in _images(output)


def _images(folder):
    return [r["image"] for r in open_records(str(folder))]


def test_pack_reads_what_lies_outside_where_that_is_meant(
    ways, tmp_path, capsys
):
    captions = hostile.write_captions(tmp_path / "c.csv", ways.outside)
    command = ["pack", ways.data, "--captions", captions, "--output"]
    refused = [*map(str, command), str(tmp_path / "no")]
    assert main(refused) == 2
    assert "outside the folder" in capsys.readouterr().err
    assert main([*refused[:-1], str(tmp_path / "out"), "--allow-outside"]) == 0
    assert ways.secret.read_bytes() in _images(tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["arguments"]["allow_outside"] is True


def test_training_follows_a_folder_as_pack_does(ways, tmp_path):
    hostile.write_captions(ways.data / "captions.csv", ways.outside)
    with pytest.raises(ValueError, match="outside the folder"):
        find_records(ways.data, tmp_path / "no")
    records, _ = find_records(ways.data, tmp_path / "yes", allow_outside=True)
    assert ways.secret.read_bytes() in [r["image"] for r in records]


@pytest.mark.parametrize("allowed", [False, True])
def test_texts_beside_images_stay_within(tmp_path, ways, allowed):
    (ways.data / "a.txt").symlink_to(ways.secret.with_suffix(".txt"))
    (ways.data / "b.txt").write_text("my own words")
    manifest = pack(ways.data, tmp_path / "out", allow_outside=allowed)
    texts = [r["captions"] for r in open_records(str(tmp_path / "out"))]
    assert ([hostile.SECRET] in texts) == allowed
    assert ["my own words"] in texts
    refused = {
        entry["file"]
        for entry in manifest["skipped"]
        if entry["reason"] == "outside the folder"
    }
    assert refused == (set() if allowed else {"a.png", "folder"})


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("listed", [False, True])
def test_embed_stays_within(ways, tmp_path, listed, allowed):
    (ways.data / "a.txt").symlink_to(ways.secret.with_suffix(".txt"))
    if listed:
        names = ways.good + ways.outside
        hostile.write_captions(ways.data / "captions.csv", names)
    skipped, found, texts = {}, set(), set()
    for part in plan_sources(ways.data, allow_outside=allowed):
        for name, read, text in read_source(part, skipped.__setitem__):
            texts.add(text)
            try:
                found.add(read())
            except OutsideFolder as error:
                skipped[name] = str(error)
    assert (ways.secret.read_bytes() in found) == allowed
    assert len(found) >= 1
    if not listed:
        assert (hostile.SECRET in texts) == allowed
    assert bool(skipped) == (not allowed)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_caption_file_that_is_a_link_out_is_refused(ways, tmp_path, suffix):
    theirs = tmp_path / "theirs"
    theirs.write_text("image,caption\na.png,private words\n")
    (ways.data / f"captions.{suffix}").symlink_to(theirs)
    for take in (
        lambda: find_caption_file(ways.data),
        lambda: pack(ways.data, tmp_path / "out"),
        lambda: plan_sources(ways.data),
    ):
        with pytest.raises(OutsideFolder, match=f"captions.{suffix}"):
            take()
    assert find_caption_file(ways.data, allow_outside=True)


def test_a_vocabulary_that_is_a_link_out_is_refused(ways, tmp_path):
    preset = tmp_path / "preset"
    (preset / "assets" / "tokenizer").mkdir(parents=True)
    (preset / "config.json").write_text("{}")
    words = preset / "assets" / "tokenizer" / "vocabulary.txt"
    words.symlink_to(ways.secret.with_suffix(".txt"))
    with pytest.raises(OutsideFolder, match="vocabulary.txt"):
        find_preset(preset)
    words.unlink()
    words.write_text("a")
    (tmp_path / "alias").symlink_to(preset)
    assert find_preset(tmp_path / "alias") == str(tmp_path / "alias")


@pytest.mark.parametrize("allowed", [False, True])
def test_folders_behind_links_are_followed_or_counted(tmp_path, ways, allowed):
    """Also where links lead in circles, and twice to one folder."""
    data = ways.data
    (data / "a.txt").write_text("mine")
    (data / "sub" / "c.png").write_bytes(image_file(5, form="PNG"))
    (data / "sub" / "c.txt").write_text("in a folder")
    (data / "zz").symlink_to("sub")
    (data / "sub" / "up").symlink_to("..")
    (data / "other").symlink_to(ways.secret.parent)
    (ways.secret.parent / "back").symlink_to(data)
    (ways.secret.parent / "lone.txt").write_text("without an image")
    manifest = pack(data, tmp_path / "out", allow_outside=allowed)
    found = {
        r["key"]: r["captions"] for r in open_records(str(tmp_path / "out"))
    }
    skipped = {(e["file"], e["reason"]) for e in manifest["skipped"]}
    mine = {"a": ["mine"], "sub/c": ["in a folder"]}
    if allowed:
        assert found == {**mine, "folder/private": [hostile.SECRET]}
        assert ("folder/lone.txt", "no image of that name") in skipped
    else:
        assert found == mine
        assert {n for n, reason in skipped if reason == OUTSIDE} == {
            "folder",
            "other",
        }
        details = {e["file"]: e.get("detail", "") for e in manifest["skipped"]}
        assert "--allow-outside" in details["folder"]
    skipped = {}
    (part,) = plan_sources(data, allow_outside=allowed)
    names = set()
    for name, read, _ in read_source(part, skipped.__setitem__):
        with contextlib.suppress(OutsideFolder):
            read()
            names.add(name)
    assert ("folder/private.png" in names) == allowed
    assert {"folder", "other"} <= {*skipped} or allowed


def test_a_folder_that_cannot_be_read_is_counted(tmp_path, monkeypatch):
    Image.new("RGB", (9, 9), "red").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("mine")
    (tmp_path / "locked").mkdir()

    def refuse(read):
        def reader(path):
            if str(path).endswith("locked"):
                raise PermissionError(13, "Permission denied", str(path))
            return read(path)

        return reader

    for name in ("scandir", "listdir"):
        monkeypatch.setattr(os, name, refuse(getattr(os, name)))
    tally = Tally()
    assert [name for name, *_ in from_folder(tmp_path, tally)] == ["a.png"]
    ((entry),) = tally.listed
    assert entry["file"] == "locked" and entry["reason"] == "unreadable folder"


# === Files that are none ===


@pytest.fixture
def special(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (9, 9), "red").save(folder / name)
    return folder, hostile.special_files(folder)


def test_special_files_are_refused_at_once(special):
    folder, names = special
    for name in [*names, "/dev/zero"]:
        with pytest.raises(OSError):
            read_within(folder, name, allow_outside=True)
        with pytest.raises(OSError):
            read_file(f"{folder}/{name}")
        if name != "sparse.png":
            with pytest.raises(OSError):
                find_image(folder, name)


def test_pack_passes_over_special_files(special, tmp_path):
    folder, names = special
    names = [n for n in names if "\0" not in n and "\ud800" not in n]
    captions = hostile.write_captions(
        tmp_path / "c.csv", ["a.png", *names, "b.png", "/dev/zero"]
    )
    manifest = pack(
        folder, tmp_path / "out", captions, hold_out=0.5, allow_outside=True
    )
    used = manifest["records"] + manifest["held_out"]
    assert used + manifest["skipped_count"] == manifest["images"]
    assert used == 2
    assert manifest["skipped_reasons"]["unreadable file"] >= 6


def test_embed_and_folders_pass_over_special_files(special, tmp_path):
    folder, _ = special
    skipped = {}
    (part,) = plan_sources(folder)
    good = 0
    for name, read, _ in read_source(part, skipped.__setitem__):
        try:
            Image.open(io.BytesIO(read())).load()
            good += 1
        except OSError as error:
            skipped[name] = str(error)
    assert good == 2
    assert {"pipe.png", "loop.png", "sparse.png", "socket.png"} <= {*skipped}


def test_held_out_images_are_chosen_among_those_that_are_read(ways):
    names = ways.good + ways.outside + ["x" * 5000, "none.png"]
    chosen = choose_held_out(ways.data, names, 0.5)
    assert chosen <= set(ways.good)
