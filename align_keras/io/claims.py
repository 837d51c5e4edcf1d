"""Record what a directory is used for, so that nothing else writes into it."""

from pathlib import Path

from align_keras.io.json_files import read_json
from align_keras.io.json_files import to_json
from align_keras.io.json_files import write_json


def claim(path: str | Path, settings: dict, what: str = "work") -> None:
    """Record the settings of a directory, or refuse different ones.

    Args:
        path: string or `pathlib.Path`. A JSON file in the directory.
        settings: dict of JSON values. The settings of the directory.
        what: string. What error messages call the contents. Defaults to
            `"work"`.

    Raises:
        ValueError: The file exists and holds other settings. The message names
            the first one that differs.

    Example:

    ```python
    claim("run/recipe.json", {"steps": 1000, "seed": 0}, "a run")
    ```
    """
    if not Path(path).is_file():
        write_json(path, settings)
        return
    check_claim(path, settings, what)


def check_claim(path: str | Path, settings: dict, what: str = "work") -> None:
    """Refuse settings that differ from those that `claim` recorded.

    Args:
        path: string or `pathlib.Path`. The JSON file.
        settings: dict of JSON values.
        what: string. What error messages call the contents. Defaults to
            `"work"`.

    Raises:
        ValueError: The settings differ.
    """
    path = Path(path)
    # Convert them as if read from JSON: tuples become lists.
    asked, held = to_json(settings), read_json(path)
    if not isinstance(held, dict):
        raise ValueError(
            f"`{path}` is damaged: it holds {held!r:.80}, not an object. Use "
            "another directory, or remove the file."
        )
    for name in (*asked, *held):
        if held.get(name) != asked.get(name):
            raise ValueError(
                f"`{path.parent}` holds {what} with {name}="
                f"{held.get(name)!r}, but {name}={asked.get(name)!r} was "
                "asked for. Use another directory, or the settings of that "
                f"{what.removeprefix('a ').removeprefix('an ')}."
            )
