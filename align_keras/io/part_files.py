"""Manifests of files of vectors and of scores, checked before they are used."""

from pathlib import Path

from align_keras.io.json_files import read_json


def check_manifest(path: str | Path) -> dict:
    """Read the manifest of a directory of vectors or scores.

    Args:
        path: string or `pathlib.Path`.

    Returns:
        dict, whose `"arguments"` and `"shards"` can be used.

    Raises:
        ValueError: It is damaged, or another program's; the message names the
            file and the field.
    """
    manifest = read_json(path)
    if not isinstance(manifest, dict):
        raise _unfit(path, f"it holds {manifest!r:.80}")
    arguments, shards = manifest.get("arguments"), manifest.get("shards")
    if not isinstance(arguments, dict) or not isinstance(
        arguments.get("fingerprint"), str
    ):
        raise _unfit(path, f"it has arguments={arguments!r:.80}")
    if not isinstance(shards, list):
        raise _unfit(path, f"it has shards={shards!r:.80}")
    for shard in shards:
        if not isinstance(shard, dict) or not (
            isinstance(shard.get("file"), str)
            and isinstance(shard.get("sha256", ""), str)
            and type(shard.get("records")) is int
            and shard["records"] >= 0
        ):
            raise _unfit(path, f"it has the shard {shard!r:.80}")
    return manifest


def _unfit(path, told):
    return ValueError(
        f"`{path}` is no manifest of vectors or scores, or damaged: {told}. "
        "Give another directory, or remove the file and run the command that "
        "wrote it again."
    )
