"""Encoded images to 8-bit RGB with Pillow.

TensorFlow is not needed here. `align_keras.preprocessing.decode` does the same
in a graph, and the two agree: the same JPEG arithmetic, orientation rule,
treatment of transparency (a white ground) and of 16 bits (the high byte).
Pillow reads more formats (TIFF, palette BMP, animated WebP), orientation
outside JPEG, and transparency in GIF, which is black in the graph.
"""

import io

import numpy as np
from PIL import Image

# Where a camera's EXIF block can begin: it precedes the image data.
EXIF_SEARCH_BYTES = 65536
EXIF_HEADER = b"Exif\x00\x00"
ORIENTATION_TAG = 0x0112
# More entries than any camera writes in the first directory.
MAX_EXIF_ENTRIES = 128

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

# An EXIF orientation is a transposition (for 5 and above), then these flips.
FLIPPED_VERTICALLY = (3, 4, 7, 8)
FLIPPED_HORIZONTALLY = (2, 3, 6, 7)


class TooManyPixels(ValueError):
    """An image whose decoded form would not fit the allowed memory."""


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
        ValueError: The bytes are not an image that Pillow can decode.
    """
    return decode_and_describe(contents, max_pixels)[0]


def decode_and_describe(
    contents: bytes | Image.Image, max_pixels: int | None = None
) -> tuple[np.ndarray, bool]:
    """`decode_with_pillow`, with whether the graph can decode these bytes.

    Returns:
        Tuple of the uint8 array `(height, width, 3)` and a bool: true when
        `decode_in_graph` gives the same image for the same bytes.
    """
    if isinstance(contents, Image.Image):
        return _to_rgb(contents), False
    if not contents:
        raise ValueError("the file holds 0 bytes")
    try:
        Image.init()
        formats = [name for name in _PILLOW_FORMATS if name in Image.OPEN]
        image = Image.open(io.BytesIO(contents), formats=formats)
        _check_pixels(image, max_pixels)
        _check_scans(image, contents)
        pixels = _to_rgb(image)
    except Image.DecompressionBombError as error:
        raise TooManyPixels(str(error)) from error
    except TooManyPixels:
        raise
    except Exception as error:
        # Pillow's plug-ins raise a dozen types on broken files.
        raise ValueError(str(error).splitlines()[0][:200]) from error
    if image.format in ("JPEG", "MPO"):
        return _upright(pixels, exif_orientation(contents)), True
    orientation = image.getexif().get(ORIENTATION_TAG, 1)
    # The graph shows other formats as they lie, and some not at all.
    still = getattr(image, "n_frames", 1) == 1
    graph_agrees = image.format in ("PNG", "WEBP") and still
    return _upright(pixels, orientation), graph_agrees and orientation == 1


def exif_orientation(contents: bytes) -> int:
    """The orientation that a camera noted in a JPEG file.

    Args:
        contents: bytes. The file, or at least its first 64 KiB.

    Returns:
        int from 1 (upright, also when nothing is noted) to 8, as in the EXIF
        standard's tag 0x0112.
    """
    head = contents[:EXIF_SEARCH_BYTES]
    start = head.find(EXIF_HEADER)
    if start < 0:
        return 1
    tiff = start + len(EXIF_HEADER)
    order = "little" if head[tiff : tiff + 1] == b"I" else "big"

    def number(position, size):
        return int.from_bytes(head[position : position + size], order)

    directory = tiff + number(tiff + 4, 4)
    for entry in range(min(number(directory, 2), MAX_EXIF_ENTRIES)):
        position = directory + 2 + 12 * entry
        if number(position, 2) == ORIENTATION_TAG:
            value = number(position + 8, 2)
            return value if 1 <= value <= 8 else 1
    return 1


def _check_pixels(image, max_pixels):
    if max_pixels is not None and image.width * image.height > max_pixels:
        raise TooManyPixels(
            f"{image.width}x{image.height} pixels, more than {max_pixels}"
        )


def _check_scans(image, contents):
    scans = contents.count(JPEG_SCAN)
    if image.format in ("JPEG", "MPO") and scans > MAX_JPEG_SCANS:
        raise ValueError(f"a JPEG of {scans} scans, more than {MAX_JPEG_SCANS}")


def _to_rgb(image):
    if image.mode.startswith("I;16"):
        high_byte = (np.asarray(image).astype("uint16") >> 8).astype("uint8")
        return np.repeat(high_byte[..., None], 3, axis=-1)
    transparent = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or (
        image.mode in ("P", "RGB") and "transparency" in image.info
    )
    if not transparent:
        return np.asarray(image.convert("RGB"))
    # As in the graph, in 16 bits.
    pixels = np.asarray(image.convert("RGBA")).astype("uint16")
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
