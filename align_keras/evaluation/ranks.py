"""Rank positives at the speed of float32 with the exactness of float64.

Ranks are defined by scores that are summed in float64 and rounded to float32
once (`vectors.exact_scores`), but computing all scores this way is slow. A
product in float32 differs from the exact score by no more than a known bound.
So only the candidates within this bound of the positive's score are scored
again, exactly. The ranks are the same as if all scores were exact.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import ArrayLike

from align_keras.embedding import similarity as vectors
from align_keras.embedding.similarity import as_vectors
from align_keras.embedding.similarity import exact_scores

# Rows and columns of one product; larger ones are not faster.
_ROWS, _COLUMNS = 1024, 4096
# Rows of a product that are compared at once, so that they fit in the cache.
_STRIP = 64
# Above this share of close scores, scoring all pairs exactly is faster.
_MANY = 1 / 32
_ROUNDING = 2.0**-24


def best_positive_ranks(
    queries: ArrayLike,
    candidates: ArrayLike,
    positives: ArrayLike,
    exclude_self: bool = False,
) -> np.ndarray:
    """Rank the best positive of each query among all candidates.

    The rank is the number of candidates that come before the positive: those
    that score higher, and those that score the same and have a lower index.
    A model that gives every pair the same score therefore ranks by index and
    reaches chance level; if only higher scores counted, it would seem perfect.

    Args:
        queries: float array `(num_queries, dim)`. Scores are dot products,
            so unit vectors give cosines.
        candidates: float array `(num_candidates, dim)`.
        positives: integer array `(num_pairs, 2)`. Each row names a query and
            a candidate that answers it. A query may occur several times, or
            never.
        exclude_self: bool. Whether to ignore the candidate with the index of
            the query, as when captions are searched with captions. Defaults
            to `False`.

    Returns:
        `numpy.ndarray` of int64 `(num_queries,)`. 0 if a positive comes
        first, -1 for a query without a positive.

    Raises:
        ValueError: an array is empty, not finite or of the wrong shape; a
            pair names a row that does not exist; or, with `exclude_self`, a
            query is its own positive.

    Example:

    ```python
    best_positive_ranks([[1.0, 0.0]], [[0.6, 0.8], [0.8, 0.6]], [[0, 0]])
    # array([1])
    ```
    """
    queries, candidates = check_pair(
        queries, candidates, "queries", "candidates"
    )
    positives = check_positives(positives, len(queries), len(candidates))
    counter = _Counter(
        queries,
        candidates,
        positives,
        pair_scores(queries, candidates, *positives.T),
        score_margins(
            row_lengths(queries), row_lengths(candidates), queries.shape[1]
        ),
    )
    for top, left, scores in _strips(queries, candidates):
        counter.count(scores, top, left)
    if exclude_self:
        counter.leave_out_self(positives)
    return counter.ranks()


def ranks_both_ways(
    images: np.ndarray, texts: np.ndarray, pairs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rank texts for images and images for texts at once.

    A single matrix product serves both directions.

    Args:
        images: float32 array `(num_images, dim)`.
        texts: float32 array `(num_texts, dim)`.
        pairs: integer array `(num_pairs, 2)` of an image and a text.

    Returns:
        A pair of int64 arrays as from `best_positive_ranks`: for each of
        `images` among `texts`, and for each of `texts` among `images`.
    """
    dim = images.shape[1]
    lengths = row_lengths(images), row_lengths(texts)
    exact = pair_scores(images, texts, *pairs.T)
    by_image = _Counter(
        images, texts, pairs, exact, score_margins(*lengths, dim)
    )
    by_text = _Counter(
        texts,
        images,
        pairs[:, ::-1],
        exact,
        score_margins(*lengths[::-1], dim),
    )
    # Count both directions in parallel: NumPy compares on one core only.
    with ThreadPoolExecutor(1) as pool:
        for top, left, scores in _strips(images, texts):
            other = pool.submit(by_text.count, scores.T, left, top)
            by_image.count(scores, top, left)
            other.result()
    return by_image.ranks(), by_text.ranks()


