"""The parts of which JPEG, PNG and WebP files are chains, and EXIF among them.

Each part names its length, so that what looks like EXIF within a comment, a
colour profile or a text is passed over. `align_keras.preprocessing.orientation`
does the same in a graph.
"""

import re
import zlib
from collections.abc import Iterator

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Parts that hold EXIF: segments of JPEG that begin with the header, chunks of
# PNG, chunks of WebP.
JPEG_EXIF = b"\xff\xe1"
EXIF_HEADER = b"Exif\x00\x00"
PNG_EXIF = b"eXIf"
WEBP_EXIF = b"EXIF"
# The parts that come last: the first scan of a JPEG, the end of a PNG.
JPEG_LAST = b"\xff\xda"
PNG_LAST = b"IEND"
# The first chunk of a WebP that has others than pixels, and the bit by which
# it tells of EXIF.
WEBP_EXTENDED = b"VP8X"
WEBP_HAS_EXIF = 0x08
# Parts that are followed, more than any encoder writes; bytes of EXIF that are
# read, and entries of its first directory.
MAX_PARTS = 1 << 14
MAX_EXIF_BYTES = 1 << 20
MAX_EXIF_ENTRIES = 128

# What files of images begin with, of which no other kind of file is likely to.
HEAD_BYTES = 16
_IMAGES_BEGIN = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|II\*\0|MM\0\*"
    rb"|....ftypavi[fs]|\0\0\0\x0cjP  \r\n|BM....\0\0\0\0",
    re.DOTALL,
)

ORIENTATION_TAG = 0x0112
# Types of numbers in EXIF that have four bytes, signed or not.
EXIF_LONG = (4, 9)
# An orientation is a transposition (for 5 and above), then these flips.
FLIPPED_VERTICALLY = (3, 4, 7, 8)
FLIPPED_HORIZONTALLY = (2, 3, 6, 7)

# Frames that every decoder shows alike: baseline and extended, in Huffman's
# code. Of progressive ones a scan may be missing, which each smooths its way.
_COMMON_FRAMES = (0xC0, 0xC1)
_OTHER_FRAMES = (
    *range(0xC2, 0xC4),
    *range(0xC5, 0xC8),
    *range(0xC9, 0xCC),
    *range(0xCD, 0xD0),
)
# Chunks of a PNG beside those of pixels, and how long they are; depth and type.
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

# What the pixels of a JPEG 2000 begin with: the number of samples follows.
_JPEG_2000_BEGINS = b"\xff\x4f\xff\x51"


def parts(contents: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name of each part of a file, and where its body lies.

    Of a JPEG these are the segments up to the first scan, named by their
    markers; of a PNG, and of a WebP that says it has EXIF, the chunks.

    Args:
        contents: bytes of the file. Others than these have no parts.
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
        # As if zeros followed the file.
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
    """Name, place and length of the body, and step to the next segment."""
    fill, marker = head[:2]
    if fill != 0xFF or marker == 0xFF:
        # Bytes that may stand before a marker.
        return b"", 1, 0, 1
    if marker <= 1 or 0xD0 <= marker <= 0xD8:
        # Markers without a body.
        return head[:2], 2, 0, 2
    length = int.from_bytes(head[2:4], "big")
    return head[:2], 4, max(length - 2, 0), 2 + length


def _read_png_chunk(head):
    length = int.from_bytes(head[:4], "big")
    # A checksum follows.
    return head[4:], 8, length, length + 12


def _read_webp_chunk(head):
    length = int.from_bytes(head[4:], "little")
    # The next begins at an even place.
    return head[:4], 8, length, 8 + length + length % 2


def begins_as_image(head: bytes) -> bool:
    """Return whether the first `HEAD_BYTES` of a file are those of an image.

    Netpbm and bare JPEG 2000 say too little there.
    """
    return _IMAGES_BEGIN.match(head) is not None


def is_common(contents: bytes) -> bool:
    """Return whether every decoder shows a file alike, if it can read it.

    That is a JPEG, gray or of three colours, of 8 bits, in Huffman's code and
    not progressive; a PNG of 8 bits that is not damaged, without palette,
    transparent colour and notes other than the simplest; a WebP of pixels
    alone.
    """
    if contents[:2] == b"\xff\xd8":
        return _is_common_jpeg(contents)
    if contents[:8] == PNG_SIGNATURE:
        return _is_common_png(contents)
    # Of a WebP the first and only chunk, padded to an even length.
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
    # 8 bits; gray or of three colours, with alpha or without.
    return name == PNG_LAST and contents[24:26] in _COMMON_TYPES


def has_signed_samples(contents: bytes) -> bool:
    """Return whether a JPEG 2000 file, in boxes or not, has signed samples."""
    position = 0
    for _ in range(MAX_PARTS):
        if contents.startswith(_JPEG_2000_BEGINS, position):
            break
        length = int.from_bytes(contents[position : position + 4], "big")
        name = contents[position + 4 : position + 8]
        if name == b"jp2c":
            # Behind eight more bytes of a long box.
            length = 16 if length == 1 else 8
        position += max(length, 8)
    # The number of components, of which each has three bytes.
    size = contents[position + 40 :]
    kinds = size[2 : 2 + 3 * int.from_bytes(size[:2], "big") : 3]
    return any(kind & 0x80 for kind in kinds)


def exif_orientation(contents: bytes) -> int:
    """Return the orientation that a camera noted in a JPEG, PNG or WebP.

    The first EXIF block counts, however far behind; that of a JPEG stands in
    its header.

    Args:
        contents: bytes of the file.

    Returns:
        int from 1 (upright, also when nothing is noted) to 8, as in the EXIF
        standard's tag 0x0112.
    """
    for name, begin, end in parts(contents):
        block = contents[begin : min(end, begin + MAX_EXIF_BYTES)]
        jpeg = name == JPEG_EXIF and block.startswith(EXIF_HEADER)
        if jpeg or name in (PNG_EXIF, WEBP_EXIF):
            return _tiff_orientation(block)
    return 1


def _tiff_orientation(block):
    """The orientation in bytes that have the form of TIFF, perhaps behind the
    header that they have in JPEG.
    """
    while block.startswith(EXIF_HEADER):
        block = block.removeprefix(EXIF_HEADER)
    # Zeros behind the end are what a number reads that a broken block cuts.
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
