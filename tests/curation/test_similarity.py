"""Rules of scores against sorted lists, on DuckDB and on Spark."""

import fractions
import hashlib
import json
import math
import random

import numpy as np
import pytest

pytest.importorskip("ibis", reason="needs the extra `curation`")
pytest.importorskip("duckdb", reason="needs the extra `curation`")

import pyarrow as pa
import pyarrow.parquet as pq
import test_balanced
from test_rules import spark  # noqa: F401

from align_keras.curation import curate
from align_keras.curation import explain
from align_keras.curation import print_sql
from align_keras.curation.config import parse_config
from align_keras.curation.scores import pair_key


def make_rows(seed=0, count=400):
    draw = random.Random(seed)
    return [
        {
            "id": f"key{number}",
            "url": f"folder/{draw.randrange(count)}.jpg",
            "text": draw.choice(["a  Bus", "a bus", "dogs e\u0301", "two dogs"])
            + (f" {number}" if draw.random() < 0.9 else ""),
        }
        for number in range(count)
    ]


def write_scores(folder, scores, model="m"):
    """Write what `align-keras score` would, from triples."""
    folder.mkdir(parents=True)
    keys, texts, values = zip(*scores, strict=True)
    table = pa.table(
        {
            "key": keys,
            "text": texts,
            "pair_key": [pair_key(k, t) for k, t, _ in scores],
            "score": pa.array(np.array(values, "float32")),
        }
    )
    path = folder / "scores-00000-of-00001.parquet"
    pq.write_table(table, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    shard = {"file": path.name, "records": len(scores), "sha256": digest}
    manifest = {
        "arguments": {"fingerprint": model, "block_size": 8},
        "shards": [shard],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def scores_of(rows, seed=0, digits=2):
    """A score for most rows, of few values, so that many tie."""
    draw = random.Random(seed)
    found = []
    for row in rows:
        kind = draw.random()
        if kind < 0.1:
            continue
        # By its name in packed records, by the file's, or by its id.
        name = row["url"] if kind < 0.5 else row["url"].removesuffix(".jpg")
        name = row["id"] if kind > 0.9 else name
        score = round(draw.gauss(0.25, 0.1), digits)
        found.append((name, row["text"].replace("e\u0301", "é "), score))
        if kind > 0.8:
            # It was scored twice; the higher one counts.
            found.append((found[-1][0], row["text"], score - 0.05))
    return found


def looked_up(rows, scores):
    """The score of each row, `None` without."""
    best = {}
    for name, text, score in scores:
        pair = name.removesuffix(".jpg"), " ".join(text.split())
        pair = pair[0], pair[1].replace("e\u0301", "é")
        best[pair] = max(float(np.float32(score)), best.get(pair, -9))
    found = []
    for row in rows:
        text = " ".join(row["text"].split()).replace("e\u0301", "é")
        names = row["url"].removesuffix(".jpg"), row["id"]
        known = [best[n, text] for n in names if (n, text) in best]
        found.append(known[0] if known else None)
    return found


def kept_indices(scores, share=None, at_least=None, missing="drop"):
    known = sorted((s for s in scores if s is not None), reverse=True)
    if share is not None:
        most = math.floor(fractions.Fraction(str(share)) * len(known))
        at_least = known[most - 1] if most else math.inf
    return [
        number
        for number, score in enumerate(scores)
        if (missing == "keep" if score is None else score >= at_least)
    ]


@pytest.fixture
def pairs(tmp_path):
    rows = make_rows()
    lines = "\n".join(map(json.dumps, rows))
    (tmp_path / "pairs.jsonl").write_text(lines)
    scores = scores_of(rows)
    write_scores(tmp_path / "scores", scores)
    return tmp_path, rows, scores


def run(folder, rule, output="out", scores=("scores",), **given):
    fields = {"scores": list(scores), "rules": [{"similarity": rule}]}
    config = parse_config(fields, folder)
    return curate([folder / "pairs.jsonl"], folder / output, config, **given)


def kept_rows(folder, output="out"):
    return sorted(pq.read_table(folder / output / "kept")["row_id"].to_pylist())


RULES = [
    {"at_least": 0.28},
    {"at_least": -1.5, "missing": "keep"},
    {"keep_share": 0.3},
    {"keep_share": 0.29, "missing": "keep"},
    {"keep_share": 0.001},
    {"keep_share": 1},
]


def test_every_setting_gives_what_sorting_gives(pairs):
    folder, rows, scores = pairs
    known = looked_up(rows, scores)
    assert 20 < known.count(None) < 100
    for number, rule in enumerate(RULES):
        manifest = run(folder, rule, f"out{number}", stages=folder / "stages")
        given = {
            "share" if k == "keep_share" else k: v for k, v in rule.items()
        }
        expected = kept_indices(known, **given)
        assert kept_rows(folder, f"out{number}") == expected, rule
        assert manifest["kept"] == len(expected)
        audit = (folder / f"out{number}" / "audit.json").read_text("utf-8")
        audit = json.loads(audit)
        words = "rows without a score, which "
        words += "stay" if "missing" in rule else "go"
        assert audit["rules"][-1]["account"][words] == known.count(None)
        without = sum(known[index] is None for index in expected)
        assert audit["scores"]["kept_without"] == without
        assert audit["scores"]["rows_without"] == known.count(None)
    found = pq.read_table(folder / "out2" / "kept").to_pylist()
    for row in found:
        assert row["score"] == known[row["row_id"]]
    # Ties at the last place stay, so that there are more than the share.
    assert len(found) > 0.3 * sum(score is not None for score in known)


def test_printed_sql_keeps_the_scores(pairs):
    import duckdb

    folder, _, _ = pairs
    fields = {
        "scores": ["scores"],
        "extra_columns": ["key"],
        "columns": {"id": "id"},
        "rules": [{"token_count": {"at_least": 3}}],
    }
    rows = (folder / "pairs.jsonl").read_text().splitlines()
    rows = [json.dumps({**json.loads(row), "key": row[:9]}) for row in rows]
    (folder / "pairs.jsonl").write_text("\n".join(rows))
    config = parse_config(fields, folder)
    manifest = curate([folder / "pairs.jsonl"], folder / "out", config)
    stages = folder / "out" / ".stages"
    tables = {
        "rows": manifest["rows_stage"],
        "row_scores": manifest["tables"]["row_scores"],
    }
    with duckdb.connect() as connection:
        for name, stage in tables.items():
            notes = json.loads((stages / f"{stage}.json").read_text())
            place = stages / notes["directory"]
            connection.execute(
                f"CREATE TABLE {name} AS FROM read_parquet(?)",
                [[str(place / file) for file in notes["files"]]],
            )
        connection.execute(print_sql(config, "duckdb"))
        printed = connection.sql("FROM kept ORDER BY row_id").arrow()
        printed = pa.table(printed).to_pylist()
    kept = pq.read_table(folder / "out" / "kept").to_pylist()
    assert printed == sorted(kept, key=lambda row: row["row_id"])
    assert {"key", "score"} < printed[0].keys()


def test_audit_and_explain_tell_scores(pairs):
    folder, rows, scores = pairs
    known = looked_up(rows, scores)
    run(folder, {"keep_share": 0.5})
    kept = kept_rows(folder)
    lowest = min(known[index] for index in kept)
    audit = json.loads((folder / "out" / "audit.json").read_text("utf-8"))
    assert audit["scores"]["lowest"] == {"similarity": lowest}
    (model,) = audit["scores"]["models"]
    assert model == {"model": "m", "scores": len(scores)}
    histogram = audit["histograms"]["score"]
    edges = [-math.inf, *histogram["edges"], math.inf]
    assert 10 < len(edges) < 30
    for when, chosen in (("before", range(len(rows))), ("after", kept)):
        values = [known[i] for i in chosen if known[i] is not None]
        # Scores are of two decimals, and so are edges, in float64.
        expected = [
            sum(low <= value < high for value in values)
            for low, high in zip(edges, edges[1:], strict=False)
        ]
        assert histogram[when] == expected
    page = (folder / "out" / "audit.html").read_text("utf-8")
    assert f"similarity: {lowest:.4g}</text>" in page
    gone = next(i for i, s in enumerate(known) if s is not None and s < lowest)
    (found,) = explain(folder / "out", rows[gone]["id"])
    assert found["score"] == known[gone]
    why = found["rules"][-1]["why"]
    assert why.startswith(
        f"its score is {known[gone]:.6g}, and {lowest:.6g} or more stays"
    )
    (found,) = explain(folder / "out", rows[kept[0]]["id"])
    assert found["score"] == known[kept[0]] and found["rules"] == []


def test_scores_of_models_are_standardised(pairs):
    folder, rows, scores = pairs
    other = scores_of(rows, seed=1, digits=3)
    # Another model's are large, and of other rows.
    other = [(name, text, 10 * score) for name, text, score in other]
    write_scores(folder / "other", other[:200], "n")
    write_scores(folder / "rest", other[200:], "n")
    given = ["scores", "other", "rest"]
    run(folder, {"keep_share": 0.4}, scores=given)

    def standard(rows, scores):
        best = {}
        for name, text, score in scores:
            pair = pair_key(name, text)
            best[pair] = max(float(np.float32(score)), best.get(pair, -99))
        values = np.floor(np.array(list(best.values())) * 2**15) / 2**15
        found = looked_up(rows, scores)
        return [
            None if s is None else (s - values.mean()) / values.std()
            for s in found
        ]

    both = zip(standard(rows, scores), standard(rows, other), strict=True)
    both = [None if None in pair else sum(pair) / 2 for pair in both]
    # A pair is one by the same name in both.
    kept = pq.read_table(folder / "out" / "kept").to_pylist()
    known = [row["score"] for row in kept]
    by_id = {row["row_id"]: row["score"] for row in kept}
    for index, score in by_id.items():
        assert score == pytest.approx(both[index], abs=1e-6)
    count = json.loads((folder / "out" / "audit.json").read_text())["scores"]
    assert len(known) == math.floor(0.4 * count["rows"])


def test_changed_and_missing_scores(pairs):
    folder, rows, scores = pairs
    first = run(folder, {"at_least": 0.3}, stages=folder / "stages")
    (folder / "scores" / "manifest.json").rename(folder / "kept.json")
    with pytest.raises(FileNotFoundError, match="no manifest.json of scores"):
        run(folder, {"at_least": 0.3})
    (folder / "kept.json").rename(folder / "scores" / "manifest.json")
    raised = [(name, text, 0.9) for name, text, _ in scores]
    for path in (folder / "scores").iterdir():
        path.unlink()
    (folder / "scores").rmdir()
    write_scores(folder / "scores", raised)
    with pytest.raises(FileExistsError, match="other inputs or settings"):
        run(folder, {"at_least": 0.3})
    given = {"stages": folder / "stages", "output": "new"}
    second = run(folder, {"at_least": 0.3}, **given)
    assert second["kept"] > first["kept"]
    (path,) = (folder / "scores").glob("*.parquet")
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ValueError, match="is damaged: score the pairs again"):
        run(folder, {"at_least": 0.2}, "third")


def test_kept_rows_have_the_scores_of_their_run(pairs):
    """Also where no rule reads scores, and stages are shared."""
    folder, rows, scores = pairs
    others = [(name, text, score + 2) for name, text, score in scores]
    write_scores(folder / "others", others, "n")
    config = parse_config({"rules": []})
    for name, given in (("scores", scores), ("others", others)):
        curate(
            [folder / "pairs.jsonl"],
            folder / f"with_{name}",
            config,
            scores=folder / name,
            stages=folder / "stages",
        )
        kept = pq.read_table(folder / f"with_{name}" / "kept").to_pylist()
        found = {row["row_id"]: row["score"] for row in kept}
        assert found == dict(enumerate(looked_up(rows, given)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rules": [{"similarity": {}}]}, "needs one of at_least and keep"),
        (
            {"rules": [{"similarity": {"at_least": 0, "keep_share": 0.1}}]},
            "needs one of at_least and keep",
        ),
        ({"rules": [{"similarity": {"keep_share": 30}}]}, "at most 1"),
        ({"rules": [], "scores": 3}, "`scores` must be of type str"),
        (
            {"rules": [], "scores": "s", "extra_columns": ["score"]},
            "output already has a column of that name",
        ),
    ],
)
def test_refused_settings(fields, message):
    with pytest.raises(ValueError, match=message):
        parse_config(fields)


@pytest.mark.parametrize("fault", ["NaN", "text", "missing", "no Parquet"])
def test_files_that_hold_no_scores_are_named(tmp_path, fault):
    write_scores(tmp_path / "scores", [("a.jpg", "a bus", math.nan)])
    manifest = tmp_path / "scores" / "manifest.json"
    about = json.loads(manifest.read_text())
    (path,) = (tmp_path / "scores").glob("*.parquet")
    table = pq.read_table(path)
    place = table.schema.get_field_index("score")
    if fault == "text":
        table = table.set_column(place, "score", pa.array(["high"]))
    if fault == "missing":
        table = table.remove_column(place)
    pq.write_table(table, path)
    if fault == "no Parquet":
        path.write_bytes(b"x" * 999)
    # The checksum is that of the file as it is.
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    about["shards"][0]["sha256"] = digest
    manifest.write_text(json.dumps(about))
    row = '{"url": "a.jpg", "text": "a bus"}'
    (tmp_path / "pairs.jsonl").write_text(row)
    with pytest.raises(ValueError, match=f"`{path}`"):
        run(tmp_path, {"at_least": 0.0})


def test_scores_without_checksums_are_refused(pairs):
    folder, _, _ = pairs
    path = folder / "scores" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["shards"][0]["sha256"]
    manifest["shards"] *= 2
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="manifest.json` has no sha256 for"):
        run(folder, {"at_least": 0.3})


