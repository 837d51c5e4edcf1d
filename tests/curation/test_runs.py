"""Runs: what they refuse, survive and go on from, and what they print."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

pytest.importorskip("ibis", reason="needs the extra `curation`")
pytest.importorskip("duckdb", reason="needs the extra `curation`")

from curated import LENGTH
from curated import audit
from curated import kept
from curated import write

from align_keras.cli import main
from align_keras.curation import curate
from align_keras.curation import download
from align_keras.curation import explain
from align_keras.curation import learn_vocabulary
from align_keras.curation import load_config
from align_keras.curation import print_sql
from align_keras.curation.config import parse_config
from align_keras.curation.engine import open_engine
from align_keras.curation.storage import Storage
from align_keras.io.locks import LOCK_NAME

ROOT = Path(__file__).resolve().parents[2]


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
        ({"rules": [{"rare_tokens": {"keep": 9, "ngrams": [1, 1]}}]}, "once"),
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
            "`a` as a number",
        ),
        ({"rules": [{"near_duplicate": {"distance": 40}}]}, "0 to 31"),
        (
            {
                "rules": [{"number": {"column": "a", "above": 1}}],
                "extra_columns": ["a"],
                "image_identity": "a",
            },
            "`image_identity` names the column `a`",
        ),
        ({"rules": [], "image_folder": 2024}, "type str. Received: 2024"),
        ({"rules": [], "image_folder": "s3://b/x"}, "a local folder.*s3://b/x"),
        (
            {"rules": [{"near_duplicate_embedding": {"images": "gs://b/x"}}]},
            "a local folder.*gs://b/x",
        ),
    ],
)
def test_wrong_configurations_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        parse_config(fields)


def test_paths_are_relative_to_the_configuration(tmp_path):
    (tmp_path / "preset").mkdir()
    (tmp_path / "rules.yaml").write_text(
        "image_folder: images\n"
        "scores: [scores]\n"
        "rules:\n"
        "  - near_duplicate_embedding: {model: preset, images: more}\n"
        "  - near_duplicate_embedding: {name: second, model: b0_named}\n"
    )
    config = load_config(tmp_path / "rules.yaml")
    assert config.image_folder == str(tmp_path / "images")
    assert config.scores == (str(tmp_path / "scores"),)
    first, second = (rule.parameters for rule in config.rules)
    assert first["model"] == str(tmp_path / "preset")
    assert first["images"] == str(tmp_path / "more")
    # The name of a preset is no path.
    assert second["model"] == "b0_named" and second["images"] == ""


def test_arguments_are_checked_like_the_configuration(tmp_path):
    write(
        tmp_path / "in.parquet", url=["a"], text=["one two three"], score=["1"]
    )
    config = parse_config({"rules": [], "extra_columns": ["score"]})
    given = [tmp_path / "in.parquet"], tmp_path / "out", config
    with pytest.raises(ValueError, match="`extra_columns` names `score`"):
        curate(*given, scores=tmp_path / "scores")
    with pytest.raises(ValueError, match="a local folder.*s3://b/x"):
        curate(*given, image_folder="s3://b/x")


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


def test_rows_without_a_side_are_in_no_bar_of_sizes(tmp_path):
    write(
        tmp_path / "in.parquet",
        url=["a", "b", "c", "d"],
        text=["one two three"] * 4,
        width=[640, None, 640, None],
        height=[480, 480, None, None],
    )
    curate([tmp_path / "in.parquet"], tmp_path / "out", parse_config(LENGTH))
    for name in ("shorter_side", "aspect_ratio"):
        histogram = audit(tmp_path / "out")["histograms"][name]
        assert sum(histogram["before"]) == sum(histogram["after"]) == 1


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
    (mine / f"rows-{'a' * 16}.{'b' * 8}").mkdir()
    given = [tmp_path / "in.parquet"], tmp_path / "out", parse_config(LENGTH)
    curate(*given, stages=mine, discard_stages=True)
    assert sorted(mine.rglob("*")) == before
    assert (mine / "lock").read_text() == "mine"
    said = f"not in `{mine}`: they have been discarded, or are on another"
    with pytest.raises(FileNotFoundError, match=said):
        explain(tmp_path / "out", 0)


def test_stages_of_a_finished_run_are_discarded(tmp_path):
    """Also those of one that was killed before it came to that."""
    write(tmp_path / "in.parquet", url=["a"], text=["one two three"])
    given = [tmp_path / "in.parquet"], tmp_path / "out", parse_config(LENGTH)
    curate(*given)
    stages = tmp_path / "out" / ".stages"
    with Storage(stages).lock():
        with pytest.raises(BlockingIOError, match="Another process is writing"):
            curate(*given, discard_stages=True)
        assert list(stages.glob("rows-*.json"))
    for _ in range(2):
        curate(*given, discard_stages=True)
        assert not stages.exists()


def test_stages_are_discarded_while_the_directory_is_locked(
    tmp_path, monkeypatch
):
    write(tmp_path / "in.parquet", url=["a"], text=["one two three"])
    given = [tmp_path / "in.parquet"], tmp_path / "out", parse_config(LENGTH)
    removed, remove = [], Storage.remove

    def watch(storage, name):
        if name.startswith("rows-"):
            removed.append(name)
            assert storage.exists(LOCK_NAME)
        remove(storage, name)

    monkeypatch.setattr(Storage, "remove", watch)
    curate(*given, discard_stages=True)
    assert len(removed) >= 2


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
        from align_keras.curation import execute
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

        ingest_file, write_whole = execute.ingest_file, Storage.write_text
        Storage.write_text = write_text
        if victim == "reading":
            execute.ingest_file = read
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
            with pytest.raises(FileNotFoundError, match="has not finished"):
                learn_vocabulary([output], tmp_path / "v.txt")
            with pytest.raises(FileNotFoundError, match="has not finished"):
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


def test_duckdb_keeps_stages_on_this_machine(tmp_path):
    write(tmp_path / "in.parquet", url=["a"], text=["one two three"])
    given = [tmp_path / "in.parquet"], tmp_path / "out", parse_config(LENGTH)
    with pytest.raises(ValueError, match="DuckDB writes to.*memory://stages"):
        curate(*given, stages="memory://stages")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "directory", ["../elsewhere", "..", ".", "", "a/b", "photos", "/etc", 1]
)
def test_a_stage_names_its_own_directory(tmp_path, directory):
    """What it names is read, and removed."""
    write(tmp_path / "in.parquet", url=["a"], text=["one two three"])
    given = [tmp_path / "in.parquet"], tmp_path / "out", parse_config(LENGTH)
    curate(*given)
    (notes,) = (tmp_path / "out" / ".stages").glob("rows-*.json")
    told = json.loads(notes.read_text())
    notes.write_text(json.dumps({**told, "directory": directory}))
    with pytest.raises(ValueError, match=f"{notes.name}.*has directory="):
        explain(tmp_path / "out", 0)


@pytest.mark.parametrize("held", [".stages", "."])
def test_second_run_at_once_is_refused(tmp_path, held):
    """Also one whose stages lie elsewhere."""
    write(tmp_path / "in.parquet", url=["a"], text=["one two three"])
    work = Storage(tmp_path / "out" / held)
    said = rf"Another process .*process {os.getpid()} on .*, since 2"
    with work.lock(), pytest.raises(BlockingIOError, match=said):
        curate(
            [tmp_path / "in.parquet"], tmp_path / "out", parse_config(LENGTH)
        )
    curate([tmp_path / "in.parquet"], tmp_path / "out", parse_config(LENGTH))


def test_whoever_has_lost_a_store_commits_nothing_there():
    storage = Storage("memory://curated/out")
    with storage.lock():
        with pytest.raises(
            BlockingIOError, match="Another process is writing to"
        ):
            Storage("memory://curated/out").lock().__enter__()
        storage.write_json("stage.json", {})
        storage.lease._lost.set()
        with pytest.raises(BlockingIOError, match="taken by another process"):
            storage.write_json("manifest.json", {})
    assert storage.exists("stage.json") and not storage.exists("manifest.json")


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


@pytest.mark.parametrize(
    "arguments",
    [
        "--print-sql duckdb --output o",
        "--print-sql duckdb --test-images t",
        "--print-sql duckdb --json",
        "--print-sql duckdb --explain 1",
        "--explain 1 --output o INPUT",
        "--explain 1 --output o --memory 1GiB",
        "--explain 1 --output o --engine spark",
        "--explain 1 --output o --discard-stages",
    ],
)
def test_options_that_would_do_nothing_are_refused(arguments, capsys):
    assert main(["curate", *arguments.split()]) == 2
    asked, *others = re.findall("(?:--)?[a-zA-Z-]{4,}", arguments)
    said = capsys.readouterr().err
    assert re.search(
        f"`({'|'.join(others)})` has no effect with `{asked}`", said
    )


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
