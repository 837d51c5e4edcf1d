"""The stages of a run: reading, each rule, the verdict on every row."""

import dataclasses
import functools
import logging
import os
import time
import unicodedata

from align_keras.curation.config import OUTPUT_COLUMNS
from align_keras.curation.config import RULES
from align_keras.curation.config import always_applied
from align_keras.curation.config import sees_remaining
from align_keras.curation.ingest import VERSION
from align_keras.curation.ingest import IngestTask
from align_keras.curation.ingest import ingest_file
from align_keras.curation.ingest import input_column
from align_keras.curation.input_files import describe_paths
from align_keras.curation.rule_parts import int64
from align_keras.curation.rule_parts import union
from align_keras.curation.rules import named_paths
from align_keras.curation.scores import join_scores
from align_keras.curation.storage import Storage
from align_keras.io.atomic import OF_THE_MACHINE
from align_keras.io.fingerprints import fingerprint
from align_keras.io.json_files import is_count
from align_keras.io.json_files import unfit_field
from align_keras.io.optional import OptionalModule

ibis = OptionalModule("ibis", extra="curation")

# Raise when a rule comes to mean something else.
RULES_VERSION = 4

logger = logging.getLogger("align_keras")


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a run has made.

    Attributes:
        rules: list of `ConfiguredRule`, in the order of the verdicts' bits.
        left_out: dict from the name of a rule that was not applied to why.
        ingest: dict, what reading has counted.
        rows: string, name of the stage of normalised rows.
        verdicts: string, of the stage of `row_id` and `mask` of dropped rows.
        kept: string, of the stage of the rows that survive.
        seconds: float, of this run, without stages that were there before.
        counted_rows: string, see `CurationConfig`.
        scores: dict of what `join_scores` returned, or `None`.
    """

    rules: list
    left_out: dict
    ingest: dict
    rows: str
    verdicts: str
    kept: str
    seconds: float
    counted_rows: str = "raw"
    scores: dict | None = None


def execute(config, files, stages, outside=()):
    """Run all stages that are not there yet.

    Args:
        config: `CurationConfig`.
        files: list of input files.
        stages: `Stages`.
        outside: list of what is left out, see `find_inputs`.

    Returns:
        `RunResult`.
    """
    begin = time.perf_counter()
    rows_key, ingest = read_rows(config, files, stages)
    for refused in outside:
        logger.warning("Left out `%(file)s`: %(reason)s", refused)
    ingest["files"] += len(outside)
    ingest["damaged_files"] += outside
    rows = stages.read(f"rows-{rows_key}")
    _check_extra_columns(config, ingest["columns"])
    rules, left_out = _active_rules(config, ingest["columns"])
    scores = None
    if config.scores:
        scores = join_scores(config.scores, rows, rows_key, stages)
    drops, keys = [], []
    for rule in rules:
        judged, counted = rows, [rows_key]
        if drops and sees_remaining(config.counted_rows, rule.parameters):
            judged = rows.anti_join(union(drops), "row_id")
            counted += keys
        setting = [rule.kind, rule.parameters, RULES_VERSION]
        files = rule_files(rule)
        if "scores" in RULES[rule.kind].provided:
            files.append(scores)
        keys.append(fingerprint(counted, setting, files))
        drops.append(_drop(rule, judged, stages, keys[-1], config.tokenizer))
    key = fingerprint(keys, config.extra_columns)
    verdicts = stages.table("verdicts", key, combine(drops))
    extra = {name: rows[input_column(name)] for name in config.extra_columns}
    kept = rows.select(*OUTPUT_COLUMNS, **extra).anti_join(verdicts, "row_id")
    if scores:
        found = stages.read(scores["stage"])
        kept = kept.left_join(found, "row_id").drop("row_id_right")
    stages.table("kept", key, kept)
    return RunResult(
        rules=rules,
        left_out=left_out,
        ingest=ingest,
        rows=f"rows-{rows_key}",
        verdicts=f"verdicts-{key}",
        kept=f"kept-{key}",
        seconds=time.perf_counter() - begin,
        counted_rows=config.counted_rows,
        scores=scores,
    )


def combine(drops):
    """Put the ids that rules drop together.

    Args:
        drops: list of Ibis tables of `row_id`, one for each rule.

    Returns:
        Ibis table of `row_id` and `mask`, a row for each dropped row. Bit i
        of the mask tells that rule i drops it.
    """
    bits = union(
        table.select("row_id", bit=int64(1 << number))
        for number, table in enumerate(drops)
    )
    return bits.group_by("row_id").agg(mask=_bit_or()(bits.bit))


@functools.cache
def _bit_or():
    """The engines' own function; Ibis's `bit_or` lacks Spark's."""

    @ibis.udf.agg.builtin
    def bit_or(bits: int) -> int:
        raise NotImplementedError

    return bit_or