def test_a_rule_without_scores_is_refused(pairs):
    folder, _, _ = pairs
    with pytest.raises(ValueError, match="under `scores` or with `--scores`"):
        run(folder, {"at_least": 0.2}, scores=())
    rule = {"at_least": 0.2, "optional": True}
    assert run(folder, rule, scores=())["dropped"] == 0
    config = parse_config({"rules": [{"similarity": {"at_least": 0.2}}]})
    for dialect in ("duckdb", "bigquery", "spark"):
        assert "row_scores" in print_sql(config, dialect)


def test_scores_of_other_names_are_refused(pairs):
    """With none of them, everything would go for a reason that is not one."""
    folder, rows, scores = pairs
    write_scores(folder / "other", [(f"a/{n}", t, s) for n, t, s in scores])
    with pytest.raises(ValueError) as error:
        run(folder, {"keep_share": 0.5}, scores=["other"])
    assert f"The first row is `{rows[0]['url']}`" in str(error.value)
    assert f"first score is for `a/{scores[0][0]}`" in str(error.value)
    assert not (folder / "out" / "manifest.json").exists()
    # One is enough.
    write_scores(folder / "one", [(rows[3]["url"], rows[3]["text"], 0.5)], "n")
    run(folder, {"keep_share": 1}, scores=["one"])
    assert kept_rows(folder) == [3]


