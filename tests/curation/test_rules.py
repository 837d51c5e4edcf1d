"""Every rule against plain Python, on DuckDB and on Spark."""

import collections
import itertools
import json
import random
import shutil
from pathlib import Path

import oracle
import pytest

pytest.importorskip("ibis", reason="needs the extra `curation`")
pytest.importorskip("duckdb", reason="needs the extra `curation`")

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from align_keras.cli import main
from align_keras.curation import curate
from align_keras.curation import explain
from align_keras.curation import print_sql
from align_keras.curation.config import parse_config

RULES = """
shorter_side aspect_ratio adult_content texts_per_image near_duplicate
shared_text token_count rare_tokens repeated_pairs language character_count
repeated_tokens rare_words forbidden_words number
""".split()


def write_parquet(rows, path):
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    types = {"phash": pa.uint64(), "width": pa.int32(), "score": pa.float64()}
    pq.write_table(
        pa.table({n: pa.array(c, types.get(n)) for n, c in columns.items()}),
        path,
    )


def fields(folder, counted_rows="raw", **changes):
    """A configuration as YAML gives it."""
    parameters = {
        "shorter_side": {"above": 200},
        "aspect_ratio": {"below": 3},
        "adult_content": {"column": "score", "at_most": 0.5},
        "texts_per_image": {"at_most": 95},
        "near_duplicate": {"test_images": [str(folder / "hashes.txt")]},
        "shared_text": {"at_most": 10},
        "token_count": {"at_least": 3, "at_most": 20},
        "rare_tokens": {"keep": 20_000},
        "repeated_pairs": {},
        "language": {"keep": ["en"]},
        "character_count": {"at_least": 6, "at_most": 100},
        "repeated_tokens": {"at_most": 0.2},
        "rare_words": {"at_least": 5},
        "forbidden_words": {"words": [str(folder / "words.txt")]},
        "number": {"column": "score", "above": 0.2, "below": 0.9},
    }
    rules = [{k: {**parameters[k], **changes.get(k, {})}} for k in RULES]
    return {"rules": rules, "counted_rows": counted_rows}


def config(folder, counted_rows="raw", **changes):
    return parse_config(fields(folder, counted_rows, **changes))


@pytest.fixture(scope="module")
def crawl(tmp_path_factory):
    """A folder of two input files, and its rows."""
    folder = tmp_path_factory.mktemp("crawl")
    rows = oracle.make_rows()
    # Pairs of an image hash and a text that come again.
    for row in rows[::40]:
        rows[rows.index(row) // 2] |= {
            "phash": row["phash"],
            "text": row["text"],
        }
    hashes = oracle.make_test_hashes(rows)
    (folder / "input").mkdir()
    write_parquet(rows[:12_345], folder / "input" / "0.parquet")
    write_parquet(rows[12_345:], folder / "input" / "1.parquet")
    lines = "\n".join(f"{value:016x}" for value in hashes)
    (folder / "hashes.txt").write_text(lines)
    (folder / "words.txt").write_text("W97\n\nw211\n日本\n", "utf-8")
    return folder, rows, hashes


def row_index(row_id):
    file, number = divmod(row_id, 10**12)
    return file * 12_345 + number


def row_id_of(index):
    file, number = divmod(index, 12_345)
    return file * 10**12 + number


def verdicts(output, manifest):
    """What the result says: kept indices, and each rule's set of indices."""
    kept = pq.read_table(Path(output) / "kept")["row_id"].to_pylist()
    dropped = pq.read_table(Path(output) / "dropped").to_pylist()
    found = {rule["name"]: set() for rule in manifest["rules"]}
    for row in dropped:
        for number, rule in enumerate(manifest["rules"]):
            if row["mask"] >> number & 1:
                found[rule["name"]].add(row_index(row["row_id"]))
    return {row_index(row_id) for row_id in kept}, found


@pytest.fixture(scope="module")
def result(crawl, tmp_path_factory):
    folder, _, _ = crawl
    output = tmp_path_factory.mktemp("result") / "out"
    manifest = curate([folder / "input"], output, config(folder))
    return output, manifest


@pytest.fixture(scope="module")
def expected(crawl):
    _, rows, hashes = crawl
    return oracle.drops(rows, hashes)


