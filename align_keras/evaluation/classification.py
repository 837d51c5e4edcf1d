"""Zero-shot classification, as pure functions on arrays."""

import numpy as np

from align_keras.evaluation.ranks import best_positive_ranks
from align_keras.evaluation.ranks import check_pair
from align_keras.evaluation.retrieval import check_ks


def classification_outcomes(image_embeddings, class_vectors, labels):
    """Rank the right class of each picture among all classes.

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


def label_ranks(scores, labels):
    """Rank each label among the scores of its row, ties by index.

    Args:
        scores: float array `(count, num_classes)`.
        labels: integer array `(count,)`.

    Returns:
        int64 array `(count,)`, 0 where the label comes first.
    """
    own = scores[np.arange(len(labels)), labels][:, None]
    before = np.arange(scores.shape[1]) < labels[:, None]
    return np.count_nonzero((scores > own) | ((scores == own) & before), axis=1)


def classification_figures(outcomes, weights=None, ks=(1, 5)):
    """Sum up ranks to accuracies.

    Args:
        outcomes: dictionary of arrays `"label"` and `"rank"`.
        weights: integer array `(num_images,)`. How often each picture counts.
            Defaults to `None`, once each.
        ks: tuple of integers. Defaults to `(1, 5)`.

    Returns:
        A dictionary of floats: `"top1"` and so on, the share of pictures
        whose class is among the first K; and `"mean_per_class"`, the mean
        over classes of the share that is right at first. A class without
        pictures is left out of that mean.
    """
    labels, rank = outcomes["label"], outcomes["rank"]
    if weights is None:
        weights = np.ones(len(rank), "int64")
    total = weights.sum()
    counts = np.bincount(labels, weights)
    right = np.bincount(labels, weights * (rank == 0))
    present = counts > 0
    figures = {
        f"top{k}": float(weights @ (rank < k) / total) for k in check_ks(ks)
    }
    mean = float(np.mean(right[present] / counts[present]))
    return {**figures, "mean_per_class": mean}


def useful_depths(ks, num_classes):
    """Leave out the depths that every ranking of the classes reaches."""
    return [k for k in check_ks(ks) if k == 1 or k < num_classes]


def check_labels(labels, num_images, num_classes):
    """Return the labels as int64, or say which one is wrong."""
    labels = np.asarray(labels)
    if labels.shape != (num_images,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"`labels` must hold one integer for each of the {num_images} "
            f"pictures. Received: shape={labels.shape}, dtype={labels.dtype}"
        )
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"`labels` must lie between 0 and {num_classes - 1}, the last "
            f"class. Received: {labels[first]} at index {first}"
        )
    return labels.astype("int64")
