"""Bad rows and bad files: each has a defined outcome."""

import gzip
import json
import logging
import os
import unicodedata
from pathlib import Path

import pytest

pytest.importorskip("ibis", reason="needs the extra `curation`")
pytest.importorskip("duckdb", reason="needs the extra `curation`")

import hostile
import pyarrow as pa
from curated import LENGTH
from curated import audit
from curated import kept
from curated import write

from align_keras.curation import curate
from align_keras.curation import explain
from align_keras.curation.config import parse_config
from align_keras.curation.download import read_downloads
from align_keras.curation.download import write_download_list
from align_keras.curation.evaluation_images import hash_evaluation_images
from align_keras.curation.ingest import find_columns
from align_keras.curation.ingest import parse_hash
from align_keras.curation.input_files import read_batches
from align_keras.curation.text import normalize_text
from align_keras.curation.text import signed_hash
from align_keras.curation.text import tokenize
from align_keras.io.rows import read_rows


def raw_strings(*values):
    """A string column that may hold bytes which are not UTF-8."""
    return pa.array(values, "binary").view("string")


def test_every_blemish_is_counted_and_has_an_outcome(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write(
        folder / "a.parquet",
        id=["1", "2", "2", "3", "4", "5", "6", "7", None, "8"],
        url=["u1", "u2", "u3", None, "", "u6", "u7", "u8", "u9", " u10 "],
        text=raw_strings(
            b"a red bus",
            None,
            b"",
            b"a text without image",
            b"another text without image",
            b"caf\xe9 au lait",
            "חתול על גדר".encode(),
            "猫 坐在 墙上".encode(),
            b"word " * 210_000,
            b" Same\tTEXT\xc2\xa0here ",
        ),
        width=[-5, 0, None, 1, 640, 640, 640, 640, 640, 640],
        height=[10, 10, 10, 1, 480, 480, 480, 480, 480, 480],
    )
    output = tmp_path / "out"
    manifest = curate([folder], output, parse_config(LENGTH))
    counts = audit(output)["reading"]["counts"]
    assert counts == {
        "rows": 10,
        "null_texts": 1,
        "blank_texts": 1,
        "cut_texts": 1,
        "invalid_utf8_texts": 1,
        "without_image": 2,
        "invalid_sizes": 2,
        "without_size": 3,
        "without_phash": 10,
    }
    assert [row["text"] for row in kept(output)] == [
        "a red bus",
        "caf\ufffd au lait",
        "חתול על גדר",
        "猫 坐在 墙上",
        "Same\tTEXT\xa0here",
    ]
    assert kept(output)[0]["width"] is None
    assert kept(output)[-1]["url"] == "u10"
    dropped = {rule["name"]: rule["dropped"] for rule in audit(output)["rules"]}
    # Without a text, the second row of id 2 among them; without an image.
    assert dropped["unusable"]["alone"] == 4
    # A row without an id repeats none.
    assert dropped["repeated_ids"]["alone"] == 1
    # Two without words, and the one of a megabyte.
    assert dropped["token_count"]["alone"] == 3
    assert manifest["kept"] == 5


def test_damaged_files_are_left_out_and_named(tmp_path, caplog):
    folder = tmp_path / "in"
    folder.mkdir()
    texts = [f"text number {number} of the file" for number in range(50_000)]
    urls = [f"u{number}" for number in range(50_000)]
    for name in ("a", "broken", "cut", "z"):
        write(folder / f"{name}.parquet", url=urls, text=texts)
    size = (folder / "cut.parquet").stat().st_size
    with open(folder / "cut.parquet", "r+b") as file:
        file.truncate(size // 2)
    with open(folder / "broken.parquet", "r+b") as file:
        # The footer is whole; pages in the midst are not.
        file.seek(size // 3)
        file.write(os.urandom(size // 3))
    (folder / "empty.parquet").write_bytes(b"")
    with gzip.open(folder / "half.jsonl.gz", "wb") as file:
        file.write(b'{"url": "u", "text": "one two three"}\n' * 1000)
    half = (folder / "half.jsonl.gz").read_bytes()
    (folder / "half.jsonl.gz").write_bytes(half[:-20])
    write(folder / "other.parquet", something=["else"])
    output = tmp_path / "out"
    with caplog.at_level(logging.WARNING):
        manifest = curate([folder], output, parse_config(LENGTH))
    assert manifest["rows"] == manifest["kept"] == 100_000
    damaged = audit(output)["reading"]["damaged_files"]
    names = [Path(entry["file"]).name for entry in damaged]
    assert names == [
        "broken.parquet",
        "cut.parquet",
        "empty.parquet",
        "half.jsonl.gz",
        "other.parquet",
    ]
    assert all(entry["reason"] for entry in damaged)
    assert "no text column" in damaged[-1]["reason"]
    assert "cut.parquet" in caplog.text
    assert "cut.parquet" in (output / "audit.html").read_text("utf-8")
    for name in ("a", "z"):
        (folder / f"{name}.parquet").unlink()
    with pytest.raises(ValueError, match="None of the 5 input files"):
        curate([folder], tmp_path / "none", parse_config(LENGTH))
    assert not (tmp_path / "none" / "manifest.json").exists()


def test_formats_give_the_same_rows(tmp_path):
    texts = [
        'say "hi", you',
        "two\nlines of text",
        "É Ü ß",
        "caf\udce9 au lait",
    ]
    raw = [text.encode("utf-8", "surrogateescape") for text in texts]
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "1.parquet", url=list("abcd"), text=raw_strings(*raw))
    for name, mark in (("2.csv", b","), ("3.tsv", b"\t")):
        lines = [mark.join([b"URL", b"TEXT", b"width"])]
        for url, text in zip(b"abcd", raw, strict=True):
            if name == "2.csv":
                text = b'"' + text.replace(b'"', b'""') + b'"'
            # TSV has no way to write a line end.
            text = text.replace(b"\n", b" " if name == "3.tsv" else b"\n")
            lines.append(mark.join([bytes([url]), text, b"x"]))
        # A line of too many fields.
        lines.append(mark.join([b"e"] * 9))
        (folder / name).write_bytes(b"\n".join(lines) + b"\n")
    lines = [
        b'{"url": "%c", "caption": %s}'
        % (
            url,
            json.dumps(
                text.decode("utf-8", "surrogateescape"), ensure_ascii=False
            ).encode("utf-8", "surrogateescape"),
        )
        for url, text in zip(b"abcd", raw, strict=True)
    ]
    lines += [b"", b"{not json", b"[1, 2]", b"9" * 5000]
    (folder / "4.jsonl").write_bytes(b"\n".join(lines))
    with gzip.open(folder / "5.jsonl.gz", "wb") as file:
        file.write(b"\n".join(lines[:4]))
    rules = {"rules": [{"token_count": {"at_least": 0}}]}
    curate([folder], tmp_path / "out", parse_config(rules))
    rows = kept(tmp_path / "out")
    for number in range(5):
        mine = [r for r in rows if r["row_id"] // 10**12 == number]
        assert [row["url"] for row in mine] == list("abcd")
        found = [row["text"] for row in mine]
        if number == 2:
            found[1] = found[1].replace("two lines", "two\nlines")
        assert found == [*texts[:3], "caf\ufffd au lait"]
    counts = audit(tmp_path / "out")["reading"]["counts"]
    assert counts["unreadable_lines"] == 5
    assert counts["invalid_utf8_texts"] == 5
    assert counts["invalid_numbers"] == 8


def test_columns_named_like_ours_are_the_inputs(tmp_path):
    """Names of normalised rows are free; COYO has a `text_length`."""
    write(
        tmp_path / "in.parquet",
        url=["u1", "u2", "u3"],
        text=["one two three", "one two three four", "one"],
        text_length=[1, 2, 3],
        num_tokens=["9", "8", "7"],
        tokens=["en", "de", "en"],
    )
    rules = [
        {"token_count": {"at_least": 2}},
        {"number": {"column": "text_length", "at_most": 2}},
        {"language": {"column": "tokens", "keep": ["en"]}},
    ]
    fields = {"rules": rules, "extra_columns": ["num_tokens", "text_length"]}
    given = [tmp_path / "in.parquet"], tmp_path / "out"
    curate(*given, parse_config(fields))
    (row,) = kept(tmp_path / "out")
    assert row["url"] == "u1"
    assert row["num_tokens"] == "9" and row["text_length"] == 1
    whys = {
        r["name"]: r["why"] for r in explain(tmp_path / "out", 2)[0]["rules"]
    }
    assert whys["token_count"].startswith("num_tokens 1")
    assert whys["number"].startswith("text_length is 3")
    misspelt = parse_config({"rules": [], "extra_columns": ["num_token"]})
    with pytest.raises(ValueError, match="`num_token`, which no"):
        curate(given[0], tmp_path / "2", misspelt)


@pytest.mark.parametrize("among, stays", [("raw", []), ("remaining", ["b"])])
def test_pair_whose_first_row_another_rule_drops(tmp_path, among, stays):
    write(
        tmp_path / "in.parquet",
        url=["a", "b", "c"],
        text=["one two three"] * 3,
        phash=pa.array([7, 7, 7], "uint64"),
        score=[0.9, 0.1, 0.1],
    )
    rules = [
        {"adult_content": {"column": "score"}},
        {"repeated_pairs": {"among": among}},
    ]
    config = parse_config({"rules": rules})
    curate([tmp_path / "in.parquet"], tmp_path / "out", config)
    assert [row["url"] for row in kept(tmp_path / "out")] == stays
    (rule,) = explain(tmp_path / "out", 2)[0]["rules"]
    first = 0 if among == "raw" else 1
    assert rule["why"].startswith(f"row {first} has the same text")


def test_quotation_mark_in_tsv_is_text(tmp_path):
    texts = ['"open and never closed', 'a "b" c', '"', '"whole"', "last"]
    rows = "".join(f"{text}\tu{n}\n" for n, text in enumerate(texts))
    (tmp_path / "in.tsv").write_text("caption\turl\n" + rows)
    rules = parse_config({"rules": []})
    curate([tmp_path / "in.tsv"], tmp_path / "out", rules)
    assert [row["text"] for row in kept(tmp_path / "out")] == texts


@pytest.mark.parametrize(
    "stray",
    ['"an unfinished quotation', '"closed" too early', 'odd",', '"'],
)
def test_stray_quotation_mark_in_csv_costs_its_line_alone(tmp_path, stray):
    # Marks within a field are text, and a field may have lines.
    good = ["one", 'say "hello" now', '"two\nlines, quoted"', '6" long'] * 400
    texts = [*good[:3], stray, *good[3:], stray, *good]
    rows = "".join(f"u{n},{text}\n" for n, text in enumerate(texts))
    (tmp_path / "in.csv").write_text("url,caption\n" + rows)
    rules = parse_config({"rules": []})
    curate([tmp_path / "in.csv"], tmp_path / "out", rules)
    expected = [text.strip('"') for text in [*good, *good]]
    assert [row["text"] for row in kept(tmp_path / "out")] == expected
    counts = audit(tmp_path / "out")["reading"]["counts"]
    assert counts["unreadable_lines"] == 2


@pytest.mark.parametrize("identity", ["normalized", "exact"])
def test_blank_texts_are_unusable_whatever_tells_texts_apart(
    tmp_path, identity
):
    texts = ["One two", "one  two", " ", "\u00a0\t", "\ufeff \ufeff", "", None]
    write(tmp_path / "in.parquet", url=list("abcdefg"), text=texts)
    fields = {"rules": [], "text_identity": identity}
    manifest = curate(
        [tmp_path / "in.parquet"], tmp_path / "out", parse_config(fields)
    )
    assert [row["text"] for row in kept(tmp_path / "out")] == texts[:2]
    assert manifest["dropped"] == 5
    fields["rules"] = [{"shared_text": {"at_most": 1}}]
    manifest = curate(
        [tmp_path / "in.parquet"], tmp_path / "2", parse_config(fields)
    )
    assert manifest["kept"] == (2 if identity == "exact" else 0)


@pytest.mark.parametrize("tokenizer", ["words", "words_and_ideographs"])
def test_marks_and_what_is_not_seen_are_no_unigrams_by_themselves(tokenizer):
    text = "a \u200d b \u200c\u200d क्\u200dष \U0001f469\u200d\U0001f469"
    assert tokenize(text, tokenizer) == "a b क्\u200dष"
    # Letters by their category, of which nothing is seen.
    fillers = [0x115F, 0x1160, 0x3164, 0xFFA0]
    unseen = [
        mark
        for mark in map(chr, range(0x110000))
        if unicodedata.category(mark) in ("Mn", "Mc", "Me", "Cf", "Pc")
    ]
    assert len(unseen) > 2000
    for mark in [*unseen, *map(chr, fillers), "\ufe0f\u20e3", "__"]:
        # Some compose with a letter before, none with the blank.
        assert tokenize(f"a {mark} b", tokenizer) == "a b", ascii(mark)
        if unicodedata.category(mark[0]) == "Mn":
            assert tokenize(f"1{mark}", tokenizer) == f"1{mark}"


def test_lists_of_captions_are_rows(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    lists = [["one", "two"], [], None, ["three"]]
    write(folder / "1.parquet", url=list("abcd"), captions=lists)
    rows = [
        {"url": url, "captions": texts}
        for url, texts in zip("abcd", lists, strict=True)
    ]
    lines = "\n".join(map(json.dumps, rows))
    (folder / "2.jsonl").write_text(lines, "utf-8-sig")
    curate([folder], tmp_path / "out", parse_config({"rules": []}))
    expected = [("a", "one"), ("a", "two"), ("d", "three")]
    found = [(row["url"], row["text"]) for row in kept(tmp_path / "out")]
    assert found == expected * 2
    counts = audit(tmp_path / "out")["reading"]["counts"]
    assert counts["rows"] == 10 and counts["null_texts"] == 4


def test_coyo_and_laion_columns():
    coyo = (
        "id url text width height image_phash text_length word_count "
        "num_tokens_bert num_tokens_gpt num_faces clip_similarity_vitb32 "
        "clip_similarity_vitl14 nsfw_score_opennsfw2 nsfw_score_gantman "
        "watermark_score aesthetic_score_laion_v2"
    ).split()
    assert find_columns(coyo) == {
        "id": "id",
        "url": "url",
        "text": "text",
        "width": "width",
        "height": "height",
        "phash": "image_phash",
    }
    laion = "SAMPLE_ID URL TEXT HEIGHT WIDTH LICENSE NSFW similarity".split()
    found = find_columns(laion)
    assert found["id"] == "SAMPLE_ID" and found["width"] == "WIDTH"
    assert found["text"] == "TEXT" and found["phash"] is None
    downloaded = "url caption key status width height original_width".split()
    found = find_columns([*downloaded, "original_height"])
    assert found["width"] == "original_width" and found["id"] == "key"
    assert find_columns(["a", "b"], {"text": "b"})["text"] == "b"


def test_text_is_the_same_everywhere():
    assert normalize_text(" A  Cafe\u0301\u00a0\t x") == "a café x"
    # Python's full mapping; engines differ in both.
    assert normalize_text("İstanbul ΣΑΣ") == "i̇stanbul σας"
    assert tokenize("it's a red-bus, ok", "words") == "it's a red bus ok"
    assert tokenize("हिन्दी भाषा", "words") == "हिन्दी भाषा"
    cut = tokenize("黒猫 no カフェ 2", "words_and_ideographs")
    assert cut == "黒 猫 no カ フ ェ 2"
    assert -(2**63) <= signed_hash("x") < 2**63
    assert parse_hash("ffffffffffffffff") == parse_hash(2**64 - 1) == -1
    assert parse_hash("7fffffffffffffff") == 2**63 - 1
    for wrong in ("abc", "g" * 16, 2**64):
        with pytest.raises(ValueError, match="hash|base 16"):
            parse_hash(wrong)


def test_images_elsewhere_and_files_that_are_none_are_not_read(tmp_path):
    ways = hostile.folder_with_ways_out(tmp_path)
    special = hostile.special_files(ways.data)
    special = [name for name in special if "\ud800" not in name and name]
    names = ways.good + ways.outside + special
    write(tmp_path / "in.parquet", url=names, text=["a b c d"] * len(names))
    output = tmp_path / "out"
    curate(
        [tmp_path / "in.parquet"],
        output,
        parse_config(LENGTH),
        image_folder=ways.data,
    )
    counts = audit(output)["reading"]["counts"]
    assert counts["images_outside_folder"] == len(ways.outside)
    assert counts["unreadable_images"] == len(special)
    sizes = {row["url"] for row in kept(output) if row["width"]}
    assert sizes == set(ways.good)


def test_half_a_parquet_file_is_named(tmp_path):
    path = tmp_path / "data-00000-of-00001.parquet"
    rows = range(2000)
    write(
        path,
        url=[f"http://a.b/{row}.jpg" for row in rows],
        text=[f"words {row}" for row in rows],
        row_id=rows,
        phash=rows,
        status=["success"] * len(rows),
    )
    (tmp_path / "data-00000-of-00001_stats.json").write_text("{}")
    whole = path.read_bytes()
    for contents in (whole[:-9], whole[:1000], b"PAR1", b""):
        path.write_bytes(contents)
        for read in (
            lambda: list(read_rows(path)),
            lambda: list(read_batches(str(path))),
            lambda: write_download_list(tmp_path, tmp_path / "list.parquet"),
            lambda: read_downloads(tmp_path),
            lambda: hash_evaluation_images([path]),
        ):
            with pytest.raises(ValueError, match=f"`{path}` is not a comple"):
                read()