def check(output, manifest, rows, expected):
    kept, found = verdicts(output, manifest)
    for name, indices in expected.items():
        assert indices, name
        assert found[name] == indices, name
    assert set(found) == set(expected)
    gone = set().union(*expected.values())
    assert kept == set(range(len(rows))) - gone
    assert manifest["kept"] == len(kept) > 20
    assert manifest["dropped"] == len(gone)


def test_duckdb_gives_what_plain_python_gives(crawl, result, expected):
    _, rows, hashes = crawl
    check(*result, rows, expected)


def test_audit_counts_every_row(crawl, result, expected):
    _, rows, _ = crawl
    output, manifest = result
    audit = json.loads((output / "audit.json").read_text("utf-8"))
    assert audit["rows"] == len(rows)
    gone = set()
    for number, rule in enumerate(audit["rules"]):
        dropped = expected[rule["name"]]
        others = set().union(
            *(d for name, d in expected.items() if name != rule["name"])
        )
        assert rule["dropped"] == {
            "alone": len(dropped),
            "in_sequence": len(dropped - gone),
            "only": len(dropped - others),
        }
        gone |= dropped
        assert rule["remaining"] == len(rows) - len(gone)
        for two, other in enumerate(audit["rules"]):
            both = dropped & expected[other["name"]]
            assert audit["overlap"][number][two] == len(both)
        assert 1 <= len(rule["examples"]) <= 6
        for example in rule["examples"]:
            index = row_index(example["row_id"])
            assert index in dropped
            assert (example["url"] or None) == (rows[index]["url"] or None)
    assert rule["remaining"] == manifest["kept"]
    counts = audit["reading"]["counts"]
    assert counts["null_texts"] == sum(r["text"] is None for r in rows)
    assert counts["without_image"] == sum(not r["url"] for r in rows)
    bad = sum(
        r[s] is not None and r[s] <= 0
        for r in rows
        for s in ("width", "height")
    )
    assert counts["invalid_sizes"] == bad
    before = audit["histograms"]["tokens"]["before"]
    lengths = [len(oracle.normal(r["text"] or "").split()) for r in rows]
    assert before[:4] == [lengths.count(n) for n in range(4)]
    after = audit["histograms"]["shorter_side"]["after"]
    assert after[:4] == [0, 0, 0, 0] and sum(after) == manifest["kept"]
    page = (output / "audit.html").read_text("utf-8")
    assert "<svg" in page and "http" not in page.split("<h2>Examples")[0]
    assert f"{manifest['kept']:,}" in page
    assert "all three numbers" not in page


def test_printed_sql_gives_the_same_rows(crawl, result):
    folder, _, _ = crawl
    output, manifest = result
    stages = output / ".stages"
    tables = {
        "rows": manifest["rows_stage"],
        "near_duplicate_test_hashes": manifest["tables"][
            "near_duplicate-test_hashes"
        ],
        "forbidden_words_words": manifest["tables"]["forbidden_words-words"],
    }
    with duckdb.connect() as connection:
        for name, stage in tables.items():
            notes = json.loads((stages / f"{stage}.json").read_text())
            place = stages / notes["directory"]
            paths = [str(place / file) for file in notes["files"]]
            connection.execute(
                f"CREATE TABLE {name} AS FROM read_parquet(?)", [paths]
            )
        connection.execute(print_sql(config(folder), "duckdb"))
        found = connection.execute("SELECT row_id FROM kept").fetchall()
        columns = [c[0] for c in connection.sql("FROM kept").description]
        masks = connection.execute("SELECT row_id, mask FROM verdicts")
        masks = sorted(masks.fetchall())
    kept = pq.read_table(output / "kept")
    assert columns == kept.column_names
    kept = kept["row_id"].to_pylist()
    assert sorted(row_id for (row_id,) in found) == sorted(kept)
    dropped = pq.read_table(output / "dropped").to_pylist()
    assert masks == sorted((row["row_id"], row["mask"]) for row in dropped)


