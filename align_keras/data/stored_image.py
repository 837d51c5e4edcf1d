"""Prepare an image for a record: as it is, converted to PNG, or resized."""

import io

from align_keras.preprocessing.agreement import decode_for_graph

# Resized images are small, so they are stored with colours at full resolution.
# On photos, the error is 1.6 of 255 levels; with quality 90 it is 2.4, and with
# colours at half the resolution 2.2.
JPEG = {"quality": 95, "subsampling": 0}


def image_to_store(read, max_pixels, resize=None):
    """Check an image by decoding it, and return the bytes to store.

    Args:
        read: callable. Returns the bytes of the file.
        max_pixels: int. Larger images are refused before they are decoded.
        resize: int. Height and width to resize to. Defaults to `None`: keep a
            file that TensorFlow decodes like Pillow as it is.

    Returns:
        A triple: bytes, width and height.

    Raises:
        OSError: The file cannot be read.
        TooManyPixels, ValueError: The image is too large, or not an image.
    """
    contents = read()
    pixels, keep = decode_for_graph(contents, max_pixels)
    if resize and pixels.shape[:2] != (resize, resize):
        pixels = _resize(pixels, resize)
        contents = _encode_image(pixels, "JPEG", **JPEG)
    elif not keep:
        contents = _encode_image(pixels, "PNG")
    height, width = pixels.shape[:2]
    return contents, width, height


def _resize(pixels, side):
    """Resize as training does, without antialiasing."""
    import tensorflow as tf

    with tf.device("cpu"):
        resized = tf.image.resize(pixels, (side, side)).numpy()
    return resized.round().astype("uint8")


def _encode_image(pixels, form, **options):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()
