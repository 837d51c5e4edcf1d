"""Find the rows that `align-keras curate` has kept."""

from pathlib import Path


def kept_folder(path: str | Path) -> Path | None:
    """Return the folder of the kept rows of a finished curation.

    Args:
        path: string or `pathlib.Path`. The directory that `curate` wrote, or
            the folder `kept` in it.

    Returns:
        `pathlib.Path` of `kept`, or `None` if `path` is not such a directory.

    Raises:
        FileNotFoundError: The run has not finished, so rows may be missing.
    """
    path = Path(path)
    output = path.parent if path.name == "kept" else path
    # A folder may be called `kept` for other reasons.
    ours = (output / "kept").is_dir() and (output / "dropped").is_dir()
    if not ours and not (output / ".stages").is_dir():
        return None
    if not (output / "manifest.json").is_file():
        raise FileNotFoundError(
            f"`{output}` has no manifest.json, so the run that writes it has "
            "not finished; run `align-keras curate` again."
        )
    return output / "kept"
