"""Bad rows, bad files and killed runs: each has a defined outcome."""

import gzip
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

pytest.importorskip("ibis", reason="needs the extra `curation`")
pytest.importorskip("duckdb", reason="needs the extra `curation`")

import pyarrow as pa
import pyarrow.parquet as pq

from align_keras.cli import main
from align_keras.curation import curate
from align_keras.curation import download
from align_keras.curation import explain
from align_keras.curation import learn_vocabulary
from align_keras.curation import load_config
from align_keras.curation import print_sql
from align_keras.curation.config import parse_config
from align_keras.curation.engine import open_engine
from align_keras.curation.ingest import find_columns
from align_keras.curation.ingest import parse_hash
from align_keras.curation.text import normalize_text
from align_keras.curation.text import signed_hash
from align_keras.curation.text import tokenize

ROOT = Path(__file__).resolve().parents[2]
LENGTH = {"rules": [{"token_count": {"at_least": 3, "at_most": 20}}]}


def kept(output):
    rows = pq.read_table(Path(output) / "kept").to_pylist()
    return sorted(rows, key=lambda row: row["row_id"])


def audit(output):
    return json.loads((Path(output) / "audit.json").read_text("utf-8"))


def write(path, **columns):
    pq.write_table(pa.table(columns), path)


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
            b"a text without picture",
            b"another text without picture",
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
        " Same\tTEXT\xa0here ",
    ]
    assert kept(output)[0]["width"] is None
    assert kept(output)[-1]["url"] == "u10"
    dropped = {rule["name"]: rule["dropped"] for rule in audit(output)["rules"]}
    # Without a text, the second row of id 2 among them; without a picture.
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
    assert "no column of texts" in damaged[-1]["reason"]
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


@pytest.mark.parametrize(
    "fields, said",
    [
        ([], "list `rules`"),
        ({"rules": [{"shorter_sides": {}}]}, "Did you mean `shorter_side`"),
        ({"rules": [{"shorter_side": {"over": 2}}]}, "parameter .*`over`"),
        ({"rules": ["shorter_side"]}, "needs a bound"),
        ({"rules": [{"shared_text": {}}]}, "lacks its parameter `at_most`"),
        ({"rules": [{"shared_text": {"at_most": "x"}}]}, "'x'"),
        ({"rules": [{"shared_text": {"at_most": 1.5}}]}, "type int"),
        ({"rules": [{"rare_tokens": {"keep": 0}}]}, "positive"),
        ({"rules": [{"rare_tokens": {"keep": 9, "ties": "x"}}]}, "keep, drop"),
        ({"rules": [{"rare_tokens": {"keep": 9, "ngrams": [9]}}]}, "1 to 5"),
        ({"rules": [{"token_count": {}}] * 2}, "two rules"),
        ({"rules": [], "tokeniser": "words"}, "Did you mean `tokenizer`"),
        ({"rules": [], "tokenizer": "x"}, "blanks, words"),
        ({"rules": [], "columns": {"txt": "t"}}, "Did you mean `text`"),
        ({"rules": [], "image_identity": "no"}, "image_identity"),
        ({"rules": [], "image_identity": "width"}, "image_identity"),
        ({"rules": [{"shared_text": {"at_most": -3}}]}, "not be negative"),
        (
            {"rules": [{"token_count": {"optional": "no"}}]},
            "`token_count.optional` must be of type bool",
        ),
        ({"rules": [{"near_duplicate_embedding": {"cosine": 97.5}}]}, "97.5"),
        ({"rules": [], "extra_columns": ["URL"]}, "names `URL`"),
        ({"rules": [], "extra_columns": ["a", "A"]}, "names `A`"),
        (
            {
                "rules": [{"number": {"column": "a", "above": 1}}],
                "extra_columns": ["A"],
            },
            "another case",
        ),
        (
            {
                "rules": [
                    {"number": {"column": "a", "above": 1}},
                    {"one_of": {"column": "a", "values": ["1"]}},
                ]
            },
            "`a` for a number",
        ),
        ({"rules": [{"near_duplicate": {"distance": 40}}]}, "0 to 31"),
    ],
)
def test_wrong_configurations_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        parse_config(fields)