@pytest.mark.parametrize(
    ("ngrams", "keep"),
    [((1,), 9), ((2,), 40), ((2, 3), 90), ((3, 1), 90), ((1, 2, 4), 150)],
)
@pytest.mark.parametrize("ties", ["keep", "drop"])
def test_the_longest_tokens_tell_enough(ngrams, keep, ties, tmp_path):
    """Only the longest of a text are looked up; the oracle looks up all."""
    draw = random.Random(0)
    words, lengths = "a b c d e f g h i j k l m".split(), [1, 1, 2, 3, 4, 6]
    weights = [1 / rank**1.5 for rank in range(1, len(words) + 1)]
    texts = [
        draw.choices(words, weights, k=draw.choice(lengths)) for _ in range(999)
    ]
    tokens = [
        [" ".join(t[i : i + n]) for n in ngrams for i in range(len(t) - n + 1)]
        for t in texts
    ]
    occurrences = collections.Counter(itertools.chain.from_iterable(tokens))
    frequent = oracle.most_frequent(occurrences, keep, ties)
    expected = [
        i for i, grams in enumerate(tokens) if frequent.issuperset(grams)
    ]
    lines = [{"url": str(i), "text": " ".join(t)} for i, t in enumerate(texts)]
    source = tmp_path / "pairs.jsonl"
    source.write_text("\n".join(map(json.dumps, lines)))
    rule = {"rare_tokens": {"keep": keep, "ngrams": list(ngrams), "ties": ties}}
    curate([source], tmp_path / "out", parse_config({"rules": [rule]}))
    kept = pq.read_table(tmp_path / "out" / "kept")["row_id"].to_pylist()
    assert 100 < len(expected) < 900
    assert sorted(kept) == expected


def test_settings_change_what_is_counted(crawl, result, expected, tmp_path):
    """Ties, rows in place of different members, unigrams alone.

    The rules that stay as they were are taken from the other run's stages.
    """
    folder, rows, hashes = crawl
    changes = {
        "rare_tokens": {"ties": "drop", "ngrams": [1, 2, 3], "keep": 19_000},
        "shared_text": {"count": "rows"},
        "texts_per_image": {"count": "rows"},
    }
    manifest = curate(
        [folder / "input"],
        tmp_path / "out",
        config(folder, **changes),
        stages=result[0] / ".stages",
    )
    settings = {
        "ties": "drop",
        "ngrams": (1, 2, 3),
        "keep": 19_000,
        "count": "rows",
    }
    changed = oracle.drops(rows, hashes, settings)
    check(tmp_path / "out", manifest, rows, changed)
    for name in changes:
        assert changed[name] != expected[name]


def test_counting_what_earlier_rules_left(crawl, tmp_path):
    folder, rows, hashes = crawl
    rows, hashes = rows[:2000], hashes[:50]
    write_parquet(rows, tmp_path / "few.parquet")
    shutil.copy(folder / "words.txt", tmp_path)
    lines = "\n".join(f"{value:016x}" for value in hashes)
    (tmp_path / "hashes.txt").write_text(lines)
    changes = {"rare_tokens": {"keep": 1000}, "texts_per_image": {"at_most": 5}}
    manifest = curate(
        [tmp_path / "few.parquet"],
        tmp_path / "out",
        config(tmp_path, "remaining", **changes),
    )
    kept, found = verdicts(tmp_path / "out", manifest)
    left = list(range(len(rows)))
    raw = oracle.drops(rows, hashes, {"keep": 1000, "texts_per_image": 5})
    early = 0
    for name in ("unusable", "repeated_ids", *RULES):
        settings = {"keep": 1000, "texts_per_image": 5}
        there = oracle.drops([rows[i] for i in left], hashes, settings)
        dropped = {left[i] for i in there.get(name, ())}
        assert found[name] == dropped, name
        early += dropped != raw.get(name, set()) & set(left)
        left = [i for i in left if i not in dropped]
    assert kept == set(left)
    # The setting matters to these rows.
    assert early
    page = (tmp_path / "out" / "audit.html").read_text("utf-8")
    assert "all three numbers are counted in sequence" in page


