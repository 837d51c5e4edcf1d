"""Read ObjectNet, whose classes partly overlap with ImageNet's."""

import logging
import re
from pathlib import Path

import numpy as np

from align_keras.classes import Classes
from align_keras.embedding.embedder import read_pixels
from align_keras.evaluation.datasets import DataSet
from align_keras.evaluation.datasets import class_folders
from align_keras.evaluation.datasets import path_within
from align_keras.io.json_files import is_count
from align_keras.io.json_files import read_object
from align_keras.io.mirrors import reads
from align_keras.io.text import read_text
from align_keras.io.text import split_lines

logger = logging.getLogger("align_keras")

# Width of the red frame that the authors' code crops from each image.
BORDER = 2
IMAGENET_CLASSES = 1000
_WORDNET_ID = re.compile(r"n\d{8}")
_FILES = {
    "folders": "folder_to_objectnet_label.json",
    "classes": "objectnet_to_imagenet_1k.json",
    "numbers": "pytorch_to_imagenet_2012_id.json",
    "names": "imagenet_to_label_2012_v2",
}


@reads("folder")
def objectnet(
    folder: str | Path, name: str = "objectnet", allow_outside: bool = False
) -> DataSet:
    """Read the images of ObjectNet whose classes ImageNet also has.

    Two pixels are cropped from each side of an image, to remove ObjectNet's
    red frame.

    Args:
        folder: string or `pathlib.Path`. ObjectNet in its published form:
            `images` with a folder for each of 313 classes, and `mappings`
            with four files.
        name: string. Defaults to `"objectnet"`.
        allow_outside: bool. Whether links may lead out of the folder.
            Defaults to `False`.

    Returns:
        `DataSet` whose labels are the 113 classes that overlap. Its `answers`
        expects the names of ImageNet's 1,000 classes, in the order of their
        WordNet ids; every class that the mapping lists for a label is right.

    Raises:
        FileNotFoundError: A file, or the folder of a class, is missing.
        ValueError: A file in `mappings` has another format.

    Reference:
        - [Barbu et al., 2019](https://objectnet.dev)
    """
    images = path_within(folder, "images", allow_outside)
    answers = _read_mappings(folder, allow_outside)
    found = class_folders(images, name, allow_outside)
    folders = {label: place for place, (label, _, _) in enumerate(answers)}
    examples = list(found.examples())
    names = found.class_names or []
    rows = [
        (key, path, folders[names[label]])
        for key, path, label in examples
        if names[label] in folders
    ]
    empty = set(range(len(answers))) - {place for *_, place in rows}
    if empty:
        missing = images / answers[min(empty)][0]
        raise FileNotFoundError(
            f"`{missing}` has no images, and {len(empty)} of the "
            f"{len(answers)} classes shared with ImageNet are empty: unpack "
            "all of ObjectNet."
        )
    if left := len(examples) - len(rows):
        logger.info(
            "%s: %d images belong to classes that ImageNet lacks, and are not "
            "used",
            name,
            left,
        )
    return DataSet(
        name,
        lambda: (
            (key, lambda path=path: _without_border(path), place)
            for key, path, place in rows
        ),
        len(rows),
        [label.lower() for _, label, _ in answers],
        lambda classes: _positions(classes, [row for *_, row in answers]),
    )


def _read_mappings(folder, allow_outside):
    """Return folder, label, and numbers of ImageNet's classes per class."""
    mappings = path_within(folder, "mappings", allow_outside)
    paths = {
        key: path_within(mappings, file, allow_outside)
        for key, file in _FILES.items()
    }
    about = "mapping of ObjectNet", "Use the published file."
    folders = read_object(paths["folders"], {"*": str}, *about)
    classes = read_object(paths["classes"], {"*": str}, *about)
    form = dict.fromkeys(map(str, range(IMAGENET_CLASSES)), is_count)
    numbers = read_object(paths["numbers"], form, *about)
    lines = [line.strip() for line in split_lines(read_text(paths["names"]))]
    of_line = {numbers[number]: int(number) for number in form}
    of_name: dict[str, list[int]] = {}
    for number, name in enumerate(lines):
        if name and number in of_line:
            of_name.setdefault(name, []).append(of_line[number])
    folder_of = {label: place for place, label in folders.items()}
    rows = []
    for label, names in classes.items():
        if label not in folder_of:
            raise ValueError(
                f"`{paths['folders']}` has no folder for the label {label!r}, "
                f"which `{paths['classes']}` maps."
            )
        right = []
        for name in names.split("; "):
            if name not in of_name:
                raise ValueError(
                    f"`{paths['classes']}` maps {label!r} to {name!r}, which "
                    f"is not a line of `{paths['names']}` with a number in "
                    f"`{paths['numbers']}`."
                )
            right += of_name[name]
        rows.append((folder_of[label], label, sorted(set(right))))
    return sorted(rows)


def _without_border(path):
    pixels = read_pixels(path)[BORDER:-BORDER, BORDER:-BORDER]
    if not pixels.size:
        raise ValueError("it has no pixels inside its border")
    return np.ascontiguousarray(pixels)


def _positions(classes: Classes, numbers):
    """Return the positions in `classes` of ImageNet's numbered classes."""
    if len(classes.keys) != IMAGENET_CLASSES:
        raise ValueError(
            "ObjectNet's mapping is to ImageNet's 1,000 classes, whose names "
            f"must all be given. Received: {len(classes.keys)} classes"
        )
    order = np.arange(IMAGENET_CLASSES)
    if all(_WORDNET_ID.fullmatch(str(key)) for key in classes.keys):
        # A JSON object may list the classes in any order.
        order = np.argsort(classes.keys)
    return [order[row].tolist() for row in numbers]
