"""Encoded images to 8-bit RGB with Pillow.

TensorFlow is not needed here. `align_keras.preprocessing.decode` does the same
in a graph, and the two agree: the same JPEG arithmetic, orientation rule,
treatment of transparency (a white ground) and of 16 bits (the high byte).
Pillow reads more: TIFF, AVIF, JPEG 2000 and Netpbm, palette BMP, animated
WebP, frames of a GIF that are smaller than its screen. What the graph cannot
read it refuses.
"""

import io
import zlib

import numpy as np
from PIL import Image
from PIL import UnidentifiedImageError

# What precedes a camera's EXIF block in its segment of a JPEG file.
EXIF_HEADER = b"Exif\x00\x00"
# The chunks that hold such a block in other formats.
PNG_EXIF = b"eXIf"
WEBP_EXIF = b"EXIF"
ORIENTATION_TAG = 0x0112
# More entries than any camera writes in the first directory, which is near
# the beginning of the block.
MAX_EXIF_ENTRIES = 128
MAX_EXIF_BYTES = 65536
# More segments than a header has: a colour profile may take 255.
MAX_JPEG_SEGMENTS = 1024

# What each scan of a JPEG begins with, and how many may be: encoders write ten
# or so, and each costs a pass over the whole image.
JPEG_SCAN = b"\xff\xda\x00"
MAX_JPEG_SCANS = 100
# Markers of JPEG: a segment with EXIF, and what ends the header.
JPEG_APP1 = 0xE1
JPEG_SCAN_MARKER = 0xDA
# Frames that every decoder knows: baseline, extended and progressive, in
# Huffman's code.
_COMMON_FRAMES = (0xC0, 0xC1, 0xC2)
_OTHER_FRAMES = (
    0xC3,
    *range(0xC5, 0xC8),
    *range(0xC9, 0xCC),
    *range(0xCD, 0xD0),
)

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

# Chunks of a PNG that say nothing about its pixels, of which Pillow refuses
# large ones; and where a PNG tells the bits of a sample.
_PNG_NOTES = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_PNG_DEPTH = 24
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# Tags of TIFF.
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC = 262
_WHITE_IS_ZERO = 0
_PLANES = 284
_SEPARATE = 2
_SAMPLE_FORMAT = 339
_UNSIGNED = 1
_UNDEFINED = 4

# An EXIF orientation is a transposition (for 5 and above), then these flips.
FLIPPED_VERTICALLY = (3, 4, 7, 8)
FLIPPED_HORIZONTALLY = (2, 3, 6, 7)


class TooManyPixels(ValueError):
    """An image whose decoded form would not fit the allowed memory."""


class UnknownRange(ValueError):
    """Pixels whose numbers do not tell what is black and what is white."""


def decode_with_pillow(
    contents: bytes | Image.Image, max_pixels: int | None = None
) -> np.ndarray:
    """Decode one encoded image with Pillow.

    Args:
        contents: bytes, a whole image file; or an open `PIL.Image.Image`.
        max_pixels: int. Refuse images with more pixels than this, before
            decoding them. Defaults to `None`, Pillow's own limit.

    Returns:
        NumPy array uint8 `(height, width, 3)`, upright.

    Raises:
        TooManyPixels: The image is larger than `max_pixels`.
        UnknownRange: The pixels are floats, signed, or of 32 bits.
        ValueError: The bytes are not an image that Pillow can decode.
    """
    if isinstance(contents, Image.Image):
        return _to_rgb(contents)
    return decode_and_orient(contents, max_pixels)[0]


def decode_and_orient(
    contents: bytes, max_pixels: int | None = None
) -> tuple[np.ndarray, int]:
    """Return what `decode_with_pillow` does, and the orientation it saw."""
    try:
        image, pixels = _decode(contents, max_pixels)
    except (TooManyPixels, UnknownRange):
        raise
    except ValueError:
        bare = _bare_png(contents)
        if bare == contents:
            raise
        image, pixels = _decode(bare, max_pixels)
    orientation = _orientation(image, contents)
    return _upright(pixels, orientation), orientation


def _decode(contents, max_pixels):
    image = open_image(contents, max_pixels)
    try:
        return image, _to_rgb(image, contents)
    except UnknownRange:
        raise
    except Exception as error:
        raise _not_an_image(error) from error


