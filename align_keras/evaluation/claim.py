"""What a directory's files were made for, so that nothing else takes them."""

import json

from align_keras.files import atomic_file


def claim(path, asked):
    """Write down what a directory holds, or refuse what it does not hold.

    Args:
        path: `pathlib.Path`. A JSON file in that directory.
        asked: dictionary of what JSON can hold.

    Raises:
        ValueError: the file is there and holds something else.
    """
    # As it would be read again: tuples are lists.
    asked = json.loads(json.dumps(asked))
    if path.is_file():
        held = json.loads(path.read_text("utf-8"))
        for name in (*asked, *held):
            if held.get(name) != asked.get(name):
                raise ValueError(
                    f"`{path.parent}` holds work of another `{name}` "
                    f"({path.name}): {held.get(name)!r}, now "
                    f"{asked.get(name)!r}. Remove it, or use another working "
                    "directory."
                )
        return
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(asked, indent=2) + "\n", "utf-8")
