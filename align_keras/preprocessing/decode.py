"""Decode images to 8-bit RGB in a TensorFlow graph.

The code consists of TensorFlow operations, so it runs in tf.data and inside an
exported SavedModel. `align_keras.io.images` does the same with Pillow.
"""

import functools

from align_keras.preprocessing.gif import first_frame
from align_keras.preprocessing.image_parts import bytes_at
from align_keras.preprocessing.image_parts import ends_within_a_chunk
from align_keras.preprocessing.image_parts import holds
from align_keras.preprocessing.image_parts import lacks_scans
from align_keras.preprocessing.image_parts import number
from align_keras.preprocessing.image_parts import png_chunk
from align_keras.preprocessing.image_parts import webp_pixels
from align_keras.preprocessing.orientation import orientation
from align_keras.preprocessing.orientation import upright
from align_keras.preprocessing.tf_graph import set_up_when_called

# The first marker and the first byte of the next. libjpeg would also search for
# them after other bytes, in files that other libraries do not accept as JPEG.
_JPEG = b"\xff\xd8\xff"

# Adobe's marker, after the first two bytes of the file. It says that the inks
# of a JPEG with four channels are inverted.
_ADOBE_MARKER = b"\xff\xd8\xff\xee\x00\x0eAdobe\x00\x64\0\0\0\0\0"

# The bit by which an extended WebP announces alpha; and the bits for animations
# and reserved features, with which Pillow refuses a file.
_WEBP_ALPHA = 0x10
_WEBP_REFUSED = 0x02 | 0xC1

# Lengths of BMP headers, except for the shortest, that of OS/2.
_BMP_HEADERS = (40, 52, 56, 64, 108, 124)


def decode_in_graph(contents):
    """Decode one encoded image with TensorFlow operations.

    Args:
        contents: scalar string tensor. A whole image file: JPEG (gray,
            colour or CMYK), PNG (any), WebP (not animated), GIF (first frame,
            if it fills the screen) or BMP (24 and 32 bit). EXIF orientation
            is applied, and transparent images are put on white.

    Returns:
        Upright uint8 tensor `(height, width, 3)`. Any other file raises
        `tf.errors.InvalidArgumentError` when the operation runs.
    """
    return _traced()(contents)


def decode_eagerly(contents):
    """Decode a single image outside a graph.

    Before the first image, TensorFlow would optimise the graph for seconds. Run
    one by one, the operations take a tenth of a second.

    Args:
        contents: bytes, see `decode_in_graph`.

    Returns:
        Upright uint8 tensor `(height, width, 3)`. Any other file raises
        `tf.errors.InvalidArgumentError`.
    """
    import tensorflow as tf

    # The codes of a GIF are read in a loop, which is fast only in a graph.
    decode = _traced() if contents[:4] == b"GIF8" else _decode
    return decode(tf.constant(contents))


@functools.cache
def _traced():
    """Trace the hundreds of operations once for all data sets and exports."""
    import tensorflow as tf

    signature = [tf.TensorSpec((), tf.string)]
    return tf.function(_decode, input_signature=signature, autograph=False)


def _decode(contents):
    import tensorflow as tf

    # Append zeros, because positions beyond the end would be errors.
    head = tf.strings.join([tf.strings.substr(contents, 0, 34), b"\0" * 34])

    def begins(signature, position=0):
        part = tf.strings.substr(head, position, len(signature))
        return tf.equal(part, signature)

    webp = begins(b"RIFF") & begins(b"WEBP", 8)
    extended = begins(b"VP8X", 12)
    odd = extended & _bit_is_set(head, 20, _WEBP_REFUSED)
    # On animated WebP, every decoding operation of TensorFlow 2.20 writes
    # beyond its buffer; an empty file is refused properly. Also refuse the
    # files that Pillow refuses.
    odd |= tf.cond(
        webp,
        lambda: ends_within_a_chunk(contents),
        lambda: tf.constant(False),
    )
    contents = tf.where(webp & odd, b"", contents)
    opaque = extended & ~_bit_is_set(head, 20, _WEBP_ALPHA)
    # Only uncompressed BMP with a usual header and no palette: TensorFlow
    # would read palette indices as grey levels.
    bmp = begins(b"BM") & begins(b"\0\0\0\0", 30)
    header = number(bytes_at(head, tf.constant(14), 4)[::-1])
    bmp &= tf.reduce_any(tf.equal(header, _BMP_HEADERS))
    bmp &= begins(b"\x18\0", 28) | begins(b"\x20\0", 28)
    image = tf.case(
        [
            (begins(_JPEG), lambda: _decode_jpeg(contents)),
            (webp, lambda: _decode_webp(contents, opaque)),
            (begins(b"GIF8"), lambda: _decode_gif(contents)),
            (bmp, lambda: tf.io.decode_bmp(contents, channels=3)),
        ],
        # This also produces the error message for unknown formats.
        default=lambda: _decode_png(contents, head),
    )
    return tf.ensure_shape(upright(image, contents), (None, None, 3))


