"""Read and undo the EXIF orientation of an image in a TensorFlow graph.

`align_keras.io.image_parts` does the same without TensorFlow.
"""

import numpy as np

from align_keras.io.image_parts import EXIF_HEADER
from align_keras.io.image_parts import EXIF_LONG
from align_keras.io.image_parts import FLIPPED_HORIZONTALLY
from align_keras.io.image_parts import FLIPPED_VERTICALLY
from align_keras.io.image_parts import MAX_EXIF_ENTRIES
from align_keras.io.image_parts import ORIENTATION_TAG
from align_keras.preprocessing.image_parts import exif_block
from align_keras.preprocessing.image_parts import holds
from align_keras.preprocessing.tf_graph import set_up_when_called

# Matches the name of an EXIF block in every format.
_ANY_EXIF = rb"(?i:exif)"


def upright(image, contents):
    """Turn an image upright, according to the EXIF data in its file.

    Args:
        image: tensor `(height, width, channels)`.
        contents: scalar string tensor. The file.

    Returns:
        Tensor like `image`.
    """
    import tensorflow as tf

    value = orientation(contents)
    return tf.cond(value > 1, lambda: _turned(image, value), lambda: image)


def orientation(contents):
    """Find the orientation, as `align_keras.io.image_parts` does.

    Args:
        contents: scalar string tensor. An image file.

    Returns:
        Scalar int64 tensor from 1 to 8.
    """
    import tensorflow as tf

    return tf.cond(
        holds(contents, _ANY_EXIF),
        lambda: _exif_orientation(contents),
        lambda: tf.constant(1, tf.int64),
    )


@set_up_when_called
def _exif_orientation(contents):
    import tensorflow as tf

    headers = b"^(?:" + EXIF_HEADER.replace(b"\0", rb"\x00") + b")+"
    block = exif_block(contents)
    block = tf.strings.regex_replace(block, headers, "", replace_global=False)
    # Append zeros, so that invalid positions in a broken block read as 0.
    zeros = b"\0" * 16
    block = tf.io.decode_raw(tf.strings.join([block, zeros]), tf.uint8)
    last = tf.size(block, tf.int64) - 1
    little = tf.equal(block[0], ord("I"))

    def number(position, size):
        places = tf.expand_dims(position, -1) + np.arange(size)
        digits = tf.gather(block, tf.minimum(places, last))
        weights = 256 ** np.arange(size)
        weights = tf.where(little, weights, weights[::-1])
        return tf.reduce_sum(tf.cast(digits, tf.int64) * weights, -1)

    directory = number(tf.constant(4, tf.int64), 4)
    count = tf.minimum(number(directory, 2), MAX_EXIF_ENTRIES)
    entries = directory + 2 + 12 * tf.range(count)
    found = tf.equal(number(entries, 2), ORIENTATION_TAG)
    entries = tf.gather_nd(entries, tf.where(found))
    kinds = number(entries + 2, 2)[:, None]
    long = tf.reduce_any(tf.equal(kinds, EXIF_LONG), -1)
    values = tf.where(long, number(entries + 8, 4), number(entries + 8, 2))
    value = tf.concat([values, [1]], 0)[0]
    return tf.where((value >= 1) & (value <= 8), value, 1)


def _turned(image, value):
    import tensorflow as tf

    def member(values):
        return tf.reduce_any(tf.equal(value, values))

    image = tf.cond(
        value >= 5,
        lambda: tf.transpose(image, (1, 0, 2)),
        lambda: image,
    )
    image = tf.cond(
        member(FLIPPED_VERTICALLY), lambda: image[::-1], lambda: image
    )
    return tf.cond(
        member(FLIPPED_HORIZONTALLY), lambda: image[:, ::-1], lambda: image
    )
