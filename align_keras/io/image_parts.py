"""Parse the segments or chunks of JPEG, PNG and WebP files, and their EXIF.

Each part states its length, so bytes that look like EXIF within a comment, a
colour profile or a text are ignored. `align_keras.preprocessing.orientation`
does the same in a graph.
"""

import re
import zlib
from collections.abc import Iterator

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Parts that hold EXIF: JPEG segments that begin with the header, and chunks of
# PNG and of WebP.
JPEG_EXIF = b"\xff\xe1"
EXIF_HEADER = b"Exif\x00\x00"
PNG_EXIF = b"eXIf"
WEBP_EXIF = b"EXIF"
# The parts that come last: the first scan of a JPEG, the end of a PNG.
JPEG_LAST = b"\xff\xda"
PNG_LAST = b"IEND"
# The first chunk of a WebP with other chunks than pixels, and the bit that
# announces EXIF.
WEBP_EXTENDED = b"VP8X"
WEBP_HAS_EXIF = 0x08
# Limits: the number of parts, more than any encoder writes; the bytes of EXIF;
# and the entries of its first directory.
MAX_PARTS = 1 << 14
MAX_EXIF_BYTES = 1 << 20
MAX_EXIF_ENTRIES = 128

# First bytes of image files that other kinds of files are unlikely to have.
HEAD_BYTES = 16
_IMAGES_BEGIN = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|II\*\0|MM\0\*"
    rb"|....ftypavi[fs]|\0\0\0\x0cjP  \r\n|BM....\0\0\0\0",
    re.DOTALL,
)

ORIENTATION_TAG = 0x0112
# EXIF types of four-byte integers, unsigned and signed.
EXIF_LONG = (4, 9)
# An orientation is a transposition (for 5 and above) followed by these flips.
FLIPPED_VERTICALLY = (3, 4, 7, 8)
FLIPPED_HORIZONTALLY = (2, 3, 6, 7)

# Frames that all decoders decode alike: baseline and extended with Huffman
# coding. Progressive ones may lack a scan, which decoders smooth differently.
_COMMON_FRAMES = (0xC0, 0xC1)
_OTHER_FRAMES = (
    *range(0xC2, 0xC4),
    *range(0xC5, 0xC8),
    *range(0xC9, 0xCC),
    *range(0xCD, 0xD0),
)
# Simple PNG chunks other than pixels, and their lengths; then pairs of bit
# depth and colour type.
_COMMON_CHUNKS = {
    b"IHDR": 13,
    b"IEND": 0,
    b"gAMA": 4,
    b"sRGB": 1,
    b"cHRM": 32,
    b"pHYs": 9,
    b"tIME": 7,
}
_COMMON_TYPES = (b"\x08\x00", b"\x08\x02", b"\x08\x04", b"\x08\x06")

# The first bytes of a JPEG 2000 codestream; the size marker follows.
_JPEG_2000_BEGINS = b"\xff\x4f\xff\x51"


