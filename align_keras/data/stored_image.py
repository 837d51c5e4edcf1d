"""What a record keeps of an image: the file, or a smaller one."""

import io

from align_keras.preprocessing.agreement import decode_for_graph

# How resized images are stored: colours at full resolution, for they are small.
# On photos, that is 1.6 of 255 levels from the exact values; quality 90 is 2.4,
# and colours at half the resolution are 2.2.
JPEG = {"quality": 95, "subsampling": 0}


def image_to_store(read, max_pixels, resize=None):
    """Check an image by decoding it, and make what a record keeps of it.

    Args:
        read: callable. Returns the bytes of the file.
        max_pixels: int. Larger images are refused before they are decoded.
        resize: int. Height and width to resize to. Defaults to `None`: a file
            that TensorFlow reads stays as it is.

    Returns:
        A triple: bytes, width and height.

    Raises:
        OSError: The file cannot be read.
        TooManyPixels, ValueError: It is too large, or not an image.
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
    """Resize as training does, without smoothing."""
    import tensorflow as tf

    with tf.device("cpu"):
        resized = tf.image.resize(pixels, (side, side)).numpy()
    return resized.round().astype("uint8")


def _encode_image(pixels, form, **options):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()
