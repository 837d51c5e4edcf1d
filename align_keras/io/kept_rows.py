"""The rows that `align-keras curate` has kept, for all who read them."""

from pathlib import Path


def kept_folder(path: str | Path) -> Path | None:
    """The kept rows of a finished result.

    Args:
        path: string. The directory that `curate` wrote, or `kept` in it.

    Returns:
        `pathlib.Path` of `kept`, or `None` where `path` is neither.

    Raises:
        FileNotFoundError: The run has not ended, so that rows may be missing.
    """
    path = Path(path)
    output = path.parent if path.name == "kept" else path
    # A folder may be called `kept` for reasons of its own.
    ours = (output / "kept").is_dir() and (output / "dropped").is_dir()
    if not ours and not (output / ".stages").is_dir():
        return None
    if not (output / "manifest.json").is_file():
        raise FileNotFoundError(
            f"`{output}` has no manifest.json, so the run that writes it has "
            "not ended; run `align-keras curate` again."
        )
    return output / "kept"
