"""Encode, decode and locate training records.

A record is one image with its captions: a `tf.train.Example` in a TFRecord
file, with the field names of img2dataset:

| field             | type       | meaning                                  |
|-------------------|------------|------------------------------------------|
| `jpg`             | bytes      | the encoded image; also `png` or `webp`  |
| `txt`             | bytes list | its captions, UTF-8                      |
| `caption`         | bytes list | used if `txt` is absent or empty         |
| `key`             | bytes      | a name, unique in the data set           |
| `width`, `height` | int64      | pixels, upright                          |

Other fields are ignored, so files written by img2dataset need no packing. The
image field may hold any format that the decoder supports, whatever its name.
"""

import contextlib
import os
import struct

import numpy as np

from align_keras.io.file_names import records_stem
from align_keras.io.optional import OptionalModule
from align_keras.io.stores import OF_TENSORFLOW
from align_keras.io.stores import file_size
from align_keras.io.stores import is_store
from align_keras.io.stores import open_file
from align_keras.io.stores import read_range
from align_keras.io.stores import scheme_of
from align_keras.io.text import BLANKS

crc32c = OptionalModule("google_crc32c", extra="stores")

# Records of a store to read in one request when reading a whole file.
AT_ONCE = 64

# Files of a store to count in parallel. Each request mostly waits for the
# network.
ASKED = 32

# `decode_record` and `parse_record` follow the same rules. The image is the
# first value of the first image field that is not empty. The captions are the
# values of the first caption field that has any besides white space, without
# leading byte order marks. If one of these fields does not hold bytes, the
# record is broken.
IMAGE_FIELDS = ("jpg", "png", "webp")
CAPTION_FIELDS = ("txt", "caption")
_MARK = "\ufeff"


def encode_record(key, image, captions, width, height):
    """Serialise a record in img2dataset's layout.

    Args:
        key: string. A name, unique in the data set.
        image: bytes. The encoded image.
        captions: list of strings, at least one.
        width: int. Pixels, upright.
        height: int. Pixels, upright.

    Returns:
        bytes of a `tf.train.Example`.
    """
    # Importing only a submodule would not wait for another thread that has
    # already begun to import TensorFlow.
    import tensorflow as tf

    def texts(values):
        values = [value.encode("utf-8") for value in values]
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))

    def numbers(*values):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    feature = {
        "key": texts([key]),
        "jpg": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
        "txt": texts(captions),
        "width": numbers(width),
        "height": numbers(height),
    }
    example = tf.train.Example(features=tf.train.Features(feature=feature))
    # Otherwise map fields have no fixed order, and checksums would differ.
    return example.SerializeToString(deterministic=True)


def join_records(first, second):
    """Merge the captions of two records of the same image.

    Args:
        first: bytes, from `encode_record`.
        second: bytes, from `encode_record`.

    Returns:
        A pair: the number of captions, and the first record as bytes with the
        second record's new captions added. `None` if there are no new captions
        or the images differ.
    """
    import tensorflow as tf

    example, other = map(tf.train.Example.FromString, (first, second))
    feature, more = example.features.feature, other.features.feature
    texts = _values(feature, "txt")
    new = [text for text in _values(more, "txt") if text not in texts]
    if not new or _values(feature, "jpg") != _values(more, "jpg"):
        return None
    feature["txt"].bytes_list.value.extend(new)
    count = len(texts) + len(new)
    return count, example.SerializeToString(deterministic=True)


