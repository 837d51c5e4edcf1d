"""Scale vectors to unit length and score them exactly, reproducibly."""

import numpy as np
from numpy.typing import ArrayLike

# Most values in one block of scores: 64 MiB in float32.
BLOCK = 1 << 24


def as_vectors(values: ArrayLike, name: str) -> np.ndarray:
    """Convert `values` to a float32 matrix, after checking them.

    Args:
        values: array-like of floats `(count, dim)`. Embeddings of any backend
            and precision.
        name: string. The name of the argument in error messages.

    Returns:
        `numpy.ndarray` of float32 `(count, dim)`.

    Raises:
        ValueError: `values` is not a matrix, is empty, or holds a value that
            is not finite.
    """
    vectors = np.asarray(values, dtype="float32")
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise ValueError(
            f"`{name}` must be a matrix of at least one row, "
            f"`(count, dim)`. Received: shape={vectors.shape}"
        )
    step = max(1, BLOCK // vectors.shape[1])
    finite = np.concatenate(
        [
            np.isfinite(vectors[start : start + step]).all(axis=1)
            for start in range(0, len(vectors), step)
        ]
    )
    if not finite.all():
        raise ValueError(
            f"`{name}` must hold finite numbers. Received NaN or infinity in "
            f"{np.count_nonzero(~finite)} of {len(vectors)} rows, the first "
            f"at index {np.argmin(finite)}."
        )
    return vectors


def unit_rows(vectors: ArrayLike) -> np.ndarray:
    """Scale rows to unit length.

    Args:
        vectors: array-like of floats `(count, dim)`.

    Returns:
        `numpy.ndarray` of float32 `(count, dim)`. A row of zeros stays zero.
    """
    vectors = np.asarray(vectors, "float64")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    lengths[lengths == 0] = 1
    return (vectors / lengths).astype("float32")


def exact_scores(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Score every query against every candidate by their dot product.

    Products are summed in float64 and rounded to float32 once. A matrix
    product in float32 rounds at each step, and differently at the edges of
    its tiles, so two equal candidates can score differently and their order
    can depend on how many were scored together. With a single rounding,
    equal vectors have equal scores.

    Args:
        queries: `numpy.ndarray` of float32 `(num_queries, dim)`.
        candidates: `numpy.ndarray` of float32 `(num_candidates, dim)`.

    Returns:
        `numpy.ndarray` of float32 `(num_queries, num_candidates)`.
    """
    scores: np.ndarray = np.empty(
        (len(queries), len(candidates)), dtype="float32"
    )
    queries = queries.astype("float64")
    step = max(1, BLOCK // 2 // max(queries.shape))
    for start in range(0, len(candidates), step):
        block: np.ndarray = candidates[start : start + step].astype("float64")
        scores[:, start : start + step] = queries @ block.T
    return scores
