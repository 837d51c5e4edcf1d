"""Decode images to 8-bit RGB with Pillow.

TensorFlow is not needed here. `align_keras.preprocessing.decode` does the same
in a graph, and the two agree on JPEG arithmetic, orientation, transparency
(shown over white) and 16 bits (the high byte is used). Pillow also reads TIFF,
AVIF, JPEG 2000, Netpbm, BMP with a palette, animated WebP, and GIF frames that
are smaller than the screen. The graph refuses these.
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

# The first bytes of a JPEG scan, and the maximum number of scans. Encoders
# write about ten, and each costs a pass over the whole image.
JPEG_SCAN = b"\xff\xda\x00"
MAX_JPEG_SCANS = 100

# Formats that hold photographs. Pillow's other formats run programs (EPS) or
# are rarely tested.
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

# The position of a PNG's bit depth.
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
    """The image has more pixels than allowed."""


class UnknownRange(ValueError):
    """The pixel values do not define what is black and what is white."""


def decode_with_pillow(
    contents: bytes | Image.Image, max_pixels: int | None = None
) -> np.ndarray:
    """Decode one encoded image with Pillow.

    Args:
        contents: bytes, a whole image file; or an open `PIL.Image.Image`.
        max_pixels: int. Refuse images with more pixels before decoding them.
            Defaults to `None`, Pillow's own limit.

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
    """Decode as `decode_with_pillow` does, and also return the orientation."""
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
    """Open an image with Pillow, which only reads its header.

    See `decode_with_pillow` for the arguments and the errors.
    """
    if not contents:
        raise ValueError("the file holds 0 bytes")
    try:
        Image.init()
        formats = [name for name in _PILLOW_FORMATS if name in Image.OPEN]
        image = Image.open(io.BytesIO(contents), formats=formats)
        # Without EXIF, Pillow would use the orientation in XMP.
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
    # Pillow's plug-ins raise a dozen types of errors on broken files.
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
    """Remove a PNG's metadata, and its transparency chunk if damaged."""
    if not contents.startswith(PNG_SIGNATURE):
        return contents
    kept, position = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while position < len(contents):
        length = int.from_bytes(contents[position : position + 4], "big")
        # Length, name and checksum have four bytes each.
        chunk = contents[position : position + length + 12]
        name, check = chunk[4:8], chunk[-4:]
        # Pillow refuses a file if metadata is damaged, too large or of a wrong
        # length, where other decoders at most warn. A chunk whose name begins
        # with a lowercase letter is ancillary: decoders may ignore it.
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
    """Return the pixels in 8 bits, over white, before orientation."""
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
    """Refuse pixel types that do not define which value is white."""
    # Pillow also uses 32 bits for 16-bit PNG and Netpbm.
    wide = image.mode == "I" and image.format not in ("PNG", "PPM")
    kinds = ()
    if image.format == "TIFF":
        bits = image.tag_v2.get(_BITS_PER_SAMPLE, (8,))
        apart = image.tag_v2.get(_PLANES) == _SEPARATE and len(bits) > 1
        if apart and (max(bits) > 8 or image.mode == "LA"):
            raise UnknownRange(
                "its samples are stored in separate planes, with more than 8 "
                "bits or as gray with alpha, which Pillow misreads; interleave "
                "them"
            )
        kinds = image.tag_v2.get(_SAMPLE_FORMAT, ())
        kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    signed = any(kind not in (_UNSIGNED, _UNDEFINED) for kind in kinds)
    if image.format == "JPEG2000" and contents:
        signed = has_signed_samples(contents)
    if wide or signed or image.mode == "F":
        raise UnknownRange(
            "its pixels are floats, signed or of 32 bits, so it is unclear "
            "which value is white; convert it to unsigned 8 or 16 bits"
        )


def _high_bytes(image):
    """Return the high bytes of a single-channel image of more than 8 bits."""
    bits, inverted = 16, False
    if image.format == "TIFF":
        bits = image.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0]
        # Pillow inverts only images of 8 bits or fewer.
        inverted = image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    samples = np.asarray(image).astype("uint16")
    pixels = (samples >> bits - 8).astype("uint8")
    pixels = 255 - pixels if inverted else pixels
    return np.repeat(pixels[..., None], 3, axis=-1)


def _key(image, key):
    """Return the transparent colour; Pillow uses 255 or 1 for one bit."""
    return int(key > 0) if image.mode == "1" else key


def _samples(image, pixels, contents):
    """Return the raw values of the file, to compare with a transparent colour.

    Pillow scales values of fewer than 8 bits to 0–255, and of 16-bit RGB it
    reads only the high bytes.
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
    # Compute in 16 bits, as in the graph.
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
