"""Check that paths to write to are local."""

import os
import re
from pathlib import Path

# `Path` turns two slashes into one. A scheme of one letter is a drive.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def local_path(path: str | Path) -> Path:
    """Return a path to write to; refuse the address of an object store.

    As a path, `gs://bucket/run` would be a directory `gs:` on the local disk,
    and its contents would be lost with this machine.

    Args:
        path: string or `pathlib.Path`.

    Raises:
        ValueError: The path is an address such as `s3://bucket/run`.
    """
    found = _ADDRESS.match(os.fspath(path))
    if found:
        rest = os.fspath(path)[found.end() :].lstrip("/")
        raise ValueError(
            f"`{found.group()}/{rest}` is an address, but only local paths "
            "can be written to here. Write to a local disk or a mounted "
            "bucket, and copy the files with the tools of the store."
        )
    return Path(path)
