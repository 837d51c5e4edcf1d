"""Match scores that `align-keras score` wrote with the rows of a run.

A score belongs to the rows that have its text, and whose image (or else whose
own id) has its name. Names are compared without their suffixes, since packed
records have none, and texts with single white space. If one model scored a pair
several times, the highest score counts.

To combine several models, each model's scores are standardised (less their
mean, divided by their standard deviation), and the results are averaged. Mean
and deviation are computed from integers, scores times 2**15 rounded down, so
that every engine finds the same values. A pair that one of the models did not
score has no score.
"""

import functools
import math
import posixpath
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from align_keras.curation.rule_parts import int64_sum
from align_keras.curation.text import signed_hash
from align_keras.io.fingerprints import check_digest
from align_keras.io.fingerprints import fingerprint
from align_keras.io.folders import resolve_within
from align_keras.io.lists import path_list
from align_keras.io.mirrors import local_copy
from align_keras.io.optional import OptionalModule
from align_keras.io.part_files import check_manifest
from align_keras.io.rows import iterate_parquet

arrow = OptionalModule("pyarrow", extra="curation")
parquet = OptionalModule("pyarrow.parquet", extra="curation")
ibis = OptionalModule("ibis", extra="curation")

MANIFEST = "manifest.json"
# Characters of a text that are compared, since `curate` may truncate texts.
KEY_CHARACTERS = 1000
SCALE = 2**15


def scores_schema() -> Any:
    """Return the Arrow schema of score files."""
    return arrow.schema(
        [
            ("key", arrow.string()),
            ("text", arrow.string()),
            ("pair_key", arrow.int64()),
            ("score", arrow.float32()),
            ("nearest_text", arrow.string()),
            ("nearest_text_score", arrow.float32()),
            ("nearest_image", arrow.string()),
            ("nearest_image_score", arrow.float32()),
            ("compared", arrow.int32()),
        ]
    )


def pair_key(name: str, text: str) -> int:
    """Return the key by which a pair is found among scores.

    Args:
        name: string. The image's path or address, or an id.
        text: string. The caption.

    Returns:
        int of 64 bits. It ignores the suffix of the name, white space and the
        Unicode form of the text, and all but its first 1000 characters.
    """
    stem = posixpath.splitext(posixpath.normpath(name.strip()))[0]
    words = " ".join(unicodedata.normalize("NFC", text).split())
    return signed_hash(f"{stem}\n{words[:KEY_CHARACTERS]}")


def find_scores(paths: str | Path | Iterable) -> dict[str, list[dict]]:
    """Find the score files of each model.

    Args:
        paths: string or list of strings. Directories that `align-keras score`
            wrote, of one or several models.

    Returns:
        Sorted dict from the fingerprint of a model to the list of its files,
        dicts of `"path"`, `"sha256"` and `"records"`.

    Raises:
        FileNotFoundError: A directory holds no scores, or its run is not
            finished.
        ValueError: A manifest is damaged, or is not one of scores.
    """
    models: dict[str, list[dict]] = {}
    for path in path_list(paths):
        directory = Path(local_copy(path))
        if not (directory / MANIFEST).is_file():
            begun = (directory / "arguments.json").is_file()
            raise FileNotFoundError(
                f"`{path}` has no {MANIFEST} of scores: "
                + (
                    "run `align-keras score` again, which resumes."
                    if begun
                    else "give a directory that `align-keras score` wrote."
                )
            )
        manifest = check_manifest(directory / MANIFEST)
        if "block_size" not in manifest["arguments"]:
            raise ValueError(
                f"`{directory / MANIFEST}` is not a manifest of scores: give a "
                "directory that `align-keras score` wrote."
            )
        files = models.setdefault(manifest["arguments"]["fingerprint"], [])
        for shard in manifest["shards"]:
            file = resolve_within(directory, shard["file"], None)
            if "sha256" not in shard:
                raise ValueError(
                    f"`{directory / MANIFEST}` has no sha256 for the file "
                    f"`{shard['file']}`: score the pairs again."
                )
            known = {name: shard[name] for name in ("sha256", "records")}
            files.append({"path": str(file), **known})
    for files in models.values():
        files.sort(key=lambda file: file["sha256"])
    return dict(sorted(models.items()))


def describe_scores(models: dict[str, list[dict]]) -> list:
    """Describe what `find_scores` returned, so that changes are noticed."""
    return [
        [model, [file["sha256"] for file in files]]
        for model, files in models.items()
    ]