def drop(rule, rows, stage=None, files=None, scores=None):
    """Apply one rule.

    Args:
        rule: `ConfiguredRule`.
        rows: Ibis table.
        stage: callable of a name and a table, which stores it.
        files: callable that makes the table of the rule's files.
        scores: callable that returns the table of the rows' scores.

    Returns:
        Ibis table of `row_id`.
    """
    kind = RULES[rule.kind]
    given = dict(rule.parameters)
    if "stage" in kind.provided:
        given["stage"] = stage
    if "listed" in kind.provided:
        given["listed"] = files()
    if "scores" in kind.provided:
        given["scores"] = scores()
    return kind.function(rows, **given)


def _drop(rule, rows, stages, key, tokenizer):
    """The stage of the ids that one rule drops."""

    def files():
        make = RULES[rule.kind].files.make
        return make(rule, rows, stages, key, tokenizer)

    table = drop(
        rule,
        rows,
        lambda name, table: stages.table(f"{rule.name}-{name}", key, table),
        files,
        lambda: stages.read(stages.used["row_scores"]),
    )
    return stages.table(f"drop-{rule.name}", key, table)


def _check_extra_columns(config, columns):
    """Refuse a name that would be null in every row."""
    for name in config.extra_columns:
        if input_column(name) not in columns:
            raise ValueError(
                f"`extra_columns` names `{name}`, which no input has; correct "
                "it as the input writes it, or leave it out."
            )


def _active_rules(config, columns):
    """The rules that can be applied, and why others cannot."""
    rules, left_out = always_applied(config), {}
    if "id" not in columns:
        rules = [rule for rule in rules if rule.kind != "repeated_ids"]
    image = config.image_identity
    if image not in ("url", "phash"):
        image = input_column(image)
    roles = {"text_key": "text", "tokens": "text"}
    roles |= {"image_key": image, "image": image}
    available = set(columns)
    if config.scores:
        available |= {"score"}
    if config.image_folder is not None:
        available |= {"phash", "width", "height"}
    for rule in config.rules:
        needs = [_needed(need, rule, roles) for need in RULES[rule.kind].needs]
        missing = [need for need in needs if need not in available]
        if missing and not rule.optional:
            raise ValueError(
                f"Rule `{rule.name}` needs the column `{_own(missing[0])}`, "
                f"which no input has{_remedy(missing[0])}. The inputs have: "
                f"{', '.join(sorted(map(_own, columns)))}."
            )
        if missing:
            left_out[rule.name] = f"no input has a column `{_own(missing[0])}`"
        elif not rule.parameters.get("test_images", True):
            left_out[rule.name] = "no test images were named"
        else:
            rules.append(rule)
    for name, reason in left_out.items():
        logger.warning("Rule `%s` is not applied: %s.", name, reason)
    return rules, left_out


def _needed(need, rule, roles):
    """The column of rows that a need stands for."""
    if need == "<column>":
        return input_column(rule.parameters["column"])
    need = rule.parameters.get(need.strip("<>"), need)
    return roles.get(need, need)


def _own(name):
    """The input's own name of a column of rows."""
    return name.removeprefix(input_column(""))


def _remedy(name):
    leave = "set `optional: true` for the rule"
    if name == "score":
        return (
            ": name directories that `align-keras score` wrote under `scores` "
            f"or with `--scores`; or {leave}"
        )
    if name in ("width", "height", "phash"):
        # Pairs from the web, before their images are there.
        return (
            ": name it under `columns`; or measure local images with "
            f"`--images DIR`; or {leave}, or take `--config web_text` until "
            "the images are downloaded"
        )
    return f": correct its name, or {leave}"


# === Reading ===


def rule_files(rule):
    """What changes when a file changes that a rule reads."""
    return list(map(describe_paths, named_paths(rule).values()))