def open_image(contents: bytes, max_pixels: int | None = None) -> Image.Image:
    """Open an image with Pillow, which reads its header alone.

    See `decode_with_pillow`.
    """
    if not contents:
        raise ValueError("the file holds 0 bytes")
    try:
        Image.init()
        formats = [name for name in _PILLOW_FORMATS if name in Image.OPEN]
        image = Image.open(io.BytesIO(contents), formats=formats)
        _check_pixels(image, max_pixels)
        _check_scans(image, contents)
    except Image.DecompressionBombError as error:
        raise TooManyPixels(str(error)) from error
    except TooManyPixels:
        raise
    except Exception as error:
        raise _not_an_image(error) from error
    return image


def _not_an_image(error):
    if isinstance(error, UnidentifiedImageError):
        return ValueError("its format is not known, or its header is damaged")
    # Pillow's plug-ins raise a dozen types on broken files.
    text = str(error) or type(error).__name__
    return ValueError(text.splitlines()[0][:200])


def _check_pixels(image, max_pixels):
    if max_pixels is not None and image.width * image.height > max_pixels:
        raise TooManyPixels(
            f"{image.width}x{image.height} pixels, more than {max_pixels}"
        )


def _check_scans(image, contents):
    scans = contents.count(JPEG_SCAN)
    if image.format in ("JPEG", "MPO") and scans > MAX_JPEG_SCANS:
        raise ValueError(f"a JPEG of {scans} scans, more than {MAX_JPEG_SCANS}")


def _bare_png(contents):
    """Leave out what a PNG can do without: notes, and what is damaged."""
    if not contents.startswith(_PNG_SIGNATURE):
        return contents
    kept, position = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    while position < len(contents):
        length = int.from_bytes(contents[position : position + 4], "big")
        # Length, name and checksum have four bytes each.
        chunk = contents[position : position + length + 12]
        name, check = chunk[4:8], chunk[-4:]
        # A small first letter: decoders may pass it over.
        damaged = name[:1].islower() and check != _check_sum(chunk[4:-4])
        if name not in _PNG_NOTES and not damaged:
            kept.append(chunk)
        position += len(chunk)
    return b"".join(kept)


def _check_sum(contents):
    return zlib.crc32(contents).to_bytes(4, "big")


# === Headers of JPEG and EXIF ===


def is_common_jpeg(contents: bytes) -> bool:
    """Return whether a file is a JPEG that every decoder shows alike.

    That is gray or of three colours, of 8 bits, in Huffman's code.
    """
    for marker, begin in _segments(contents):
        if marker in _COMMON_FRAMES:
            return contents[begin] == 8 and contents[begin + 5] in (1, 3)
        if marker in _OTHER_FRAMES:
            return False
    return False


def exif_orientation(contents: bytes) -> int:
    """Return the orientation that a camera noted in a JPEG file.

    The first EXIF block of the header counts, however far behind.

    Args:
        contents: bytes of the file.

    Returns:
        int from 1 (upright, also when nothing is noted) to 8, as in the EXIF
        standard's tag 0x0112.
    """
    place = contents.find(EXIF_HEADER)
    if place < 0 or (JPEG_APP1, place) not in _segments(contents):
        return 1
    return tiff_orientation(contents[place + len(EXIF_HEADER) :])


def tiff_orientation(block: bytes) -> int:
    """Return the orientation that an EXIF block notes, see there.

    Args:
        block: bytes in the form of TIFF, perhaps behind the header that they
            have in JPEG; what follows them does not matter.
    """
    while block.startswith(EXIF_HEADER):
        block = block.removeprefix(EXIF_HEADER)
    block = block[:MAX_EXIF_BYTES]
    order = "little" if block[:1] == b"I" else "big"

    def number(position, size):
        return int.from_bytes(block[position : position + size], order)

    directory = number(4, 4)
    for entry in range(min(number(directory, 2), MAX_EXIF_ENTRIES)):
        position = directory + 2 + 12 * entry
        if number(position, 2) == ORIENTATION_TAG:
            value = number(position + 8, 2)
            return value if 1 <= value <= 8 else 1
    return 1


def _segments(contents):
    """Yield marker and place of each segment in the header of a JPEG."""
    position = 2
    for _ in range(MAX_JPEG_SEGMENTS):
        head = contents[position : position + 4]
        if len(head) < 4 or head[0] != 0xFF or head[1] == JPEG_SCAN_MARKER:
            return
        if head[1] == 0xFF:
            # Any number of these may fill up before a marker.
            position += 1
            continue
        yield head[1], position + 4
        position += 2 + int.from_bytes(head[2:], "big")


