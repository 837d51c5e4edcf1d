"""What a training run reads: records, a vocabulary, batches."""

import json
import os
from pathlib import Path

from align_keras.data import iterate_records
from align_keras.data import load_dataset
from align_keras.data import pack
from align_keras.data import record_counts
from align_keras.data import records_of_step
from align_keras.data.pack import HELD_OUT
from align_keras.data.records import find_shards
from align_keras.data.records import read_manifest
from align_keras.files import atomic_file
from align_keras.models import presets
from align_keras.preprocessing import AlignTokenizer

# Captions read to learn a vocabulary; more change a frequency list little.
VOCABULARY_SAMPLE = 1_000_000


def find_records(data, packed, say, hold_out=0):
    """Find TFRecord files, packing a folder of pictures.

    Returns:
        A pair: what `load_dataset` reads, and pictures that were set aside
        while packing, or `None`.
    """
    folder = None if isinstance(data, (list, tuple)) else Path(data)
    if folder is None or not folder.is_dir() or list(folder.glob("*.tfrecord")):
        if next(iterate_records(data), None) is None:
            raise ValueError(f"The files of `{data}` hold no records.")
        return data, None
    for suffix in ("csv", "tsv", "jsonl", "json", "parquet"):
        captions = folder / f"captions.{suffix}"
        if captions.is_file():
            say(f"Packing {folder} with {captions.name} into {packed}")
            manifest = pack(folder, packed, captions, hold_out=hold_out)
            for reason, count in manifest["skipped_reasons"].items():
                say(f"Skipped {count} {reason}: see {packed}/manifest.json")
            if not manifest["held_out"]:
                return str(packed), None
            say(f"Set {manifest['held_out']} pictures aside to measure on.")
            return str(packed), str(packed / HELD_OUT)
    raise FileNotFoundError(
        f"`{folder}` holds neither TFRecord files nor pictures with a "
        "captions.csv, .tsv, .jsonl, .json or .parquet. Pack your data with "
        "`align-keras pack` first."
    )


def count_once(data, workdir, step):
    """Count the records of each file, once in the life of a run.

    The order of the data follows from the counts, and counting may take as
    long as reading, so a run that goes on takes those of its beginning.

    Args:
        data: see `load_dataset`.
        workdir: `pathlib.Path`. Keeps the counts, in `records.json`.
        step: int. The number of steps done before.

    Returns:
        dict from file to number of records.

    Raises:
        ValueError: The run began with other files.
    """
    path = workdir / "records.json"
    shards = find_shards(data)
    names = [os.path.basename(shard) for shard in shards]
    if not (step and path.is_file()):
        counts = record_counts(shards)
        with atomic_file(path) as temporary:
            listed = [
                [n, counts[s]] for n, s in zip(names, shards, strict=True)
            ]
            temporary.write_text(json.dumps(listed))
        return counts
    listed = json.loads(path.read_text())
    if [name for name, _ in listed] != names:
        raise ValueError(
            f"`{workdir}` holds a run on {len(listed)} files of other names "
            f"than the {len(names)} of `{data}`: its order of the data cannot "
            "go on with them. Use the same files, or another working directory."
        )
    return {s: n for s, (_, n) in zip(shards, listed, strict=True)}


def check_resized(data, converter):
    """Refuse records that `pack` resized for another preprocessing.

    Args:
        data: see `load_dataset`.
        converter: `AlignImageConverter` of the run.

    Raises:
        ValueError: They were resized to another size, or without averaging
            where the converter averages.
    """
    for folder in sorted({os.path.dirname(s) for s in find_shards(data)}):
        size = read_manifest(folder).get("arguments", {}).get("resize")
        if size is None:
            continue
        if converter.resize_size != (size, size):
            raise ValueError(
                f"The images of `{folder}` were resized to {size} pixels, and "
                f"this run resizes to {converter.resize_size[0]}. Set "
                f"`resize_size={size}` in the recipe, or pack again with "
                f"`--resize {converter.resize_size[0]}`."
            )
        if converter.antialias:
            raise ValueError(
                f"The images of `{folder}` were resized without averaging, and "
                "this preset averages (antialias=True). Pack again without "
                "`--resize`."
            )


def name_records(counts, recipe, steps, num_workers):
    """Name the records of some steps, those of all workers."""
    return [
        record
        for step in steps
        for worker in range(num_workers)
        for record in records_of_step(
            counts,
            step - 1,
            recipe.batch_size // num_workers,
            seed=recipe.seed,
            shard_index=worker,
            shard_count=num_workers,
        )
    ]


def find_tokenizer(model, vocabulary, data, workdir, step, recipe, say):
    """Find the vocabulary of the run; `None` keeps that of the preset."""
    path = workdir / "vocabulary.txt"
    if vocabulary is not None:
        if not Path(vocabulary).is_file():
            raise FileNotFoundError(
                f"There is no vocabulary file `{vocabulary}`."
            )
        tokens = _read_lines(vocabulary)
    elif isinstance(model, str) and presets.has_tokenizer(
        presets.find_preset(model)
    ):
        return None
    elif step:
        tokens = _read_lines(path)
    else:
        tokens = AlignTokenizer.learn_vocabulary(
            _captions(data), recipe.vocabulary_size
        )
        say(f"Learned a vocabulary of {len(tokens)} tokens from the captions.")
    tokenizer = AlignTokenizer(tokens)
    with atomic_file(path) as temporary:
        temporary.write_text("\n".join(tokens) + "\n", encoding="utf-8")
    return tokenizer


def _read_lines(path):
    """Read a vocabulary; `splitlines` would split within rare tokens."""
    with open(path, encoding="utf-8") as file:
        return [line.rstrip("\n") for line in file]


def _captions(data):
    read = 0
    for record in iterate_records(data):
        yield from record["captions"]
        read += len(record["captions"])
        if read >= VOCABULARY_SAMPLE:
            return


def make_dataset(data, preprocessor, recipe, step, strategy, num_workers):
    if num_workers == 1:
        return load_dataset(
            data,
            preprocessor,
            recipe.batch_size,
            seed=recipe.seed,
            start_step=step,
        )

    def of_worker(context):
        # Each local replica takes a batch of its own in every step.
        local = context.num_replicas_in_sync // context.num_input_pipelines
        return load_dataset(
            data,
            preprocessor,
            context.get_per_replica_batch_size(recipe.batch_size),
            seed=recipe.seed,
            start_step=step * local,
            shard_index=context.input_pipeline_id,
            shard_count=context.num_input_pipelines,
        )

    return strategy.distribute_datasets_from_function(of_worker)
