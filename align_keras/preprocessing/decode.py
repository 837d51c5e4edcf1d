"""Encoded pictures to 8-bit RGB, in a TensorFlow graph and without one.

`decode_in_graph` is built from TensorFlow operations, so that it runs in
tf.data and inside an exported SavedModel. `decode_with_pillow` needs no
TensorFlow. The two agree: the same JPEG arithmetic, orientation rule,
treatment of transparency (a white ground) and of 16 bits (the high byte).
Pillow reads more formats (TIFF, palette BMP, animated WebP), orientation
outside JPEG, and transparency in GIF, which is black in the graph.
"""

import io
import sys

import numpy as np

# Where a camera's EXIF block can begin: it precedes the picture data.
_EXIF_SEARCH_BYTES = 65536
_EXIF_HEADER = b"Exif\x00\x00"
_ORIENTATION_TAG = 0x0112
# More entries than any camera writes in the first directory.
_MAX_EXIF_ENTRIES = 128

# What each scan of a JPEG begins with, and how many may be: encoders write ten
# or so, and each costs a pass over the whole picture.
JPEG_SCAN = b"\xff\xda\x00"
MAX_JPEG_SCANS = 100

# Formats that hold photographs. Others of Pillow's run programs (EPS) or are
# rarely tested.
_PILLOW_FORMATS = (
    "AVIF",
    "BMP",
    "GIF",
    "JPEG",
    "JPEG2000",
    "MPO",
    "PNG",
    "PPM",
    "TIFF",
    "WEBP",
)

# An EXIF orientation is a transposition (for 5 and above), then these flips.
_FLIPPED_VERTICALLY = (3, 4, 7, 8)
_FLIPPED_HORIZONTALLY = (2, 3, 6, 7)


class TooManyPixels(ValueError):
    """A picture whose decoded form would not fit the allowed memory."""


def in_tf_graph():
    """Whether the caller is being traced into a TensorFlow graph.

    Returns:
        bool. False where TensorFlow has not been imported at all.
    """
    tf = sys.modules.get("tensorflow")
    return hasattr(tf, "executing_eagerly") and not tf.executing_eagerly()


# === Without TensorFlow ===


def decode_with_pillow(contents, max_pixels=None):
    """Decode one encoded picture with Pillow.

    Args:
        contents: bytes, a whole picture file; or an open `PIL.Image.Image`.
        max_pixels: int. Refuse pictures with more pixels than this, before
            decoding them. Defaults to `None`, Pillow's own limit.

    Returns:
        NumPy array uint8 `(height, width, 3)`, upright.

    Raises:
        TooManyPixels: The picture is larger than `max_pixels`.
        ValueError: The bytes are no picture that Pillow can decode.
    """
    return decode_and_describe(contents, max_pixels)[0]


def decode_and_describe(contents, max_pixels=None):
    """`decode_with_pillow`, with whether the graph can decode these bytes.

    Returns:
        Tuple of the uint8 array `(height, width, 3)` and a bool: true when
        `decode_in_graph` gives the same picture for the same bytes.
    """
    from PIL import Image

    if isinstance(contents, Image.Image):
        return _to_rgb(contents), False
    if not contents:
        raise ValueError("the file holds 0 bytes")
    try:
        Image.init()
        formats = [name for name in _PILLOW_FORMATS if name in Image.OPEN]
        image = Image.open(io.BytesIO(contents), formats=formats)
        _check_pixels(image, max_pixels)
        _check_scans(image, contents)
        pixels = _to_rgb(image)
    except Image.DecompressionBombError as error:
        raise TooManyPixels(str(error)) from error
    except TooManyPixels:
        raise
    except Exception as error:
        # Pillow's plug-ins raise a dozen types on broken files.
        raise ValueError(str(error).splitlines()[0][:200]) from error
    if image.format in ("JPEG", "MPO"):
        return _upright(pixels, exif_orientation(contents)), True
    orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    # The graph shows other formats as they lie, and some not at all.
    still = getattr(image, "n_frames", 1) == 1
    graph_agrees = image.format in ("PNG", "WEBP") and still
    return _upright(pixels, orientation), graph_agrees and orientation == 1