def test_missing_columns_and_test_sets_are_named(tmp_path, caplog):
    write(tmp_path / "in.parquet", url=["a"], text=["one two three"])
    write(tmp_path / "bare.parquet", address=["a"], words=["x"])
    given = [tmp_path / "in.parquet"]
    rules = parse_config({"rules": [{"shorter_side": {"above": 200}}]})
    with pytest.raises(ValueError, match="`shorter_side` .*column `width`"):
        curate(given, tmp_path / "1", rules)
    with pytest.raises(ValueError, match="no column for `text`.*address"):
        curate([tmp_path / "bare.parquet"], tmp_path / "2", rules)
    with pytest.raises(FileNotFoundError, match="nothing.parquet"):
        curate([tmp_path / "nothing.parquet"], tmp_path / "3", rules)
    rules = parse_config({"rules": [{"near_duplicate": {}}]})
    with pytest.raises(ValueError, match="needs `test_images`"):
        curate(given, tmp_path / "4", rules)
    test = [tmp_path / "bare.parquet"]
    with pytest.raises(ValueError, match="master"):
        curate(given, tmp_path / "5", rules, master="yarn", test_images=test)
    with pytest.raises(ValueError, match="No rule .* test images"):
        curate(given, tmp_path / "5", parse_config(LENGTH), test_images=test)
    with pytest.raises(FileNotFoundError, match="no test images match `x`"):
        # Also for a rule that would be left out.
        curate(given, tmp_path / "5", "align", test_images=["x"])
    optional = {"near_duplicate": {"optional": True}}
    with caplog.at_level(logging.WARNING):
        curate(given, tmp_path / "6", parse_config({"rules": [optional]}))
    assert "near_duplicate" in caplog.text
    left_out = audit(tmp_path / "6")["rules_left_out"]
    assert "phash" in left_out["near_duplicate"]


def test_nothing_is_overwritten(tmp_path, caplog):
    write(tmp_path / "in.parquet", url=["a"], text=["one two three"])
    arguments = [tmp_path / "in.parquet"], tmp_path / "out"
    first = curate(*arguments, parse_config(LENGTH))
    before = (tmp_path / "out" / "manifest.json").stat().st_mtime_ns
    with caplog.at_level(logging.WARNING):
        # JSON makes lists of tuples.
        again = curate(*arguments, parse_config(LENGTH))
    assert again == json.loads(json.dumps(first))
    assert "already" in caplog.text
    assert (tmp_path / "out" / "manifest.json").stat().st_mtime_ns == before
    other = parse_config({"rules": [{"token_count": {"at_least": 4}}]})
    with pytest.raises(FileExistsError, match="something else"):
        curate(*arguments, other)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kept").mkdir()
    with pytest.raises(FileExistsError, match="something else"):
        curate(arguments[0], tmp_path / "mine", other)
    # Stages may be shared, and thrown away.
    shared = tmp_path / "shared"
    curate(arguments[0], tmp_path / "2", other, stages=shared)
    rows = list(shared.glob("rows-*/part-*"))
    curate(arguments[0], tmp_path / "3", parse_config(LENGTH), stages=shared)
    assert list(shared.glob("rows-*/part-*")) == rows
    rules = parse_config({"rules": []})
    curate(arguments[0], tmp_path / "4", rules, discard_stages=True)
    assert not (tmp_path / "4" / ".stages").exists()
    assert len(kept(tmp_path / "4")) == 1


def test_stages_in_a_directory_of_the_users(tmp_path):
    write(tmp_path / "in.parquet", url=["a"], text=["one two three"])
    mine = tmp_path / "mine"
    (mine / "draft.unfinished").mkdir(parents=True)
    (mine / "lock").write_text("mine")
    (mine / "rows-1.json").write_text("mine")
    before = sorted(mine.rglob("*"))
    # Of a killed run, which is ours.
    (mine / f"rows-{'a' * 16}.{'b' * 8}.unfinished").mkdir()
    given = [tmp_path / "in.parquet"], tmp_path / "out", parse_config(LENGTH)
    curate(*given, stages=mine, discard_stages=True)
    assert sorted(mine.rglob("*")) == before
    assert (mine / "lock").read_text() == "mine"
    with pytest.raises(FileNotFoundError, match="have been discarded"):
        explain(tmp_path / "out", 0)


