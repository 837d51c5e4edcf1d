"""Find and load the input of a training run: records, vocabulary, batches."""

import collections
import json
import logging
import os
from pathlib import Path

import numpy as np

from align_keras.data import load_dataset
from align_keras.data import open_records
from align_keras.data import pack
from align_keras.data import records_of_step
from align_keras.data.captions import find_caption_file
from align_keras.data.find_source import Found
from align_keras.data.find_source import held_in
from align_keras.data.find_source import left_over
from align_keras.data.order import language_shares
from align_keras.data.packing import HELD_OUT
from align_keras.data.record_files import RecordFiles
from align_keras.data.record_files import local_source
from align_keras.io.atomic import atomic_file
from align_keras.io.file_names import is_image
from align_keras.io.file_names import is_records
from align_keras.io.file_names import list_files
from align_keras.io.json_files import check_form
from align_keras.io.json_files import is_count
from align_keras.io.json_files import read_json
from align_keras.io.mirrors import local_copy
from align_keras.io.word_pieces import read_vocabulary
from align_keras.models import presets
from align_keras.preprocessing import AlignTokenizer
from align_keras.training.strategies import hosts_of
from align_keras.training.workers import BLOCK

logger = logging.getLogger("align_keras")

# Captions to learn a vocabulary from; more hardly change the frequencies.
VOCABULARY_SAMPLE = 1_000_000


def find_records(data, packed, hold_out=0, allow_outside=False):
    """Find TFRecord files; pack a folder of images first.

    Returns:
        A pair: `RecordFiles`, and the folder of the images that were held out
        while packing, or `None`.
    """
    data = local_source(data)
    folder = None if isinstance(data, (list, tuple)) else Path(data)
    if folder is None or not folder.is_dir() or list_files(folder, is_records):
        records = open_records(data, allow_outside)
        if next(iter(records), None) is None:
            raise ValueError(f"The files of `{data}` hold no records.")
        if folder is not None:
            _warn_of_rest(folder, records.paths, allow_outside)
        return records, None
    captions = find_caption_file(folder, allow_outside)
    if captions is not None:
        logger.info("Packing %s with %s into %s", folder, captions.name, packed)
        manifest = pack(
            folder,
            packed,
            captions,
            hold_out=hold_out,
            allow_outside=allow_outside,
        )
        for reason, count in manifest["skipped_reasons"].items():
            logger.info(
                "Skipped %d %s: see %s/manifest.json", count, reason, packed
            )
        records = open_records(str(packed))
        if not manifest["held_out"]:
            return records, None
        logger.info("Held out %d images to measure on.", manifest["held_out"])
        return records, str(packed / HELD_OUT)
    others = [n for n in held_in(folder, allow_outside) if not is_image(n)]
    told = f" `{others[0]}` in it is not read here." if others else ""
    raise FileNotFoundError(
        f"`{folder}` holds neither TFRecord files nor images with a "
        f"captions.csv, .tsv, .jsonl, .json or .parquet.{told} Pack your data "
        "with `align-keras pack` first."
    )


def _warn_of_rest(folder, files, allow_outside):
    """Warn about images in a folder of records, which are not read."""
    found = Found("records", files, held_in(folder, allow_outside))
    rest = [
        name
        for name, *_ in left_over(found, folder, files, allow_outside)
        if not name.startswith(f"{HELD_OUT}/")
    ]
    if rest:
        logger.warning(
            "%d images or files of images in `%s` are not read, as it holds "
            "records; the first is %s.",
            len(rest),
            folder,
            rest[0],
        )


def count_once(records, workdir, step, workers):
    """Count the records of each file, once per run.

    The counts determine the order of the data, and counting may take as long
    as reading. A run that resumes therefore uses its first counts, and each
    of several workers counts a share of the files.

    Args:
        records: `RecordFiles`.
        workdir: `pathlib.Path`. Stores the counts, in `records.json`.
        step: int. The number of steps done so far.
        workers: `Workers`. All of them must call this at the same time.

    Returns:
        `records`, with its counts set.

    Raises:
        ValueError: The run started with other files, or the workers find
            different files.
    """
    path = workdir / "records.json"
    names = [os.path.basename(shard) for shard in records.paths]
    is_counted = bool(step and path.is_file())
    if workers.sums(float(not is_counted))[0]:
        counts = _count_together(records, names, workers)
    if not is_counted:
        records.counts = dict(zip(records.paths, counts, strict=True))
        with atomic_file(path) as temporary:
            listed = list(zip(names, counts, strict=True))
            temporary.write_text(json.dumps(listed))
        return records
    listed = read_json(path)
    check_form(
        listed,
        [_is_counted],
        path,
        "list of the files of a run",
        "Remove it, and the records are counted again.",
    )
    if [name for name, _ in listed] != names:
        raise ValueError(
            f"`{workdir}` holds a run on {len(listed)} files whose names "
            f"differ from the {len(names)} of `{records.source}`: its order of "
            "the data cannot be resumed with them. Use the same files, or "
            "another working directory."
        )
    counts = [count for _, count in listed]
    records.counts = dict(zip(records.paths, counts, strict=True))
    return records


