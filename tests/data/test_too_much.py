"""One input that is too much: it is named and counted, and the rest goes on."""

import time
import tracemalloc

import hostile
import pytest

from align_keras.data import open_records
from align_keras.data import pack
from align_keras.data import sources
from align_keras.embedding.image_sources import plan_sources
from align_keras.embedding.image_sources import read_source
from align_keras.io.json_files import read_json
from align_keras.models.presets import load_config

# Sparse files have any size, and yet their zeros are read.
HUGE = 48 * 2**20


@pytest.fixture
def frugal(monkeypatch):
    """A check that little memory was used, with a limit in proportion."""
    assert sources.MAX_FILE_BYTES == 256 * 2**20
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 16 * 2**20)
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 * 2**20


@pytest.mark.parametrize("compressed", [False, True])
def test_members_of_any_size_are_passed_over(tmp_path, frugal, compressed):
    archive = tmp_path / ("a.tar.gz" if compressed else "a.tar")
    hostile.write_tar(archive, hostile.huge_members(HUGE), compressed)
    manifest = pack(archive, tmp_path / "out")
    records = {r["key"]: r for r in open_records(str(tmp_path / "out"))}
    assert sorted(records) == ["a", "z"]
    assert manifest["skipped_reasons"] == {
        "file too large": 1,
        "no caption": 2,
        "no image": 1,
    }
    named = {e["file"]: e for e in manifest["skipped"]}
    assert named["huge.jpg"]["detail"] == f"{HUGE} bytes"
    assert {"text.jpg", "json.jpg", "skip"} <= {*named}


def test_one_sample_does_not_grow_with_its_archive(tmp_path, frugal):
    """All names up to the first dot are one: as many files as there are."""
    good = hostile.huge_members(0)[0][3]
    text = ("a.{}.txt", b"0", 6 * 2**20, b"words\n")
    members = [(text[0].format(n), *text[1:]) for n in range(20)]
    members.append(("a.jpg", b"0", len(good), good))
    hostile.write_tar(tmp_path / "a.tar", members)
    assert len(list(sources.from_archive(tmp_path / "a.tar"))) == 1


def test_headers_that_lie_end_the_archive_alone(tmp_path, frugal):
    archives = list(hostile.archives_that_end_in_trouble(tmp_path, HUGE))
    begin = time.perf_counter()
    for archive in archives:
        skipped = {}
        (part,) = plan_sources(archive)
        found = [n for n, *_ in read_source(part, skipped.__setitem__)]
        assert found[0] == "a.jpg", archive
        assert "damaged archive" in skipped[str(archive)], archive
    manifest = pack(tmp_path, tmp_path / "out")
    assert manifest["skipped_reasons"]["damaged archive"] == len(archives)
    assert time.perf_counter() - begin < 20


def test_names_of_thousands_of_characters_are_packed(tmp_path):
    good = hostile.huge_members(0)[0][3]
    name = "n" * 5000
    members = [
        ("././@LongLink", b"L", 5005, f"{name}.jpg\0".encode()),
        ("n.jpg", b"0", len(good), good),
        ("././@LongLink", b"L", 5005, f"{name}.txt\0".encode()),
        ("n.txt", b"0", 4, b"text"),
    ]
    hostile.write_tar(tmp_path / "a.tar", members)
    assert pack(tmp_path / "a.tar", tmp_path / "out")["records"] == 1
    (record,) = open_records(str(tmp_path / "out"))
    assert record["key"] == name


def test_json_of_any_depth_is_no_json(tmp_path):
    (tmp_path / "config.json").write_text(hostile.DEEP)
    for read in (read_json, lambda path: load_config(path.parent)):
        with pytest.raises(ValueError, match="config.json.*not valid JSON"):
            read(tmp_path / "config.json")
    captions = tmp_path / "captions.jsonl"
    captions.write_text(hostile.DEEP + "\n")
    with pytest.raises(ValueError, match="captions.jsonl.*row 1, not valid"):
        pack(tmp_path, tmp_path / "out")