@pytest.mark.multiprocess
def test_killed_run_leaves_no_result_and_goes_on(tmp_path):
    """Kill the run in each of several stages, in the midst of writing."""
    texts = [f"text number {n % 4000} of file" for n in range(60_000)]
    urls = [f"u{n}" for n in range(60_000)]
    source = tmp_path / "in"
    source.mkdir()
    write(source / "0.parquet", url=urls[:40_000], text=texts[:40_000])
    write(source / "1.parquet", url=urls[40_000:], text=texts[40_000:])
    output = tmp_path / "out"
    script = textwrap.dedent(
        """
        import os, signal, sys
        from align_keras.curation import curate
        from align_keras.curation import engine
        from align_keras.curation import run
        from align_keras.curation.config import parse_config
        from align_keras.curation.storage import Storage

        victim, source, output = sys.argv[1:]
        write = engine.DuckDBEngine.write

        def killed(self, table, directory):
            write(self, table, directory)
            if victim in directory:
                # Half a file, as a crash in mid-write leaves it.
                for name in os.listdir(directory):
                    path = os.path.join(directory, name)
                    os.truncate(path, os.path.getsize(path) // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        def read(task, file):
            found = ingest_file(task, file)
            # The first file is whole, and not to be read again.
            if task.number == 1:
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        def write_text(self, name, text):
            if name == victim:
                os.kill(os.getpid(), signal.SIGKILL)
            write_whole(self, name, text)

        ingest_file, write_whole = run.ingest_file, Storage.write_text
        Storage.write_text = write_text
        if victim == "reading":
            run.ingest_file = read
            # In this process.
            os.cpu_count = lambda: 1
        engine.DuckDBEngine.write = killed
        rules = [{"shared_text": {"at_most": 14}}]
        rules += [{"rare_tokens": {"keep": 4000}}]
        curate([source], output, parse_config({"rules": rules}))
        """
    )
    (tmp_path / "run.py").write_text(script)
    finished = set()
    for victim in (
        "reading",
        "shared_text",
        "token_counts",
        "verdicts",
        "kept",
        "audit.html",
        "manifest.json",
    ):
        command = [sys.executable, tmp_path / "run.py", victim]
        result = subprocess.run(
            [*command, source, output],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert result.returncode == -signal.SIGKILL
        assert not (output / "manifest.json").exists()
        found = [p for p in output.rglob("*") if p.suffix == ".parquet"]
        if victim == "manifest.json":
            # All is there, but nothing takes it for a result.
            with pytest.raises(FileNotFoundError, match="has not ended"):
                learn_vocabulary([output], tmp_path / "v.txt")
            with pytest.raises(FileNotFoundError, match="has not ended"):
                download(output / "kept", tmp_path / "got", sys.executable)
        else:
            assert found == []
            assert not (output / "kept").exists()
        if victim == "reading":
            (part,) = output.rglob("part-*.stage")
            first_part = part, part.stat().st_mtime_ns
            continue
        stages = {p.name: p.stat().st_mtime_ns for p in _finished(output)}
        # What was finished before is as it was.
        assert finished <= set(stages.items())
        assert len(stages) > len(finished) or victim == "manifest.json"
        finished = set(stages.items())
    rules = [{"shared_text": {"at_most": 14}}, {"rare_tokens": {"keep": 4000}}]
    config = parse_config({"rules": rules})
    manifest = curate([source], output, config)
    assert finished == {
        (p.name, p.stat().st_mtime_ns) for p in _finished(output)
    }
    fresh = curate([source], tmp_path / "fresh", config)
    assert kept(output) == kept(tmp_path / "fresh")
    assert manifest["kept"] == fresh["kept"]
    part, written = first_part
    assert part.stat().st_mtime_ns == written
    assert not list(output.rglob("*.unfinished"))


def _finished(output):
    return [p for p in (output / ".stages").glob("*-*.json")]


def _fails(item):
    raise TypeError(f"cannot take {item}")


def _process(item):
    time.sleep(0.2)
    return os.getpid()


@pytest.mark.multiprocess
def test_helpers_tell_what_went_wrong_and_keep_to_the_budget(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    engine = open_engine(memory="600MiB")
    try:
        with pytest.raises(RuntimeError, match="TypeError.*cannot take [123]"):
            list(engine.map(_fails, [1, 2, 3]))
        assert len(set(engine.map(_process, range(4)))) <= 2
    finally:
        engine.close()


def test_output_on_an_object_store_is_refused(tmp_path):
    write(tmp_path / "in.parquet", url=["a"], text=["one two three"])
    given = [tmp_path / "in.parquet"]
    rules = parse_config(LENGTH)
    with pytest.raises(ValueError, match="rename.*s3://bucket/out"):
        curate(given, "s3://bucket/out", rules, engine="spark")
    with pytest.raises(ValueError, match="rename.*gs://bucket/stages"):
        curate(given, tmp_path / "out", rules, stages="gs://bucket/stages")


def test_second_run_at_once_is_refused(tmp_path):
    write(tmp_path / "in.parquet", url=["a"], text=["one two three"])
    from align_keras.curation.curate import LOCK
    from align_keras.curation.storage import Storage

    work = Storage(tmp_path / "out" / ".stages")
    work.make_directory()
    with work.lock(LOCK), pytest.raises(ValueError, match="Another run"):
        curate(
            [tmp_path / "in.parquet"], tmp_path / "out", parse_config(LENGTH)
        )
    curate([tmp_path / "in.parquet"], tmp_path / "out", parse_config(LENGTH))


def test_command_line(tmp_path, capsys):
    write(
        tmp_path / "in.parquet",
        url=["a", "b"],
        text=["one two three", "Alt"],
        width=[640, 640],
        height=[480, 480],
    )
    (tmp_path / "rules.yaml").write_text("rules: [token_count: {at_least: 3}]")
    output = str(tmp_path / "out")
    given = ["--config", str(tmp_path / "rules.yaml"), "--output", output]
    assert main(["curate", str(tmp_path / "in.parquet"), *given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 1
    assert main(["curate", "--output", output, "--explain", "1"]) == 0
    said = capsys.readouterr().out
    assert "token_count: num_tokens 1 (at_least 3)" in said
    assert main(["curate", "--output", output, "--explain", "0"]) == 0
    assert capsys.readouterr().out == "Row 0 is kept.\n"
    moved = str(tmp_path / "moved")
    os.rename(output, moved)
    assert main(["curate", "--output", moved, "--explain", "1"]) == 0
    assert "num_tokens 1" in capsys.readouterr().out
    given = [str(tmp_path / "in.parquet"), "--output", output]
    assert main(["curate", *given, "--memory", "1"]) == 2
    assert "256MiB or more" in capsys.readouterr().err
    assert main(["curate", "--output", output]) == 2
    assert "at least one INPUT" in capsys.readouterr().err
    assert main(["curate", "--print-sql", "bigquery"]) == 0
    assert capsys.readouterr().out.count("CREATE TABLE") >= 10


@pytest.mark.parametrize("dialect", ["bigquery", "duckdb", "spark"])
def test_rules_are_printed_as_sql(dialect):
    import sqlglot

    for name in ("align", "coyo", "conceptual_captions"):
        sql = print_sql(name, dialect)
        statements = sqlglot.parse(sql, dialect=dialect)
        rules = load_config(name).rules
        assert len(statements) >= len(rules) + 4
        created = [statement.this.name for statement in statements]
        assert created[-2:] == ["verdicts", "kept"]
        assert len(created) == len(set(created))
    if dialect == "bigquery":
        # No quadratic join of positions.
        assert "pos_2" not in print_sql("align", dialect)
    with pytest.raises(ValueError, match="klingon"):
        print_sql("align", "klingon")