def exif_orientation(contents):
    """The orientation that a camera noted in a JPEG file.

    Args:
        contents: bytes. The file, or at least its first 64 KiB.

    Returns:
        int from 1 (upright, also when nothing is noted) to 8, as in the EXIF
        standard's tag 0x0112.
    """
    head = contents[:_EXIF_SEARCH_BYTES]
    start = head.find(_EXIF_HEADER)
    if start < 0:
        return 1
    tiff = start + len(_EXIF_HEADER)
    order = "little" if head[tiff : tiff + 1] == b"I" else "big"

    def number(position, size):
        return int.from_bytes(head[position : position + size], order)

    directory = tiff + number(tiff + 4, 4)
    for entry in range(min(number(directory, 2), _MAX_EXIF_ENTRIES)):
        position = directory + 2 + 12 * entry
        if number(position, 2) == _ORIENTATION_TAG:
            value = number(position + 8, 2)
            return value if 1 <= value <= 8 else 1
    return 1


def _check_pixels(image, max_pixels):
    if max_pixels is not None and image.width * image.height > max_pixels:
        raise TooManyPixels(
            f"{image.width}x{image.height} pixels, more than {max_pixels}"
        )


def _check_scans(image, contents):
    scans = contents.count(JPEG_SCAN)
    if image.format in ("JPEG", "MPO") and scans > MAX_JPEG_SCANS:
        raise ValueError(f"a JPEG of {scans} scans, more than {MAX_JPEG_SCANS}")


def _to_rgb(image):
    if image.mode.startswith("I;16"):
        high_byte = (np.asarray(image).astype("uint16") >> 8).astype("uint8")
        return np.repeat(high_byte[..., None], 3, axis=-1)
    transparent = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or (
        image.mode in ("P", "RGB") and "transparency" in image.info
    )
    if not transparent:
        return np.asarray(image.convert("RGB"))
    # As in the graph, in 16 bits.
    pixels = np.asarray(image.convert("RGBA")).astype("uint16")
    alpha = pixels[..., 3:]
    pixels = pixels[..., :3] * alpha + 255 * (255 - alpha)
    return ((pixels + 127) // 255).astype("uint8")


def _upright(pixels, orientation):
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in _FLIPPED_VERTICALLY:
        pixels = pixels[::-1]
    if orientation in _FLIPPED_HORIZONTALLY:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


# === In the graph ===


def decode_in_graph(contents):
    """Decode one encoded picture with TensorFlow operations.

    Args:
        contents: scalar string tensor, a whole picture file: JPEG (gray,
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
        contents: scalar string tensor, a whole picture file.

    Returns:
        bool scalar tensor.
    """
    import tensorflow as tf

    upright = tf.equal(_exif_orientation_in_graph(contents), 1)
    return tf.equal(tf.strings.substr(contents, 0, 2), b"\xff\xd8") & upright


def decode_window(contents, corner, window_size, full_size):
    """Decode the part of a JPEG file that a crop shows.

    What the picture would be at `full_size` is cropped; here, the part of the
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
        # the memory of a large picture.
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

    head = tf.strings.substr(contents, 0, _EXIF_SEARCH_BYTES)
    # Most files have no such block, which a search of strings finds out in no
    # time.
    parts = tf.raw_ops.StringSplitV2(
        input=head[None], sep=_EXIF_HEADER, maxsplit=1
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
        count = tf.minimum(number(directory, 2), _MAX_EXIF_ENTRIES)
        entries = directory + 2 + 12 * tf.range(count)
        found = tf.equal(number(entries, 2), _ORIENTATION_TAG)
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
        member(_FLIPPED_VERTICALLY), lambda: image[::-1], lambda: image
    )
    return tf.cond(
        member(_FLIPPED_HORIZONTALLY), lambda: image[:, ::-1], lambda: image
    )