def join_scores(paths: Iterable[str], rows, rows_key: str, stages) -> dict:
    """Make the stage of the rows' scores.

    Args:
        paths: list of strings, see `find_scores`.
        rows: Ibis table with `pair_key` and `id_pair_key`.
        rows_key: string. The key of the stage of these rows.
        stages: `Stages`.

    Returns:
        dict for the audit: `"models"`, and `"stage"`, the name of the stage
        with `row_id` and `score` (float64) of each row that has a score.
    """
    models = find_scores(paths)
    tables = []
    for number, files in enumerate(models.values()):
        key = fingerprint([file["sha256"] for file in files])
        name = f"scores_{number}"
        table = stages.store(
            name,
            key,
            lambda directory, files=files: _copy(stages, files, directory),
        )
        best = table.group_by("pair_key").agg(score=table.score.max())
        tables.append(stages.table(f"{name}_best", key, best))
    scores = tables[0] if len(tables) == 1 else _combined(tables, stages)
    # One score for each row, preferably the one found by its image's name.
    found = rows.select("row_id", "pair_key", "id_pair_key")
    found = found.left_join(scores, "pair_key")
    found = found.select("row_id", "id_pair_key", by_name="score")
    by_id = scores.select(id_pair_key="pair_key", by_id="score")
    found = found.left_join(by_id, "id_pair_key")
    score = ibis.coalesce(found.by_name, found.by_id)
    found = found.select("row_id", score=score.cast("float64"))
    key = fingerprint(rows_key, describe_scores(models))
    stage = f"row_scores-{key}"
    stages.table("row_scores", key, found.filter(found.score.notnull()))
    if not stages.notes(stage)["rows"]:
        _check_names(models, rows_key, stages)
    about = [
        {"model": model, "scores": sum(file["records"] for file in files)}
        for model, files in models.items()
    ]
    return {"models": about, "stage": stage}


def _check_names(models, rows_key, stages):
    """Refuse scores that match no row, unless there are no rows or scores."""
    rows = stages.read(f"rows-{rows_key}").order_by("row_id").limit(1)
    rows = stages.engine.collect(rows.select("url", "text"))
    files = [file for found in models.values() for file in found]
    file = next((file for file in files if file["records"]), None)
    if not rows or file is None:
        return
    (batch, *_) = iterate_parquet(file["path"], ["key", "text"])
    both = (rows[0]["url"], rows[0]["text"]), _first(batch)
    names = [f"`{name}`: {text[:60]!r}" for name, text in both]
    raise ValueError(
        "No row of the input has a score: the image name and the text must "
        f"match in both. The first row is {names[0]}; the first score is for "
        f"{names[1]}."
    )


def _first(batch):
    return [column[0].as_py() for column in batch.columns]


def _copy(stages, files, directory):
    """Copy keys and scores to a directory that the engine can read."""
    stages.storage.make_directory(directory)
    schema = scores_schema()
    schema = arrow.schema([schema.field(n) for n in ("pair_key", "score")])
    with (
        stages.storage.open_output(f"{directory}/0.stage") as target,
        parquet.ParquetWriter(target, schema) as writer,
    ):
        for file in files:
            check_digest(file["path"], file["sha256"], "score the pairs again")
            for batch in iterate_parquet(file["path"], schema.names):
                _check_scores(file["path"], batch, schema)
                writer.write_batch(batch)


def _check_scores(path, batch, schema):
    if not batch.schema.equals(schema):
        raise ValueError(
            f"`{path}` does not have the columns `pair_key` and `score` of "
            "scores: score the pairs again."
        )
    if not np.isfinite(batch["score"].to_numpy(zero_copy_only=False)).all():
        raise ValueError(
            f"`{path}` holds scores that are not finite numbers: its model "
            "produces vectors that are not finite, so leave it out of "
            "`scores`."
        )


def _combined(tables, stages):
    """Average the standardised scores of several models."""
    parts = []
    for number, table in enumerate(tables):
        whole = (table.score.cast("float64") * SCALE).floor().cast("int64")
        sums = table.select(whole=whole, square=whole * whole)
        (sums,) = stages.engine.collect(
            sums.agg(
                count=sums.count(),
                total=int64_sum(sums.whole.sum()),
                squares=int64_sum(sums.square.sum()),
            )
        )
        count, total = sums["count"], sums["total"] or 0
        # Compute with integers, so that only the last step is rounded.
        spread = count * (sums["squares"] or 0) - total**2
        deviation = math.sqrt(spread) / max(count, 1) / SCALE
        if not deviation:
            raise ValueError(
                "The scores of a model cannot be combined with those of others "
                "if they are all equal; leave that model out of `scores`."
            )
        mean = total / count / SCALE
        score = (table.score.cast("float64") - mean) / deviation
        parts.append(table.select("pair_key", **{f"s{number}": score}))
    joined = functools.reduce(lambda a, b: a.join(b, "pair_key"), parts)
    total = functools.reduce(
        lambda a, b: a + b, [joined[f"s{n}"] for n in range(len(parts))]
    )
    score = (total / float(len(parts))).cast("float32")
    return joined.select("pair_key", score=score)
