"""Measure zero-shot classification of images by the names of classes."""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
from numpy.typing import ArrayLike

from align_keras.classes import TEMPLATES
from align_keras.classes import Classes
from align_keras.classes import class_vectors
from align_keras.classes import read_classes
from align_keras.embedding.embed_streams import embed_data_set
from align_keras.embedding.embed_streams import embed_texts
from align_keras.embedding.embedder import Embedder
from align_keras.embedding.embedder import as_embedder
from align_keras.evaluation.accuracy import check_labels
from align_keras.evaluation.accuracy import classification_accuracies
from align_keras.evaluation.accuracy import useful_depths
from align_keras.evaluation.bootstrap import SAMPLES
from align_keras.evaluation.datasets import DataSet
from align_keras.evaluation.ranks import best_positive_ranks
from align_keras.evaluation.ranks import check_pair
from align_keras.evaluation.results import Result
from align_keras.evaluation.results import summarize
from align_keras.io.fingerprints import fingerprint
from align_keras.io.lists import check_list
from align_keras.io.lists import check_templates


def classification_outcomes(
    image_embeddings: ArrayLike,
    class_vectors: ArrayLike,
    labels: ArrayLike,
    answers: Sequence[Sequence[int]] | None = None,
) -> dict[str, np.ndarray]:
    """Rank the right class of each image among all classes.

    If several classes are right, the best of them counts.

    Args:
        image_embeddings: float array `(num_images, dim)`.
        class_vectors: float array `(num_classes, dim)`.
        labels: integer array `(num_images,)`.
        answers: list of lists of integers. The classes that are right for
            each label. Defaults to `None`: the class with the same index.

    Returns:
        A dictionary of int64 arrays `(num_images,)`: `"label"`; and `"rank"`
        from 0, with ties by index as in `best_positive_ranks`.

    Raises:
        ValueError: the arrays do not fit, a label does not exist, or no
            class is right for it.
    """
    images, classes = check_pair(
        image_embeddings, class_vectors, "image_embeddings", "class_vectors"
    )
    if answers is None:
        answers = [[number] for number in range(len(classes))]
    labels = check_labels(labels, len(images), len(answers))
    for label in np.unique(labels):
        if not len(answers[label]):
            raise ValueError(
                f"`answers` must hold a class for each label. Received: none "
                f"for the label {label}"
            )
    pairs = [
        (image, position)
        for image, label in enumerate(labels)
        for position in answers[label]
    ]
    return {
        "label": labels,
        "rank": best_positive_ranks(images, classes, np.array(pairs)),
    }


def classification_chance(
    labels: np.ndarray,
    answers: Sequence[Sequence[int]],
    num_classes: int,
    ks: Sequence[int] = (1, 5),
) -> dict[str, float]:
    """Compute the expected accuracies of a random order of the classes.

    If m of N classes are right, at least one of them is among the first K with
    probability `1 - C(N - m, K) / C(N, K)`.

    Args:
        labels: integer array `(num_images,)`.
        answers: list of lists of integers. The classes that are right for
            each label.
        num_classes: integer. How many classes compete.
        ks: tuple of integers. Defaults to `(1, 5)`.

    Returns:
        A dictionary with the keys of `classification_accuracies`.
    """
    counts = np.bincount(labels, minlength=len(answers))
    chance = {}
    for k in ks:
        orders = math.comb(num_classes, k)
        shares = np.array(
            [
                (orders - math.comb(num_classes - len(right), k)) / orders
                for right in answers
            ]
        )
        chance[f"top{k}"] = float(counts @ shares / counts.sum())
    right = np.array([len(a) for a in answers]) / num_classes
    chance["mean_per_class"] = float(right[counts > 0].mean())
    return chance


