"""Read serialized records of TFRecord files as TensorFlow data sets."""

import functools
import itertools

import numpy as np

from align_keras.data.records import is_remote
from align_keras.data.records import read_shard
from align_keras.data.records import read_span
from align_keras.io.threads import map_ahead

# About how many bytes to read from a file at once.
READ_BYTES = 256 * 1024

# The number of pieces to read in parallel.
READERS = 16

# The most records to request from a store at once: a large window.
FETCHED_RECORDS = 2048

# About how many records the Python generator orders at once. TensorFlow hangs
# if an iterator ends while it waits for Python, so it should call it rarely.
BLOCK_RECORDS = 4096


def read_in_order(shards, part):
    """Read files one after the other.

    Args:
        shards: list of strings.
        part: pair of ints, index and count. Every `count`-th record is read.

    Returns:
        `tf.data.Dataset` of `(file, number of the record in it, record)`.
    """
    import tensorflow as tf

    if any(map(is_remote, shards)):
        signature = tf.TensorSpec((), tf.string), tf.TensorSpec((), tf.int64)
        dataset = tf.data.Dataset.from_generator(
            functools.partial(_read_all, shards),
            output_signature=(*signature, signature[0]),
        )
    else:
        dataset = tf.data.Dataset.from_tensor_slices(shards).flat_map(_read)
    return dataset.shard(part[1], part[0])


def read_shuffled(order, start):
    """Read records endlessly in training order.

    Args:
        order: `RecordOrder`.
        start: int. The position in its stream to start at.

    Returns:
        `tf.data.Dataset` of `(position, (file, number of the record in it,
        record))`.
    """
    import tensorflow as tf

    remote = any(map(is_remote, order.files))

    def blocks():
        windows = order.windows(start)
        limit = FETCHED_RECORDS if remote else BLOCK_RECORDS
        most = max(1, limit // order.records_of_window)
        size = 1  # Start small, so that the first records come soon.
        while True:
            block = list(itertools.islice(windows, size))
            begins, lengths = zip(*order.spans(block), strict=True)
            files, firsts, counts, orders = zip(*block, strict=True)
            columns = files, begins, lengths, firsts, counts, orders
            yield (
                [len(rows) for rows in files],
                [len(rows) for rows in orders],
                *map(np.concatenate, columns),
            )
            size = min(2 * size, most)

    numbers = tf.TensorSpec((None,), tf.int64)
    names = tf.TensorSpec((None,), tf.string)
    dataset = tf.data.Dataset.from_generator(
        blocks, output_signature=(numbers, numbers, names, *[numbers] * 5)
    )
    dataset = dataset.prefetch(1)
    # Take records from this buffer while the next window is being read.
    ahead = max(1, order.records_of_window // 4)
    if remote:
        dataset = dataset.map(_fetch_block).prefetch(1).unbatch()
    else:
        dataset = dataset.flat_map(_windows).flat_map(_read_window)
    return dataset.enumerate(start).prefetch(ahead)


def _windows(pieces, records, *columns):
    """Cut the columns of a block into those of its windows."""
    import tensorflow as tf

    lengths = [pieces] * (len(columns) - 1) + [records]
    return tf.data.Dataset.from_tensor_slices(
        tuple(map(tf.RaggedTensor.from_row_lengths, columns, lengths))
    )


def _read_window(shards, begins, lengths, firsts, counts, order):
    import tensorflow as tf

    pieces = tf.data.Dataset.from_tensor_slices(
        (shards, begins, lengths, firsts, counts)
    )
    records = pieces.interleave(
        _read_piece,
        cycle_length=READERS,
        # Yield one piece after the other, but read them in parallel.
        block_length=tf.reduce_max(counts),
        num_parallel_calls=READERS,
        deterministic=True,
    )
    window = records.batch(tf.reduce_sum(counts))
    return window.flat_map(
        lambda *columns: tf.data.Dataset.from_tensor_slices(
            tuple(tf.gather(column, order) for column in columns)
        )
    )


def _read_piece(shard, begin, length, first, count):
    import tensorflow as tf

    # The piece is a whole number of buffers, so nothing after it is read.
    buffers = -(-length // READ_BYTES)
    # `tf.data.TFRecordDataset` cannot start in the middle of a file.
    records = tf.raw_ops.TFRecordDatasetV2(
        filenames=shard[tf.newaxis],
        compression_type="",
        buffer_size=-(-length // buffers),
        byte_offsets=begin[tf.newaxis],
    )
    records = tf.data.experimental.from_variant(
        records, tf.TensorSpec((), tf.string)
    )
    # `enumerate` would make TensorFlow rewrite a graph for each piece.
    indices = tf.data.Dataset.range(first, first + count)
    numbered = tf.data.Dataset.zip((indices, records))
    return numbered.map(lambda index, record: (shard, index, record))


def _fetch_block(
    pieces, records, shards, begins, lengths, firsts, counts, order
):
    """Read a block of windows from files that TensorFlow cannot open."""
    import tensorflow as tf

    found = tf.numpy_function(
        _spans, (shards, begins, lengths, counts), tf.string, stateful=False
    )
    found.set_shape((None,))
    indices = tf.ragged.range(firsts, firsts + counts).values
    columns = tf.repeat(shards, counts), indices, found
    # Turn indices within a window into indices within the block.
    held = tf.RaggedTensor.from_row_lengths(counts, pieces)
    before = tf.cumsum(tf.reduce_sum(held, 1), exclusive=True)
    order = order + tf.repeat(before, records)
    return tuple(tf.gather(column, order) for column in columns)


def _spans(*columns):
    # Use other threads than TensorFlow's. It has only one per processor, and
    # these reads spend their time waiting.
    found = map_ahead(_span, zip(*columns, strict=True), READERS)
    return np.array([record for span in found for record in span], object)


def _span(piece):
    shard, begin, length, count = piece
    return read_span(shard.decode(), begin, begin + length, count)


def _read_all(shards):
    for shard in shards:
        for index, record in enumerate(read_shard(shard)):
            yield shard, index, record


def _read(shard):
    import tensorflow as tf

    records = tf.data.TFRecordDataset(shard).enumerate()
    return records.map(lambda index, record: (shard, index, record))