def describe_files(files):
    """Path, size and time of change, by which a changed file is noticed."""
    described = []
    for file in files:
        known = []
        # Addresses do not tell, nor do links that lead nowhere.
        if os.path.exists(file):
            state = os.stat(file)
            known = [state.st_size, state.st_mtime_ns]
        described.append([file, *known])
    return described


def further_columns(config):
    """Names of the columns that are read as numbers, and as strings."""
    numbers = config.further_columns("number")
    names = (*config.further_columns("string"), *config.extra_columns)
    return numbers, tuple(dict.fromkeys(n for n in names if n not in numbers))


def read_rows(config, files, stages):
    """Make the stage of normalised rows, a part for each file.

    Args:
        config: `CurationConfig`.
        files: list of input files.
        stages: `Stages`.

    Returns:
        Tuple of the key of the stage `rows`, and a dict of what was counted.
    """
    numbers, strings = further_columns(config)
    settings = {
        "columns": config.columns,
        "numbers": numbers,
        "strings": strings,
        "tokenizer": config.tokenizer,
        "image_identity": config.image_identity,
        "text_identity": config.text_identity,
        "max_text_characters": config.max_text_characters,
        "image_folder": config.image_folder,
        "allow_outside": config.allow_outside,
        "scored": bool(config.scores),
    }
    versions = [VERSION, unicodedata.unidata_version]
    key = fingerprint(describe_files(files), settings, versions)
    stage = f"rows-{key}"
    notes = stages.notes(stage)
    if notes is None:
        stages.progress("reading")
        stages.storage.make_directory(stage)
        tasks = [
            IngestTask(number, path, **settings)
            for number, path in enumerate(files)
        ]
        work = functools.partial(_read_part, stages.storage.root, stage)
        begin = time.perf_counter()
        parts = sorted(stages.engine.map(work, tasks))
        for name in stages.storage.list(stage):
            if name.endswith(".unfinished"):
                stages.storage.remove(f"{stage}/{name}")
        summary = _summarize(files, dict(parts))
        seconds = time.perf_counter() - begin
        stages.finish(stage, stage, seconds, ingest=summary)
        notes = stages.notes(stage)
    stages.used["rows"] = stage
    return key, notes["ingest"]


def _read_part(root, stage, task):
    """Read one file into its part, unless a killed run has done so.

    A part is renamed when it is whole; a damaged file leaves none.
    """
    storage = Storage(root)
    part = f"part-{task.number:06d}.stage"
    notes = storage.read_object(
        f"{stage}/.{part}.json",
        _are_notes_of_a_part,
        "note of a file that was read",
        "Remove it, and run `align-keras curate` again.",
    )
    if notes is None:
        try:
            with storage.whole_file(f"{stage}/{part}") as file:
                counts, columns = _ingest(task, file, f"{root}/{stage}")
            notes = {"counts": counts, "columns": columns}
        except _Damaged as error:
            notes = {"damaged": str(error)}
        storage.write_json(f"{stage}/.{part}.json", notes)
    return task.number, notes


class _Damaged(Exception):
    """An input file cannot be read."""


def _ingest(task, file, place):
    try:
        return ingest_file(task, file)
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) in OF_THE_MACHINE:
            # The file is not to blame, and the next run may have room.
            raise OSError(f"`{place}`: {error}") from error
        reason = " ".join(str(error).split())[:300]
        raise _Damaged(reason or type(error).__name__) from error


def _are_notes_of_a_part(value):
    whole = {"counts": {"*": is_count}, "columns": [str]}
    forms = ({"damaged": str}, whole)
    return any(unfit_field(value, form) is None for form in forms)


def _summarize(files, parts):
    """Add up what reading the files has counted."""
    total, columns, damaged = {}, set(), []
    for file, notes in zip(files, parts.values(), strict=True):
        if "damaged" in notes:
            damaged.append({"file": file, "reason": notes["damaged"]})
            logger.warning("Left out `%s`: %s", file, notes["damaged"])
            continue
        columns |= set(notes["columns"])
        for name, count in notes["counts"].items():
            total[name] = total.get(name, 0) + count
    if len(damaged) == len(files):
        raise ValueError(
            f"None of the {len(files)} input files can be read; the first is "
            f"`{damaged[0]['file']}`: {damaged[0]['reason'].rstrip('.')}."
        )
    return {
        "files": len(files),
        "damaged_files": damaged,
        "columns": sorted(columns),
        "counts": {name: count for name, count in total.items() if count},
    }
