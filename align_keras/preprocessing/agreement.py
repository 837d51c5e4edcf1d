"""Whether Pillow and TensorFlow's graph show the same image for a file."""

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
    """Decode an image, and tell whether the graph shows the same.

    Both decoders are asked, except that they are known to agree on common
    files, see `is_common`; of these the graph's image is taken.

    Args:
        contents: bytes, a whole image file.
        max_pixels: int. Refuse images with more pixels than this, before
            decoding them. Defaults to `None`, Pillow's own limit.

    Returns:
        Tuple of the uint8 array `(height, width, 3)`, upright, and a bool:
        true when `decode_in_graph` gives the same array for these bytes, and
        they may be stored: JPEG, PNG and WebP that need no turning. BMP and
        GIF are smaller as PNG.

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
    # Few readers of records turn other formats.
    return pixels, same and (form in _JPEG or orientation == 1)


def _format(contents, max_pixels):
    try:
        return open_image(contents, max_pixels).format
    except TooManyPixels:
        raise
    except ValueError:
        # Of a PNG, more is read below, where it is not as it should be.
        return None


def _show(contents):
    """The graph's image of a file, or `None`."""
    import tensorflow as tf

    if contents[:8] == PNG_SIGNATURE and contents[12:16] != b"IHDR":
        return None  # Exports refuse it; Pillow takes chunks in any order.
    try:
        with tf.device("cpu"):
            return decode_in_graph(contents).numpy()
    except tf.errors.InvalidArgumentError:
        return None
