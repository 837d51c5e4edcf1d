"""Encoded images to 8-bit RGB in a TensorFlow graph.

Built from TensorFlow operations, so that it runs in tf.data and inside an
exported SavedModel. `align_keras.io.images` does the same with Pillow.
"""

import sys

import numpy as np

from align_keras.io.images import EXIF_HEADER
from align_keras.io.images import EXIF_SEARCH_BYTES
from align_keras.io.images import FLIPPED_HORIZONTALLY
from align_keras.io.images import FLIPPED_VERTICALLY
from align_keras.io.images import MAX_EXIF_ENTRIES
from align_keras.io.images import ORIENTATION_TAG


def in_tf_graph():
    """Whether the caller is being traced into a TensorFlow graph.

    Returns:
        bool. False where TensorFlow has not been imported at all.
    """
    tf = sys.modules.get("tensorflow")
    return hasattr(tf, "executing_eagerly") and not tf.executing_eagerly()


def decode_in_graph(contents):
    """Decode one encoded image with TensorFlow operations.

    Args:
        contents: scalar string tensor, a whole image file: JPEG (gray,
            colour or CMYK; EXIF orientation applied), PNG (any), WebP (not
            animated), GIF (first frame), BMP (24 and 32 bit).

    Returns:
        uint8 tensor `(height, width, 3)`, upright. Anything else raises
        `tf.errors.InvalidArgumentError` when the operation runs.
    """
    import tensorflow as tf

    # Zeros behind the end, because positions beyond it would be errors.
    head = tf.strings.join([tf.strings.substr(contents, 0, 32), b"\0" * 32])

    def begins(signature, position=0):
        part = tf.strings.substr(head, position, len(signature))
        return tf.equal(part, signature)

    webp = begins(b"RIFF") & begins(b"WEBP", 8)
    animated = begins(b"VP8X", 12) & _bit_is_set(head, 20, 0x02)
    # On animated WebP every decoding operation of TensorFlow 2.20 writes
    # beyond its buffer. An empty file is refused properly.
    contents = tf.where(webp & animated, b"", contents)
    bmp = begins(b"BM") & ~begins(b"\x08", 28)
    image = tf.case(
        [
            (begins(b"\xff\xd8"), lambda: _decode_jpeg(contents)),
            (webp, lambda: _decode_webp(contents)),
            (begins(b"GIF8"), lambda: tf.io.decode_gif(contents)[0]),
            (bmp, lambda: tf.io.decode_bmp(contents, channels=3)),
        ],
        # Also what gives unknown formats their error message.
        default=lambda: _over_white(tf.io.decode_png(contents, channels=0)),
    )
    return tf.ensure_shape(image, (None, None, 3))


def _decode_jpeg(contents):
    import tensorflow as tf

    # The accurate transform is what every other library uses, and is as fast.
    image = tf.io.decode_jpeg(
        contents, channels=3, dct_method="INTEGER_ACCURATE"
    )
    orientation = _exif_orientation_in_graph(contents)
    return tf.cond(
        tf.equal(orientation, 1),
        lambda: image,
        lambda: _upright_in_graph(image, orientation),
    )


def is_upright_jpeg(contents):
    """Whether `decode_window` takes a file: a JPEG that is not to be turned.

    Args:
        contents: scalar string tensor, a whole image file.

    Returns:
        bool scalar tensor.
    """
    import tensorflow as tf

    upright = tf.equal(_exif_orientation_in_graph(contents), 1)
    return tf.equal(tf.strings.substr(contents, 0, 2), b"\xff\xd8") & upright


