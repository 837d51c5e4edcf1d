"""Compute digests to tell whether two inputs are the same."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from align_keras.io.file_names import glob_visible

# Hexadecimal digits of a fingerprint: 64 bits distinguish all inputs of a
# user. Digests that detect damage of a file keep all 64 digits.
LENGTH = 16


def fingerprint(*parts: object) -> str:
    """Return the fingerprint of JSON values.

    Args:
        *parts: JSON values, and values that `str` distinguishes, such as
            paths.

    Returns:
        string of 16 hexadecimal digits. Equal for equal parts, regardless of
        the order of a dict.
    """
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 digest of a file, in 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_digest(path: str | Path, expected: str, remedy: str) -> None:
    """Refuse a file that has changed since its checksum was computed.

    Args:
        path: string or `pathlib.Path`.
        expected: string. The digest from `file_digest`.
        remedy: string. What to do about it, after "`FILE` is damaged: ".

    Raises:
        ValueError: The file is damaged or missing.
    """
    if not Path(path).is_file():
        raise ValueError(f"`{path}` is missing: {remedy}.")
    if file_digest(path) != expected:
        raise ValueError(f"`{path}` is damaged: {remedy}.")


def directory_fingerprint(path: str | Path) -> str | None:
    """Return the fingerprint of a directory: all file names and contents.

    Args:
        path: string or `pathlib.Path`.

    Returns:
        string of 16 hexadecimal digits, or `None` if the path is not a
        directory but, for example, the name of a preset.
    """
    path = Path(path)
    if not path.is_dir():
        return None
    digest = hashlib.sha256()
    for file in glob_visible(path, "**/*"):
        # Hidden files, such as locks, are not part of the contents.
        if file.is_file():
            digest.update(file.relative_to(path).as_posix().encode())
            digest.update(bytes.fromhex(file_digest(file)))
    return digest.hexdigest()[:LENGTH]


def arrays_fingerprint(arrays: Iterable[Any], *parts: Any) -> str:
    """Return the fingerprint of arrays, such as the weights of a model.

    Args:
        arrays: iterable of NumPy arrays, in a fixed order.
        *parts: as in `fingerprint`.

    Returns:
        string of 16 hexadecimal digits.
    """
    digest = hashlib.sha256(fingerprint(*parts).encode())
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()[:LENGTH]
