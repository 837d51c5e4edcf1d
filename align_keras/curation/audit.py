"""Audit a run: what came in, what each rule dropped, and why."""

import dataclasses
import math
import types

from align_keras.curation.explain import Evidence
from align_keras.curation.rule_parts import int64
from align_keras.curation.rules import RULES
from align_keras.curation.similarity_rules import LOWEST
from align_keras.io.optional import OptionalModule

ibis = OptionalModule("ibis", extra="curation")

EXAMPLES = 6
# Longer texts are truncated in the examples.
EXAMPLE_CHARACTERS = 200
# Histogram edges: the first value of each bar except the lowest.
SIDES = (50, 100, 150, 200, 300, 400, 600, 800, 1200, 1600, 2400, 3200)
RATIOS = (1.25, 1.5, 1.75, 2, 2.5, 3, 4, 6, 10)
TOKENS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 18, 21, 31, 51, 101)
CHARACTERS = (1, 6, 11, 21, 31, 41, 61, 81, 101, 151, 201, 401, 1001)


def audit_run(result, stages) -> dict:
    """Count what a run kept and dropped, and describe it.

    Args:
        result: `RunResult`.
        stages: the run's `Stages`.

    Returns:
        dict, the contents of `audit.json`; see docs/curation.md.
    """
    engine = stages.engine
    rows, verdicts = stages.read(result.rows), stages.read(result.verdicts)
    masks = engine.collect(verdicts.group_by("mask").agg(rows=verdicts.count()))
    masks = {row["mask"]: row["rows"] for row in masks}
    total = stages.notes(result.rows)["rows"]
    kept = stages.notes(result.kept)["rows"]
    counted = rule_counts(masks, len(result.rules))
    examples = _examples(result.rules, rows, verdicts, engine)
    rules = []
    remaining = total
    for number, rule in enumerate(result.rules):
        remaining -= counted[number]["in_sequence"]
        rules.append(
            {
                "name": rule.name,
                "kind": rule.kind,
                "parameters": rule.parameters,
                "dropped": counted[number],
                "account": _account(number, result, rows, stages),
                "remaining": remaining,
                "examples": examples[number],
            }
        )
    scores = _scores(result, stages, total, kept, rules)
    if scores:
        found = stages.read(result.scores["stage"])
        rows = rows.left_join(found, "row_id").drop("row_id_right")
    return {
        "rows": total,
        "kept": kept,
        "counted_rows": result.counted_rows,
        "reading": result.ingest,
        "rules": rules,
        "rules_left_out": result.left_out,
        "overlap": overlap(masks, len(result.rules)),
        "scores": scores,
        "histograms": _histograms(
            rows, verdicts, engine, _score_edges(result, stages)
        ),
        "engine": engine.name,
        "seconds": result.seconds,
        "stages": _stage_times(stages, result),
    }


def _scores(result, stages, total, kept, rules):
    """Count the rows with a score and find each rule's cut, or `None`."""
    if result.scores is None:
        return None
    scored = stages.notes(result.scores["stage"])["rows"]
    table = stages.read(result.scores["stage"])
    table = table.semi_join(stages.read(result.kept), "row_id")
    (found,) = stages.engine.collect(table.agg(rows=table.count()))
    cuts = {rule["name"]: rule["account"].get(LOWEST) for rule in rules}
    return {
        "models": result.scores["models"],
        "rows": scored,
        "rows_without": total - scored,
        "kept_without": kept - found["rows"],
        "lowest": {n: cut for n, cut in cuts.items() if cut is not None},
    }


def _score_edges(result, stages):
    """Return about twenty round edges from the lowest to the highest score."""
    if result.scores is None:
        return ()
    table = stages.read(result.scores["stage"])
    ends = table.agg(low=table.score.min(), high=table.score.max())
    (ends,) = stages.engine.collect(ends)
    if ends["low"] is None:
        return (0,)
    wanted = (ends["high"] - ends["low"]) / 20 or 1
    power = 10.0 ** math.floor(math.log10(wanted))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= wanted)
    first = math.floor(ends["low"] / step) + 1
    last = max(first, math.floor(ends["high"] / step))
    return tuple(float(f"{n * step:.6g}") for n in range(first, last + 1))


def _account(number, result, rows, stages):
    """Return the rule's own account of what it dropped."""
    account = RULES[result.rules[number].kind].account
    if account is None:
        return {}
    manifest = {
        "rules": [dataclasses.asdict(rule) for rule in result.rules],
        "tables": stages.used,
        "config": {"counted_rows": result.counted_rows},
    }
    run = types.SimpleNamespace(
        engine=stages.engine, manifest=manifest, rows=rows, read=stages.read
    )
    return account(Evidence(run, number))


