"""Manifests of files of vectors and of scores, checked before they are used."""

from pathlib import Path

from align_keras.io.json_files import is_count
from align_keras.io.json_files import read_object

# A file of the manifest, see `read_object`.
SHARD = {"file": str, "records": is_count, "sha256?": str}


def check_manifest(path: str | Path) -> dict:
    """Read the manifest of a directory of vectors or scores.

    Args:
        path: string or `pathlib.Path`.

    Returns:
        dict, whose `"arguments"` and `"shards"` can be used.

    Raises:
        ValueError: It is damaged, or another program's, or names no file; the
            message names the file and the field.
    """
    return read_object(
        path,
        {"arguments": {"fingerprint": str}, "shards": [SHARD, ...]},
        "manifest of vectors or scores",
        "Give another directory, or remove the file and run the command that "
        "wrote it again.",
    )
