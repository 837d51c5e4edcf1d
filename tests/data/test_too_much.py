"""One input that is too much: it is named and counted, and the rest goes on."""

import contextlib
import os
import shutil
import threading
import time
import tracemalloc

import hostile
import pytest

from align_keras import AlignTokenizer
from align_keras.classes import read_classes
from align_keras.curation.evaluation_images import hash_evaluation_images
from align_keras.curation.input_files import read_batches
from align_keras.curation.vocabulary import read_texts
from align_keras.data import archives
from align_keras.data import open_records
from align_keras.data import pack
from align_keras.embedding.image_sources import plan_sources
from align_keras.embedding.image_sources import read_source
from align_keras.interop.huggingface_processor import read_tokenizer
from align_keras.io.json_files import read_json
from align_keras.io.rows import RowError
from align_keras.io.rows import read_rows
from align_keras.io.text import MAX_LINE
from align_keras.io.text import open_text
from align_keras.io.text import read_lines
from align_keras.models.presets import load_config
from align_keras.training import load_recipe

# Sparse files have any size, and yet their zeros are read.
HUGE = 48 * 2**20


@pytest.fixture
def frugal(monkeypatch):
    """A check that little memory was used, with a limit in proportion."""
    assert archives.MAX_FILE_BYTES == 256 * 2**20
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 16 * 2**20)
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
        "no image": 1,
        "unreadable captions": 2,
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
    assert len(list(archives.from_archive(tmp_path / "a.tar"))) == 1


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


# === Lines without end ===

ENDLESS = 160 * 2**20


@contextlib.contextmanager
def little_memory(most):
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < most


@pytest.mark.parametrize("limit", [1, 2, 7, 8, 9, 30])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", ""])
def test_lines_are_cut_at_their_ends_alone(tmp_path, limit, end):
    lines = ["", "1", "22é", "x" * 7, "y" * 8, "z" * 9, "", "n" * 29, "last"]
    text = (end or "\n").join(lines) + end
    (tmp_path / "a.txt").write_bytes(text.encode())
    with open_text(tmp_path / "a.txt") as file:
        found = list(read_lines(file, limit))
    # What is cut between the two characters of an end leaves a blank line.
    whole = [line and line.rstrip("\r\n") for line in found]
    whole = [line for line in whole if line != ""]
    lines = [line for line in lines if line]
    assert len(whole) == len(lines)
    # What is longer by its end alone may be either.
    for line, expected in zip(whole, lines, strict=True):
        assert line == expected or (line is None and len(expected) >= limit)
        assert line is None or len(expected) <= limit


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", hostile.ENDLESS_TABLES)
def test_endless_lines_are_counted_and_passed_over(tmp_path, kind, compressed):
    suffix, before, filling, after = hostile.ENDLESS_TABLES[kind]
    path = tmp_path / f"a{suffix}{'.gz' if compressed else ''}"
    hostile.write_endless(path, before, filling, ENDLESS, after)
    with little_memory(96 * 2**20):
        urls, bad = [], 0
        for columns, bad_lines in read_batches(str(path)):
            bad += bad_lines
            urls += columns["url"].to_pylist() if columns else []
    assert (urls, bad) == ([b"a", b"c"], 1)
    if compressed:
        return
    with little_memory(96 * 2**20):
        rows = list(read_rows(path))
    assert [r["url"] for r in rows if isinstance(r, dict)] == ["a", "c"]
    (error,) = (row for row in rows if isinstance(row, RowError))
    assert str(error) == f"line too long: more than {MAX_LINE} characters"


def test_quoted_lines_without_end_do_not_fill_the_memory(tmp_path):
    """A row of CSV may have many lines, and yet not any number."""
    line = b"w" * 2**17 + b"\n"
    path = hostile.write_endless(
        tmp_path / "a.csv", b'url,text\na,one\nb,"', line, ENDLESS
    )
    with little_memory(128 * 2**20):
        urls = [
            url
            for columns, _ in read_batches(str(path))
            for url in columns["url"].to_pylist()
        ]
    assert urls == [b"a"]
    with little_memory(128 * 2**20), pytest.raises(ValueError, match=f"{path}"):
        list(read_rows(path))


def test_a_header_without_end_is_no_header(tmp_path):
    for suffix in (".csv", ".tsv", ".csv.gz"):
        path = tmp_path / f"a{suffix}"
        hostile.write_endless(path, b"url,", b"a", ENDLESS)
        with (
            little_memory(64 * 2**20),
            pytest.raises(ValueError, match="a.cs|ts"),
        ):
            list(read_batches(str(path)))
        path.unlink()
        if suffix != ".csv.gz":
            hostile.write_endless(path, b"url,", b"a", ENDLESS)
            with pytest.raises(ValueError, match=f"header line of `{path}`"):
                list(read_rows(path))


