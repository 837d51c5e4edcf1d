"""Serialized records of TFRecord files, as data sets of TensorFlow."""

import functools
import itertools

import numpy as np

from align_keras.data.records import is_remote
from align_keras.data.records import read_shard
from align_keras.data.records import read_span
from align_keras.io.threads import map_ahead

# Bytes that are read from a file at once, about.
READ_BYTES = 256 * 1024

# Pieces that are read at the same time.
READERS = 16

# Records of a store that are asked for at once, at most: a large window.
FETCHED_RECORDS = 2048

# Records whose order is told at once, about. TensorFlow hangs if an iterator
# ends while it waits for Python, so that it is to ask seldom.
BLOCK_RECORDS = 4096


def read_in_order(shards, part):
    """Read files one after the other.

    Args:
        shards: list of strings.
        part: pair of ints, index and count: every `count`-th record is taken.

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
    """Read records in the order of training, without end.

    Args:
        order: `RecordOrder`.
        start: int. The place in its stream to begin at.

    Returns:
        `tf.data.Dataset` of `(place, (file, number of the record in it,
        record))`.
    """
    import tensorflow as tf

    remote = any(map(is_remote, order.files))

    def blocks():
        windows = order.windows(start)
        limit = FETCHED_RECORDS if remote else BLOCK_RECORDS
        most = max(1, limit // order.records_of_window)
        size = 1  # The first records come soon.
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
    # Records are taken from here while the next window is being read.
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
        # Piece after piece, read at the same time.
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

    # Whole buffers make up the piece, so that nothing behind it is read.
    buffers = -(-length // READ_BYTES)
    # `tf.data.TFRecordDataset` cannot begin within a file.
    records = tf.raw_ops.TFRecordDatasetV2(
        filenames=shard[tf.newaxis],
        compression_type="",
        buffer_size=-(-length // buffers),
        byte_offsets=begin[tf.newaxis],
    )
    records = tf.data.experimental.from_variant(
        records, tf.TensorSpec((), tf.string)
    )
    # `enumerate` would have TensorFlow rewrite a graph for each piece.
    indices = tf.data.Dataset.range(first, first + count)
    numbered = tf.data.Dataset.zip((indices, records))
    return numbered.map(lambda index, record: (shard, index, record))


def _fetch_block(
    pieces, records, shards, begins, lengths, firsts, counts, order
):
    """Read a block of windows of files that TensorFlow cannot open."""
    import tensorflow as tf

    found = tf.numpy_function(
        _spans, (shards, begins, lengths, counts), tf.string, stateful=False
    )
    found.set_shape((None,))
    indices = tf.ragged.range(firsts, firsts + counts).values
    columns = tf.repeat(shards, counts), indices, found
    # Numbers within a window become numbers within the block.
    held = tf.RaggedTensor.from_row_lengths(counts, pieces)
    before = tf.cumsum(tf.reduce_sum(held, 1), exclusive=True)
    order = order + tf.repeat(before, records)
    return tuple(tf.gather(column, order) for column in columns)


def _spans(*columns):
    # Not by TensorFlow's threads: it has as many as there are processors, and
    # these wait.
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
