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

# What a progressive frame begins with, and an image ends with; coefficients of
# a block that libjpeg fills in where they are missing.
_PROGRESSIVE = b"\xff\xc2"
_JPEG_END = 0xD9
_SMOOTHED = 10
_MAX_SCANS = 1000


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
        end = _webp_end(contents)
        return _find(contents, _read_webp_chunk, (WEBP_EXIF,), b"", 12, end)

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


def ends_within_a_chunk(contents):
    """Whether a WebP is to end, as it says, elsewhere than a chunk.

    Args:
        contents: scalar string tensor, a WebP file.

    Returns:
        bool scalar tensor.
    """
    import tensorflow as tf

    end = _webp_end(contents)

    def follow(position):
        head = bytes_at(contents, position, 8)
        return (position + _read_webp_chunk(head)[3],)

    (position,) = tf.while_loop(
        lambda position: position < end,
        follow,
        (tf.constant(12, tf.int64),),
        maximum_iterations=MAX_PARTS,
    )
    return tf.not_equal(position, end)


def webp_pixels(contents):
    """End a WebP with its pixels.

    TensorFlow would go on reading pixels in what follows them where their own
    chunk is damaged, which Pillow refuses.

    Args:
        contents: scalar string tensor, a WebP file.

    Returns:
        Scalar string tensor. A file that lacks some of it stays as it is.
    """
    import tensorflow as tf

    length = _length(contents)
    head = bytes_at(contents, tf.constant(0), 16)
    # The first chunk of an extended file has ten bytes.
    first = tf.where(_begins(head[12:], WEBP_EXTENDED), 30, 12)
    place, size = _find(
        contents, _read_webp_chunk, (b"VP8",), b"", first, length
    )
    end = place + size + size % 2
    # Behind the length of what follows.
    begin = tf.constant(8, tf.int64)

    def cut():
        digits = (end - begin) // [1, 256, 256**2, 256**3] % 256
        digits = tf.gather([bytes([n]) for n in range(256)], digits)
        pixels = tf.strings.substr(contents, begin, end - begin)
        return tf.strings.join([b"RIFF", *tf.unstack(digits), pixels])

    # A file that is cut off is to be refused as such.
    whole = (place > 0) & (end <= length) & (_claimed_end(contents) <= length)
    return tf.cond(whole, cut, lambda: contents)


def _webp_end(contents):
    import tensorflow as tf

    return tf.minimum(_length(contents), _claimed_end(contents))


def _claimed_end(contents):
    import tensorflow as tf

    return 8 + number(bytes_at(contents, tf.constant(4), 4)[::-1])


def lacks_scans(contents):
    """Whether a JPEG is progressive and ends before its coefficients are whole.

    libjpeg fills in what is missing of the lowest frequencies of a block, and
    its releases do that differently. Files are cut like this where a program
    ended what it had of a file.

    Args:
        contents: scalar string tensor, a JPEG file.

    Returns:
        bool scalar tensor. True also where other segments than tables stand
        between the scans, among which some might look like scans.
    """
    import tensorflow as tf

    values = tf.io.decode_raw(contents, tf.uint8)
    # Pixels hold no markers, so that only what is progressive is looked into,
    # and what has such a marker within its notes.
    marked = (values[:-1] == 0xFF) & (values[1:] == _PROGRESSIVE[1])
    return tf.cond(
        tf.reduce_any(marked),
        lambda: _lacks_scans(contents, values),
        lambda: tf.constant(False),
    )


def _lacks_scans(contents, values):
    import tensorflow as tf

    end = _length(contents)

    def find(name):
        return _find(contents, _read_segment, (name,), JPEG_LAST, 2, end)

    frame, length = find(_PROGRESSIVE)
    first, _ = find(JPEG_LAST)
    # The name of each component in the frame, behind its number.
    components = bytes_at(contents, frame + 5, 13)
    count = components[0]
    components = components[1::3]
    # Behind the two bytes and the length of the first scan.
    scans = tf.maximum(first - 4, 0)
    rest = values[scans:]
    mark, name = rest[:-1] == 0xFF, tf.cast(rest[1:], tf.int32)
    restart = (name >= 0xD0) & (name <= 0xD7)
    places = tf.where(mark & (name >= 0xC0) & (name < 0xFF) & ~restart)[:, 0]
    names = tf.gather(name, places)
    # Up to the end; another image may follow.
    over = tf.cumsum(tf.cast(names == _JPEG_END, tf.int32)) > 0
    places, names = places[~over], names[~over]
    tables = (names == 0xC4) | (names == 0xDB) | (names == 0xDD)
    known = tf.reduce_all(tables | (names == JPEG_LAST[1]))
    places = places[names == JPEG_LAST[1]]
    known &= tf.size(places) <= _MAX_SCANS
    places = places[:_MAX_SCANS]
    # Marker, length, number of components, two bytes of each, and then what
    # is sent of each: the first and last coefficient, and the bits to come.
    header = tf.cast(tf.pad(rest, [[0, 16]]), tf.int32)
    header = tf.gather(header, places[:, None] + tf.range(16, dtype=tf.int64))
    several = header[:, 4]
    sent = tf.gather(
        header,
        5 + 2 * tf.clip_by_value(several, 0, 4)[:, None] + tf.range(3),
        batch_dims=1,
    )
    slot = tf.range(4)
    of = header[:, 5:13:2, None] == tf.cast(components, tf.int32)
    of = tf.reduce_any(of & (slot[:, None] < several[:, None, None]), 1)
    wanted = tf.range(_SMOOTHED)
    sent_here = (sent[:, :1] <= wanted) & (wanted <= sent[:, 1:2])
    covers = of[:, :, None] & sent_here[:, None, :]
    # What the last scan of each left open.
    order = tf.range(tf.size(places)) * 16 + sent[:, 2] % 16
    last = tf.where(covers, order[:, None, None], -1)
    last = tf.reduce_max(last, 0)
    whole = (last >= 0) & (last % 16 == 0)
    whole |= slot[:, None] >= tf.cast(count, tf.int32)
    return (length > 0) & ~(known & tf.reduce_all(whole))


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