def test_texts_to_learn_from_have_ends(tmp_path):
    path = hostile.write_endless(
        tmp_path / "a.txt", b"one\n", b"b", ENDLESS, b"\nthree\n"
    )
    counts = {"texts": 0, "unreadable_lines": 0, "damaged_files": []}
    with little_memory(64 * 2**20):
        assert list(read_texts([str(path)], None, counts)) == ["one", "three"]
    assert counts["unreadable_lines"] == 1


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_json_that_is_read_whole_has_a_limit(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"captions{suffix}"
    hostile.write_endless(path, b"[", b"1,", 300 * 2**20, b"1]")
    with little_memory(600 * 2**20), pytest.raises(ValueError, match="jsonl"):
        list(read_batches(str(path)))
    if suffix == ".json":
        for read in (lambda: list(read_rows(path)), lambda: read_json(path)):
            with (
                little_memory(600 * 2**20),
                pytest.raises((ValueError, OSError), match="captions.json"),
            ):
                read()


def test_texts_beside_images_have_a_limit(tmp_path):
    image = hostile.huge_members(0)[0][3]
    for name in "ab":
        (tmp_path / f"{name}.jpg").write_bytes(image)
        (tmp_path / f"{name}.txt").write_text("words")
    hostile.write_endless(tmp_path / "b.txt", b"words\n", b"w", ENDLESS)
    with little_memory(64 * 2**20):
        manifest = pack(tmp_path, tmp_path / "out")
    (entry,) = manifest["skipped"]
    assert entry["file"] == "b.jpg" and "8388608 bytes" in entry["detail"]
    assert manifest["records"] == 1


def read_hugging_face(path):
    shutil.copy(path, path.with_name("vocab.txt"))
    return read_tokenizer(path.parent)


@pytest.mark.parametrize(
    "read",
    [
        lambda path: AlignTokenizer(str(path)),
        lambda path: AlignTokenizer().load_assets(str(path.parent)),
        read_hugging_face,
        read_classes,
        lambda path: hash_evaluation_images([path]),
    ],
    ids=["tokenizer", "preset", "hugging face", "classes", "hashes"],
)
def test_lists_in_files_have_a_limit(tmp_path, read):
    path = tmp_path / "vocabulary.txt"
    hostile.write_endless(path, b"[PAD]\n", b"token\n", 80 * 2**20)
    with little_memory(256 * 2**20), pytest.raises(OSError, match="67108864"):
        read(path)
    path.unlink()
    os.mkfifo(path)
    if read is not read_hugging_face:
        with pytest.raises((OSError, ValueError)):
            read(path)


def test_a_vocabulary_is_read_as_it_was_written(tmp_path):
    """A token may be white space, and lines may end as in Windows."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "\u3000", "\u2028"]
    path = tmp_path / "vocabulary.txt"
    for end in ("\n", "\r\n"):
        path.write_bytes("".join(t + end for t in tokens).encode())
        assert AlignTokenizer(str(path)).get_vocabulary() == tokens
        tokenizer = AlignTokenizer(tokens)
        tokenizer.load_assets(str(tmp_path))
        assert tokenizer.get_vocabulary() == tokens


def test_recipes_are_read_with_the_limits_of_all_yaml(tmp_path):
    path = tmp_path / "recipe.yaml"
    bomb = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    bomb += [
        f"a{n}: &a{n} [{', '.join(10 * [f'*a{n - 1}'])}]" for n in range(1, 30)
    ]
    path.write_text("\n".join(bomb))
    begin = time.perf_counter()
    with pytest.raises(ValueError, match="recipe.yaml"):
        load_recipe(str(path))
    assert time.perf_counter() - begin < 5


@pytest.fixture
def pipe(tmp_path, request):
    """A pipe of the suffix that is asked for, which ends after a while."""
    path = tmp_path / f"pipe{request.param}"
    os.mkfifo(path)

    def end():
        # Nobody may be reading, which is what is wanted.
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))

    timer = threading.Timer(5, end)
    timer.start()
    yield path
    timer.cancel()


@pytest.mark.parametrize(
    "pipe",
    [".txt", ".csv", ".jsonl.gz", ".parquet", ".warc"],
    indirect=True,
)
def test_pipes_among_tables_are_named_and_passed_over(pipe, tmp_path, caplog):
    good = tmp_path / "good.jsonl"
    good.write_text('{"text": "a red bus"}\n')
    counts = {"texts": 0, "unreadable_lines": 0, "damaged_files": []}
    texts = read_texts([str(pipe), str(good)], None, counts)
    assert list(texts) == ["a red bus"]
    assert counts["damaged_files"] == [str(pipe)]
    assert "not a regular file" in caplog.text
    if pipe.suffix != ".txt":
        with pytest.raises(OSError, match="not a regular file"):
            list(read_batches(str(pipe)))