def measure_zero_shot(
    model: Embedder | keras.Model,
    data: DataSet,
    classes: Classes | str | Path | None = None,
    templates: list[str] | None = None,
    ensemble: str = "normalized",
    all_classes: bool = False,
    ks: Sequence[int] = (1, 5),
    batch_size: int = 64,
    progress: bool = True,
    cache: str | Path | None = None,
    samples: int = SAMPLES,
) -> Result:
    """Measure classification of images by the names of classes only.

    Args:
        model: an `align_keras.AlignDualEncoder` with a preprocessor, or an
            `Embedder`.
        data: a `DataSet` with labels. If several classes are right for a
            label, as in `objectnet`, any of them counts.
        classes: `Classes`, or the path of a file for `read_classes`. Defaults
            to `None`: the names in the metadata or of the folders of the data
            set.
        templates: list of strings. Prompts with `{}` for the name. Defaults to
            those of `classes`, or, if it has none, to
            `align_keras.classes.TEMPLATES`.
        ensemble: string. See `class_vectors`. Defaults to `"normalized"`.
        all_classes: bool. Whether all of `classes` compete, or only those
            that are right for a label of the data set, as is usual for the
            200 classes of ImageNet-R and -A. Defaults to `False`.
        ks: tuple of ints. The K of top-K accuracy. Defaults to `(1, 5)`.
        batch_size, progress, cache, samples: See `measure_retrieval`.

    Returns:
        A `Result`: the metrics of `classification_accuracies`.

    Raises:
        ValueError: a class has no name, or no image is readable.
    """
    found = embed_named(
        *(model, data, classes, templates, ensemble, all_classes),
        *(batch_size, progress, cache),
    )
    outcomes = classification_outcomes(
        found.images, found.classes, found.labels, found.answers
    )
    num_classes = len(found.classes)
    ks = useful_depths(ks, num_classes)
    chance = classification_chance(found.labels, found.answers, num_classes, ks)
    return summarize(
        "zero-shot",
        partial(classification_accuracies, ks=ks),
        outcomes,
        len(found.images),
        samples,
        **found.values,
        ensemble=ensemble,
        ks=ks,
        **{f"chance_{name}": value for name, value in chance.items()},
    )


class Named(NamedTuple):
    """Vectors of images with labels, and of the names of classes.

    Attributes:
        images: float32 array `(num_images, dim)`.
        classes: float32 array `(num_classes, dim)`.
        labels: int64 array `(num_images,)`.
        answers: list of lists of integers. The classes that are right for
            each label.
        notes: integer array `(num_images, ...)`. What the data set holds for
            each image in addition to its label.
        values: dictionary. Fields of the result about images and names.
    """

    images: np.ndarray
    classes: np.ndarray
    labels: np.ndarray
    answers: list[list[int]]
    notes: np.ndarray
    values: dict[str, Any]


def embed_named(
    model: Embedder | keras.Model,
    data: DataSet,
    classes: Classes | str | Path | None,
    templates: list[str] | None,
    ensemble: str,
    all_classes: bool,
    batch_size: int,
    progress: bool,
    cache: str | Path | None,
) -> Named:
    """Embed labelled images, and the names of the classes that compete.

    Args:
        model, data, classes, templates, ensemble, all_classes, batch_size,
            progress, cache: See `measure_zero_shot`. A note of `data` may be
            several integers, of which the first is the label.

    Returns:
        `Named`.
    """
    embedder = as_embedder(model)
    if classes is None:
        labels = data.class_names
        if labels is None:
            raise ValueError(
                f"The data set `{data.name}` does not name its classes: give "
                "their names in a file."
            )
        # Each label is right for its own name, and nothing else.
        data = dataclasses.replace(data, answers=None)
        names = [name.replace("_", " ") for name in labels]
        classes = Classes(list(labels), [[name] for name in names])
    elif not isinstance(classes, Classes):
        classes = read_classes(classes)
    check_list(templates, "templates")
    templates = check_templates(templates, "templates")
    templates = templates or classes.templates or list(TEMPLATES)
    images, notes, skipped, digest = embed_data_set(
        embedder, data, batch_size, progress, cache
    )
    table = np.array(notes, "int64").reshape(len(notes), -1)
    labels, answers, chosen = _match_classes(
        data, table[:, 0], classes, all_classes
    )
    names = [classes.names[position] for position in chosen]
    vectors = class_vectors(
        partial(embed_texts, embedder, progress=progress, cache=cache),
        names,
        templates,
        ensemble,
    )
    used = {n for label in np.unique(labels) for n in answers[label]}
    values = {
        "dataset": data.name,
        "model": embedder.name,
        "unit": "image",
        "images": len(images),
        "classes": len(chosen),
        "classes_without_images": len(chosen) - len(used),
        "image_digest": digest,
        "images_skipped": skipped,
        "templates": len(templates),
        "prompts": fingerprint(names, templates),
    }
    return Named(images, vectors, labels, answers, table[:, 1:], values)


def _match_classes(data, labels, classes, all_classes):
    """Return labels, right classes for each, and classes that compete."""
    names = data.class_names
    if names is None:
        names = range(max(len(classes.keys), labels.max() + 1))
    if data.answers is None:
        found = np.array(classes.find(names))
        chosen = (
            np.arange(len(classes.keys)) if all_classes else np.unique(found)
        )
        answers = [[number] for number in range(len(chosen))]
        return np.searchsorted(chosen, found[labels]), answers, chosen
    right = data.answers(classes)
    chosen = np.unique(np.concatenate(right))
    if all_classes:
        chosen = np.arange(len(classes.keys))
    answers = [np.searchsorted(chosen, row).tolist() for row in right]
    return labels, answers, chosen
