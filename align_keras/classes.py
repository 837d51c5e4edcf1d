"""Class names: reading them, building prompts and embedding them."""

import dataclasses
from collections.abc import Callable
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from align_keras.embedding.embed_streams import embed_images
from align_keras.embedding.embed_streams import embed_texts
from align_keras.embedding.embedder import as_embedder
from align_keras.embedding.similarity import as_vectors
from align_keras.embedding.similarity import exact_scores
from align_keras.embedding.similarity import unit_rows
from align_keras.io.json_files import read_json
from align_keras.io.lists import check_list
from align_keras.io.lists import check_templates
from align_keras.io.lists import path_list
from align_keras.io.mirrors import reads
from align_keras.io.text import clean_text
from align_keras.io.text import read_text
from align_keras.io.text import split_lines

__all__ = [
    "Classes",
    "class_vectors",
    "classify",
    "read_classes",
    "read_templates",
]

# Our own prompts. CLIP's 80 are not ours to ship; docs/evaluation.md explains
# how to use them from a JSON file.
TEMPLATES = (
    "{}",
    "a photo of {}",
    "a photo of the {}",
    "a close view of {}",
    "{} seen from afar",
    "a drawing of {}",
    "a small {}",
    "a large {}",
)

# Whether to scale each prompt to unit length before averaging.
ENSEMBLES = ("normalized", "plain")


@dataclasses.dataclass(frozen=True)
class Classes:
    """The names of the classes, and the templates for their prompts.

    Args:
        keys: list of strings. The folder names or labels that data sets use.
        names: list of lists of strings. The names of each class.
        templates: list of strings with `{}` where the name goes, or `None`.
    """

    keys: list
    names: list
    templates: list | None = None

    def find(self, labels: Sequence[str] | range) -> list[int]:
        """Find the class of each label of a data set.

        Labels are read as keys or names, and as keys or positions only if not
        all of them are there. So where names are numbers, the label `"3"` is
        the class of that name, whatever its position.

        Args:
            labels: list of strings: keys, names or positions. Or a range, if
                the data set only numbers its classes: keys or positions.

        Returns:
            A list of positions.

        Raises:
            ValueError: a label is not there, or some labels are names and
                others are positions.
        """
        keys = {key: n for n, key in enumerate(self.keys)}
        positions = {str(n): n for n in range(len(self.keys))}
        named: dict[str, int] = {}
        # Ignore case only where no name is exactly the label.
        for form in (str, str.lower):
            for position, names in enumerate(self.names):
                for name in names:
                    named.setdefault(form(name), position)
        if keys != positions:
            named.update(keys)
        placed = positions | keys
        asked, missing = [str(label) for label in labels], []
        for known in [placed] if isinstance(labels, range) else [named, placed]:
            found: list = [known.get(a, known.get(a.lower())) for a in asked]
            if None not in found:
                return found
            missing.append(asked[found.index(None)])
        raise ValueError(
            f"The class names have no entry for the label {missing[0]!r}. "
            "Labels must all be keys or names, or all be keys or positions, "
            f"but {missing[-1]!r} is neither a key nor a position. Write a "
            "JSON object that maps labels to names."
        )


# === Files ===


