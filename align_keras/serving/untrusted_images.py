"""Decode untrusted images in a TensorFlow graph without failing."""

import functools
from typing import Any

from align_keras.io.images import JPEG_SCAN
from align_keras.io.images import MAX_JPEG_SCANS
from align_keras.preprocessing.gif import first_frame

# The signature, and the start of the first chunk.
_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
# Enough for a BMP file of 32 million pixels, the default limit.
_MAX_BYTES = 128 * 2**20
# Number of images of a request that are decoded at the same time.
_AT_ONCE = 4


def read_images(
    contents: Any, converter: Any, max_pixels: int
) -> tuple[Any, Any]:
    """Decode and convert images; an unreadable one affects only its own row.

    `max_pixels` bounds the memory: at most four images are decoded at a time,
    however many there are, at about 16 bytes per pixel.

    Args:
        contents: string tensor `(batch,)`, the bytes of image files.
        converter: `align_keras.AlignImageConverter`.
        max_pixels: int. Images with more pixels are refused before they are
            decoded.

    Returns:
        Tuple of a float32 tensor `(batch, height, width, 3)`, with zeros for
        images that cannot be read, and a bool tensor `(batch,)`, whether each
        image was read.
    """
    import tensorflow as tf

    shape = (*converter.image_size, 3)
    count = tf.shape(contents, tf.int64)[0]

    def read(row, image):
        return row, converter(converter.decode(bounded(image, max_pixels)))

    dataset = tf.data.Dataset.from_tensor_slices(contents).enumerate()
    dataset = dataset.map(read, _AT_ONCE, deterministic=False)
    # Drops rows that fail, whose places stay zero below.
    dataset = dataset.ignore_errors(log_warning=False)
    # Add one row, because an empty dataset would have no batch to take.
    last = tf.data.Dataset.from_tensors((count, tf.zeros(shape)))
    dataset = dataset.concatenate(last).batch(count + 1)
    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = dataset.with_options(options)
    rows, images = dataset.get_single_element()
    rows = rows[:, None]
    images = tf.scatter_nd(rows, images, (count + 1, *shape))
    valid = tf.scatter_nd(rows, tf.ones_like(rows[:, 0]), (count + 1,)) > 0
    return tf.ensure_shape(images[:-1], (None, *shape)), valid[:-1]


def bounded(contents: Any, max_pixels: int) -> Any:
    """Return an image file, or an empty string if it is too large.

    A file is too large if its header declares more than `max_pixels`, if it
    has more than 128 MiB, or if it is a JPEG file with too many scans.

    Args:
        contents: scalar string tensor, the bytes of a file.
        max_pixels: int.

    Returns:
        Scalar string tensor. Evaluating it raises
        `tf.errors.InvalidArgumentError` if a JPEG file declares no size.
    """
    import tensorflow as tf

    short = tf.strings.length(contents) <= _MAX_BYTES
    contents = tf.where(short, contents, b"")
    # Pad with zeros, because reading beyond the end would be an error.
    head = tf.strings.join([tf.strings.substr(contents, 0, 32), b"\0" * 32])
    head = tf.cast(tf.io.decode_raw(head, tf.uint8), tf.int64)[:32]
    number = functools.partial(_number, head)

    def begins(signature, position=0):
        part = head[position : position + len(signature)]
        return tf.reduce_all(tf.equal(part, list(signature)))

    def jpeg():
        shape = tf.image.extract_jpeg_shape(contents)
        pixels = tf.reduce_prod(tf.cast(shape[:2], tf.int64))
        parts = tf.raw_ops.StringSplitV2(
            input=contents[None], sep=JPEG_SCAN, maxsplit=MAX_JPEG_SCANS + 1
        )
        few = tf.size(parts.values) <= MAX_JPEG_SCANS + 1
        return tf.where(few, contents, b""), pixels

    def webp():
        extended = (number(24, 3) + 1) * (number(27, 3) + 1)
        lossy = (number(26, 2) % 2**14) * (number(28, 2) % 2**14)
        sizes = number(21, 4)
        lossless = (sizes % 2**14 + 1) * (sizes // 2**14 % 2**14 + 1)
        lossless = tf.where(begins(b"VP8L", 12), lossless, lossy)
        return contents, tf.where(begins(b"VP8X", 12), extended, lossless)

    def bmp():
        sides = tf.stack([number(18, 4), number(22, 4)])
        # Heights are signed: a negative one flips the order of the rows.
        sides = tf.minimum(sides, 2**32 - sides)
        return contents, tf.reduce_prod(sides)

    def gif():
        return contents, first_frame(contents)[1]

    def png():
        width = _number(head[::-1], 12, 4)
        height = _number(head[::-1], 8, 4)
        # After another chunk, the size would be at another position.
        return contents, tf.where(begins(_PNG), width * height, max_pixels + 1)

    contents, pixels = tf.case(
        [
            (begins(b"\xff\xd8\xff"), jpeg),
            (begins(b"RIFF"), webp),
            (begins(b"GIF8"), gif),
            (begins(b"BM"), bmp),
        ],
        default=png,
    )
    return tf.where(pixels <= max_pixels, contents, b"")


def _number(values, position, size):
    """Read a little-endian integer."""
    return sum(values[position + i] * 256**i for i in range(size))
