"""Compute rank correlations without SciPy."""

import math

import numpy as np
from numpy.typing import ArrayLike


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Compute Spearman's rank correlation of two series.

    Equal values all get the mean of their ranks.

    Args:
        first: float array `(count,)`.
        second: float array `(count,)`.

    Returns:
        A float from -1 to 1; NaN if a series is constant or has fewer than
        two values.

    Raises:
        ValueError: the series differ in length, or hold NaN.

    Example:

    ```python
    spearman([1, 2, 3], [10, 30, 20])  # 0.5
    ```
    """
    first = np.asarray(first, "float64")
    second = np.asarray(second, "float64")
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(
            "Both series must have one dimension and the same length. "
            f"Received: {first.shape} and {second.shape}"
        )
    if np.isnan(first).any() or np.isnan(second).any():
        raise ValueError("The series must not hold NaN.")
    if len(first) < 2:
        return math.nan
    first, second = _centred_ranks(first), _centred_ranks(second)
    scale = math.sqrt((first @ first) * (second @ second))
    return float(first @ second / scale) if scale else math.nan


def _centred_ranks(values):
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    lengths = np.diff(np.append(starts, len(values)))
    ranks = np.empty(len(values))
    ranks[order] = np.repeat(starts + (lengths - 1) / 2, lengths)
    return ranks - (len(values) - 1) / 2
