"""Clean raw pairs by rules, and account for every row."""

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
from align_keras.curation.execute import describe_inputs
from align_keras.curation.execute import execute
from align_keras.curation.ingest import VERSION
from align_keras.curation.ingest import choose_columns
from align_keras.curation.input_files import find_inputs
from align_keras.curation.rules import local_folder
from align_keras.curation.rules import named_paths
from align_keras.curation.scores import describe_scores
from align_keras.curation.scores import find_scores
from align_keras.curation.stages import Stages
from align_keras.curation.stages import attempt_name
from align_keras.curation.stages import discard_stages as discard
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
    # Executors of a cluster cannot write to a directory of this machine.
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

    The directory `output` receives `kept/*.parquet` (the surviving rows),
    `dropped/*.parquet` (the id of every other row and, in the column `mask`,
    one bit for each rule that drops it), `audit.json` and `audit.html`.
    `manifest.json` is written last; without it, the result is incomplete. If
    a run is killed, starting it again resumes after the last finished stage.
    A finished run is not repeated.

    Args:
        inputs: string or list of strings: files, folders, globs or addresses
            of Parquet, CSV, TSV, JSONL, WARC or WAT files. A damaged file is
            left out, named and counted.
        output: string. The directory to write.
        config: string, path or `CurationConfig`, see `load_config`.
        engine: string. `"duckdb"` or `"spark"`.
        master: string. Spark's master, such as `"yarn"` or `"local[4]"`.
        memory: string. Memory that the engine may use, such as `"2GiB"`.
        test_images: string or list of strings. Test sets for the rules that
            drop near-duplicates, in place of those in the configuration.
        image_folder: string. The folder of the images, in place of the
            configuration's.
        scores: string or list of strings. Directories that
            `align_keras.embedding.score` wrote, in place of the
            configuration's.
        stages: string. Directory of intermediate tables, which several runs
            may share. Defaults to `output/.stages`.
        discard_stages: bool. Whether to remove, at the end, the intermediate
            tables that this run made or used, or that a finished one did;
            `explain` needs them. Other files in that directory stay. Defaults
            to `False`.
        progress: bool. Whether to show a progress bar on standard error.
        allow_outside: bool. Whether to follow names and links that lead out
            of the folders of inputs and images. Defaults to `False`: they
            are left out, named and counted.

    Returns:
        dict, the manifest: `"rows"`, `"kept"`, `"dropped"` (numbers),
        `"rules"`, `"files"`, `"audit"`.

    Raises:
        FileNotFoundError: An input or the configuration is missing.
        FileExistsError: `output` holds other files, or another result.
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
    described = describe_inputs(config, files)
    key = fingerprint(
        [described, outside],
        dataclasses.asdict(config),
        describe_scores(find_scores(config.scores)),
        [VERSION, RULES_VERSION, unicodedata.unidata_version],
    )
    manifest = _finished(target, key)
    if manifest:
        logger.warning("`%s` holds this result already.", output)
        if discard_stages:
            with work.lock():
                discard(work, manifest["tables"].values())
            _remove_if_empty(work)
        return manifest
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

        def show(stage):
            step(stage.replace("-", ": ", 1).replace("_", " "))

        # Another run may have finished in the meantime.
        manifest = _finished(target, key)
        if not manifest:
            run = Stages(work, backend, show)
            result = execute(config, files, described, run, outside)
            show("audit")
            audit = audit_run(result, run)
            show("writing")
            about = {"config": dataclasses.asdict(config), "inputs": files}
            manifest = _publish(run, result, audit, target, key, about)
        if discard_stages:
            discard(work, manifest["tables"].values())
    if discard_stages:
        _remove_if_empty(work)
    return manifest


def _remove_if_empty(storage):
    if not storage.list():
        storage.remove("")


def _complete(config, test_images, image_folder, allow_outside, scores):
    """Replace paths of the configuration by those of the arguments."""
    rules = []
    takers = [r.name for r in config.rules if "test_images" in r.parameters]
    if test_images and not takers:
        raise ValueError(
            "No rule of the configuration uses test images; add "
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
        # Check early, even if the rule turns out not to apply to the input.
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
        folder = os.fspath(image_folder)
        changes["image_folder"] = local_folder("image_folder", folder, Path())
    return dataclasses.replace(config, **changes)


def _finished(target, key):
    """Return the manifest if this very run has finished before, or `None`."""
    manifest = target.read_object(
        "manifest.json",
        {
            "key": str,
            "rows": is_count,
            "kept": is_count,
            "dropped": is_count,
            "tables": {"*": str},
        },
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
    """Refuse an input without usable columns before any work is done.

    Only the first file is checked; one that is damaged is left out later.
    """
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
    """Copy the result to its place, and write the manifest last."""
    target.make_directory(".stages")
    # Tells a later run that an unfinished `curate` left these files.
    target.write_json(".stages/publishing.json", {"key": key})
    published = {"dropped": result.verdicts, "kept": result.kept}
    for name in published:
        # A killed run may have left these, perhaps with other settings.
        target.remove(name)
    target.write_json("audit.json", audit)
    target.write_text("audit.html", write_audit_page(audit))
    places = {
        name: f".stages/{name}.unfinished" if target.renames else name
        for name in published
    }
    for name, stage in published.items():
        _copy_stage(stages, stage, target, places[name])
    # Rename at the very end, so that readers find all kept rows or none. An
    # object store cannot rename; there, the manifest marks the result.
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
        # Relative if it is inside, so that the directory can be moved.
        "stages": stages.storage.root.removeprefix(f"{target.root}/"),
        "rows_stage": result.rows,
        "tables": stages.used,
        **about,
    }
    target.write_json("manifest.json", manifest)
    target.remove(".stages/publishing.json")
    return manifest


def _copy_stage(stages, stage, target, directory):
    """Copy a stage's files, by hard links where possible."""
    target.remove(directory)
    target.make_directory(directory)
    files = stages.paths(stage)
    copies = [
        (file, f"{directory}/data-{number:05d}-of-{len(files):05d}.parquet")
        for number, file in enumerate(files)
    ]
    copy = functools.partial(_copy_file, stages.storage.root, target.root)
    # Links are made in this process; remote files are copied by executors.
    list(map(copy, copies) if target.local else stages.engine.map(copy, copies))


def _copy_file(source, target, names):
    Storage(target).copy(Storage(source), *names)
