"""Find the nearest vectors exactly, at the speed of float32."""

import numpy as np
from numpy.typing import ArrayLike

from align_keras.embedding import similarity
from align_keras.embedding.similarity import as_vectors
from align_keras.embedding.similarity import exact_scores

_ROUNDING = 2.0**-24


def top_k(
    query: ArrayLike, vectors: ArrayLike, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the vectors that score highest against a query.

    The search is exact. Among equal scores the lower index comes first, so
    that the result is always the same.

    Args:
        query: float array `(dim,)`, or `(num_queries, dim)` for several.
        vectors: float array `(count, dim)` to search in.
        k: integer. The number of results; all vectors if there are fewer.

    Returns:
        A pair of arrays `(k,)`, or `(num_queries, k)`: int64 indices into
        `vectors`, best first, and their float32 scores. Scores are dot
        products, that is, cosines for unit vectors.

    Raises:
        ValueError: the shapes do not match, a value is not finite, or `k` is
            not a positive integer.

    Example:

    ```python
    top_k([0.0, 1.0], np.eye(2), k=1)  # (array([1]), array([1.]))
    ```
    """
    single = np.ndim(query) == 1
    queries = as_vectors(np.atleast_2d(query), "query")
    vectors = as_vectors(vectors, "vectors")
    if queries.shape[1] != vectors.shape[1]:
        raise ValueError(
            "`query` and `vectors` must have the same dimension. "
            f"Received: {queries.shape[1]} and {vectors.shape[1]}"
        )
    check_k(k)
    longest = float(np.linalg.norm(vectors, axis=1).max())
    indices, scores = nearest(queries, vectors, k, longest)
    return (indices[0], scores[0]) if single else (indices, scores)


def check_k(k: int) -> None:
    """Refuse a number of results that is not a positive integer."""
    if int(k) != k or k < 1:
        raise ValueError(f"`k` must be a positive integer. Received: k={k}")


def nearest(
    queries: np.ndarray, vectors: np.ndarray, k: int, longest: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Do what `top_k` does, for arrays that have been checked already.

    Exact scores are summed in float64 and rounded once. Scores in float32
    differ from them by no more than a known bound. So only vectors whose
    float32 score is within that bound of the k-th best are scored exactly.

    Args:
        queries: float32 array `(num_queries, dim)`.
        vectors: float32 array `(count, dim)`, which may be a memory map.
        k: integer.
        longest: float. The greatest norm of a vector, 1 for unit vectors.
            Defaults to `1.0`.

    Returns:
        The same as `top_k` for several queries.
    """
    k = min(int(k), len(vectors))
    indices: np.ndarray = np.empty((len(queries), k), "int64")
    scores: np.ndarray = np.empty((len(queries), k), "float32")
    # Twice the error of a sum of `dim` products, and of rounding the score.
    dim = queries.shape[1]
    margins = (2 * dim + 4) * _ROUNDING * longest * 1.01
    margins = margins * np.linalg.norm(queries, axis=1)
    step = max(1, similarity.BLOCK // len(vectors))
    for start in range(0, len(queries), step):
        products = queries[start : start + step] @ vectors.T
        for row, approximate in enumerate(products, start):
            last = np.partition(approximate, -k)[-k]
            kept = np.flatnonzero(approximate >= last - margins[row])
            if len(kept) < k:
                raise ValueError("There are vectors that are not finite.")
            found = rescore(queries[row], vectors, kept, k)
            indices[row], scores[row] = found
    return indices, scores


def rescore(
    query: np.ndarray, vectors: np.ndarray, kept: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rank some of the vectors by their exact scores.

    Args:
        query: float32 array `(dim,)`.
        vectors: float32 array `(count, dim)`, which may be a memory map.
        kept: int64 array of indices into `vectors`, ascending, so that equal
            scores stay in the order of their indices.
        k: integer. How many to return.

    Returns:
        A pair of arrays: int64 indices, best first, and float32 scores.
    """
    step = max(1, similarity.BLOCK // len(query))
    exact = np.concatenate(
        [
            exact_scores(query[None], vectors[kept[start : start + step]])[0]
            for start in range(0, len(kept), step)
        ]
    )
    best = np.argsort(-exact, kind="stable")[:k]
    return kept[best], exact[best]
