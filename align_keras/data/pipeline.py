"""From TFRecord files to training batches, with tf.data."""

import functools
import itertools
import math
from typing import Any

import numpy as np

from align_keras.data.order import BalancedOrder
from align_keras.data.order import RecordOrder
from align_keras.data.reading import read_in_order
from align_keras.data.reading import read_shuffled
from align_keras.data.record_files import open_records
from align_keras.data.records import decode_record
from align_keras.data.records import parse_record
from align_keras.data.records import read_record
from align_keras.data.records import read_shard
from align_keras.data.records import record_key
from align_keras.io.images import decode_with_pillow

# Records that are decoded one after the other, as one piece of work.
GROUP = 8


def _without_autograph(function):
    """Let data sets take functions as they are.

    AutoGraph's rewriting would take seconds at the start of a process, and
    finds nothing to rewrite here.
    """

    @functools.wraps(function)
    def run(*args, **kwargs):
        import tensorflow as tf

        plain = tf.autograph.experimental.do_not_convert(function)
        return plain(*args, **kwargs)

    return run


@_without_autograph
def load_dataset(
    records: Any,
    preprocessor: Any,
    batch_size: int,
    training: bool = True,
    seed: int = 0,
    shuffle_buffer: int = 2048,
    start_step: int = 0,
    shard_index: int = 0,
    shard_count: int = 1,
    language_exponent: float | None = None,
) -> Any:
    """Make batches of images and token ids out of TFRecord files.

    In training the files and records are shuffled anew each epoch, without
    end, in the order of `align_keras.data.order`; of an image's captions one
    is drawn; images are cropped and mirrored at random. Everything follows
    from `seed` and the record's place in the stream, so that two iterations
    give the same batches and a run can resume where it stopped. Otherwise
    there is one pass in file order with each image's first caption and the
    central crop.

    A record whose image does not decode, or that has no caption, is
    skipped, logged once and listed by `RecordFiles.skipped`. In training its
    place in the batch is taken by another pair of the same batch, which keeps
    the shapes static and the numbering of steps exact.

    Args:
        records: `RecordFiles`, or a folder, glob, file or list of these that
            `open_records` takes; the files are those of `pack` or of
            img2dataset.
        preprocessor: `AlignPreprocessor` with tokenizer and image converter.
        batch_size: int. Pairs per batch.
        training: bool. Defaults to `True`.
        seed: int. Defaults to 0.
        shuffle_buffer: int. Encoded records held in memory for shuffling,
            though no more than the largest file holds. Defaults to 2048.
        start_step: int. Leave out this many batches at the start, without
            reading them. Defaults to 0.
        shard_index: int. Which part of the records to read, for training
            with several input workers. Defaults to 0.
        shard_count: int. The number of parts. Defaults to 1.
        language_exponent: float or `None`. In training, how far languages
            with few records are favoured, see `Recipe`; a language is the
            folder of a file. Defaults to `None`: records are as they are.

    Returns:
        `tf.data.Dataset` of dicts: `"images"` float32 `(batch_size, height,
        width, 3)`, `"token_ids"` and `"padding_mask"` int32 `(batch_size,
        sequence_length)`. Without `training` the last batch may be smaller.

    Raises:
        FileNotFoundError: No file matches `records`.
        ValueError: No record is usable, the preprocessor is incomplete, or
            there is one language alone to be balanced.

    Example:

    ```python
    dataset = load_dataset("packed", model.preprocessor, batch_size=256)
    model.fit(dataset, steps_per_epoch=1000)
    ```
    """
    import tensorflow as tf

    if not (preprocessor.tokenizer and preprocessor.image_converter):
        raise ValueError(
            "`load_dataset` needs a preprocessor with a `tokenizer` and an "
            "`image_converter`."
        )
    records = open_records(records)
    _check_usable(records, preprocessor.image_converter)
    start = start_step * batch_size
    if training:
        part = shard_index, shard_count
        order = _order(records, seed, shuffle_buffer, part, language_exponent)
        dataset = read_shuffled(order, start)
    else:
        shards, part = _part(records.paths, shard_index, shard_count)
        dataset = read_in_order(shards, part).skip(start).enumerate()
    # Whole groups make up a batch, so that each record stays in its own.
    group = math.gcd(batch_size, GROUP)
    dataset = _decode(dataset, preprocessor, training, seed, group, records)
    if not training:
        dataset = dataset.filter(lambda example: example["usable"])
    dataset = dataset.batch(
        batch_size, drop_remainder=training, num_parallel_calls=tf.data.AUTOTUNE
    )
    if training:
        dataset = dataset.filter(lambda batch: tf.reduce_any(batch["usable"]))

    def finish(batch):
        if training:
            batch = _fill_gaps(batch)
        tokens = preprocessor.tokenize(batch["text"])
        return {"images": batch["images"], **tokens}

    dataset = dataset.map(finish, num_parallel_calls=tf.data.AUTOTUNE)
    options = tf.data.Options()
    options.deterministic = True
    # The thread that tunes a pipeline often misses that it is to end: `fit`
    # then waits up to a minute for it. Untuned, as many elements are worked on
    # at once as there are processors.
    options.autotune.enabled = False
    # The files are not visible to tf.distribute from outside.
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.DATA
    )
    return dataset.with_options(options).prefetch(tf.data.AUTOTUNE)


