"""The rule `balanced` against loops over strings."""

import collections
import hashlib
import itertools
import json
import random

import oracle
import pytest

pytest.importorskip("ibis", reason="needs the extra `curation`")
pytest.importorskip("duckdb", reason="needs the extra `curation`")

import duckdb
import pyarrow.parquet as pq

from align_keras.curation import curate
from align_keras.curation import explain
from align_keras.curation import print_sql
from align_keras.curation.config import parse_config

P = 2**31 - 1


def hashed(text):
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) % P


def is_drawn(row, entry, count, at_most, seed):
    """The draw as docs/curation.md tells it."""
    digest = hashlib.blake2b(f"{seed} {entry}".encode(), digest_size=24)
    digest = digest.digest()
    a, b, c = (
        int.from_bytes(digest[i : i + 8], "little") % P for i in (0, 8, 16)
    )
    image, text = hashed(row["url"]), hashed(oracle.normal(row["text"]))
    draw = pow(a * image + b * text + c, 5, P)
    return draw * count < at_most * P


def frequent(rows, least):
    counts = collections.Counter()
    for row in rows:
        words = oracle.normal(row["text"]).split()
        counts.update(words)
        counts.update(map(" ".join, itertools.pairwise(words)))
    return {token for token, count in counts.items() if count >= least}


def survivors(rows, entries, at_most, seed=0):
    """Indices of the rows that stay, and of those without an entry."""
    found, counts = [], collections.Counter()
    for row in rows:
        text = f" {oracle.normal(row['text'])} "
        found.append({e for e in entries if f" {e} " in text})
        counts.update(found[-1])
    kept = [
        index
        for index, row in enumerate(rows)
        if any(
            is_drawn(row, entry, counts[entry], at_most, seed)
            for entry in found[index]
        )
    ]
    return kept, [i for i, entries in enumerate(found) if not entries], counts


def make_rows(seed, count=600):
    """Texts of few words, so that they match much, repeat and tie."""
    draw = random.Random(seed)
    words = [*"abcdefgh", "Ä", "ΣΑΣ", "e\u0301"]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    rows = []
    for _ in range(count):
        length = draw.choice([1, 1, 2, 3, 5, 9])
        text = " ".join(draw.choices(words, weights, k=length))
        if draw.random() < 0.2:
            # Each of these entries has just two or three rows.
            text += f" only{draw.randrange(count // 12)}"
        if draw.random() < 0.2:
            text = f"nothing{draw.randrange(9)}  "
        rows.append({"url": f"u{draw.randrange(count)}", "text": text})
    # More matches than are compared with one another.
    rows += [{"url": "long", "text": " ".join(draw.choices(words, k=300))}] * 2
    return rows


def make_entries(seed, rows):
    """Entries of one to five words that overlap, some of no row."""
    draw = random.Random(seed)
    entries = ["A", "a a", "never", "ä", "σας", "\u00e9", "never a b"]
    for row in draw.sample(rows, 40):
        words = row["text"].split()
        if row["text"].startswith("nothing"):
            continue
        start = draw.randrange(len(words))
        entries.append(
            " ".join(words[start : start + draw.choice([1, 2, 3, 5])])
        )
    entries += [f"only{number}" for number in range(20)]
    return entries


def write(folder, rows, entries=()):
    lines = "\n".join(json.dumps(row) for row in rows)
    (folder / "pairs.jsonl").write_text(lines)
    (folder / "words.txt").write_text("\n".join([*entries, "", " "]), "utf-8")


def run(folder, output="out", **rule):
    config = parse_config({"rules": [{"balanced": rule}]})
    source, stages = folder / "pairs.jsonl", folder / "stages"
    return curate([source], folder / output, config, stages=stages)


def kept_rows(folder, output="out"):
    return sorted(pq.read_table(folder / output / "kept")["row_id"].to_pylist())


def check(folder, manifest, rows, expected, output="out"):
    kept, without, _ = expected
    assert kept_rows(folder, output) == kept
    assert (manifest["rows"], manifest["kept"]) == (len(rows), len(kept))
    audit = json.loads((folder / output / "audit.json").read_text("utf-8"))
    assert audit["rules"][-1]["account"] == {
        "rows without an entry": len(without),
        "rows that no draw kept": len(rows) - len(without) - len(kept),
    }


