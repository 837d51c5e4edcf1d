"""Classify images by exact nearest neighbours, in little memory."""

from collections.abc import Callable
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
from numpy.typing import ArrayLike

from align_keras.embedding import similarity as vectors
from align_keras.embedding.embed_streams import embed_data_set
from align_keras.embedding.embedder import Embedder
from align_keras.embedding.embedder import as_embedder
from align_keras.embedding.similarity import as_vectors
from align_keras.evaluation.bootstrap import SAMPLES
from align_keras.evaluation.datasets import DataSet
from align_keras.evaluation.datasets import require_same_classes
from align_keras.evaluation.ranks import check_ks
from align_keras.evaluation.ranks import pair_scores
from align_keras.evaluation.ranks import row_lengths
from align_keras.evaluation.ranks import score_margins
from align_keras.evaluation.results import Result
from align_keras.evaluation.results import summarize

# Most queries and candidates in one matrix product.
_QUERIES = 4096
_NEIGHBOURS = 4096


def nearest_neighbours(
    queries: ArrayLike,
    candidates: ArrayLike,
    k: int,
    progress: Callable[[int], object] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the candidates that score highest for each query.

    The search is exact, in the sense of `vectors.exact_scores`: scores are
    summed in float64 and rounded to float32 once, and among equal scores the
    lower index comes first. For speed, products are computed in float32, and
    every candidate that could be among the first `k` given their rounding is
    then scored exactly. Candidates are read in blocks, so they may be on disk
    (`numpy.memmap`).

    Args:
        queries: float array `(num_queries, dim)`. Scores are dot products, so
            unit vectors give cosines.
        candidates: float array or memory map `(num_candidates, dim)`.
        k: integer. Number of neighbours, at most that of the candidates.
        progress: callable. Takes the number of candidates that were searched
            since its last call. Defaults to `None`.

    Returns:
        A pair of arrays `(num_queries, k)`: int64 indices of candidates, best
        first, and their float32 scores.

    Raises:
        ValueError: the arrays do not fit, hold values that are not finite, or
            `k` is not positive.

    Example:

    ```python
    nearest_neighbours(np.eye(2), np.eye(2), k=1)[0]  # [[0], [1]]
    ```
    """
    queries = as_vectors(queries, "queries")
    candidates = np.asanyarray(candidates)
    if candidates.ndim != 2 or queries.shape[1] != candidates.shape[1]:
        raise ValueError(
            "`queries` and `candidates` must have the same dimension. "
            f"Received: {queries.shape} and {candidates.shape}"
        )
    (k,) = check_ks([k])
    k = min(k, len(candidates))
    if not k:
        raise ValueError("`candidates` must hold at least one row.")
    indices: np.ndarray = np.zeros((len(queries), 0), "int64")
    scores: np.ndarray = np.zeros((len(queries), 0), "float32")
    lengths = row_lengths(queries)
    # Candidates are the outer loop, so that each is read only once.
    width = max(1, min(_NEIGHBOURS, vectors.BLOCK // queries.shape[1]))
    for start in range(0, len(candidates), width):
        name = f"candidates[{start}:{start + width}]"
        block = as_vectors(candidates[start : start + width], name)
        margins = score_margins(lengths, row_lengths(block), block.shape[1])
        found = [
            _merge(
                queries[rows],
                block,
                start,
                margins[rows],
                indices[rows],
                scores[rows],
                k,
            )
            for rows in _slices(len(queries), len(block))
        ]
        indices = np.concatenate([part[0] for part in found])
        scores = np.concatenate([part[1] for part in found])
        if progress is not None:
            progress(len(block))
    return indices, scores


def _slices(count, width):
    step = max(1, min(_QUERIES, vectors.BLOCK // width))
    for start in range(0, count, step):
        yield slice(start, start + step)


def _merge(queries, block, offset, margins, indices, scores, k):
    """Return the first `k` of those found before and a new block."""
    products = queries @ block.T
    rows, columns = _contenders(products, margins, scores, k)
    exact = pair_scores(queries, block, rows, columns)
    before = indices.shape[1]
    owners = np.arange(len(queries))
    rows = np.concatenate([np.repeat(owners, before), rows])
    columns = np.concatenate([indices.ravel(), columns + offset])
    exact = np.concatenate([scores.ravel(), exact])
    order = np.lexsort((columns, -exact, rows))
    rows = rows[order]
    place = np.arange(len(rows)) - np.searchsorted(rows, rows)
    kept = order[place < k]
    shape = len(queries), -1
    return columns[kept].reshape(shape), exact[kept].reshape(shape)


def _contenders(products, margins, scores, k):
    """Return the pairs that may be among the first `k` of their query."""
    width = products.shape[1]
    if scores.shape[1] == k:
        # A candidate with the score of the last place loses, coming later.
        least = scores[:, -1] - margins
    else:
        room = min(k - scores.shape[1], width)
        best = np.partition(products, width - room, axis=1)
        # Both the product at the last place and a contender's may be off.
        least = best[:, width - room] - 2 * margins
        if scores.shape[1]:
            least = np.full(len(products), -np.inf)
    least = np.nextafter(least.astype("float32"), np.float32(-np.inf))
    return np.divmod(np.flatnonzero(products >= least[:, None]), width)


def knn_hits(
    neighbour_labels: ArrayLike, labels: ArrayLike, ks: Sequence[int] = (1,)
) -> dict[int, np.ndarray]:
    """Return for each query whether a neighbour has its label.

    This is accuracy@K as in the paper's ablations: a query is a hit if its
    label appears among the K nearest neighbours; they do not vote.

    Args:
        neighbour_labels: integer array `(num_queries, at least max(ks))`. The
            labels of the neighbours, nearest first.
        labels: integer array `(num_queries,)`.
        ks: tuple of integers. Defaults to `(1,)`.

    Returns:
        A dictionary from K to a boolean array `(num_queries,)`.

    Raises:
        ValueError: the arrays do not fit, or a K is not positive.
    """
    neighbour_labels, labels = np.asarray(neighbour_labels), np.asarray(labels)
    if neighbour_labels.ndim != 2 or len(neighbour_labels) != len(labels):
        raise ValueError(
            "`neighbour_labels` must have one row for each of the "
            f"{len(labels)} `labels`. Received: {neighbour_labels.shape}"
        )
    same = neighbour_labels == labels[:, None]
    return {k: same[:, :k].any(axis=1) for k in check_ks(ks)}


def knn_accuracies(
    outcomes: dict[str, np.ndarray], weights: np.ndarray | None = None
) -> dict[str, float]:
    """Compute the share of hits for each K of `knn_hits`."""
    return {
        name.replace("hit", "accuracy"): float(
            np.average(outcomes[name], weights=weights)
        )
        for name in outcomes
        if name.startswith("hit@")
    }


def measure_knn(
    model: Embedder | keras.Model,
    train: DataSet,
    test: DataSet,
    ks: Sequence[int] = (1,),
    batch_size: int = 64,
    progress: bool = True,
    cache: str | Path | None = None,
    samples: int = SAMPLES,
) -> Result:
    """Measure how often the nearest training images have the right label.

    Args:
        model: an `align_keras.AlignDualEncoder` with a preprocessor, or an
            `Embedder`.
        train: a `DataSet` with labels, in which neighbours are searched.
        test: a `DataSet` with the same classes.
        ks: tuple of ints. A test image is a hit at K if its label appears
            among the K nearest neighbours (footnote 3 of the paper, which
            reports K = 1). Defaults to `(1,)`.
        batch_size, progress, cache, samples: See `measure_retrieval`.

    Returns:
        A `Result` with `"accuracy@K"`.

    Raises:
        ValueError: the data sets have different classes, or no image is
            readable.
    """
    ks = check_ks(ks)
    embedder = as_embedder(model)
    require_same_classes(train, test)
    rows, labels, _, train_digest = embed_data_set(
        embedder, train, batch_size, progress, cache
    )
    queries, wanted, skipped, digest = embed_data_set(
        embedder, test, batch_size, progress, cache
    )
    labels, wanted = np.array(labels, "int64"), np.array(wanted, "int64")
    found, _ = nearest_neighbours(queries, rows, max(ks))
    hits = knn_hits(labels[found], wanted, ks)
    outcomes = {f"hit@{k}": hit for k, hit in hits.items()}
    outcomes["label"] = wanted
    return summarize(
        "knn",
        knn_accuracies,
        outcomes,
        len(queries),
        samples,
        dataset=test.name,
        model=embedder.name,
        unit="image",
        images=len(queries),
        train_images=len(rows),
        train_image_digest=train_digest,
        image_digest=digest,
        images_skipped=skipped,
        **{f"chance_accuracy@{k}": _knn_chance(labels, wanted, k) for k in ks},
    )


def _knn_chance(labels, wanted, k):
    """Return the chance that one of K random images has the label."""
    share = np.bincount(labels, minlength=wanted.max() + 1) / len(labels)
    return float(np.mean(1 - (1 - share[wanted]) ** k))
