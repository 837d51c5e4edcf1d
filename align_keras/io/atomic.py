"""Files and directories that appear whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path


@contextlib.contextmanager
def atomic_file(path):
    """Yield a temporary path that becomes `path` when the block succeeds.

    The temporary file lies in the same directory, so that the final step is a
    rename on one file system. When the block raises, the temporary file is
    removed and whatever stood at `path` before is untouched.

    Args:
        path: string or `pathlib.Path`. The file to write. Missing parent
            directories are created.

    Example:

    ```python
    with atomic_file("manifest.json") as temporary:
        temporary.write_text("{}")
    ```
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name}.", suffix="".join(path.suffixes)
    )
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        _make_public(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path):
    """Yield a temporary directory that becomes `path` on success.

    A new directory appears in one rename. Where `path` exists already, each
    file that was written replaces its namesake and other files stay, so that
    no reader ever sees half a file and nothing of the user's is deleted.

    Args:
        path: string or `pathlib.Path`. The directory to write. Missing parent
            directories are created.

    Example:

    ```python
    with atomic_directory("my_preset") as temporary:
        (temporary / "config.json").write_text("{}")
    ```
    """
    path = Path(path)
    if path.is_file():
        raise FileExistsError(
            f"`{path}` is a file, but a directory is to be written there. "
            "Choose another path or remove the file."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        _make_public(temporary)
        if path.exists():
            _replace_files(temporary, path)
        else:
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace_files(source, target):
    for file in sorted(source.rglob("*")):
        destination = target / file.relative_to(source)
        if file.is_dir():
            destination.mkdir(parents=True, exist_ok=True)
        else:
            os.replace(file, destination)


def _make_public(path):
    """Undo the private mode of temporary files, as the umask would have."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def remove_leftovers(directory, names):
    """Remove what a killed process left of files that it was writing.

    Args:
        directory: string or `pathlib.Path`. Need not exist.
        names: list of strings. Names of files and directories that are
            written with `atomic_file` or `atomic_directory`; may hold `*`.
    """
    for name in names:
        for path in Path(directory).glob(f".{name}.*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
