"""Hash images perceptually, so that similar images have similar hashes.

The image is shrunk to 32×32 gray pixels. Of its cosine transform, only the 8×8
lowest frequencies are kept, and each of the 64 bits says whether one of them is
above their median. This is the common "pHash", which COYO-700M lists.

Reference:
    - C. Zauner, Implementation and Benchmarking of Perceptual Image Hash
      Functions, 2010.
"""

import collections
import functools
from collections.abc import Iterable

import numpy as np
from PIL import Image

from align_keras.io.folders import OutsideFolder
from align_keras.io.folders import read_within
from align_keras.io.images import decode_with_pillow
from align_keras.io.threads import map_ahead

SIDE = 32
FREQUENCIES = 8

Measured = collections.namedtuple("Measured", "phash width height")
# Stands for an image that was not read because it is outside the folder.
OUTSIDE = "outside"


def perceptual_hash(pixels: np.ndarray) -> int:
    """Hash an image to a signed 64-bit integer.

    Args:
        pixels: uint8 array `(height, width, 3)`.

    Returns:
        int. The first bit, the sign, belongs to the mean; the other
        frequencies follow row by row.

    Example:

    ```python
    distance = hamming_distance(perceptual_hash(one), perceptual_hash(two))
    ```
    """
    gray = Image.fromarray(np.asarray(pixels, "uint8")).convert("L")
    gray = gray.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    cosines = _cosines()
    low = cosines @ np.asarray(gray, "float64") @ cosines.T
    bits = (low > np.median(low)).ravel()
    return int(np.packbits(bits).view(">i8")[0])


@functools.cache
def _cosines():
    """Return the lowest rows of the cosine transform (unnormalised DCT-II)."""
    positions = np.arange(SIDE) + 0.5
    frequencies = np.arange(FREQUENCIES)[:, None]
    return 2 * np.cos(np.pi / SIDE * frequencies * positions)


def hamming_distance(one, two):
    """Count the bits in which hashes differ.

    Args:
        one: int or int64 array.
        two: int or int64 array of a shape that broadcasts with `one`.

    Returns:
        int64 array or scalar.
    """
    differing = np.asarray(one, "int64") ^ np.asarray(two, "int64")
    return np.bitwise_count(differing.astype("uint64")).astype("int64")


def measure_images(
    folder: str, names: Iterable[str | None], allow_outside: bool = False
) -> list[Measured | str | None]:
    """Measure and hash the images of a folder in threads.

    Args:
        folder: string.
        names: list of paths relative to the folder; entries may be `None`.
        allow_outside: bool. Whether to read images outside the folder.
            Defaults to `False`.

    Returns:
        list of `Measured(phash, width, height)`. An entry is `None` if the
        file is missing or no image, and `OUTSIDE` if it is outside the folder
        and was not read.
    """
    measure = functools.partial(_measure, folder, allow_outside)
    return list(map_ahead(measure, names))


def _measure(folder, allow_outside, name):
    try:
        pixels = decode_with_pillow(read_within(folder, name, allow_outside))
    except OutsideFolder:
        return OUTSIDE
    except (OSError, ValueError, TypeError):
        return None
    height, width = pixels.shape[:2]
    return Measured(perceptual_hash(pixels), width, height)