def _count_together(records, names, workers):
    """Count the records of each file; each worker counts some of them."""
    first = workers.send(names)
    others = workers.sums(float(first != names))[0]
    if others:
        told = f"{others:.0f} workers have others"
        if first != names:
            told = f"the first worker has {len(first)} with other names"
        raise ValueError(
            f"`{records.source}` has {len(names)} files here, and {told}. All "
            "must find the same."
        )
    own = RecordFiles(records.paths[workers.index :: workers.count])
    counts = np.zeros((2, len(names)))
    # Sums are computed in float32, which is exact only for smaller numbers.
    counts[:, workers.index :: workers.count] = np.divmod(
        [own.counts[path] for path in own.paths], BLOCK
    )
    high, low = np.reshape(workers.sums(*counts.ravel()), counts.shape)
    return [int(count) for count in high * BLOCK + low]


def _is_counted(entry):
    pair = isinstance(entry, list) and len(entry) == 2
    return pair and isinstance(entry[0], str) and is_count(entry[1])


def check_resized(source, converter):
    """Refuse records that `pack` resized for another preprocessing.

    Args:
        source: what `open_records` takes.
        converter: `AlignImageConverter` of the run.

    Raises:
        ValueError: The images were resized to another size, or without
            antialiasing although the converter uses it.
    """
    for folder, size in sorted(open_records(source).resized().items()):
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


def name_records(records, recipe, steps, num_workers):
    """Name the records of some steps, over all workers."""
    return [
        record
        for step in steps
        for worker in range(num_workers)
        for record in records_of_step(
            records,
            step - 1,
            recipe.batch_size // num_workers,
            seed=recipe.seed,
            shard_index=worker,
            shard_count=num_workers,
            language_exponent=recipe.language_exponent,
        )
    ]


def find_tokenizer(
    model, vocabulary, records, workdir, step, recipe, text_tower=None
):
    """Return the run's tokenizer, or `None` to keep that of the preset."""
    path = workdir / "vocabulary.txt"
    if text_tower is not None and vocabulary is None:
        tokenizer = text_tower.tokenizer()
        if tokenizer is not None:
            return tokenizer
        if text_tower.has_weights():
            raise ValueError(
                "`text_weights` has no vocabulary next to its weights: pass "
                f"one as `vocabulary`. Received: {text_tower.source!r}"
            )
    if vocabulary is not None:
        vocabulary = local_copy(vocabulary)
        if not Path(vocabulary).is_file():
            raise FileNotFoundError(
                f"There is no vocabulary file `{vocabulary}`."
            )
        tokens = read_vocabulary(vocabulary)
    elif isinstance(model, str) and presets.has_tokenizer(
        presets.find_preset(model)
    ):
        return None
    elif step:
        tokens = read_vocabulary(path)
    else:
        tokens = AlignTokenizer.learn_vocabulary(
            _captions(records, recipe.language_exponent),
            recipe.vocabulary_size,
            recipe.strip_accents,
        )
        logger.info(
            "Learned a vocabulary of %d tokens from the captions.", len(tokens)
        )
    tokenizer = AlignTokenizer(tokens, strip_accents=recipe.strip_accents)
    with atomic_file(path) as temporary:
        temporary.write_text("\n".join(tokens) + "\n", encoding="utf-8")
    return tokenizer


def _captions(records, exponent):
    """Yield captions of each language in proportion to its share."""
    shares = _shares(records, 1.0 if exponent is None else exponent)
    languages = records.languages()
    for language, share in shares.items():
        paths = [p for p in records.paths if languages[p] == language]
        files, read = RecordFiles(paths, records.counts), 0
        files.skipped = records.skipped
        for record in files:
            yield from record["captions"]
            read += len(record["captions"])
            if read >= VOCABULARY_SAMPLE * share:
                break


def _shares(records, exponent):
    """Return the share of each language, see `language_shares`."""
    counts = collections.Counter()
    for path, language in records.languages().items():
        counts[language] += records.counts[path]
    return language_shares(counts, exponent)


def tell_languages(records, exponent):
    """Log the share of each language, if the recipe favours languages."""
    if exponent is None:
        return
    as_they_are = _shares(records, 1.0)
    for language, share in _shares(records, exponent).items():
        logger.info(
            "%.3g%% of the pairs come from the %.3g%% of the records in %s.",
            100 * share,
            100 * as_they_are[language],
            language,
        )


def make_dataset(records, preprocessor, recipe, step, strategy, workers):
    """Make the batches that this process reads in a run."""
    if not hasattr(strategy, "distribute_datasets_from_function"):
        return load_dataset(
            records,
            preprocessor,
            recipe.batch_size // workers.count,
            seed=recipe.seed,
            start_step=step,
            shard_index=workers.index,
            shard_count=workers.count,
            language_exponent=recipe.language_exponent,
        )
    if workers.count == 1 and hosts_of(strategy) == 1:
        return load_dataset(
            records,
            preprocessor,
            recipe.batch_size,
            seed=recipe.seed,
            start_step=step,
            language_exponent=recipe.language_exponent,
        )

    def of_worker(context):
        # Each local replica takes its own batch in every step.
        local = context.num_replicas_in_sync // context.num_input_pipelines
        return load_dataset(
            records,
            preprocessor,
            context.get_per_replica_batch_size(recipe.batch_size),
            seed=recipe.seed,
            start_step=step * local,
            shard_index=context.input_pipeline_id,
            shard_count=context.num_input_pipelines,
            language_exponent=recipe.language_exponent,
        )

    return strategy.distribute_datasets_from_function(of_worker)
