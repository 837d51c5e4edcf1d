"""Compute classification accuracies, as pure functions of arrays."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from align_keras.evaluation.ranks import check_ks


def label_ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Rank each label among the scores of its row; ties go by index.

    Args:
        scores: float array `(count, num_classes)`.
        labels: integer array `(count,)`.

    Returns:
        int64 array `(count,)`. 0 means that the label comes first.
    """
    own = scores[np.arange(len(labels)), labels][:, None]
    before = np.arange(scores.shape[1]) < labels[:, None]
    return np.count_nonzero((scores > own) | ((scores == own) & before), axis=1)


def classification_accuracies(
    outcomes: dict[str, np.ndarray],
    weights: np.ndarray | None = None,
    ks: Sequence[int] = (1, 5),
) -> dict[str, float]:
    """Compute accuracies from ranks.

    Args:
        outcomes: dictionary of arrays `"label"` and `"rank"`.
        weights: integer array `(num_images,)`. How often each image counts.
            Defaults to `None`, once each.
        ks: tuple of integers. Defaults to `(1, 5)`.

    Returns:
        A dictionary of floats: `"top1"` and so on, the share of images
        whose class is among the first K; and `"mean_per_class"`, the mean
        over classes of their top-1 accuracy. Classes without images are left
        out of that mean.
    """
    labels, rank = outcomes["label"], outcomes["rank"]
    if weights is None:
        weights = np.ones(len(rank), "int64")
    total = weights.sum()
    counts = np.bincount(labels, weights)
    right = np.bincount(labels, weights * (rank == 0))
    present = counts > 0
    return {
        **{
            f"top{k}": float(weights @ (rank < k) / total) for k in check_ks(ks)
        },
        "mean_per_class": float(np.mean(right[present] / counts[present])),
    }


def useful_depths(ks: Sequence[int], num_classes: int) -> list[int]:
    """Drop each K at which every image is a hit, except 1."""
    return [k for k in check_ks(ks) if k == 1 or k < num_classes]


def check_labels(
    labels: ArrayLike, num_images: int, num_classes: int
) -> np.ndarray:
    """Return the labels as int64, after checking them."""
    labels = np.asarray(labels)
    if labels.shape != (num_images,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"`labels` must hold one integer for each of the {num_images} "
            f"images. Received: shape={labels.shape}, dtype={labels.dtype}"
        )
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"`labels` must lie between 0 and {num_classes - 1}, the last "
            f"class. Received: {labels[first]} at index {first}"
        )
    return labels.astype("int64")