def decode_record(record, require_captions=True):
    """Read a serialised record in Python.

    Args:
        record: bytes of a `tf.train.Example`.
        require_captions: bool. Whether to refuse a record without a caption.
            Defaults to `True`.

    Returns:
        dict with `"key"` (string, may be empty), `"image"` (bytes) and
        `"captions"` (list of strings that are not blank).

    Raises:
        ValueError: The record has no image or no caption, or the bytes are
            not a `tf.train.Example`. The error's `key` attribute holds the
            key.
    """
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    try:
        feature = tf.train.Example.FromString(record).features.feature
    except DecodeError as error:
        raise _broken("", "no tf.train.Example") from error

    key = b"".join(_values(feature, "key")[:1]).decode("utf-8", "replace")
    for name in (*IMAGE_FIELDS, *CAPTION_FIELDS):
        if name in feature and not _holds_bytes(feature[name]):
            raise _broken(key, f"`{name}` holds no bytes")
    images = [b"".join(_values(feature, name)[:1]) for name in IMAGE_FIELDS]
    image = next(filter(None, images), None)
    if image is None:
        raise _broken(key, "no image")
    for name in CAPTION_FIELDS:
        values = _values(feature, name)
        captions = [text.decode("utf-8", "replace") for text in values]
        captions = [text.lstrip(_MARK) for text in captions]
        captions = [text for text in captions if text.strip(BLANKS)]
        if captions:
            break
    if not captions and require_captions:
        raise _broken(key, "no caption")
    return {"key": key, "image": image, "captions": captions}


def _values(feature, name):
    return list(feature[name].bytes_list.value) if name in feature else []


def _holds_bytes(feature):
    return feature.WhichOneof("kind") in (None, "bytes_list")


def parse_record(record):
    """Read a serialised record in a TensorFlow graph.

    Args:
        record: scalar string tensor, a `tf.train.Example`.

    Returns:
        A pair: the encoded image, a scalar string tensor that is empty if
        there is no image; and its captions, a string tensor `(captions,)`. If
        the bytes are not a `tf.train.Example`, running the graph raises
        `tf.errors.InvalidArgumentError`.
    """
    import tensorflow as tf

    features = {
        name: tf.io.FixedLenSequenceFeature((), tf.string, allow_missing=True)
        for name in (*IMAGE_FIELDS, *CAPTION_FIELDS)
    }
    example = tf.io.parse_single_example(record, features)
    images = [example[name][:1] for name in IMAGE_FIELDS]
    images = tf.concat([*images, [""]], axis=0)
    given = tf.cast(tf.not_equal(images, ""), tf.int32)
    captions = tf.zeros((0,), tf.string)
    for name in reversed(CAPTION_FIELDS):
        texts = example[name]
        texts = tf.strings.regex_replace(texts, f"^{_MARK}+", "")
        blank = tf.strings.regex_full_match(texts, f"[{BLANKS}]*")
        # `tf.boolean_mask` would be twenty operations, which take time because
        # `align_keras.data.pipeline` makes many small data sets.
        texts = tf.gather_nd(texts, tf.where(~blank))
        captions = tf.cond(
            tf.size(texts) > 0,
            lambda texts=texts: texts,
            lambda captions=captions: captions,
        )
    return images[tf.argmax(given)], captions


def read_shard(shard):
    """Yield the serialized records of one TFRecord file.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is not a TFRecord file, or it is truncated.
    """
    if is_remote(shard):
        offsets = record_offsets(shard)
        for first in range(0, len(offsets) - 1, AT_ONCE):
            ends = offsets[first : first + AT_ONCE + 1]
            yield from read_span(shard, ends[0], ends[-1], len(ends) - 1)
        return
    import tensorflow as tf

    # TensorFlow cannot take file names that are not UTF-8 as strings.
    records = tf.data.TFRecordDataset(os.fsencode(shard))
    try:
        yield from records.as_numpy_iterator()
    except tf.errors.NotFoundError:
        raise FileNotFoundError(f"There is no file `{shard}`.") from None
    except tf.errors.DataLossError as error:
        raise ValueError(
            f"`{shard}` is not a complete TFRecord file: {error.message}. "
            "Write it again, or leave it out."
        ) from None


def is_remote(shard):
    """Tell whether TensorFlow cannot read a file directly."""
    return is_store(shard) and scheme_of(shard) not in OF_TENSORFLOW


