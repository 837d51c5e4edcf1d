"""Run the stages: reading, each rule, and the verdict on every row."""

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
from align_keras.curation.input_files import describe_folder
from align_keras.curation.input_files import describe_paths
from align_keras.curation.rule_parts import int64
from align_keras.curation.rule_parts import union
from align_keras.curation.rules import Folder
from align_keras.curation.rules import Paths
from align_keras.curation.rules import Preset
from align_keras.curation.scores import join_scores
from align_keras.curation.storage import Storage
from align_keras.io.atomic import OF_THE_MACHINE
from align_keras.io.fingerprints import directory_fingerprint
from align_keras.io.fingerprints import fingerprint
from align_keras.io.json_files import is_count
from align_keras.io.json_files import unfit_field
from align_keras.io.optional import OptionalModule
from align_keras.io.stores import file_states
from align_keras.io.stores import is_store

ibis = OptionalModule("ibis", extra="curation")

# Raise when the meaning of a rule changes.
RULES_VERSION = 4

logger = logging.getLogger("align_keras")


@dataclasses.dataclass(frozen=True)
class RunResult:
    """The results of a run.

    Attributes:
        rules: list of `ConfiguredRule`, in the order of the verdicts' bits.
        left_out: dict from the name of a rule that was not applied to the
            reason.
        ingest: dict. What reading the inputs counted.
        rows: string. Name of the stage of normalised rows.
        verdicts: string. Name of the stage of dropped rows, with `row_id` and
            `mask`.
        kept: string. Name of the stage of surviving rows.
        seconds: float. Duration of this run, without stages that were
            finished before.
        counted_rows: string. See `CurationConfig`.
        scores: dict that `join_scores` returned, or `None`.
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


def execute(config, files, described, stages, outside=()):
    """Run all stages that are not finished yet.

    Args:
        config: `CurationConfig`.
        files: list of input files.
        described: dict that `describe_inputs` returned.
        stages: `Stages`.
        outside: list of inputs that are left out, see `find_inputs`.

    Returns:
        `RunResult`.
    """
    begin = time.perf_counter()
    rows_key, ingest = read_rows(config, files, described, stages)
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
        reads = [described["rules"].get(rule.name)]
        if "scores" in RULES[rule.kind].provided:
            reads.append(scores)
        keys.append(fingerprint(counted, setting, reads))
        drops.append(_drop(rule, judged, stages, keys[-1], config.tokenizer))
    key = fingerprint(keys, config.extra_columns)
    verdicts = stages.table("verdicts", key, combine(drops))
    found = stages.read(scores["stage"]) if scores else None
    kept = kept_rows(config, rows, verdicts, found)
    # A rule's key tells of scores only if it reads them; their column stays.
    kept_key = fingerprint(key, scores)
    stages.table("kept", kept_key, kept)
    return RunResult(
        rules=rules,
        left_out=left_out,
        ingest=ingest,
        rows=f"rows-{rows_key}",
        verdicts=f"verdicts-{key}",
        kept=f"kept-{kept_key}",
        seconds=time.perf_counter() - begin,
        counted_rows=config.counted_rows,
        scores=scores,
    )


def kept_rows(config, rows, verdicts, scores=None):
    """Return the rows that no rule drops, with the columns of the result.

    Args:
        config: `CurationConfig`.
        rows: Ibis table.
        verdicts: Ibis table, see `combine`.
        scores: Ibis table of `row_id` and `score`, or `None`.

    Returns:
        Ibis table.
    """
    extra = {name: rows[input_column(name)] for name in config.extra_columns}
    kept = rows.select(*OUTPUT_COLUMNS, **extra).anti_join(verdicts, "row_id")
    if scores is None:
        return kept
    return kept.left_join(scores, "row_id").drop("row_id_right")


def combine(drops):
    """Combine the ids that the rules drop into one verdict per row.

    Args:
        drops: list of Ibis tables of `row_id`, one for each rule.

    Returns:
        Ibis table of `row_id` and `mask`, with one row for each dropped row.
        Bit i of the mask is set if rule i drops it.
    """
    bits = union(
        table.select("row_id", bit=int64(1 << number))
        for number, table in enumerate(drops)
    )
    return bits.group_by("row_id").agg(mask=_bit_or()(bits.bit))


@functools.cache
def _bit_or():
    """Wrap the engines' own function, since Ibis lacks Spark's `bit_or`."""

    @ibis.udf.agg.builtin
    def bit_or(bits: int) -> int:
        raise NotImplementedError

    return bit_or


def drop(rule, rows, stage=None, files=None, scores=None):
    """Apply one rule.

    Args:
        rule: `ConfiguredRule`.
        rows: Ibis table.
        stage: callable that takes a name and a table, and stores the table.
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
    """Store the ids that one rule drops as a stage."""

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
    """Refuse an extra column that would be null in every row."""
    for name in config.extra_columns:
        if input_column(name) not in columns:
            raise ValueError(
                f"`extra_columns` names `{name}`, which no input has; write it "
                "as the input does, or leave it out."
            )