def test_explain_names_rule_and_evidence(crawl, result, expected):
    folder, rows, hashes = crawl
    output, _ = result
    order = ["unusable", "repeated_ids", *RULES]

    def why(index):
        (found,) = explain(output, row_id_of(index))
        names = [rule["name"] for rule in found["rules"]]
        assert names == [n for n in order if index in expected[n]]
        return {rule["name"]: rule["why"] for rule in found["rules"]}

    index = min(expected["shared_text"])
    text = oracle.normal(rows[index]["text"])
    urls = {
        r["url"] for r in rows if oracle.normal(r["text"] or "") == text
    } - {None, ""}
    said = why(index)
    text = rows[index]["text"]
    assert f"{len(urls)} images have the text {text!r}" in said["shared_text"]
    assert "at_most 10" in said["shared_text"]
    index = min(expected["shorter_side"])
    width, height = oracle.sizes(rows[index])
    assert f"height {height or 'missing'}" in why(index)["shorter_side"]
    index = next(
        i
        for i in expected["rare_words"]
        if "only once" in oracle.normal(rows[i]["text"])
    )
    last = rows[index]["text"].split()[-1]
    said = why(index)
    assert f"'{last}' occurs 1 times" in said["rare_words"]
    assert f"'{last}' occurs 1 times" in said["rare_tokens"]
    index = min(expected["near_duplicate"])
    bits = [(rows[index]["phash"] ^ value).bit_count() for value in hashes]
    nearest = bits.index(min(bits)) + 1
    assert why(index)["near_duplicate"].startswith(
        f"{min(bits)} bits from test image `{folder / 'hashes.txt'}, hash "
        f"{nearest}`"
    )
    index = min(expected["forbidden_words"])
    words = set(oracle.normal(rows[index]["text"]).split())
    words = sorted(words & {"w97", "w211", "日本"})
    words = ", ".join(map(repr, words))
    assert why(index)["forbidden_words"].startswith(words)
    index = min(expected["repeated_pairs"])
    pair = (rows[index]["phash"], oracle.normal(rows[index]["text"]))
    first = next(
        i
        for i, r in enumerate(rows)
        if (r["phash"], oracle.normal(r["text"] or "")) == pair
    )
    said = why(index)["repeated_pairs"]
    assert said.startswith(f"row {row_id_of(first)} has the same")
    for name in ("texts_per_image", "repeated_tokens", "repeated_ids"):
        assert any(digit.isdigit() for digit in why(min(expected[name]))[name])
    kept = set(range(len(rows))) - set().union(*expected.values())
    assert why(min(kept)) == {}
    repeated = rows[min(expected["repeated_ids"])]["id"]
    assert len(explain(output, repeated)) >= 2
    with pytest.raises(ValueError, match="no row `nonsense`"):
        explain(output, "nonsense")


# === Spark ===


# For little data: no compiling of queries, and a quick start of Java.
SPARK_DEFAULTS = """
spark.driver.extraJavaOptions -XX:TieredStopAtLevel=1 -XX:+UseSerialGC
spark.sql.codegen.wholeStage false
spark.sql.shuffle.partitions 2
spark.ui.enabled false
"""


@pytest.fixture
def spark(tmp_path, monkeypatch):
    pytest.importorskip("pyspark", reason="needs the extra `spark`")
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java, which is not on the path")
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "spark-defaults.conf").write_text(SPARK_DEFAULTS)
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path / "conf"))


@pytest.mark.multiprocess
def test_spark_gives_what_plain_python_gives(
    crawl, spark, expected, tmp_path, capfd
):
    """Through the command line, which knows the same rules."""
    folder, rows, _ = crawl
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(fields(folder)))
    command = ["curate", str(folder / "input"), "--json"]
    command += ["--output", str(tmp_path / "out")]
    command += ["--config", str(tmp_path / "rules.yaml")]
    command += ["--engine", "spark", "--master", "local[2]"]
    assert main([*command, "--memory", "1GiB"]) == 0
    manifest = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert manifest["engine"] == "spark"
    check(tmp_path / "out", manifest, rows, expected)
    # What Spark has stored, DuckDB explains.
    index = min(expected["shared_text"])
    command = ["curate", "--output", str(tmp_path / "out"), "--explain"]
    assert main([*command, str(row_id_of(index))]) == 0
    assert "images have the text" in capfd.readouterr().out
