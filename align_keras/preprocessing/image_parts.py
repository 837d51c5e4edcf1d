"""The parts of JPEG, PNG and WebP files, followed in a TensorFlow graph.

See `align_keras.io.image_parts`, which does the same without TensorFlow.
"""

from align_keras.io.image_parts import EXIF_HEADER
from align_keras.io.image_parts import JPEG_EXIF
from align_keras.io.image_parts import JPEG_LAST
from align_keras.io.image_parts import MAX_EXIF_BYTES
from align_keras.io.image_parts import MAX_PARTS
from align_keras.io.image_parts import PNG_EXIF
from align_keras.io.image_parts import PNG_LAST
from align_keras.io.image_parts import PNG_SIGNATURE
from align_keras.io.image_parts import WEBP_EXIF
from align_keras.io.image_parts import WEBP_EXTENDED
from align_keras.io.image_parts import WEBP_HAS_EXIF


def exif_block(contents):
    """Cut the EXIF block out of an image file.

    Args:
        contents: scalar string tensor.

    Returns:
        Scalar string tensor, empty where there is none.
    """
    import tensorflow as tf

    length = _length(contents)
    head = bytes_at(contents, tf.constant(0), 21)
    webp = _begins(head, b"RIFF") & _begins(head[8:], b"WEBP" + WEBP_EXTENDED)
    webp &= tf.bitwise.bitwise_and(head[20], WEBP_HAS_EXIF) > 0

    def in_jpeg():
        wanted = (JPEG_EXIF, EXIF_HEADER)
        return _find(contents, _read_segment, wanted, JPEG_LAST, 2, length)

    def in_webp():
        riff = tf.minimum(length, 8 + number(head[4:8][::-1]))
        return _find(contents, _read_webp_chunk, (WEBP_EXIF,), b"", 12, riff)

    none = tf.constant(0, tf.int64)
    place, size = tf.case(
        [
            (_begins(head, b"\xff\xd8"), in_jpeg),
            (
                _begins(head, PNG_SIGNATURE),
                lambda: png_chunk(contents, PNG_EXIF),
            ),
            (webp, in_webp),
        ],
        default=lambda: (none, none),
    )
    return tf.strings.substr(contents, place, tf.minimum(size, MAX_EXIF_BYTES))


def png_chunk(contents, name, last=PNG_LAST, behind=8):
    """Find a chunk of a PNG.

    Args:
        contents: scalar string tensor, the file.
        name: bytes.
        last: bytes. The name of a chunk behind which none is looked for.
        behind: int or int64 tensor. Where a chunk begins, perhaps that one.

    Returns:
        Pair of int64 tensors: where its body begins, and its length; 0 and 0
        where there is none.
    """
    end = _length(contents)
    return _find(contents, _read_png_chunk, (name,), last, behind, end)


def holds(contents, mark):
    """Whether a file holds certain bytes, which an expression may name.

    Only where it does its parts need to be followed.
    """
    import tensorflow as tf

    # Ten times as fast as the splitting of strings.
    without = tf.strings.regex_replace(contents, mark, "", replace_global=False)
    return tf.strings.length(without) < tf.strings.length(contents)


def bytes_at(contents, position, size):
    """Read numbers from 0 to 255, as if zeros followed the file."""
    import tensorflow as tf

    end = tf.cast(tf.strings.length(contents), position.dtype)
    part = tf.strings.substr(contents, tf.minimum(position, end), size)
    part = tf.strings.join([part, b"\0" * size])
    part = tf.io.decode_raw(tf.strings.substr(part, 0, size), tf.uint8)
    return tf.cast(tf.ensure_shape(part, (size,)), tf.int64)


def number(digits):
    """Combine a few bytes to a number, the highest first."""
    return sum(digits[-1 - i] * 256**i for i in range(digits.shape[0]))


def _find(contents, read, wanted, last, position, end):
    """The place and length of the first part that has a name.

    `read` tells of the bytes at a part's beginning its name, where its body
    begins, how long this is, and the step to the next part. `wanted` is the
    name, and perhaps what the body begins with.
    """
    import tensorflow as tf

    def follow(position, place, size, more):
        head = bytes_at(contents, position, 10)
        name, begin, body, step = read(head)
        found = _begins(name, wanted[0]) & (body >= len(b"".join(wanted[1:])))
        for text in wanted[1:]:
            found &= _begins(head[begin:], text)
        ends = _begins(name, last) if last else False
        place = tf.where(found, position + begin, place)
        size = tf.where(found, body, size)
        return position + step, place, size, ~(found | ends)

    none = tf.constant(0, tf.int64)
    _, place, size, _ = tf.while_loop(
        lambda position, place, size, more: more & (position < end),
        follow,
        (tf.cast(position, tf.int64), none, none, tf.constant(True)),
        maximum_iterations=MAX_PARTS,
    )
    return tf.minimum(place, end), size


def _length(contents):
    import tensorflow as tf

    return tf.cast(tf.strings.length(contents), tf.int64)


def _begins(values, text):
    import tensorflow as tf

    return tf.reduce_all(tf.equal(values[: len(text)], list(text)))


def _read_segment(head):
    import tensorflow as tf

    fill, marker = head[0], head[1]
    filling = tf.not_equal(fill, 0xFF) | tf.equal(marker, 0xFF)
    alone = (marker <= 1) | ((marker >= 0xD0) & (marker <= 0xD8))
    length = number(head[2:4])
    step = tf.where(~alone, 2 + length, 2)
    step = tf.where(~filling, step, 1)
    return head[:2], 4, length - 2, step


def _read_png_chunk(head):
    length = number(head[:4])
    return head[4:8], 8, length, length + 12


def _read_webp_chunk(head):
    length = number(head[4:8][::-1])
    return head[:4], 8, length, 8 + length + length % 2
