"""From raw pairs to kept ones, with an account of every row."""

import contextlib
import dataclasses
import functools
import glob
import logging
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import align_keras
from align_keras.curation.audit import audit_run
from align_keras.curation.audit_page import write_audit_page
from align_keras.curation.config import CurationConfig
from align_keras.curation.config import load_config
from align_keras.curation.engine import is_local
from align_keras.curation.engine import open_engine
from align_keras.curation.execute import RULES_VERSION
from align_keras.curation.execute import describe_files
from align_keras.curation.execute import execute
from align_keras.curation.execute import rule_files
from align_keras.curation.ingest import VERSION
from align_keras.curation.ingest import choose_columns
from align_keras.curation.input_files import find_inputs
from align_keras.curation.rules import named_paths
from align_keras.curation.scores import describe_scores
from align_keras.curation.scores import find_scores
from align_keras.curation.stages import Stages
from align_keras.curation.stages import attempt_name
from align_keras.curation.storage import HADOOP
from align_keras.curation.storage import Storage
from align_keras.io.columns import UnfitColumn
from align_keras.io.fingerprints import fingerprint
from align_keras.io.json_files import is_count
from align_keras.io.lists import path_list
from align_keras.io.locks import LOCK_NAME
from align_keras.io.mirrors import stored
from align_keras.io.progress import progress_steps
from align_keras.io.stores import scheme_of

logger = logging.getLogger("align_keras")


def _written_by_the_engine(arguments):
    # The executors of a cluster are elsewhere, and no directory of this
    # machine is theirs.
    remote = scheme_of(arguments["output"]) in HADOOP
    on_spark = arguments.get("engine") == "spark"
    return remote or (on_spark and not is_local(arguments.get("master")))


@stored("output", but=_written_by_the_engine)
def curate(
    inputs: str | Path | Iterable,
    output: str | Path,
    config: str | Path | CurationConfig = "align",
    engine: str = "duckdb",
    master: str | None = None,
    memory: str | None = None,
    test_images: str | Path | Iterable = (),
    image_folder: str | Path | None = None,
    scores: str | Path | Iterable = (),
    stages: str | Path | None = None,
    discard_stages: bool = False,
    progress: bool = False,
    allow_outside: bool = False,
) -> dict:
    """Clean image–text pairs by rules, and account for every row.

    Into `output` come `kept/*.parquet` (the surviving rows),
    `dropped/*.parquet` (the id of every other row, and in the column `mask`
    which rules drop it, a bit for each), `audit.json`, `audit.html`, and last
    of all `manifest.json`: without it, nothing there is a result. A run that
    was killed resumes after its last finished stage when it is started again;
    one that is finished is not repeated.

    Args:
        inputs: string or list of strings: files, folders, globs or addresses
            of Parquet, CSV, TSV, JSONL, WARC or WAT files. A damaged file is
            left out, named and counted.
        output: string. The directory to write.
        config: string, path or `CurationConfig`, see `load_config`.
        engine: string. `"duckdb"` or `"spark"`.
        master: string. Spark's master, such as `"yarn"` or `"local[4]"`.
        memory: string. What the engine may use, such as `"2GiB"`.
        test_images: string or list of strings. Test sets for the rules of near
            duplicates, in place of those that the configuration names.
        image_folder: string. Where the images lie, in place of the
            configuration's.
        scores: string or list of strings. Directories that
            `align_keras.embedding.score` wrote, in place of the
            configuration's.
        stages: string. Directory of intermediate tables, which several runs
            may share. Defaults to `output/.stages`.
        discard_stages: bool. Whether to remove in the end those that this
            run made or used; without them, `explain` cannot tell why. What
            else lies in that directory stays. Defaults to `False`.
        progress: bool. Show a progress bar on standard error.
        allow_outside: bool. Whether names and links may lead out of the
            folders of inputs and images. Defaults to `False`: what does is
            left out, named and counted.

    Returns:
        dict, the manifest: `"rows"`, `"kept"`, `"dropped"` (numbers),
        `"rules"`, `"files"`, `"audit"`.

    Raises:
        FileNotFoundError: An input or the configuration is missing.
        FileExistsError: `output` holds something else.
        ValueError: A setting is wrong, or an input lacks a column that a
            rule needs.

    Example:

    ```python
    curate(["pairs/*.parquet"], "clean", config="align", memory="8GiB")
    ```
    """
    config = load_config(config)
    config = _complete(config, test_images, image_folder, allow_outside, scores)
    files, outside = find_inputs(inputs, config.allow_outside)
    target = Storage(output)
    work = Storage(stages or target.address(".stages"))
    key = fingerprint(
        [*describe_files(files), *outside],
        dataclasses.asdict(config),
        [rule_files(rule) for rule in config.rules],
        describe_scores(find_scores(config.scores)),
        [VERSION, RULES_VERSION, unicodedata.unidata_version],
    )
    finished = _finished(target, key)
    if finished:
        logger.warning("`%s` holds this result already.", output)
        return finished
    _check_columns(files[0], config)
    with (
        progress_steps(progress) as step,
        contextlib.ExitStack() as stack,
    ):
        spill = work.address(attempt_name(f"spill-{key}"))
        backend = open_engine(engine, master, memory, spill)
        stack.callback(backend.close)
        places = {work.root: work, target.root: target}
        for place in places:
            backend.check(place)
        for storage in places.values():
            stack.enter_context(storage.lock())
        # Another run may have ended since.
        finished = _finished(target, key)
        if finished:
            return finished

        def show(stage):
            step(stage.replace("-", ": ", 1).replace("_", " "))

        run = Stages(work, backend, show)
        result = execute(config, files, run, outside)
        show("audit")
        audit = audit_run(result, run)
        show("writing")
        about = {"config": dataclasses.asdict(config), "inputs": files}
        manifest = _publish(run, result, audit, target, key, about)
    if discard_stages:
        run.discard()
        if not work.list():
            work.remove("")
    return manifest