def _orientation(image, contents):
    if image.format in ("JPEG", "MPO"):
        return exif_orientation(contents)
    if image.format == "PNG":
        return tiff_orientation(contents.partition(PNG_EXIF)[2])
    if image.format == "WEBP":
        # The length of the chunk comes first.
        return tiff_orientation(contents.partition(WEBP_EXIF)[2][4:])
    if image.format in ("TIFF", "AVIF"):
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
        return orientation if orientation in range(1, 9) else 1
    return 1


# === Pixels ===


def _to_rgb(image, contents=None):
    """Pixels of an image as it lies, in 8 bits, over white."""
    _check_range(image)
    mode, key = image.mode, image.info.get("transparency")
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or (
        mode == "P" and key is not None
    ):
        return _over_white(np.asarray(image.convert("RGBA")))
    if mode.startswith("I"):
        pixels = _high_bytes(image)
    elif mode == "CMYK":
        # Rounded as in the graph.
        light = 255 - np.asarray(image).astype("uint16")
        pixels = (light[..., :3] * light[..., 3:] // 255).astype("uint8")
    else:
        pixels = np.asarray(image.convert("RGB"))
    if key is not None:
        clear = _samples(image, pixels, contents) == _key(image, key)
        pixels = np.where(clear.all(-1, keepdims=True), np.uint8(255), pixels)
    return pixels


def _check_range(image):
    """Refuse numbers of which none stands for white by convention."""
    # Pillow has 16 bits of PNG and Netpbm in 32, too.
    wide = image.mode == "I" and image.format not in ("PNG", "PPM")
    kinds = ()
    if image.format == "TIFF":
        bits = image.tag_v2.get(_BITS_PER_SAMPLE, (8,))
        apart = image.tag_v2.get(_PLANES) == _SEPARATE and len(bits) > 1
        if apart and max(bits) > 8:
            raise UnknownRange(
                "its colours lie in separate planes of more than 8 bits, which "
                "Pillow misreads; convert it to interleaved samples"
            )
        kinds = image.tag_v2.get(_SAMPLE_FORMAT, ())
        kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    signed = any(kind not in (_UNSIGNED, _UNDEFINED) for kind in kinds)
    if wide or signed or image.mode == "F":
        raise UnknownRange(
            "its pixels are floats, signed or of 32 bits, so that nothing "
            "tells what is white; convert it to unsigned 8 or 16 bits"
        )


def _high_bytes(image):
    """Pixels of an image of one channel of more than 8 bits."""
    bits, inverted = 16, False
    if image.format == "TIFF":
        bits = image.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0]
        # Pillow inverts what has 8 bits or fewer.
        inverted = image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    samples = np.asarray(image).astype("uint16")
    pixels = (samples >> bits - 8).astype("uint8")
    pixels = 255 - pixels if inverted else pixels
    return np.repeat(pixels[..., None], 3, axis=-1)


def _key(image, key):
    """The transparent colour, which Pillow has as 255 or 1 for one bit."""
    return int(key > 0) if image.mode == "1" else key


def _samples(image, pixels, contents):
    """Values as the file has them, in which a PNG has its transparent colour.

    Pillow spreads fewer than 8 bits over 0 to 255, and of 16 bits and three
    channels it reads the high bytes.
    """
    if image.mode.startswith("I"):
        return np.asarray(image)[..., None]
    if image.mode == "1":
        return pixels // 255
    depth = contents[_PNG_DEPTH] if contents and image.format == "PNG" else 8
    if depth < 8:
        return pixels // (255 // (2**depth - 1))
    if depth == 8:
        return pixels
    again = Image.open(io.BytesIO(contents), formats=["PNG"])
    again.tile = [(*tile[:3], "RGB;16L") for tile in again.tile]
    return pixels * np.uint16(256) + np.asarray(again)


def _over_white(pixels):
    # As in the graph, in 16 bits.
    pixels = pixels.astype("uint16")
    alpha = pixels[..., 3:]
    pixels = pixels[..., :3] * alpha + 255 * (255 - alpha)
    return ((pixels + 127) // 255).astype("uint8")


def _upright(pixels, orientation):
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in FLIPPED_VERTICALLY:
        pixels = pixels[::-1]
    if orientation in FLIPPED_HORIZONTALLY:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
