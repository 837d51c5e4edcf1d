"""Names of classes to the vectors of a zero-shot classifier."""

import json
from pathlib import Path

import keras
import numpy as np

from align_keras import classes as prompts

# Texts in one call of the text tower.
_BATCH_SIZE = 256


def read_classes(path):
    """Read the names of classes, one on each line of a text file.

    Args:
        path: string or `pathlib.Path`. Empty lines are skipped.

    Returns:
        List of strings.

    Raises:
        ValueError: There is no name, or one stands there twice.
    """
    names = {}
    for number, line in enumerate(_read(path).splitlines(), start=1):
        name = line.strip()
        if name in names:
            raise ValueError(
                f"`{path}` names the class {name!r} on line {names[name]} and "
                f"again on line {number}: remove one of them."
            )
        if name:
            names[name] = number
    if not names:
        raise ValueError(
            f"`{path}` names no class: write one name on each line."
        )
    return list(names)


def read_templates(path):
    """Read prompts from a JSON file.

    Args:
        path: string or `pathlib.Path`. A list of strings, each with `{}`
            where the name of the class goes; or an object with such a list
            under `"templates"`.

    Returns:
        List of strings.

    Raises:
        ValueError: The file holds something else.
    """
    try:
        content = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"`{path}` is not JSON: {error}.") from error
    if isinstance(content, dict):
        content = content.get("templates")
    # An object without templates is as wrong as an empty list.
    return prompts.check_templates(content or [], path)


def class_vectors(model, names, templates=("{}",)):
    """Embed classes as the mean of their prompts.

    Each prompt's vector has unit length, and so has the mean.

    Args:
        model: `align_keras.AlignDualEncoder` with a preprocessor.
        names: list of strings.
        templates: list of strings with `{}` where the name goes. Defaults to
            the name alone.

    Returns:
        NumPy array float32 `(classes, embedding_dim)`.

    Raises:
        ValueError: A template has no `{}`, or the prompts of a class cancel
            out.
    """

    def embed(texts):
        batches = [
            keras.ops.convert_to_numpy(
                model.encode_text(texts[start : start + _BATCH_SIZE])
            )
            for start in range(0, len(texts), _BATCH_SIZE)
        ]
        return np.concatenate(batches)

    return prompts.class_vectors(embed, names, templates)


def _read(path):
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"`{path}` is not a text in UTF-8: {error}.") from (
            error
        )