@reads("path")
def read_classes(path: str | Path, distinct: bool = False) -> Classes:
    """Read class names, and optionally templates, from a file.

    The file holds either one name per line (empty lines are skipped) or JSON:
    `{"classes": ..., "templates": [...]}`, where `classes` is a list of names
    in the order of the labels, or an object that maps folder names to names.
    A name may itself be a list of names. `templates` may be missing. A file
    that holds only a list, or an object without `"classes"`, is read as
    `classes`. A file that begins with a bracket, a brace or a quotation mark
    is JSON, whatever its name.

    Args:
        path: string or `pathlib.Path`. UTF-8, UTF-16 or UTF-32.
        distinct: bool. Whether to refuse two classes with the same first
            name, the one that answers show. Defaults to `False`.

    Returns:
        `Classes`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has another form or names no class. The message
            says where.

    Example:

    ```python
    Path("classes.txt").write_text("cat\\ndog\\n")
    Path("classes.json").write_text('{"classes": ["cat", ["dog", "hound"]]}')
    read_classes("classes.txt").names  # [["cat"], ["dog"]]
    read_classes("classes.json").names  # [["cat"], ["dog", "hound"]]
    ```
    """
    text = read_text(path)
    if text.lstrip()[:1] in ("[", "{", '"'):
        classes = _from_json(path)
        places = [f"under {key!r}" for key in classes.keys]
    else:
        lines = [line.strip() for line in split_lines(text)]
        places = [f"on line {n}" for n, line in enumerate(lines, 1) if line]
        names = [[line] for line in lines if line]
        classes = Classes([str(n) for n in range(len(names))], names)
    if not classes.names:
        raise ValueError(
            f"`{path}` names no class: write one name on each line, or a JSON "
            "list of names."
        )
    first: dict[str, str] = {}
    for (name, *_), place in zip(classes.names, places, strict=True):
        if distinct and name in first:
            raise ValueError(
                f"`{path}` names the class {name!r} {first[name]} and again "
                f"{place}: remove one of them."
            )
        first[name] = place
    return classes


def _from_json(path):
    content, templates = read_json(path), None
    if isinstance(content, dict) and "classes" in content:
        templates = check_templates(content.get("templates"), path)
        content = content["classes"]
    if isinstance(content, list):
        content = {str(n): names for n, names in enumerate(content)}
    if not isinstance(content, dict):
        raise ValueError(
            f"`{path}` must hold a list of class names, or an object from "
            "folder names to class names. Received: "
            f"{type(content).__name__}"
        )
    names = [
        [entry] if isinstance(entry, str) else entry
        for entry in content.values()
    ]
    for key, entry in zip(content, names, strict=True):
        is_list = isinstance(entry, list) and entry
        if not is_list or not all(isinstance(name, str) for name in entry):
            raise ValueError(
                f"`{path}` must name each class by a string or a list of "
                f"strings. Received for {key!r}: {content[key]!r}"
            )
    names = [[clean_text(name) for name in entry] for entry in names]
    return Classes(list(content), names, templates)


@reads("path")
def read_templates(path: str | Path) -> list[str]:
    """Read templates from a JSON file.

    Args:
        path: string or `pathlib.Path`. The file holds a list of strings, each
            with `{}` where the class name goes, or an object with such a list
            under `"templates"`.

    Returns:
        List of strings.

    Raises:
        ValueError: the file holds something else.
    """
    content = read_json(path)
    if isinstance(content, dict):
        content = content.get("templates")
    # Refuse an object without templates like an empty list.
    return check_templates(content or [], path)


# === Vectors ===


