"""Encoded images to 8-bit RGB in a TensorFlow graph.

Built from TensorFlow operations, so that it runs in tf.data and inside an
exported SavedModel. `align_keras.io.images` does the same with Pillow.
"""

import sys

import numpy as np

from align_keras.io.images import EXIF_HEADER
from align_keras.io.images import FLIPPED_HORIZONTALLY
from align_keras.io.images import FLIPPED_VERTICALLY
from align_keras.io.images import JPEG_APP1
from align_keras.io.images import JPEG_SCAN_MARKER
from align_keras.io.images import MAX_EXIF_BYTES
from align_keras.io.images import MAX_EXIF_ENTRIES
from align_keras.io.images import MAX_JPEG_SEGMENTS
from align_keras.io.images import ORIENTATION_TAG
from align_keras.io.images import PNG_EXIF
from align_keras.io.images import WEBP_EXIF
from align_keras.preprocessing.gif import first_frame

# What says that the inks of a JPEG of four channels are inverted, behind the
# two bytes that begin the file.
_ADOBE_MARKER = b"\xff\xd8\xff\xee\x00\x0eAdobe\x00\x64\0\0\0\0\0"


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
            colour or CMYK), PNG (any), WebP (not animated), GIF (first frame,
            if it fills the screen), BMP (24 and 32 bit). EXIF orientation is
            applied, and transparency lies over white.

    Returns:
        uint8 tensor `(height, width, 3)`, upright. Anything else raises
        `tf.errors.InvalidArgumentError` when the operation runs.
    """
    import tensorflow as tf

    # Zeros behind the end, because positions beyond it would be errors.
    head = tf.strings.join([tf.strings.substr(contents, 0, 34), b"\0" * 34])

    def begins(signature, position=0):
        part = tf.strings.substr(head, position, len(signature))
        return tf.equal(part, signature)

    webp = begins(b"RIFF") & begins(b"WEBP", 8)
    animated = begins(b"VP8X", 12) & _bit_is_set(head, 20, 0x02)
    # On animated WebP every decoding operation of TensorFlow 2.20 writes
    # beyond its buffer. An empty file is refused properly.
    contents = tf.where(webp & animated, b"", contents)
    # Uncompressed, behind a header of the usual form. TensorFlow would take
    # a palette's indices for grey levels.
    bmp = begins(b"BM") & begins(b"\0\0\0\0", 30) & ~begins(b"\x0c", 14)
    bmp &= begins(b"\x18\0", 28) | begins(b"\x20\0", 28)
    jpeg = begins(b"\xff\xd8")
    image, has_exif = tf.case(
        [
            (
                jpeg,
                lambda: (
                    _decode_jpeg(contents),
                    _holds(contents, EXIF_HEADER),
                ),
            ),
            (
                webp,
                lambda: (_decode_webp(contents), _holds(contents, WEBP_EXIF)),
            ),
            (begins(b"GIF8"), lambda: (_decode_gif(contents), False)),
            (bmp, lambda: (tf.io.decode_bmp(contents, channels=3), False)),
        ],
        # Also what gives unknown formats their error message.
        default=lambda: (
            _decode_png(contents, head),
            _holds(contents, PNG_EXIF),
        ),
    )

    def turn():
        exif = tf.case(
            [
                (jpeg, lambda: _exif_of_jpeg(contents)),
                (webp, lambda: _exif_of_webp(contents)),
            ],
            default=lambda: _split_at(contents, PNG_EXIF)[1],
        )
        return _upright_in_graph(image, _tiff_orientation_in_graph(exif))

    image = tf.cond(has_exif, turn, lambda: image)
    return tf.ensure_shape(image, (None, None, 3))


def _decode_jpeg(contents):
    import tensorflow as tf

    # The accurate transform is what every other library uses, and is as fast.
    return tf.io.decode_jpeg(
        _with_adobe_marker(contents),
        channels=3,
        dct_method="INTEGER_ACCURATE",
    )


def _with_adobe_marker(contents):
    """Say of a JPEG of four channels that its inks are inverted.

    They are by convention, but TensorFlow believes it only where Adobe's
    marker says so. A marker of the file's own counts more, standing behind.
    """
    import tensorflow as tf

    def mark():
        end = tf.strings.length(contents)
        rest = tf.strings.substr(contents, 2, end - 2)
        return tf.strings.join([_ADOBE_MARKER, rest])

    inks = tf.equal(tf.image.extract_jpeg_shape(contents)[2], 4)
    return tf.cond(inks, mark, lambda: contents)


def is_upright_jpeg(contents):
    """Whether `decode_window` takes a file: a JPEG that is not to be turned.

    Args:
        contents: scalar string tensor, a whole image file.

    Returns:
        bool scalar tensor.
    """
    import tensorflow as tf

    def is_upright():
        exif = _exif_of_jpeg(contents)
        return tf.equal(_tiff_orientation_in_graph(exif), 1)

    upright = tf.cond(_holds(contents, EXIF_HEADER), is_upright, lambda: True)
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

    contents = _with_adobe_marker(contents)
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


def _decode_gif(contents):
    import tensorflow as tf

    return tf.io.decode_gif(first_frame(contents)[0])[0]


def _decode_png(contents, head):
    import tensorflow as tf

    def with_key():
        # libpng looks for the transparent colour of a gray image, or of one
        # of three channels, only where four are asked for.
        image = tf.io.decode_png(contents, channels=4)
        # Of a key that is damaged, and left out, alpha is 1 or more.
        shown = image[..., 3:] > 0
        return tf.where(shown, image[..., :3], tf.constant(255, tf.uint8))

    palette = tf.equal(tf.strings.substr(head, 25, 1), b"\x03")
    key = _holds(contents, b"tRNS")
    known = tf.cond(key, lambda: _key_is_known(contents, head), lambda: True)
    # Decoders differ on other keys. An empty file is refused.
    contents = tf.where(known, contents, b"")
    key &= known & ~palette
    return tf.cond(
        key,
        with_key,
        lambda: _over_white(tf.io.decode_png(contents, channels=0)),
    )


def _key_is_known(contents, head):
    """Whether the transparency of a PNG is one chunk as the standard has it."""
    import tensorflow as tf

    def number(text):
        """The four bytes at the end of a text."""
        text = tf.strings.substr(tf.strings.join([b"\0" * 4, text]), -4, 4)
        places = tf.cast(tf.io.decode_raw(text, tf.uint8), tf.int64)
        return tf.reduce_sum(places * [2**24, 2**16, 2**8, 1])

    def split(text, mark):
        return tf.raw_ops.StringSplitV2(input=text[None], sep=mark).values

    header = _split_at(tf.strings.join([contents, b"IDAT"]), b"IDAT")[0]
    parts = split(header, b"tRNS")
    before = split(parts[0], b"PLTE")
    entries = tf.where(tf.size(before) > 1, number(before[0]) // 3, 0)
    length = number(parts[0])
    body = tf.strings.join([parts[-1], b"\0" * 6])
    high = tf.io.decode_raw(tf.strings.substr(body, 0, 6), tf.uint8)[::2]
    about = tf.io.decode_raw(tf.strings.substr(head, 24, 2), tf.uint8)
    depth, colour = about[0], about[1]
    gray = tf.equal(colour, 0) & tf.equal(length, 2)
    rgb = tf.equal(colour, 2) & tf.equal(length, 6)
    small = tf.equal(depth, 16) | tf.where(
        gray, tf.equal(high[0], 0), tf.reduce_all(tf.equal(high, 0))
    )
    palette = tf.equal(colour, 3) & (length <= entries)
    # Two parts: there is one such chunk.
    return tf.equal(tf.size(parts), 2) & (((gray | rgb) & small) | palette)


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


# === Orientation ===


def _holds(contents, mark):
    """Whether a file holds certain bytes, which an expression may name."""
    import tensorflow as tf

    # Ten times as fast as the splitting of strings.
    without = tf.strings.regex_replace(contents, mark, "", replace_global=False)
    return tf.strings.length(without) < tf.strings.length(contents)


def _split_at(contents, mark):
    """What stands before and behind the first mark, which is there."""
    import tensorflow as tf

    parts = tf.raw_ops.StringSplitV2(
        input=contents[None], sep=mark, maxsplit=1
    ).values
    return parts[0], parts[1]


def _exif_of_jpeg(contents):
    """The EXIF block of a JPEG, as `exif_orientation` finds it."""
    import tensorflow as tf

    before, block = _split_at(contents, EXIF_HEADER)
    # Zeros behind the end, because positions beyond it would be errors.
    values = tf.io.decode_raw(tf.strings.join([before, b"\0" * 4]), tf.uint8)
    place = tf.size(values) - 4

    def follow(position):
        head = tf.cast(values[position : position + 4], tf.int32)
        length = tf.where(
            tf.equal(head[1], 0xFF), 1, 2 + 256 * head[2] + head[3]
        )
        ends = tf.not_equal(head[0], 0xFF) | tf.equal(head[1], JPEG_SCAN_MARKER)
        return (tf.where(ends, place, position + length),)

    position = tf.while_loop(
        lambda position: position + 4 < place,
        follow,
        (tf.constant(2),),
        maximum_iterations=MAX_JPEG_SEGMENTS,
    )
    position = tf.minimum(position[0], place)
    segment = tf.equal(position + 4, place) & tf.equal(
        values[position + 1], JPEG_APP1
    )
    return tf.where(segment, block, b"")


def _exif_of_webp(contents):
    import tensorflow as tf

    # The length of the chunk comes first.
    chunk = tf.strings.join([_split_at(contents, WEBP_EXIF)[1], b"\0" * 4])
    return tf.strings.substr(chunk, 4, MAX_EXIF_BYTES)


def _tiff_orientation_in_graph(block):
    """`tiff_orientation`, as TensorFlow operations."""
    import tensorflow as tf

    # Zeros behind the end: positions that a broken block invents read 0.
    zeros = b"\0" * 16
    head = tf.strings.substr(tf.strings.join([block, zeros]), 0, 6)
    skipped = tf.where(tf.equal(head, EXIF_HEADER), len(EXIF_HEADER), 0)
    block = tf.strings.substr(block, skipped, MAX_EXIF_BYTES)
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
    values = number(tf.gather_nd(entries, tf.where(found)) + 8, 2)
    value = tf.concat([values, [1]], 0)[0]
    return tf.where((value >= 1) & (value <= 8), value, 1)


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