def records_of_step(
    records: Any,
    step: int,
    batch_size: int,
    seed: int = 0,
    shuffle_buffer: int = 2048,
    shard_index: int = 0,
    shard_count: int = 1,
    language_exponent: float | None = None,
) -> list:
    """Name the records of one training batch.

    Args:
        records: see `load_dataset`, as all other arguments.
        step: int. The number of the batch, from 0.

    Returns:
        list of dicts with `"file"`, `"index"` (the number of the record in
        it, from 0) and `"key"` (string, empty where it has none), in the
        order of the batch, but that a record that cannot be used stands up
        to seven places later there.

    Example:

    ```python
    records_of_step("packed", step=1000, batch_size=256)[0]["key"]
    ```
    """
    records = open_records(records)
    part = shard_index, shard_count
    order = _order(records, seed, shuffle_buffer, part, language_exponent)
    found = order.places(step * batch_size)
    return [
        {
            "file": file,
            "index": index,
            "key": record_key(read_record(file, index)),
        }
        for file, index in itertools.islice(found, batch_size)
    ]


# === Order ===


def _part(shards, index, count):
    """The files of one input worker, and which of their records it takes."""
    if len(shards) >= count:
        return shards[index::count], (0, 1)
    # Too few files for everyone: each reads all and keeps its share.
    return shards, (index, count)


def _order(records, seed, shuffle_buffer, part, language_exponent):
    counts = records.counts
    if language_exponent is None:
        shards, part = _part(records.paths, *part)
        counts = {shard: counts[shard] for shard in shards if counts[shard]}
        return RecordOrder(counts, seed, shuffle_buffer, part)
    languages = records.languages()
    if len(set(languages.values())) < 2:
        raise ValueError(
            "`language_exponent` weighs languages, and a language is a folder "
            f"of records: all of `{records.source}` lie in one. Give a glob "
            "such as packed/*/*.tfrecord, or leave the field out."
        )
    counts = {shard: count for shard, count in counts.items() if count}
    return BalancedOrder(
        counts, languages, language_exponent, seed, shuffle_buffer, part
    )


# === Decoding ===


def _decode(dataset, preprocessor, training, seed, group, records):
    """Raw elements to examples; unusable ones are marked and reported."""
    import tensorflow as tf

    converter = preprocessor.image_converter

    # Traced once, though two data sets use it.
    @tf.function(autograph=False)
    def attempt(place, raw):
        image, captions = parse_record(raw[2])
        choice = 0
        if training:
            draw = tf.random.stateless_uniform((), (seed, 2 * place))
            count = tf.cast(tf.size(captions), tf.float32)
            choice = tf.cast(draw * count, tf.int32)
            crop_seed = tf.stack([tf.constant(seed, tf.int64), 2 * place + 1])
            images = converter.decode_random_crop(image, crop_seed)
        else:
            images = converter(converter.decode(image))
        return {
            "images": images,
            # Without captions this index is out of bounds: an error.
            "text": captions[choice],
            "usable": True,
        }

    def report(place, raw):
        skip = functools.partial(_skip, records)
        usable = tf.numpy_function(skip, raw, tf.bool)
        return {
            "images": tf.zeros((*converter.image_size, 3)),
            "text": "",
            "usable": tf.ensure_shape(usable, ()),
        }

    # TensorFlow looks at all operations of `attempt`, even those of branches
    # not taken, whenever a data set of records is made. Groups and few
    # operations are fast.
    def safely(places, raw):
        records = tf.data.Dataset.from_tensor_slices((places, raw))
        good = records.map(attempt).ignore_errors()
        # This part runs only where the first gave less than all, so that good
        # records never enter Python.
        broken = records.flat_map(report_if_broken)
        return good.concatenate(broken).take(tf.size(places, tf.int64))

    def report_if_broken(place, raw):
        one = tf.data.Dataset.from_tensors((place, raw))
        tried = one.map(attempt).ignore_errors()
        tried = tried.concatenate(one.map(report)).take(1)
        return tried.filter(lambda example: ~example["usable"])

    return dataset.batch(group).interleave(
        safely,
        cycle_length=tf.data.AUTOTUNE,
        block_length=group,
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )


def _skip(records, shard, index, record):
    """Name an unusable record and the reason. Returns that it is not usable."""
    key, reason = _reason(record)
    records.skip(shard.decode(), int(index), key, reason)
    return np.False_


def _reason(record):
    try:
        example = decode_record(record)
    except ValueError as error:
        return error.key, str(error)
    try:
        decode_with_pillow(example["image"])
    except ValueError as error:
        return example["key"], f"the image does not decode: {error}"
    return example["key"], "TensorFlow does not decode this kind of image"


def _check_usable(records, converter):
    """Refuse data without one usable record: training would never start."""
    import tensorflow as tf

    count = 0
    for path in records.paths:
        for record in read_shard(path):
            try:
                converter.decode(tf.constant(decode_record(record)["image"]))
                return
            except (ValueError, tf.errors.InvalidArgumentError):
                count += 1
                last = record
    example = f": {': '.join(_reason(last)).lstrip(': ')}" if count else ""
    raise ValueError(
        f"None of the {count} records in `{records.source}` can be used"
        f"{example}."
    )


def _fill_gaps(batch):
    """Put another pair of the batch where a record could not be used.

    Dropping the record instead would move every later one to another step.
    """
    import tensorflow as tf

    usable = batch["usable"]

    def fill():
        good = tf.where(usable)[:, 0]
        slots = tf.range(tf.size(usable, tf.int64))
        stand_ins = tf.gather(good, slots % tf.size(good, tf.int64))
        slots = tf.where(usable, slots, stand_ins)
        return tuple(tf.gather(batch[n], slots) for n in ("images", "text"))

    images, text = tf.cond(
        tf.reduce_all(usable),
        lambda: (batch["images"], batch["text"]),
        fill,
    )
    images.set_shape(batch["images"].shape)
    text.set_shape(batch["text"].shape)
    return {"images": images, "text": text}