def class_vectors(
    embed: Callable,
    names: Sequence[str | list[str]],
    templates: Sequence[str] = ("{}",),
    ensemble: str = "normalized",
) -> np.ndarray:
    """Embed each class as the mean of its prompts.

    Args:
        embed: callable. Takes a list of strings and returns a float array
            with one row per string, such as
            `functools.partial(embed_texts, model)`.
        names: list with an entry for each class: a string, or a list of
            strings if the class has several names.
        templates: list of strings with `{}` where the name goes. Defaults to
            only the name.
        ensemble: string. `"normalized"` scales each prompt to unit length
            before averaging, as CLIP does; `"plain"` averages the prompts as
            they are, the other reading of the paper's section 5.2. Both agree
            for an embedder that returns unit vectors. The mean is scaled to
            unit length either way. Defaults to `"normalized"`.

    Returns:
        float32 array `(num_classes, dim)`, rows of unit length.

    Raises:
        ValueError: `ensemble` is unknown, a template has no `{}`, or the
            prompts of a class cancel out.
    """
    if ensemble not in ENSEMBLES:
        raise ValueError(
            f"`ensemble` must be one of {ENSEMBLES}. "
            f"Received: ensemble={ensemble!r}"
        )
    check_list(names, "names")
    check_list(templates, "templates")
    templates = check_templates(list(templates), "templates")
    names = [[name] if isinstance(name, str) else name for name in names]
    prompts = [
        template.replace("{}", name)
        for of_one_class in names
        for name in of_one_class
        for template in templates
    ]
    vectors = as_vectors(embed(prompts), "embed(prompts)")
    if ensemble == "normalized":
        vectors = unit_rows(vectors)
    counts = np.array([len(of_one_class) for of_one_class in names])
    parts = np.split(vectors, np.cumsum(counts * len(templates))[:-1])
    means = np.stack([part.mean(axis=0, dtype="float64") for part in parts])
    lengths = np.linalg.norm(means, axis=1)
    if not lengths.min() > 1e-6:
        raise ValueError(
            f"The prompts of the class {names[lengths.argmin()][0]!r} cancel "
            "out, so their mean has no direction: use other templates."
        )
    return unit_rows(means)


def class_probabilities(
    scores: np.ndarray, temperature: float | None
) -> np.ndarray | None:
    """Turn the cosines between an image and the classes into probabilities.

    Args:
        scores: float array `(num_classes,)`.
        temperature: float. The temperature of the model; `None` if unknown.

    Returns:
        float32 array `(num_classes,)`, or `None` without a temperature.
    """
    if temperature is None:
        return None
    logits = scores.astype("float64") / temperature
    powers = np.exp(logits - logits.max())
    return (powers / powers.sum()).astype("float32")


def classify(
    model: Any,
    images: Sequence,
    names: Sequence[str | list[str]],
    templates: Sequence[str] = ("{}",),
    unreadable: Callable | None = None,
) -> np.ndarray:
    """Compute the probability of each class for each image.

    The classes are given only by name and nothing is trained: each image is
    compared with the prompts of each class (section 5.2 of the paper).

    Args:
        model: an `align_keras.AlignDualEncoder` with a preprocessor, or an
            `Embedder` that knows its temperature.
        images: list of images: file paths, encoded files as bytes, or uint8
            arrays `(height, width, 3)`.
        names: list with an entry for each class: a string, or a list of
            strings if the class has several names.
        templates: list of strings with `{}` where the name goes. Defaults to
            only the name.
        unreadable: callable. See `embed_images`.

    Returns:
        float32 array `(num_images, num_classes)`. Each row sums to 1.

    Raises:
        FileNotFoundError: A path does not exist.
        ValueError: An image cannot be read, there are fewer than two classes,
            or the temperature of the model is unknown.

    Example:

    ```python
    model = AlignDualEncoder.from_preset("hf://kakaobrain/align-base")
    classify(model, ["photo.jpg"], ["a cat", "a dog"])
    ```
    """
    check_list(names, "names")
    if len(names) < 2:
        raise ValueError(
            "`names` must hold at least two classes, because probabilities "
            f"compare classes. Received: {list(names)!r}"
        )
    images = path_list(images)
    if not images:
        raise ValueError("`images` must hold at least one image. Received: []")
    embedder = as_embedder(model)
    if embedder.temperature is None:
        raise ValueError(
            f"The model `{embedder.name}` does not record its temperature, "
            "which turns similarities into probabilities."
        )
    classes = class_vectors(
        lambda prompts: embed_texts(embedder, prompts, progress=False),
        names,
        templates,
    )
    vectors = embed_images(
        embedder,
        images,
        batch_size=min(64, len(images)),
        progress=False,
        unreadable=unreadable,
    )
    scores = exact_scores(vectors, classes)
    return np.stack(
        [class_probabilities(row, embedder.temperature) for row in scores]
    )