@pytest.mark.parametrize("seed", range(3))
def test_lists_give_what_loops_give(seed, tmp_path):
    rows = make_rows(seed)
    entries = make_entries(seed, rows)
    write(tmp_path, rows, entries)
    rule = {"metadata": [str(tmp_path / "words.txt")], "seed": seed}
    normal = {oracle.normal(entry) for entry in entries}
    _, _, counts = survivors(rows, normal, 1)
    # Exactly as many as some entry has, so that all of these stay.
    at_most = sorted(counts.values())[len(counts) * 3 // 4]
    manifest = run(tmp_path, at_most=at_most, **rule)
    expected = survivors(rows, normal, at_most, seed)
    check(tmp_path, manifest, rows, expected)
    assert len(rows) - len(expected[0]) - len(expected[1]) > 20
    # What all have that is in the tail is whole; the limit is on average.
    other = survivors(rows, normal, at_most, seed + 1)
    assert other[0] != expected[0]


def test_own_tokens_are_the_default(tmp_path):
    rows = make_rows(7)
    write(tmp_path, rows)
    manifest = run(tmp_path, at_most=25, at_least=20)
    check(tmp_path, manifest, rows, survivors(rows, frequent(rows, 20), 25))
    # Nothing occurs so often.
    manifest = run(tmp_path, "none", at_most=25, at_least=10_000)
    assert manifest["kept"] == 0 and manifest["dropped"] == len(rows)


def test_many_rows_are_thinned_to_the_limit(tmp_path):
    """Heads come near to the limit, and pairs of heads are independent."""
    rows = [{"url": f"u{n}", "text": "one two"} for n in range(20_000)]
    rows += [{"url": f"v{n}", "text": "one"} for n in range(20_000)]
    write(tmp_path, rows, ["one", "two"])
    run(tmp_path, at_most=5000, metadata=str(tmp_path / "words.txt"))
    kept = kept_rows(tmp_path)
    both = sum(row < 20_000 for row in kept)
    # One draw of 1/8, and another of 1/4; five standard deviations.
    assert abs(both - 20_000 * (1 - 7 / 8 * 3 / 4)) < 340
    assert abs(len(kept) - both - 2500) < 235


def test_explain_json_lists_and_changed_lists(tmp_path):
    rows = [{"url": f"u{n}", "text": f"a red bus {n}"} for n in range(50)]
    rows += [{"url": "x", "text": "unheard of"}, {"url": "y", "text": "a cat"}]
    write(tmp_path, rows)
    words = tmp_path / "metadata.json"
    words.write_text(json.dumps(["Red bus", "cat", "cat"]))
    manifest = run(tmp_path, at_most=5, metadata=str(words))
    kept = kept_rows(tmp_path)
    assert 1 < len(kept) < 20 and kept[-1] == 51
    gone = min(set(range(50)) - set(kept))
    (found,) = explain(tmp_path / "out", gone)
    assert (
        "no draw kept it for 'red bus' of 50 rows" in found["rules"][0]["why"]
    )
    (found,) = explain(tmp_path / "out", 50)
    assert found["rules"][0]["why"].startswith("it has no entry of the list")
    page = (tmp_path / "out" / "audit.html").read_text("utf-8")
    assert "rows without an entry: 1, rows that no draw kept" in page
    # The same settings, but not the same list.
    words.write_text(json.dumps(["unheard of"]))
    with pytest.raises(FileExistsError, match="other inputs or settings"):
        run(tmp_path, at_most=5, metadata=str(words))
    assert run(tmp_path, "new", at_most=5, metadata=str(words))["kept"] == 1
    assert manifest["kept"] == len(kept)


def test_the_tokenizer_cuts_entries_like_texts(tmp_path, caplog):
    rows = [{"url": "a", "text": "My dog, running!"}, {"url": "b", "text": "?"}]
    write(tmp_path, rows, ["dog: running", "!!"])
    rule = {"balanced": {"at_most": 9, "metadata": f"{tmp_path}/words.txt"}}
    config = parse_config({"rules": [rule], "tokenizer": "words"})
    curate([tmp_path / "pairs.jsonl"], tmp_path / "out", config)
    assert kept_rows(tmp_path) == [0]
    assert "1 entries of" in caplog.text and "'!!'" in caplog.text


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"at_most": 0}, "at_most` must be from 1"),
        ({}, "lacks its parameter `at_most`"),
        (
            {"at_most": 5, "at_least": 3, "metadata": "words.txt"},
            "leave one of them out",
        ),
    ],
)
def test_refused_settings(rule, message):
    with pytest.raises(ValueError, match=message):
        parse_config({"rules": [{"balanced": rule}]})


def test_refused_lists(tmp_path):
    write(tmp_path, make_rows(0)[:9])
    with pytest.raises(FileNotFoundError, match="no metadata match `.*nothing"):
        run(tmp_path, at_most=1, metadata=str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="no entries in `.*words.txt`"):
        run(tmp_path, at_most=1, metadata=str(tmp_path / "words.txt"))
    (tmp_path / "a.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="a.json` must hold a list of strings"):
        run(tmp_path, at_most=1, metadata=str(tmp_path / "a.json"))


def test_printed_sql_gives_the_same_rows(tmp_path):
    rows = make_rows(3)
    write(tmp_path, rows, make_entries(3, rows))
    rule = {"at_most": 20, "metadata": str(tmp_path / "words.txt")}
    manifest = run(tmp_path, **rule)
    tables = {
        "rows": manifest["rows_stage"],
        "balanced_entries": manifest["tables"]["balanced-entries"],
    }
    config = parse_config({"rules": [{"balanced": rule}]})
    with duckdb.connect() as connection:
        for name, stage in tables.items():
            files = f"{tmp_path}/stages/{stage}*/*.stage"
            connection.execute(
                f"CREATE TABLE {name} AS FROM read_parquet(?)", [files]
            )
        sql = print_sql(config, "duckdb")
        connection.execute(sql)
        found = connection.execute("SELECT row_id FROM kept").fetchall()
    assert sorted(row for (row,) in found) == kept_rows(tmp_path)
    for dialect in ("bigquery", "spark"):
        assert "balanced_matches" in print_sql(config, dialect)