def rule_counts(masks: dict[int, int], num_rules: int) -> list[dict]:
    """Count from the verdicts how many rows each rule drops.

    Args:
        masks: dict from a mask to the number of dropped rows that have it.
        num_rules: int.

    Returns:
        list of dicts of ints: `"alone"`, the rows that the rule would drop if
        it were the only one; `"in_sequence"`, those it drops of the rows that
        the rules before it left; and `"only"`, those that no other rule
        drops. For a rule that saw only what the others left, all three
        numbers are equal.
    """
    return [
        {
            "alone": sum(n for m, n in masks.items() if m >> rule & 1),
            "in_sequence": sum(
                n for m, n in masks.items() if m & -m == 1 << rule
            ),
            "only": masks.get(1 << rule, 0),
        }
        for rule in range(num_rules)
    ]


def overlap(masks: dict[int, int], num_rules: int) -> list[list[int]]:
    """Count the rows that both rules of each pair drop, as a list of lists."""
    return [
        [
            sum(n for m, n in masks.items() if m >> one & m >> two & 1)
            for two in range(num_rules)
        ]
        for one in range(num_rules)
    ]


def _examples(rules, rows, verdicts, engine):
    """Choose a few rows that each rule drops, first those only it drops."""
    chosen = []
    for number in range(len(rules)):
        bit = int64(1 << number)
        dropped = verdicts.filter((verdicts.mask & bit) != 0)
        # Spread the examples over the input, the same rows on every engine.
        mixed = (dropped.row_id % 1_000_003) * 7919 % 1_000_003
        dropped = dropped.select(
            "row_id", others=(dropped.mask != bit).cast("int8"), mixed=mixed
        )
        dropped = dropped.order_by("others", "mixed", "row_id")
        found = engine.collect(dropped.limit(EXAMPLES))
        chosen.append([row["row_id"] for row in found])
    wanted = sorted({row_id for ids in chosen for row_id in ids})
    found = rows.filter(rows.row_id.isin(wanted or [-1])).select(
        "row_id", "id", "url", "text", "width", "height"
    )
    found = {row["row_id"]: row for row in engine.collect(found)}
    for row in found.values():
        if len(row["text"]) > EXAMPLE_CHARACTERS:
            row["text"] = row["text"][:EXAMPLE_CHARACTERS] + "…"
    return [[found[row_id] for row_id in ids] for ids in chosen]


def _histograms(rows, verdicts, engine, score_edges=()):
    """Count the rows in each bar of each measure, before and after."""
    width = rows.width
    # A row of which only one side is known has no shorter side.
    height = ibis.ifelse(width.notnull(), rows.height, ibis.null("int32"))
    shorter = ibis.ifelse(width < height, width, height)
    longer = ibis.ifelse(width < height, height, width)
    measures = {
        "shorter_side": (shorter, SIDES),
        "aspect_ratio": (longer / shorter, RATIOS),
        "tokens": (rows.num_tokens, TOKENS),
        "characters": (rows.text_length, CHARACTERS),
    }
    if score_edges:
        measures["score"] = (rows.score, score_edges)
    bars = {n: _bar(value, edges) for n, (value, edges) in measures.items()}
    judged = rows.select("row_id", **bars).left_join(verdicts, "row_id")
    kept = judged.mask.isnull()
    # Few combinations of bars occur, so one pass can count them all.
    counted = engine.collect(
        judged.group_by(list(measures)).agg(
            before=judged.count(), after=judged.count(where=kept)
        )
    )
    return {
        name: {
            "edges": list(edges),
            **{
                when: _sum_bars(counted, name, when, len(edges) + 1)
                for when in ("before", "after")
            },
        }
        for name, (_, edges) in measures.items()
    }


def _bar(value, edges):
    """Return the number of the bar, or null where there is no value."""
    lower = ((value < edge, number) for number, edge in enumerate(edges))
    missing = (value.isnull(), ibis.null("int8"))
    return ibis.cases(missing, *lower, else_=len(edges))


def _sum_bars(found, name, when, count):
    """Sum the rows of each bar, leaving out rows without a value."""
    bars = [0] * count
    for row in found:
        if row[name] is not None:
            bars[row[name]] += row[when]
    return bars


def _stage_times(stages, result):
    """Return the seconds that each stage of the result took, if known."""
    named = {"reading": result.rows, "verdicts": result.verdicts}
    named["kept"] = result.kept
    return {
        name: stages.notes(stage)["seconds"] for name, stage in named.items()
    }
