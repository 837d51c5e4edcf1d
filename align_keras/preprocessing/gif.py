"""Cut out the first frame of a GIF in a TensorFlow graph."""

# Maximum number of sub-blocks, of up to 255 bytes, before the first frame ends.
_MAX_GIF_BLOCKS = 1 << 14
# Number of codes to process at a time, the size of a full table; and maximum
# number of times: a file with more tables than that would not be compressed.
_MAX_CODES = 1 << 12
_MAX_TABLES = 1 << 14


def first_frame(contents):
    """Cut off a GIF after its first frame, and make transparency white.

    A GIF is a chain of blocks: a header with colours, then extensions and
    frames, each followed by sub-blocks that start with their length. The last
    sub-block has the length 0.

    Args:
        contents: scalar string tensor. A GIF file.

    Returns:
        A pair. The first item is a scalar string tensor: the file with only
        that frame, in which the transparent colour is white. It is empty if
        the frame does not fill the screen, or if the chain or the code of the
        pixels is broken. The second is the number of pixels that a decoder
        allocates.
    """
    import tensorflow as tf

    values = tf.io.decode_raw(contents, tf.uint8)
    size = tf.size(values, tf.int64)
    # Positions beyond the end read as 0, which ends sub-blocks and starts no
    # block.
    values = tf.concat([values, tf.zeros(16, tf.uint8)], 0)

    def at(position):
        return tf.cast(values[tf.minimum(position, size)], tf.int64)

    def pair(position):
        return at(position) + 256 * at(position + 1)

    def colours(flags):
        count = tf.bitwise.left_shift(tf.constant(2, tf.int64), flags % 8)
        return tf.where(flags >= 128, count, 0)

    none = tf.constant(0, tf.int64)

    def follow(position, inside, frame, control, blocks, _):
        """Follow one block: (position, in a frame's data?, places, more?)."""
        length = at(position)
        # The position of a length within a frame's data; 0 elsewhere.
        place = tf.where(tf.equal(inside, 2), position, 0)
        blocks = blocks.write(blocks.size(), place)

        def begin():
            # The descriptor of a frame, or the two bytes of an extension.
            is_frame = tf.equal(length, 0x2C)
            is_control = tf.equal(length, 0x21) & tf.equal(
                at(position + 1), 0xF9
            )
            behind = position + 10 + 3 * colours(at(position + 9))
            return (
                tf.where(is_frame, behind + 1, position + 2),
                tf.where(is_frame, 2, 1),
                tf.where(is_frame, position, frame),
                tf.where(is_control, position, control),
                blocks,
                is_frame | tf.equal(length, 0x21),
            )

        def skip():
            ends = tf.equal(length, 0)
            return (
                position + length + 1,
                tf.where(ends, 0, inside),
                frame,
                control,
                blocks,
                ~(ends & tf.equal(inside, 2)),
            )

        return tf.cond(tf.equal(inside, 0), begin, skip)

    end, inside, frame, control, blocks, _ = tf.while_loop(
        lambda position, *state: state[-1] & (position < size),
        follow,
        (
            13 + 3 * colours(at(tf.constant(10, tf.int64))),
            tf.constant(0),
            none,
            none,
            tf.TensorArray(tf.int64, 0, dynamic_size=True, element_shape=()),
            tf.constant(True),
        ),
        maximum_iterations=_MAX_GIF_BLOCKS,
    )
    screen = tf.stack([pair(none + 6), pair(none + 8)])
    sides = tf.stack([pair(frame + 5), pair(frame + 7)])
    whole = tf.equal(inside, 0) & (frame > 0)
    whole &= tf.reduce_all(tf.equal(sides, screen))
    # Pillow refuses other versions and shorter controls.
    version = tf.strings.substr(tf.strings.join([contents, b"\0" * 6]), 3, 3)
    whole &= tf.equal(version, b"87a") | tf.equal(version, b"89a")
    whole &= tf.equal(control, 0) | (at(control + 2) >= 4)
    whole &= tf.equal(pair(frame + 1) + pair(frame + 3), 0)
    # The trailer, a semicolon, ends the chain.
    cut = tf.strings.substr(contents, 0, tf.cast(end, tf.int32))
    cut = tf.strings.join([cut, b";"])

    clear = tf.equal(at(control + 3) % 2, 1) & (control > 0)
    own = at(frame + 9) >= 128
    # Here the bits per pixel are stored; the sub-blocks follow.
    data = frame + 10 + 3 * colours(at(frame + 9))
    table = tf.where(own, frame + 10, 13)
    flags = tf.where(own, at(frame + 9), at(none + 10))
    entry = at(control + 6)

    def paint():
        # TensorFlow would paint it black.
        painted = _replace(cut, table + 3 * entry, b"\xff" * 3)
        return _replace(painted, control + 3, b"\0" * 4)

    paintable = whole & clear & (entry < colours(flags))
    cut = tf.cond(paintable, paint, lambda: cut)

    def known():
        places = tf.range(size + 16, dtype=tf.int64)
        inner = (places > data) & (places < end)
        lengths = blocks.stack()[:, None]
        no = tf.zeros_like(lengths[:, 0], tf.bool)
        inner = tf.tensor_scatter_nd_update(inner, lengths, no)
        return _names_known_codes(values[inner], at(data))

    whole = tf.cond(whole, known, lambda: False)
    return (
        tf.where(whole & tf.equal(clear, paintable), cut, b""),
        tf.maximum(tf.reduce_prod(screen), tf.reduce_prod(sides)),
    )