def _active_rules(config, columns):
    """Return the applicable rules, and why the others are not applied."""
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
    """Return the column of rows that a rule's need refers to."""
    if need == "<column>":
        return input_column(rule.parameters["column"])
    need = rule.parameters.get(need.strip("<>"), need)
    return roles.get(need, need)


def _own(name):
    """Return the input's own name for a column of rows."""
    return name.removeprefix(input_column(""))


def _remedy(name):
    leave = "set `optional: true` for the rule"
    if name == "score":
        return (
            ": under `scores` or with `--scores`, name directories that "
            f"`align-keras score` wrote; or {leave}"
        )
    if name in ("width", "height", "phash"):
        # Typical for pairs from the web whose images are not downloaded yet.
        return (
            ": name it under `columns`; or measure local images with "
            f"`--images DIR`; or {leave}, or use `--config web_text` until "
            "the images are downloaded"
        )
    return f": correct its name, or {leave}"


# === Reading ===


def describe_inputs(config, files):
    """Describe all that a run reads but scores, so that changes are noticed.

    Args:
        config: `CurationConfig`.
        files: list of input files.

    Returns:
        dict of `"files"`, `"images"` and, by the rules' names, `"rules"`.
    """
    folder, images = config.image_folder, None
    if folder is not None:
        images = describe_folder(folder, config.allow_outside)
    return {
        "files": _describe_files(files),
        "images": images,
        "rules": {rule.name: _describe_rule(rule) for rule in config.rules},
    }


def _describe_rule(rule):
    """Describe the files, folders and presets that a rule reads."""
    described = []
    for name, parameter in RULES[rule.kind].parameters.items():
        value, kind = rule.parameters[name], parameter.annotation
        if kind == Paths:
            described.append(describe_paths(value))
        elif kind == Folder and value:
            outside = rule.parameters["allow_outside"]
            described.append(describe_folder(value, outside))
        elif kind == Preset and value:
            described.append(directory_fingerprint(value))
    return described


def _describe_files(files):
    """Return path, size and time or tag, to notice changed files."""
    states = file_states(filter(is_store, files))
    for file in files:
        # Broken links have no status.
        if file not in states and os.path.exists(file):
            state = os.stat(file)
            states[file] = [state.st_size, state.st_mtime_ns]
    return [[file, *states.get(file, [])] for file in files]


def further_columns(config):
    """Return the columns to read as numbers, and those as strings."""
    numbers = config.further_columns("number")
    names = (*config.further_columns("string"), *config.extra_columns)
    return numbers, tuple(dict.fromkeys(n for n in names if n not in numbers))


def read_rows(config, files, described, stages):
    """Make the stage of normalised rows, with one part for each file.

    Args:
        config: `CurationConfig`.
        files: list of input files.
        described: dict that `describe_inputs` returned.
        stages: `Stages`.

    Returns:
        Tuple of the key of the stage `rows`, and a dict of counts.
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
    reads = [described["files"], described["images"]]
    key = fingerprint(reads, settings, versions)
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
    """Read one file into its part, unless an earlier run has done so.

    The part gets its final name when it is complete; a damaged file leaves no
    part.
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
            # The file is intact; the next run may have more disk space.
            raise OSError(f"`{place}`: {error}") from error
        reason = " ".join(str(error).split())[:300]
        raise _Damaged(reason or type(error).__name__) from error


def _are_notes_of_a_part(value):
    whole = {"counts": {"*": is_count}, "columns": [str]}
    forms = ({"damaged": str}, whole)
    return any(unfit_field(value, form) is None for form in forms)


def _summarize(files, parts):
    """Add up the counts of all files."""
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
