"""Names of classes to the vectors of a zero-shot classifier."""

import json
from pathlib import Path

import keras
import numpy as np

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
    return _checked(content, f"`{path}`")


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
    templates = _checked(list(templates), "`templates`")
    texts = [text.replace("{}", name) for name in names for text in templates]
    batches = [
        keras.ops.convert_to_numpy(
            model.encode_text(texts[start : start + _BATCH_SIZE])
        )
        for start in range(0, len(texts), _BATCH_SIZE)
    ]
    prompts = np.concatenate(batches).astype("float64")
    prompts /= np.linalg.norm(prompts, axis=-1, keepdims=True)
    means = prompts.reshape(len(names), len(templates), -1).mean(axis=1)
    lengths = np.linalg.norm(means, axis=-1, keepdims=True)
    if lengths.min() < 1e-6:
        raise ValueError(
            f"The prompts of the class {names[lengths.argmin()]!r} cancel "
            "out: give other templates."
        )
    return (means / lengths).astype("float32")


def _read(path):
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"`{path}` is not a text in UTF-8: {error}.") from (
            error
        )


def _checked(templates, origin):
    if not isinstance(templates, list) or not templates:
        raise ValueError(
            f"The templates of {origin} must be a list of strings. "
            f"Received: {templates!r}"
        )
    for template in templates:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise ValueError(
                f"A template of {origin} must hold `{{}}` once, where the "
                f"name of the class goes. Received: {template!r}"
            )
    return templates