def _names_known_codes(data, bits):
    """Whether every code of a GIF's pixels is already in the table.

    Pillow refuses a file with an unknown code, but TensorFlow shows something
    in its place. A code has one bit more than a pixel, until the table
    outgrows it. The table holds the pixel values, a code that clears it and a
    code that ends the data. Each code except the first adds an entry.

    Args:
        data: uint8 tensor `(size,)`. The code of the pixels.
        bits: scalar int64 tensor. The bits per pixel.

    Returns:
        bool scalar tensor. Also false if the table is cleared more often than
        any encoder does.
    """
    import tensorflow as tf

    size = 8 * tf.size(data, tf.int64)
    # Codes are read from three bytes, which may lie beyond the end.
    data = tf.cast(tf.pad(data, [[0, 3]]), tf.int64)
    clear = tf.bitwise.left_shift(tf.constant(1, tf.int64), bits % 16)
    powers = tf.constant([2**power for power in range(12)], tf.int64)
    going, ended, unknown = tf.unstack(tf.range(3))

    def follow(position, count, _):
        """Check some codes: (first bit, codes in the table so far, state)."""
        number = count + tf.range(_MAX_CODES, dtype=tf.int64)
        entry = tf.minimum(clear + 1 + tf.maximum(number, 1), _MAX_CODES)
        width = tf.searchsorted(powers, entry, "right", tf.int64)
        end = position + tf.cumsum(width)
        begin = tf.minimum(end - width, size)
        code = sum(tf.gather(data, begin // 8 + n) * 256**n for n in range(3))
        code = tf.bitwise.right_shift(code, begin % 8)
        code %= tf.bitwise.left_shift(tf.ones_like(width), width)
        # Any code except the first may be the entry that it adds itself.
        most = tf.where(tf.equal(number, 0), clear + 1, entry)
        clears = tf.equal(code, clear)
        state = tf.where(code > most, unknown, going)
        over = tf.equal(code, clear + 1) | (end > size)
        state = tf.where(over, ended, state)
        stops = clears | tf.not_equal(state, going)
        place = tf.where(
            tf.reduce_any(stops),
            tf.argmax(stops, output_type=tf.int32),
            _MAX_CODES - 1,
        )
        count = tf.where(clears[place], none, count + _MAX_CODES)
        return end[place], count, state[place]

    none = tf.constant(0, tf.int64)
    _, _, state = tf.while_loop(
        lambda position, count, state: tf.equal(state, going),
        follow,
        (none, none, going),
        maximum_iterations=_MAX_TABLES,
    )
    return (bits >= 2) & (bits <= 8) & tf.equal(state, ended)


def _replace(contents, position, part):
    import tensorflow as tf

    position = tf.cast(position, tf.int32)
    end = tf.strings.length(contents)
    behind = position + len(part)
    return tf.strings.join(
        [
            tf.strings.substr(contents, 0, position),
            part,
            tf.strings.substr(contents, behind, end - behind),
        ]
    )