def check_pair(
    left: ArrayLike, right: ArrayLike, left_name: str, right_name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return both as float32 matrices, after checking that they fit."""
    left, right = as_vectors(left, left_name), as_vectors(right, right_name)
    if left.shape[1] != right.shape[1]:
        raise ValueError(
            f"`{left_name}` and `{right_name}` must have the same dimension. "
            f"Received: {left.shape[1]} and {right.shape[1]}"
        )
    return left, right


def check_positives(
    positives: ArrayLike, num_queries: int, num_candidates: int
) -> np.ndarray:
    """Return the pairs as int64, after checking that they exist."""
    positives = np.asarray(positives)
    if (
        positives.ndim != 2
        or positives.shape[1] != 2
        or positives.dtype.kind not in "iu"
    ):
        raise ValueError(
            "`positives` must be an integer array `(num_pairs, 2)` of query "
            f"and candidate indices. Received: shape={positives.shape}, "
            f"dtype={positives.dtype}"
        )
    inside = (positives >= 0) & (positives < [num_queries, num_candidates])
    if not inside.all():
        wrong = positives[np.argmin(inside.all(axis=1))].tolist()
        raise ValueError(
            f"`positives` must name one of {num_queries} queries and one of "
            f"{num_candidates} candidates. Received the pair: {wrong}"
        )
    return positives.astype("int64")


def check_ks(ks: Sequence[int]) -> tuple[int, ...]:
    """Return the depths of recall as a tuple, after checking them."""
    ks = tuple(ks)
    if not ks or any(int(k) != k or k < 1 for k in ks):
        raise ValueError(
            f"`ks` must be one or more positive integers. Received: ks={ks}"
        )
    return tuple(int(k) for k in ks)


def score_margins(
    query_lengths: np.ndarray, candidate_lengths: np.ndarray, dim: int
) -> np.ndarray:
    """Bound how far products in float32 lie from exact scores.

    Whatever the order of summation, the error of a dot product of `n` terms in
    float32 is at most `n * 2**-24` times the product of the norms. Rounding
    the exact score adds one unit.

    Args:
        query_lengths: float64 array `(num_queries,)`. See `row_lengths`.
        candidate_lengths: float64 array `(num_candidates,)`.
        dim: integer. The number of terms.

    Returns:
        float64 array `(num_queries,)`. The bound for each query.
    """
    units = (dim + 4) * _ROUNDING
    # The last term covers products that underflow.
    return units * query_lengths * candidate_lengths.max() + 1e-37


def row_lengths(matrix):
    """Compute the Euclidean length of each float32 row in float64."""
    squares = np.empty(len(matrix))
    step = max(1, vectors.BLOCK // 32 // matrix.shape[1])
    for start in range(0, len(matrix), step):
        rows = matrix[start : start + step].astype("float64")
        np.einsum("ij,ij->i", rows, rows, out=squares[start : start + step])
    return np.sqrt(squares)


def _strips(queries, candidates):
    """Yield `(first row, first column, float32 scores)`, block by block.

    The next block overwrites the scores of the last one.
    """
    width = min(len(candidates), _COLUMNS, vectors.BLOCK)
    height = max(1, min(len(queries), _ROWS, vectors.BLOCK // width))
    memory = np.empty(height * width, "float32")
    for left in range(0, len(candidates), width):
        block = candidates[left : left + width]
        for top in range(0, len(queries), height):
            rows = queries[top : top + height]
            scores = memory[: len(rows) * len(block)]
            scores = scores.reshape(len(rows), len(block))
            np.matmul(rows, block.T, out=scores)
            for row in range(0, len(rows), _STRIP):
                yield top + row, left, scores[row : row + _STRIP]


class _Counter:
    """Count for each query the candidates before its best positive."""

    def __init__(self, queries, candidates, positives, scores, margins):
        self.queries, self.candidates = queries, candidates
        self.ahead = np.zeros(len(queries), "int64")
        self._find_best(positives, scores)
        best = self.best.astype("float64")
        # One step outwards, because the bounds themselves are rounded.
        self.low = np.nextafter(
            (best - margins).astype("float32"), np.float32(-np.inf)
        )
        self.high = np.nextafter(
            (best + margins).astype("float32"), np.float32(np.inf)
        )

    def _find_best(self, positives, scores):
        """Find the exact score and index of the first positive."""
        # Sort by query, then by candidate, so that segments are contiguous.
        order = np.lexsort(positives.T[::-1])
        owners, targets = positives[order].T
        scores = scores[order]
        self.best = np.full(len(self.queries), np.inf, "float32")
        self.target = np.full(len(self.queries), -1, "int64")
        if not len(owners):
            return
        asked, starts = np.unique(owners, return_index=True)
        lengths = np.diff(np.append(starts, len(owners)))
        best = np.maximum.reduceat(scores, starts)
        # Among positives with the best score, take the lowest index.
        is_best = scores == np.repeat(best, lengths)
        index = np.where(is_best, targets, len(self.candidates))
        self.best[asked] = best
        self.target[asked] = np.minimum.reduceat(index, starts)

    def count(self, scores, top, left):
        """Count the candidates of a block of float32 scores."""
        rows = slice(top, top + len(scores))
        above = scores > self.high[rows, None]
        close = scores >= self.low[rows, None]
        close ^= above
        row, column = _nonzero(close)
        # A positive itself is always close, and never ahead.
        if len(row) > scores.size * _MANY:
            self._count_exactly(rows, left, scores.shape[1])
            return
        self.ahead[rows] += _row_sums(above)
        ahead = self._comes_before(row + top, column + left)
        self.ahead[rows] += np.bincount(row[ahead], minlength=len(scores))

    def _comes_before(self, row, column):
        scores = pair_scores(self.queries, self.candidates, row, column)
        best = self.best[row]
        tied = (scores == best) & (column < self.target[row])
        return (scores > best) | tied

    def _count_exactly(self, rows, left, width):
        columns = slice(left, left + width)
        scores = exact_scores(self.queries[rows], self.candidates[columns])
        best = self.best[rows, None]
        tied = scores == best
        tied &= np.arange(left, left + width) < self.target[rows, None]
        tied |= scores > best
        self.ahead[rows] += np.count_nonzero(tied, axis=1)

    def leave_out_self(self, positives):
        same = positives[:, 0] == positives[:, 1]
        if same.any():
            raise ValueError(
                "With `exclude_self=True`, no query may answer itself. "
                f"Received the pair: {positives[np.argmax(same)].tolist()}"
            )
        own = np.arange(min(len(self.queries), len(self.candidates)))
        own = own[self.target[own] >= 0]
        self.ahead[own[self._comes_before(own, own)]] -= 1

    def ranks(self):
        return np.where(self.target >= 0, self.ahead, -1)


def pair_scores(
    queries: np.ndarray,
    candidates: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
) -> np.ndarray:
    """Compute the exact scores of pairs: float32 `(num_pairs,)`."""
    scores: np.ndarray = np.empty(len(rows), "float32")
    step = max(1, vectors.BLOCK // 4 // queries.shape[1])
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        scores[part] = np.einsum(
            "ij,ij->i",
            queries[rows[part]].astype("float64"),
            candidates[columns[part]].astype("float64"),
        )
    return scores


def _nonzero(mask):
    """Return row and column indices, for any memory order of the mask."""
    if mask.flags.c_contiguous:
        return np.divmod(_flat_nonzero(mask.ravel()), mask.shape[1])
    return np.divmod(_flat_nonzero(mask.T.ravel()), mask.shape[0])[::-1]


def _flat_nonzero(mask):
    """Find few true values, like `numpy.flatnonzero`, eight at a time."""
    whole = len(mask) // 8 * 8
    eights = np.flatnonzero(mask[:whole].view("uint64"))
    found = (8 * eights[:, None] + np.arange(8)).ravel()
    return np.concatenate(
        [found[mask[found]], whole + np.flatnonzero(mask[whole:])]
    )


def _row_sums(mask):
    """Count true values in each row, for any memory order of the mask."""
    if mask.flags.c_contiguous:
        return np.array([np.count_nonzero(row) for row in mask], "int64")
    # Sums of bytes are fast, and 255 rows at a time cannot overflow.
    columns = mask.T.view("uint8")
    sums = np.zeros(len(mask), "int64")
    for start in range(0, len(columns), 255):
        sums += np.add.reduce(columns[start : start + 255], axis=0, dtype="u1")
    return sums
