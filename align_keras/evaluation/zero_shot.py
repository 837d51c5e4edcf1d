"""Zero-shot classification: images by the names of the classes."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import keras
import numpy as np
from numpy.typing import ArrayLike

from align_keras.classes import TEMPLATES
from align_keras.classes import Classes
from align_keras.classes import check_templates
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


def classification_outcomes(
    image_embeddings: ArrayLike, class_vectors: ArrayLike, labels: ArrayLike
) -> dict[str, np.ndarray]:
    """Rank the right class of each image among all classes.

    Args:
        image_embeddings: float array `(num_images, dim)`.
        class_vectors: float array `(num_classes, dim)`.
        labels: integer array `(num_images,)`.

    Returns:
        A dictionary of int64 arrays `(num_images,)`: `"label"`, and `"rank"`
        from 0, with ties by index as in `best_positive_ranks`.

    Raises:
        ValueError: the arrays do not fit, or a label does not exist.
    """
    images, classes = check_pair(
        image_embeddings, class_vectors, "image_embeddings", "class_vectors"
    )
    labels = check_labels(labels, len(images), len(classes))
    pairs = np.stack([np.arange(len(images)), labels], axis=1)
    return {
        "label": labels,
        "rank": best_positive_ranks(images, classes, pairs),
    }


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
    """Measure classification by the names of the classes alone.

    Args:
        model: an `align_keras.AlignDualEncoder` with a preprocessor, or an
            `Embedder`.
        data: a `DataSet` with labels.
        classes: `Classes`, or the path of a file for `read_classes`. Defaults
            to `None`: the names in the metadata or the folders of the data
            set.
        templates: list of strings with `{}`. Defaults to those of `classes`,
            or else to our own eight.
        ensemble: string. See `class_vectors`. Defaults to `"normalized"`.
        all_classes: bool. Whether all of `classes` compete, or only those
            that the data set has, as is usual for the 200 classes of
            ImageNet-R and -A. Defaults to `False`.
        ks: tuple of ints. Defaults to `(1, 5)`.
        batch_size, progress, cache, samples: See `measure_retrieval`.

    Returns:
        A `Result`: the metrics of `classification_accuracies`.

    Raises:
        ValueError: a class has no name, or no image is readable.
    """
    embedder = as_embedder(model)
    if classes is None:
        if data.class_names is None:
            raise ValueError(
                f"The data set `{data.name}` does not name its classes: give "
                "their names in a file."
            )
        names = [name.replace("_", " ") for name in data.class_names]
        keys = list(data.class_names)
        classes = Classes(keys, [[name] for name in names])
    elif not isinstance(classes, Classes):
        classes = read_classes(classes)
    check_list(templates, "templates")
    templates = check_templates(templates, "templates")
    templates = templates or classes.templates or list(TEMPLATES)
    images, notes, skipped, digest = embed_data_set(
        embedder, data, batch_size, progress, cache
    )
    labels = np.array(notes, "int64")
    labels, chosen = _match_classes(data, labels, classes, all_classes)
    names = [classes.names[position] for position in chosen]
    vectors = class_vectors(
        partial(embed_texts, embedder, progress=progress, cache=cache),
        names,
        templates,
        ensemble,
    )
    outcomes = classification_outcomes(images, vectors, labels)
    ks = useful_depths(ks, len(chosen))
    return summarize(
        "zero-shot",
        partial(classification_accuracies, ks=ks),
        outcomes,
        len(images),
        samples,
        dataset=data.name,
        model=embedder.name,
        unit="image",
        images=len(images),
        classes=len(chosen),
        classes_without_images=int(len(chosen) - len(np.unique(labels))),
        image_digest=digest,
        images_skipped=skipped,
        templates=len(templates),
        prompts=fingerprint(names, templates),
        ensemble=ensemble,
        ks=ks,
        **{f"chance_top{k}": min(1.0, k / len(chosen)) for k in ks},
    )


def _match_classes(data, labels, classes, all_classes):
    """Labels among the classes that compete, and which those are."""
    names = data.class_names
    if names is None:
        names = [
            str(n) for n in range(max(len(classes.keys), labels.max() + 1))
        ]
    found = np.array(classes.find(names))
    chosen = np.arange(len(classes.keys)) if all_classes else np.unique(found)
    return np.searchsorted(chosen, found[labels]), chosen