def _decode_jpeg(contents):
    import tensorflow as tf

    # Every other library uses the accurate transform, which is as fast.
    return tf.io.decode_jpeg(
        _with_adobe_marker(_whole_jpeg(contents)),
        channels=3,
        dct_method="INTEGER_ACCURATE",
    )


def _whole_jpeg(contents):
    """Return the file, or an empty one if decoders would fill in gaps."""
    import tensorflow as tf

    return tf.where(lacks_scans(contents), b"", contents)


def _with_adobe_marker(contents):
    """Mark the inks of a JPEG with four channels as inverted.

    By convention they are, but TensorFlow only inverts them with Adobe's
    marker. A marker of the file itself takes precedence, since it comes later.
    """
    import tensorflow as tf

    def mark():
        end = tf.strings.length(contents)
        rest = tf.strings.substr(contents, 2, end - 2)
        return tf.strings.join([_ADOBE_MARKER, rest])

    inks = tf.equal(tf.image.extract_jpeg_shape(contents)[2], 4)
    return tf.cond(inks, mark, lambda: contents)


def is_upright_jpeg(contents):
    """Whether a file is a JPEG that needs no turning, for `decode_window`.

    Args:
        contents: scalar string tensor. A whole image file.

    Returns:
        bool scalar tensor.
    """
    import tensorflow as tf

    head = tf.strings.substr(contents, 0, len(_JPEG))
    jpeg = tf.equal(head, _JPEG)
    return jpeg & tf.equal(orientation(contents), 1)


def decode_window(contents, corner, window_size, full_size):
    """Decode only the part of a JPEG file that a crop shows.

    The crop refers to the image resized to `full_size`. This decodes the
    corresponding part of the file, rounded to whole pixels. If that part is 2,
    4 or 8 times as large as the crop, libjpeg shrinks it by that factor while
    decoding, using only the lower frequencies of each block.

    Args:
        contents: scalar string tensor, see `is_upright_jpeg`.
        corner: int32 tensor `(2,)`. Top and left of the crop.
        window_size: pair of ints. Height and width of the crop.
        full_size: pair of ints. Height and width of the resized image.

    Returns:
        uint8 tensor `(height, width, 3)`, still to be resized to
        `window_size`.
    """
    import tensorflow as tf

    contents = _with_adobe_marker(_whole_jpeg(contents))
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


@set_up_when_called
def _decode_webp(contents, opaque):
    import tensorflow as tf

    contents = webp_pixels(contents)
    # Decoders differ on a file whose alpha is not announced; with three
    # channels, TensorFlow refuses it.
    return tf.cond(
        opaque,
        lambda: tf.io.decode_webp(contents, channels=3)[0],
        lambda: _over_white(tf.io.decode_webp(contents, channels=0)[0]),
    )


@set_up_when_called
def _decode_gif(contents):
    import tensorflow as tf

    return tf.io.decode_gif(first_frame(contents)[0])[0]


@set_up_when_called
def _decode_png(contents, head):
    import tensorflow as tf

    def with_key():
        # libpng looks for the transparent colour of a gray image, or of one
        # of three channels, only where four are asked for.
        image = tf.io.decode_png(contents, channels=4)
        # If libpng ignores a damaged key, alpha is 1 or more everywhere.
        shown = image[..., 3:] > 0
        return tf.where(shown, image[..., :3], tf.constant(255, tf.uint8))

    palette = tf.equal(tf.strings.substr(head, 25, 1), b"\x03")
    key, known = tf.cond(
        holds(contents, b"tRNS"),
        lambda: _key(contents, head),
        lambda: (False, True),
    )
    # Decoders differ on other keys, so refuse those, as an empty file.
    contents = tf.where(known, contents, b"")
    key &= known & ~palette
    return tf.cond(
        key,
        with_key,
        lambda: _over_white(tf.io.decode_png(contents, channels=0)),
    )


@set_up_when_called
def _key(contents, head):
    """Return whether a PNG has a transparency chunk, and whether we know.

    We do if all chunks can be followed and there is at most one such chunk,
    in the form that the standard requires.
    """
    import tensorflow as tf

    followed = png_chunk(contents, b"IEND")[0] > 0
    there = png_chunk(contents, b"tRNS")[0] > 0
    place, length = png_chunk(contents, b"tRNS", b"IDAT")
    # Continue after its checksum.
    another = png_chunk(contents, b"tRNS", behind=place + length + 4)[0]
    colours = png_chunk(contents, b"PLTE", b"tRNS")[1] // 3
    key = tf.reshape(bytes_at(contents, place, 6), (3, 2))
    about = bytes_at(head, tf.constant(24), 2)
    depth, colour = about[0], about[1]
    fits = key[:, 0] * 256 + key[:, 1] < 2**depth
    gray = tf.equal(colour, 0) & tf.equal(length, 2) & fits[0]
    rgb = tf.equal(colour, 2) & tf.equal(length, 6) & tf.reduce_all(fits)
    palette = tf.equal(colour, 3) & (length <= colours)
    known = (gray | rgb | palette) & (place > 0) & tf.equal(another, 0)
    return there, followed & (known | ~there)


def _over_white(image):
    """Convert gray, gray-alpha, RGB or RGBA (known at run time) to RGB."""
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