@pytest.mark.multiprocess
def test_spark_keeps_the_same(tmp_path, spark):  # noqa: F811
    """Ids and scores to the last bit; the loops have judged DuckDB's."""
    rows = test_balanced.make_rows(5)
    test_balanced.write(tmp_path, rows, test_balanced.make_entries(5, rows))
    draw = random.Random(0)
    for name in ("a", "b"):
        scores = [
            (row["url"], row["text"], draw.gauss(0, 0.1)) for row in rows[20:]
        ]
        write_scores(tmp_path / name, scores, name)
    rules = [
        {"similarity": {"keep_share": 0.7}},
        {"balanced": {"at_most": 20, "metadata": "words.txt"}},
        {"balanced": {"at_most": 25, "at_least": 20, "name": "own"}},
    ]
    config = {"scores": ["a", "b"], "rules": rules}
    config = parse_config(config, tmp_path)
    master = {"engine": "spark", "master": "local[2]"}
    found = []
    for name, engine in (("duckdb", {}), ("spark", master)):
        output = tmp_path / name
        manifest = curate([tmp_path / "pairs.jsonl"], output, config, **engine)
        assert manifest["rows"] == len(rows) > manifest["kept"] > 20
        kept = pq.read_table(output / "kept").to_pylist()
        dropped = pq.read_table(output / "dropped").to_pylist()
        audit = json.loads((output / "audit.json").read_text("utf-8"))
        told = [(rule["dropped"], rule["account"]) for rule in audit["rules"]]
        found.append(
            (
                sorted((row["row_id"], row["score"]) for row in kept),
                sorted((row["row_id"], row["mask"]) for row in dropped),
                (told, audit["scores"], audit["histograms"]),
            )
        )
    assert found[0] == found[1]
    for counts, _ in found[0][2][0][1:]:
        assert counts["only"]