def _complete(config, test_images, image_folder, allow_outside, scores):
    """Put the command line's paths in place of the configuration's."""
    rules = []
    takers = [r.name for r in config.rules if "test_images" in r.parameters]
    if test_images and not takers:
        raise ValueError(
            "No rule of the configuration takes test images; add "
            "`near_duplicate` to it, or leave `--test-images` out. Its rules: "
            f"{', '.join(rule.name for rule in config.rules)}."
        )
    for rule in config.rules:
        if test_images and "test_images" in rule.parameters:
            paths = tuple(os.fspath(path) for path in path_list(test_images))
            given = {**rule.parameters, "test_images": paths}
            rule = dataclasses.replace(rule, parameters=given)
        if allow_outside and "allow_outside" in rule.parameters:
            given = {**rule.parameters, "allow_outside": True}
            rule = dataclasses.replace(rule, parameters=given)
        # At once, and also for a rule that the input leaves out.
        for name, paths in named_paths(rule).items():
            for path in paths:
                if not os.path.exists(path) and not glob.glob(path):
                    raise FileNotFoundError(
                        f"Rule `{rule.name}`: no {name.replace('_', ' ')} "
                        f"match `{path}`."
                    )
        if not rule.parameters.get("test_images", True) and not rule.optional:
            raise ValueError(
                f"Rule `{rule.name}` needs `test_images`: folders, TFRecord "
                "files or files of hashes."
            )
        rules.append(rule)
    changes = {"rules": tuple(rules)}
    if scores:
        changes["scores"] = tuple(map(os.fspath, path_list(scores)))
    if allow_outside:
        changes["allow_outside"] = True
    if image_folder is not None:
        changes["image_folder"] = os.fspath(image_folder)
    return dataclasses.replace(config, **changes)


def _finished(target, key):
    """The manifest of an earlier run of the same, or `None`."""
    manifest = target.read_object(
        "manifest.json",
        {"key": str, "rows": is_count, "kept": is_count, "dropped": is_count},
        "manifest of curated rows",
        "Choose another directory or remove it.",
    )
    if manifest and manifest["key"] == key:
        return manifest
    others = set(target.list()) - {".stages", LOCK_NAME}
    if manifest or (others and not target.exists(".stages/publishing.json")):
        raise FileExistsError(
            f"`{target.root}` holds something else, or the result of other "
            "inputs or settings; choose another directory or remove it."
        )
    return None


def _check_columns(file, config):
    """Refuse at once what no row could pass; later files may be damaged."""
    try:
        names, found = choose_columns(file, config.columns)
    except UnfitColumn:
        raise
    except (OSError, ValueError):
        return
    for role in ("text", "url"):
        if role == "url" and config.image_identity != "url":
            continue
        if found[role] is None and names:
            raise ValueError(
                f"`{file}` has no column for `{role}`; name it under "
                "`columns` in the configuration. Its columns are: "
                f"{', '.join(names)}."
            )


# === The result ===


def _publish(stages, result, audit, target, key, about):
    """Bring the result to its place; the manifest makes it one."""
    target.make_directory(".stages")
    # Tells a later run that what lies here is its own, and half done.
    target.write_json(".stages/publishing.json", {"key": key})
    published = {"dropped": result.verdicts, "kept": result.kept}
    for name in published:
        # Of a killed run, perhaps with other settings.
        target.remove(name)
    target.write_json("audit.json", audit)
    target.write_text("audit.html", write_audit_page(audit))
    places = {
        name: f".stages/{name}.unfinished" if target.renames else name
        for name in published
    }
    for name, stage in published.items():
        _copy_stage(stages, stage, target, places[name])
    # At the very end, so that whoever looks for kept rows finds all or none.
    # In a store of objects, the manifest tells.
    for name, place in places.items():
        if place != name:
            target.move(place, name)
    files = {
        name: [f"{name}/{file}" for file in target.data_files(name)]
        for name in published
    }
    manifest = {
        "key": key,
        "align_keras": align_keras.__version__,
        "engine": stages.engine.name,
        "rows": audit["rows"],
        "kept": audit["kept"],
        "dropped": audit["rows"] - audit["kept"],
        "rules": [dataclasses.asdict(rule) for rule in result.rules],
        "files": files,
        "audit": "audit.json",
        # Relative inside, so that the directory can be moved.
        "stages": stages.storage.root.removeprefix(f"{target.root}/"),
        "rows_stage": result.rows,
        "tables": stages.used,
        **about,
    }
    target.write_json("manifest.json", manifest)
    target.remove(".stages/publishing.json")
    return manifest


def _copy_stage(stages, stage, target, directory):
    """Copy a stage's files, as links where possible."""
    target.remove(directory)
    target.make_directory(directory)
    # Empty files would only be noise, but one tells the columns.
    files = stages.paths(stage)
    copies = [
        (file, f"{directory}/data-{number:05d}-of-{len(files):05d}.parquet")
        for number, file in enumerate(files)
    ]
    copy = functools.partial(_copy_file, stages.storage.root, target.root)
    # Links are made here; what else there is passes through executors alone.
    list(map(copy, copies) if target.local else stages.engine.map(copy, copies))


def _copy_file(source, target, names):
    Storage(target).copy(Storage(source), *names)