def parts(contents: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name of each part of a file, and the position of its body.

    The parts of a JPEG are its segments up to the first scan, named by their
    markers. Those of a PNG, and of a WebP that announces EXIF, are its chunks.

    Args:
        contents: bytes of the file. Other kinds of files have no parts.
    """
    end, last = len(contents), None
    if contents[:2] == b"\xff\xd8":
        position, read, last = 2, _read_segment, JPEG_LAST
    elif contents[:8] == PNG_SIGNATURE:
        position, read, last = 8, _read_png_chunk, PNG_LAST
    elif contents[:4] == b"RIFF" and _webp_has_exif(contents):
        position, read = 12, _read_webp_chunk
        end = min(end, 8 + int.from_bytes(contents[4:8], "little"))
    else:
        return
    for _ in range(MAX_PARTS):
        # Read zeros after the end of the file.
        head = contents[position : position + 8].ljust(8, b"\0")
        name, begin, length, step = read(head)
        yield name, position + begin, position + begin + length
        position += step
        if name == last or position >= end:
            return


def _webp_has_exif(contents):
    extended = contents[8:16] == b"WEBP" + WEBP_EXTENDED
    return extended and len(contents) > 20 and contents[20] & WEBP_HAS_EXIF


def _read_segment(head):
    """Return name, offset and length of the body, and step to the next part."""
    fill, marker = head[:2]
    if fill != 0xFF or marker == 0xFF:
        # Skip fill bytes before a marker.
        return b"", 1, 0, 1
    if marker <= 1 or 0xD0 <= marker <= 0xD8:
        # These markers have no body.
        return head[:2], 2, 0, 2
    length = int.from_bytes(head[2:4], "big")
    return head[:2], 4, max(length - 2, 0), 2 + length


def _read_png_chunk(head):
    length = int.from_bytes(head[:4], "big")
    # A checksum follows.
    return head[4:], 8, length, length + 12


def _read_webp_chunk(head):
    length = int.from_bytes(head[4:], "little")
    # Chunks are padded to an even length.
    return head[:4], 8, length, 8 + length + length % 2


def begins_as_image(head: bytes) -> bool:
    """Return whether the first `HEAD_BYTES` of a file are those of an image.

    Netpbm files and bare JPEG 2000 codestreams cannot be recognized this way.
    """
    return _IMAGES_BEGIN.match(head) is not None


def is_common(contents: bytes) -> bool:
    """Return whether all decoders that can read a file decode it alike.

    This is true of a JPEG of 8 bits with one or three channels, Huffman coding
    and no progressive scans; of an undamaged PNG of 8 bits without a palette,
    a transparent colour or any but the simplest metadata; and of a WebP with
    only pixels.
    """
    if contents[:2] == b"\xff\xd8":
        return _is_common_jpeg(contents)
    if contents[:8] == PNG_SIGNATURE:
        return _is_common_png(contents)
    # A WebP with a single chunk, padded to an even length.
    length = int.from_bytes(contents[16:20], "little")
    length += length % 2
    file_length = int.from_bytes(contents[4:8], "little")
    alone = length + 20 == file_length + 8 == len(contents)
    pixels = contents[8:16] in (b"WEBPVP8 ", b"WEBPVP8L")
    return contents[:4] == b"RIFF" and pixels and alone


def _is_common_jpeg(contents):
    for name, begin, end in parts(contents):
        marker = int.from_bytes(name[1:], "big")
        if marker in _COMMON_FRAMES:
            frame = contents[begin:end]
            return frame[:1] == b"\x08" and frame[5:6] in (b"\1", b"\3")
        if marker in _OTHER_FRAMES:
            return False
    return False


def _is_common_png(contents):
    whole = memoryview(contents)
    name = b""
    for name, begin, end in parts(contents):
        check = zlib.crc32(whole[begin - 4 : end]).to_bytes(4, "big")
        length = _COMMON_CHUNKS.get(name)
        fits = length == end - begin or name == b"IDAT"
        if not fits or check != contents[end : end + 4]:
            return False
    # 8 bits; gray or RGB, with or without alpha.
    return name == PNG_LAST and contents[24:26] in _COMMON_TYPES


def has_signed_samples(contents: bytes) -> bool:
    """Return whether a JPEG 2000 file, boxed or not, has signed samples."""
    position = 0
    for _ in range(MAX_PARTS):
        if contents.startswith(_JPEG_2000_BEGINS, position):
            break
        length = int.from_bytes(contents[position : position + 4], "big")
        name = contents[position + 4 : position + 8]
        if name == b"jp2c":
            # The header of a long box has eight more bytes.
            length = 16 if length == 1 else 8
        position += max(length, 8)
    # The number of components, and three bytes for each.
    size = contents[position + 40 :]
    kinds = size[2 : 2 + 3 * int.from_bytes(size[:2], "big") : 3]
    return any(kind & 0x80 for kind in kinds)


def exif_orientation(contents: bytes) -> int:
    """Return the EXIF orientation of a JPEG, PNG or WebP.

    The first EXIF block is used, wherever it is in the file; in a JPEG, it
    must precede the first scan.

    Args:
        contents: bytes of the file.

    Returns:
        int from 1 (upright, also if there is no EXIF) to 8, as in the EXIF
        standard's tag 0x0112.
    """
    for name, begin, end in parts(contents):
        block = contents[begin : min(end, begin + MAX_EXIF_BYTES)]
        jpeg = name == JPEG_EXIF and block.startswith(EXIF_HEADER)
        if jpeg or name in (PNG_EXIF, WEBP_EXIF):
            return _tiff_orientation(block)
    return 1


def _tiff_orientation(block):
    """Return the orientation in a TIFF block, perhaps after JPEG's header."""
    while block.startswith(EXIF_HEADER):
        block = block.removeprefix(EXIF_HEADER)
    # Read zeros after the end of a truncated block.
    block += bytes(16)
    order = "little" if block[:1] == b"I" else "big"

    def number(position, size):
        return int.from_bytes(block[position : position + size], order)

    directory = number(4, 4)
    for entry in range(min(number(directory, 2), MAX_EXIF_ENTRIES)):
        position = directory + 2 + 12 * entry
        if number(position, 2) == ORIENTATION_TAG:
            size = 4 if number(position + 2, 2) in EXIF_LONG else 2
            value = number(position + 8, size)
            return value if 1 <= value <= 8 else 1
    return 1
