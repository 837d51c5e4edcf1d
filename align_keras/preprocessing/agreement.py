"""Check whether Pillow and TensorFlow's graph decode a file alike."""

import numpy as np

from align_keras.io.image_parts import PNG_SIGNATURE
from align_keras.io.image_parts import is_common
from align_keras.io.images import TooManyPixels
from align_keras.io.images import decode_and_orient
from align_keras.io.images import open_image
from align_keras.preprocessing.decode import decode_in_graph

# Pillow's names of one format.
_JPEG = ("JPEG", "MPO")


def decode_for_graph(contents, max_pixels=None):
    """Decode an image, and tell whether the graph decodes it identically.

    Both decoders are run and compared. Common files, see `is_common`, are
    decoded only in the graph, since the decoders are known to agree on them.

    Args:
        contents: bytes. A whole image file.
        max_pixels: int. Refuse images with more pixels than this, before
            decoding them. Defaults to `None`, Pillow's own limit.

    Returns:
        A tuple of the upright uint8 array `(height, width, 3)` and a bool. The
        bool is true if `decode_in_graph` returns the same array for these
        bytes and they may be stored as they are: JPEG, and PNG and WebP that
        need no turning. BMP and GIF are smaller as PNG.

    Raises:
        TooManyPixels: The image is larger than `max_pixels`.
        ValueError: The bytes are not an image that Pillow can decode.
    """
    form = _format(contents, max_pixels)
    shown = _show(contents) if form in (*_JPEG, "PNG", "WEBP") else None
    if shown is not None and is_common(contents):
        return shown, True
    pixels, orientation = decode_and_orient(contents, max_pixels)
    same = shown is not None and np.array_equal(pixels, shown)
    # Few readers of records apply EXIF orientation to other formats.
    return pixels, same and (form in _JPEG or orientation == 1)


def _format(contents, max_pixels):
    try:
        return open_image(contents, max_pixels).format
    except TooManyPixels:
        raise
    except ValueError:
        # An irregular file may still decode below, such as some PNGs.
        return None


def _show(contents):
    """Return the image that the graph decodes from a file, or `None`."""
    import tensorflow as tf

    if contents[:8] == PNG_SIGNATURE and contents[12:16] != b"IHDR":
        return None  # Exports refuse it; Pillow accepts chunks in any order.
    try:
        with tf.device("cpu"):
            return decode_in_graph(contents).numpy()
    except tf.errors.InvalidArgumentError:
        return None
