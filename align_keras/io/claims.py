"""What a directory is for, so that nothing else writes into it."""

from pathlib import Path

from align_keras.io.json_files import read_json
from align_keras.io.json_files import to_json
from align_keras.io.json_files import write_json


def claim(path: str | Path, settings: dict, what: str = "work") -> None:
    """Write down what a directory is for, or refuse another purpose.

    Args:
        path: string or `pathlib.Path`. A JSON file in that directory.
        settings: dict of JSON values. What the directory depends on.
        what: string. What error messages call the contents. Defaults to
            `"work"`.

    Raises:
        ValueError: The file is there and holds other settings; the message
            names the first that differs.

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
    """Refuse settings other than those that `claim` wrote down.

    Args:
        path: string or `pathlib.Path`. The JSON file.
        settings: dict of JSON values.
        what: string. What error messages call the contents.

    Raises:
        ValueError: The settings differ.
    """
    path = Path(path)
    # As they would be read again: tuples are lists.
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
