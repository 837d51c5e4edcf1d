"""Follow the parts of JPEG, PNG and WebP files in a TensorFlow graph.

`align_keras.io.image_parts` does the same without TensorFlow.
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
from align_keras.preprocessing.tf_graph import set_up_when_called

# The markers that begin a progressive frame and end an image; the number of
# coefficients of a block that libjpeg fills in if they are missing.
_PROGRESSIVE = b"\xff\xc2"
_JPEG_END = 0xD9
_SMOOTHED = 10
_MAX_SCANS = 1000


def exif_block(contents):
    """Cut the EXIF block out of an image file.

    Args:
        contents: scalar string tensor.

    Returns:
        Scalar string tensor, empty if there is no such block.
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
        contents: scalar string tensor. The file.
        name: bytes. The name of the chunk.
        last: bytes. The name of the chunk at which the search ends.
        behind: int or int64 tensor. The position of the chunk at which the
            search begins.

    Returns:
        A pair of int64 tensors: the position of the chunk's body and its
        length, both 0 if there is no such chunk.
    """
    end = _length(contents)
    return _find(contents, _read_png_chunk, (name,), last, behind, end)


@set_up_when_called
def ends_within_a_chunk(contents):
    """Whether the end that a WebP states is not the end of a chunk.

    Args:
        contents: scalar string tensor. A WebP file.

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
    """Cut off a WebP after its pixels.

    If the chunk of pixels is damaged, TensorFlow would go on reading in the
    data after it; Pillow refuses such a file.

    Args:
        contents: scalar string tensor. A WebP file.

    Returns:
        Scalar string tensor. An incomplete file is returned unchanged.
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
    # The position after the field with the length of the rest.
    begin = tf.constant(8, tf.int64)

    def cut():
        digits = (end - begin) // [1, 256, 256**2, 256**3] % 256
        digits = tf.gather([bytes([n]) for n in range(256)], digits)
        pixels = tf.strings.substr(contents, begin, end - begin)
        return tf.strings.join([b"RIFF", *tf.unstack(digits), pixels])

    # Leave a truncated file as it is, so that the decoder refuses it.
    whole = (place > 0) & (end <= length) & (_claimed_end(contents) <= length)
    return tf.cond(whole, cut, lambda: contents)


def _webp_end(contents):
    import tensorflow as tf

    return tf.minimum(_length(contents), _claimed_end(contents))


def _claimed_end(contents):
    import tensorflow as tf

    return 8 + number(bytes_at(contents, tf.constant(4), 4)[::-1])


def lacks_scans(contents):
    """Whether a JPEG is progressive and ends before its last scan.

    libjpeg fills in missing coefficients of the lowest frequencies, and its
    releases do so differently. Such files arise when a program ends a file
    that it received only in part.

    Args:
        contents: scalar string tensor. A JPEG file.

    Returns:
        bool scalar tensor. Also true if there are segments other than tables
        between the scans, since some of them might look like scans.
    """
    import tensorflow as tf

    values = tf.io.decode_raw(contents, tf.uint8)
    # Pixels contain no markers, so this finds all progressive files, and a few
    # others with such a marker in their metadata.
    marked = (values[:-1] == 0xFF) & (values[1:] == _PROGRESSIVE[1])
    return tf.cond(
        tf.reduce_any(marked),
        lambda: _lacks_scans(contents, values),
        lambda: tf.constant(False),
    )


@set_up_when_called
def _lacks_scans(contents, values):
    import tensorflow as tf

    end = _length(contents)

    def find(name):
        return _find(contents, _read_segment, (name,), JPEG_LAST, 2, end)

    frame, length = find(_PROGRESSIVE)
    first, _ = find(JPEG_LAST)
    # The number of components, and then the name of each.
    components = bytes_at(contents, frame + 5, 13)
    count = components[0]
    components = components[1::3]
    # `first` lies after the marker and the length of the first scan.
    scans = tf.maximum(first - 4, 0)
    rest = values[scans:]
    mark, name = rest[:-1] == 0xFF, tf.cast(rest[1:], tf.int32)
    restart = (name >= 0xD0) & (name <= 0xD7)
    places = tf.where(mark & (name >= 0xC0) & (name < 0xFF) & ~restart)[:, 0]
    names = tf.gather(name, places)
    # Only up to the end of the image; another image may follow.
    over = tf.cumsum(tf.cast(names == _JPEG_END, tf.int32)) > 0
    places, names = places[~over], names[~over]
    tables = (names == 0xC4) | (names == 0xDB) | (names == 0xDD)
    known = tf.reduce_all(tables | (names == JPEG_LAST[1]))
    places = places[names == JPEG_LAST[1]]
    known &= tf.size(places) <= _MAX_SCANS
    places = places[:_MAX_SCANS]
    # A scan has a marker, a length, the number of components, two bytes for
    # each of them, and then the first and last coefficient that it sends and
    # the bits that are still to come.
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
    # The bits that the last scan of each coefficient left open.
    order = tf.range(tf.size(places)) * 16 + sent[:, 2] % 16
    last = tf.where(covers, order[:, None, None], -1)
    last = tf.reduce_max(last, 0)
    whole = (last >= 0) & (last % 16 == 0)
    whole |= slot[:, None] >= tf.cast(count, tf.int32)
    return (length > 0) & ~(known & tf.reduce_all(whole))


def holds(contents, mark):
    """Whether a file contains bytes that match a regular expression.

    This is a quick test before following the parts of the file.
    """
    import tensorflow as tf

    # This is ten times as fast as splitting strings.
    without = tf.strings.regex_replace(contents, mark, "", replace_global=False)
    return tf.strings.length(without) < tf.strings.length(contents)


def bytes_at(contents, position, size):
    """Read bytes as int64 numbers, as if zeros followed the file."""
    import tensorflow as tf

    end = tf.cast(tf.strings.length(contents), position.dtype)
    part = tf.strings.substr(contents, tf.minimum(position, end), size)
    part = tf.strings.join([part, b"\0" * size])
    part = tf.io.decode_raw(tf.strings.substr(part, 0, size), tf.uint8)
    return tf.cast(tf.ensure_shape(part, (size,)), tf.int64)


def number(digits):
    """Combine a few bytes to a number, with the most significant byte first."""
    return sum(digits[-1 - i] * 256**i for i in range(digits.shape[0]))


def _find(contents, read, wanted, last, position, end):
    """Find the position and length of the first part with a certain name.

    `read` takes the first bytes of a part and returns its name, the position
    and length of its body, and the step to the next part. `wanted` holds the
    name and, optionally, the first bytes of the body.
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
