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

from align_keras.io.image_parts import FLIPPED_HORIZONTALLY
from align_keras.io.image_parts import FLIPPED_VERTICALLY
from align_keras.io.image_parts import ORIENTATION_TAG
from align_keras.io.image_parts import PNG_SIGNATURE
from align_keras.io.image_parts import exif_orientation
from align_keras.io.image_parts import has_signed_samples

# What each scan of a JPEG begins with, and how many may be: encoders write ten
# or so, and each costs a pass over the whole image.
JPEG_SCAN = b"\xff\xda\x00"
MAX_JPEG_SCANS = 100

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

# Where a PNG tells the bits of a sample.
_PNG_DEPTH = 24

# Tags of TIFF.
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC = 262
_WHITE_IS_ZERO = 0
_PLANES = 284
_SEPARATE = 2
_SAMPLE_FORMAT = 339
_UNSIGNED = 1
_UNDEFINED = 4


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
        # Pillow would turn an image as XMP says where EXIF says nothing.
        image.info.pop("xmp", None)
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
    """Leave out what a PNG can do without: notes, and damaged transparency."""
    if not contents.startswith(PNG_SIGNATURE):
        return contents
    kept, position = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while position < len(contents):
        length = int.from_bytes(contents[position : position + 4], "big")
        # Length, name and checksum have four bytes each.
        chunk = contents[position : position + length + 12]
        name, check = chunk[4:8], chunk[-4:]
        # Pillow refuses a file for a note of a wrong length, a large one or a
        # damaged one, of which other decoders say at most a warning. A small
        # first letter says that decoders may pass over a chunk.
        clear = name == b"tRNS" and check == _check_sum(chunk[4:-4])
        if clear or not name[:1].islower():
            kept.append(chunk)
        position += len(chunk)
    return b"".join(kept)


def _check_sum(contents):
    return zlib.crc32(contents).to_bytes(4, "big")


def _orientation(image, contents):
    if image.format in ("TIFF", "AVIF"):
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
        return orientation if orientation in range(1, 9) else 1
    return exif_orientation(contents)


# === Pixels ===


def _to_rgb(image, contents=None):
    """Pixels of an image as it lies, in 8 bits, over white."""
    _check_range(image, contents)
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


def _check_range(image, contents):
    """Refuse numbers of which none stands for white by convention."""
    # Pillow has 16 bits of PNG and Netpbm in 32, too.
    wide = image.mode == "I" and image.format not in ("PNG", "PPM")
    kinds = ()
    if image.format == "TIFF":
        bits = image.tag_v2.get(_BITS_PER_SAMPLE, (8,))
        apart = image.tag_v2.get(_PLANES) == _SEPARATE and len(bits) > 1
        if apart and (max(bits) > 8 or image.mode == "LA"):
            raise UnknownRange(
                "its samples lie in separate planes, of more than 8 bits or "
                "gray with alpha, which Pillow misreads; interleave them"
            )
        kinds = image.tag_v2.get(_SAMPLE_FORMAT, ())
        kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    signed = any(kind not in (_UNSIGNED, _UNDEFINED) for kind in kinds)
    if image.format == "JPEG2000" and contents:
        signed = has_signed_samples(contents)
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