def decode_window(contents, corner, window_size, full_size):
    """Decode the part of a JPEG file that a crop shows.

    What the image would be at `full_size` is cropped; here, the part of the
    file under that crop is decoded, from whole pixels to whole pixels. Where
    it is larger than the crop by 2, 4 or 8, libjpeg makes it that much
    smaller while it decodes, out of the lower frequencies of each block.

    Args:
        contents: scalar string tensor, see `is_upright_jpeg`.
        corner: int32 tensor `(2,)`, top and left of the crop.
        window_size: pair of ints, height and width of the crop.
        full_size: pair of ints, height and width of what it is cropped from.

    Returns:
        uint8 tensor `(height, width, 3)`, still to be resized to
        `window_size`.
    """
    import tensorflow as tf

    sides = tf.image.extract_jpeg_shape(contents)[:2]
    scale = tf.cast(sides, tf.float32) / tf.constant(full_size, tf.float32)
    shrinkage = tf.cast(tf.reduce_min(scale), tf.int32)
    exponent = sum(tf.cast(shrinkage >= r, tf.int32) for r in (2, 4, 8))
    ratio = tf.bitwise.left_shift(1, exponent)
    scale = scale / tf.cast(ratio, tf.float32)
    extent = tf.round(scale * tf.constant(window_size, tf.float32))
    extent = tf.maximum(tf.cast(extent, tf.int32), 1)
    begin = tf.cast(tf.round(scale * tf.cast(corner, tf.float32)), tf.int32)
    begin = tf.minimum(begin, -(-sides // ratio) - extent)
    window = tf.concat([begin, extent], 0)

    def decode(ratio):
        return lambda: tf.image.decode_and_crop_jpeg(
            contents,
            window,
            channels=3,
            ratio=ratio,
            dct_method="INTEGER_ACCURATE",
        )

    return tf.switch_case(exponent, [decode(r) for r in (1, 2, 4, 8)])


def _decode_webp(contents):
    import tensorflow as tf

    if not hasattr(tf.io, "decode_webp"):
        # TensorFlow before 2.20: the default operation names the format.
        return tf.io.decode_png(contents, channels=3)
    return _over_white(tf.io.decode_webp(contents, channels=0)[0])


def _over_white(image):
    """Gray, gray-alpha, RGB or RGBA (known when it runs) to RGB."""
    import tensorflow as tf

    channels = tf.shape(image)[-1]

    def blend():
        # The largest value, 255 * 255 + 127, fits into 16 bits, which halves
        # the memory of a large image.
        alpha = tf.cast(image[..., -1:], tf.uint16)
        pixels = tf.cast(image[..., :-1], tf.uint16) * alpha
        pixels += 255 * (255 - alpha) + 127
        return tf.cast(pixels // 255, tf.uint8)

    image = tf.cond(tf.equal(channels % 2, 0), blend, lambda: image)
    repeats = tf.where(tf.less(channels, 3), 3, 1)
    return tf.tile(image, tf.stack([1, 1, repeats]))


def _bit_is_set(head, position, mask):
    import tensorflow as tf

    byte = tf.io.decode_raw(tf.strings.substr(head, position, 1), tf.uint8)
    return tf.reduce_any(tf.bitwise.bitwise_and(byte, mask) > 0)


def _exif_orientation_in_graph(contents):
    """`exif_orientation`, as TensorFlow operations."""
    import tensorflow as tf

    head = tf.strings.substr(contents, 0, EXIF_SEARCH_BYTES)
    # Most files have no such block, which a search of strings finds out in no
    # time.
    parts = tf.raw_ops.StringSplitV2(
        input=head[None], sep=EXIF_HEADER, maxsplit=1
    ).values

    def parse():
        block = tf.io.decode_raw(parts[1], tf.uint8)
        # Zeros behind the end: positions that a broken block invents read 0.
        block = tf.concat([block, tf.zeros(8, tf.uint8)], 0)
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
        values = number(tf.gather_nd(entries, tf.where(found)) + 8, 2)
        value = tf.concat([values, [1]], 0)[0]
        return tf.where((value >= 1) & (value <= 8), value, 1)

    return tf.cond(tf.size(parts) > 1, parse, lambda: tf.constant(1, tf.int64))


def _upright_in_graph(image, orientation):
    import tensorflow as tf

    def member(values):
        return tf.reduce_any(tf.equal(orientation, values))

    image = tf.cond(
        orientation >= 5,
        lambda: tf.transpose(image, (1, 0, 2)),
        lambda: image,
    )
    image = tf.cond(
        member(FLIPPED_VERTICALLY), lambda: image[::-1], lambda: image
    )
    return tf.cond(
        member(FLIPPED_HORIZONTALLY), lambda: image[:, ::-1], lambda: image
    )