def read_span(shard, begin, end, count):
    """Read consecutive records of a file in a store with one request.

    Args:
        shard: string.
        begin: int. The first byte.
        end: int. The end, exclusive.
        count: int. The number of records.

    Returns:
        List of bytes.

    Raises:
        ValueError: A record is damaged. The message names the file.
    """
    contents = read_range(shard, int(begin), int(end))
    records, place = [], 0
    for _ in range(count):
        header, length = contents[place : place + 12], 0
        if len(header) == 12:
            length = struct.unpack("<Q", header[:8])[0]
        record = contents[place + 12 : place + 12 + length]
        checksum = contents[place + 12 + length : place + 16 + length]
        if _checksum(header[:8]) != header[8:] or _checksum(record) != checksum:
            raise ValueError(
                f"`{shard}` is not a complete TFRecord file: corrupted record "
                f"at {begin + place}. Write it again, or leave it out."
            )
        records.append(record)
        place += length + 16
    return records


def _checksum(contents):
    """Compute the masked CRC-32C of TFRecord files."""
    value = crc32c.value(contents)
    masked = ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return struct.pack("<I", masked)


def record_offsets(shard):
    """Return the byte offsets of the records of a file.

    They are read from the index that `pack` wrote next to the file. Without an
    index, the record framing is read, which needs little of a local file but
    all of a remote one.

    Args:
        shard: string. A TFRecord file.

    Returns:
        int64 array `(records + 1,)`, in bytes. The last entry is the end.

    Raises:
        ValueError: The file is not a TFRecord file, it is truncated, or its
            index is damaged.
    """
    size = file_size(shard)
    try:
        index = read_range(index_path(shard))
    except FileNotFoundError:
        offsets, origin = _walk(shard, size), ""
    else:
        offsets = _read_index(index, shard)
        origin = f" according to `{index_path(shard)}`"
    if offsets[-1] != size:
        raise ValueError(
            f"`{shard}` is not a complete TFRecord file: it should end after "
            f"{offsets[-1]} bytes{origin}. Received: {size} bytes. Write it "
            "again, or leave it out."
        )
    return offsets


def _read_index(index, shard):
    with contextlib.suppress(ValueError, OverflowError):
        lines = np.array(index.split(), np.int64).reshape(-1, 2)
        offsets = np.append(0, lines.sum(axis=1))
        if np.array_equal(lines[:, 0], offsets[:-1]):
            return offsets
    raise ValueError(
        f"`{index_path(shard)}` is damaged: it should hold a line `offset "
        f"size` for each record of `{shard}`, one record after the other. "
        "Write it again, or remove it."
    )


def _walk(shard, size):
    """Step from record to record, past the end if the last one is cut off."""
    offsets = [0]
    with _open(shard) as file:
        # Length, its checksum, the record, the record's checksum.
        while offsets[-1] < size:
            file.seek(offsets[-1])
            header = file.read(12).ljust(12, b"\0")
            # An invalid length must not overflow int64.
            length = min(struct.unpack("<Q", header[:8])[0], size)
            offsets.append(offsets[-1] + length + 16)
    return np.array(offsets, np.int64)


def _open(shard):
    # Local files are opened unbuffered, to read only the headers.
    return open_file(shard) if is_store(shard) else open(shard, "rb", 0)


def read_record(shard, index):
    """Read one serialized record of a file in Python."""
    begin, end = map(int, record_offsets(shard)[index : index + 2])
    return read_range(shard, begin + 12, end - 4)


def record_key(record):
    """Return the key of a serialized record, empty if it has none."""
    try:
        return decode_record(record)["key"]
    except ValueError as error:
        return error.key


def index_path(shard):
    """Return the path of the index of a TFRecord file.

    The index holds a line `offset size` per record, in bytes, including the
    framing: the format of DALI's `tfrecord2idx`.
    """
    return records_stem(shard) + ".idx"


def _broken(key, reason):
    error = ValueError(reason)
    error.key = key
    return error
