"""Load training batches from TFRecord files with tf.data."""

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
from align_keras.preprocessing.decode import decode_eagerly

# Number of records that are decoded as one unit of work.
GROUP = 8


def _without_autograph(function):
    """Disable AutoGraph in the data sets that a function makes.

    AutoGraph would take seconds at the start of a process, and there is nothing
    to rewrite here.
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
    """Load batches of images and token ids from TFRecord files.

    In training, the data set is endless. Files and records are shuffled again
    in each epoch, in the order of `align_keras.data.order`. One of each
    image's captions is drawn, and images are cropped and flipped at random.
    All of this depends only on `seed` and the record's position in the stream,
    so two iterations give the same batches and a run can resume where it
    stopped. Without `training`, there is one pass in file order with each
    image's first caption and central crop.

    A record without a caption, or whose image cannot be decoded, is skipped,
    logged once and listed by `RecordFiles.skipped`. In training, another pair
    of the same batch takes its place, or the first pair of the data set if no
    record of the batch is usable. This keeps the shapes static and the step
    numbers exact.

    Args:
        records: `RecordFiles`, or a folder, glob, file or list of these, as
            for `open_records`. The files are written by `pack` or img2dataset.
        preprocessor: `AlignPreprocessor` with a tokenizer and an image
            converter.
        batch_size: int. Pairs per batch.
        training: bool. Defaults to `True`.
        seed: int. Defaults to 0.
        shuffle_buffer: int. The number of encoded records to hold in memory
            for shuffling, limited to the size of the largest file. Defaults
            to 2048.
        start_step: int. The number of batches to skip at the start. In
            training, they are not read. Defaults to 0.
        shard_index: int. The part of the records to read, for training with
            several input workers. Defaults to 0.
        shard_count: int. The number of parts. Defaults to 1.
        language_exponent: float or `None`. In training, how strongly to
            favour languages with few records; see `Recipe`. The language of a
            file is its folder. Defaults to `None`: no balancing.

    Returns:
        `tf.data.Dataset` of dicts: `"images"` float32 `(batch_size, height,
        width, 3)`, `"token_ids"` and `"padding_mask"` int32 `(batch_size,
        sequence_length)`. Without `training`, the last batch may be smaller.

    Raises:
        FileNotFoundError: No file matches `records`.
        ValueError: No record is usable, there are fewer records than input
            workers in training, the preprocessor is incomplete, or there is
            only one language to balance.

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
    stand_in = _first_usable(records, preprocessor.image_converter)
    if training:
        part = shard_index, shard_count
        order = _order(records, seed, shuffle_buffer, part, language_exponent)
        dataset = read_shuffled(order, start_step * batch_size)
    else:
        shards, part = _part(records.paths, shard_index, shard_count)
        dataset = read_in_order(shards, part).enumerate()
    # A batch consists of whole groups, so each record stays in its batch.
    group = math.gcd(batch_size, GROUP)
    dataset = _decode(
        dataset, preprocessor, training, seed, group, records, stand_in
    )
    if not training:
        dataset = dataset.filter(lambda example: example["usable"])
    dataset = dataset.batch(
        batch_size, drop_remainder=training, num_parallel_calls=tf.data.AUTOTUNE
    )
    if not training:
        # Unusable records are known only once they are decoded.
        dataset = dataset.skip(start_step)

    def finish(batch):
        if training:
            batch = _fill_gaps(batch)
        tokens = preprocessor.tokenize(batch["text"])
        return {"images": batch["images"], **tokens}

    dataset = dataset.map(finish, num_parallel_calls=tf.data.AUTOTUNE)
    options = tf.data.Options()
    options.deterministic = True
    # The autotuning thread often misses the signal to stop, and `fit` then
    # waits for it for up to a minute. Without tuning, as many elements are
    # processed at once as there are processors.
    options.autotune.enabled = False
    # tf.distribute cannot see the files in order to shard by them.
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
    """List the records of one training batch.

    Args:
        records: see `load_dataset`, as for all other arguments.
        step: int. The number of the batch, from 0.

    Returns:
        list of dicts with `"file"`, `"index"` (the number of the record in
        the file, from 0) and `"key"` (string, empty if there is none), in the
        order of the batch. A record that cannot be used may be up to seven
        places later in the batch itself.

    Raises:
        ValueError: There are fewer records than input workers, or there is
            only one language to balance.

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
    """Return the files of an input worker, and its share of their records."""
    if len(shards) >= count:
        return shards[index::count], (0, 1)
    # Too few files for all workers: each reads all files, and keeps its share.
    return shards, (index, count)


def _order(records, seed, shuffle_buffer, part, language_exponent):
    counts = {path: records.counts[path] for path in records.paths}
    counts = {path: count for path, count in counts.items() if count}
    if records.total < part[1]:
        raise ValueError(
            f"`{records.source}` holds {records.total} records, but each "
            "input worker needs at least one of its own. Train on more "
            f"records or with fewer workers. Received: shard_count={part[1]}"
        )
    if language_exponent is None:
        shards, part = _part(list(counts), *part)
        counts = {shard: counts[shard] for shard in shards}
        return RecordOrder(counts, seed, shuffle_buffer, part)
    languages = records.languages()
    if len(set(languages.values())) < 2:
        raise ValueError(
            "`language_exponent` weighs languages, and a language is a folder "
            f"of records: all of `{records.source}` are in one. Give a glob "
            "such as packed/*/*.tfrecord, or leave the field out."
        )
    return BalancedOrder(
        counts, languages, language_exponent, seed, shuffle_buffer, part
    )


# === Decoding ===


def _decode(dataset, preprocessor, training, seed, group, records, stand_in):
    """Decode records to examples; mark, report and replace unusable ones."""
    import tensorflow as tf

    converter = preprocessor.image_converter

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
            "place": place,
            "images": images,
            # Without captions, this index is out of bounds and raises an error.
            "text": captions[choice],
            "usable": True,
        }

    def report(place, raw):
        skip = functools.partial(_skip, records)
        usable = tf.numpy_function(skip, raw, tf.bool)
        usable = tf.ensure_shape(usable, ())
        return {**stand_in, "place": place, "usable": usable}

    apply = _mapping(attempt, dataset.element_spec)

    def safely(places, raw):
        rows = tf.data.Dataset.from_tensor_slices((places, raw))
        used = apply(rows).ignore_errors()

        def report_others(used_places):
            others = rows.filter(
                lambda place, row: tf.reduce_all(used_places != place)
            )
            return others.map(report)

        # This part runs only if a record failed, so good records never enter
        # Python. The group is decoded again there, to see which one it was.
        nothing = tf.data.Dataset.from_tensors(tf.constant(-1, tf.int64))
        used_places = nothing.concatenate(used.map(lambda e: e["place"]))
        count = tf.size(places, tf.int64)
        others = used_places.batch(count + 1).flat_map(report_others)
        return used.concatenate(others).take(count)

    return dataset.batch(group).interleave(
        safely,
        cycle_length=tf.data.AUTOTUNE,
        block_length=group,
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )


def _mapping(function, spec):
    """Return what `Dataset.map` does, for data sets of which many are made.

    For each of them, TensorFlow would visit the thousands of operations of the
    decoder, to find out whether they all run on the host. This attribute of a
    function makes it take that for granted.
    """
    import tensorflow as tf

    traced = tf.function(
        function,
        autograph=False,
        experimental_attributes={"experimental_ints_on_device": True},
    ).get_concrete_function(*spec)
    outputs = tf.nest.map_structure(
        lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype),
        traced.structured_outputs,
    )
    flat = tf.nest.flatten(outputs)

    def apply(dataset):
        variant = tf.raw_ops.MapDataset(
            input_dataset=tf.data.experimental.to_variant(dataset),
            other_arguments=traced.captured_inputs,
            f=traced,
            output_types=[spec.dtype for spec in flat],
            output_shapes=[spec.shape for spec in flat],
        )
        return tf.data.experimental.from_variant(variant, outputs)

    return apply


def _skip(records, shard, index, record):
    """Report an unusable record and the reason; return that it is unusable."""
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
        return example["key"], f"the image cannot be decoded: {error}"
    return example["key"], "TensorFlow cannot decode this kind of image"


def _first_usable(records, converter):
    """Return the first usable pair; refuse data without one."""
    import keras
    import tensorflow as tf

    count = 0
    for path in records.paths:
        for record in read_shard(path):
            try:
                example = decode_record(record)
                image = decode_eagerly(example["image"])
            except (ValueError, tf.errors.InvalidArgumentError):
                count += 1
                last = record
            else:
                image = keras.ops.convert_to_numpy(converter(image.numpy()))
                return {"images": image, "text": example["captions"][0]}
    example = f": {': '.join(_reason(last)).lstrip(': ')}" if count else ""
    raise ValueError(
        f"None of the {count} records in `{records.source}` can be used"
        f"{example}."
    )


def _fill_gaps(batch):
    """Replace unusable records by other pairs of the batch, if it has any.

    Dropping them would move all later records to other steps.
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
        tf.reduce_all(usable) | ~tf.reduce_any(usable),
        lambda: (batch["images"], batch["text"]),
        fill,
    )
    images.set_shape(batch["images"].shape)
    text.set_shape(batch["text"].shape)
    return {"images": images, "text": text}
