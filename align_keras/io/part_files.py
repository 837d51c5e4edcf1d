"""Read and check the manifests of vectors and of scores."""

from pathlib import Path

from align_keras.io.json_files import is_count
from align_keras.io.json_files import read_object

# The form of a file in the manifest; see `read_object`.
SHARD = {"file": str, "records": is_count, "sha256?": str}


def check_manifest(path: str | Path) -> dict:
    """Read the manifest of a directory of vectors or scores.

    Args:
        path: string or `pathlib.Path`.

    Returns:
        dict with valid `"arguments"` and `"shards"`.

    Raises:
        ValueError: The manifest is damaged, lists no files, or was written by
            another program. The message names the file and the field.
    """
    return read_object(
        path,
        {"arguments": {"fingerprint": str}, "shards": [SHARD, ...]},
        "manifest of vectors or scores",
        "Choose another directory, or remove the file and rerun the command "
        "that wrote it.",
    )
