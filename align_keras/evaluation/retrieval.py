"""Retrieval between images and captions, as pure functions on arrays."""

import math

import numpy as np

from align_keras import vectors
from align_keras.vectors import as_vectors
from align_keras.vectors import exact_scores

# The paper's Tables 1 to 3 report these.
KS = (1, 5, 10)


def best_positive_ranks(queries, candidates, positives):
    """Rank the best positive of each query among all candidates.

    The rank is the number of candidates that come before the positive: those
    that score higher, and those that score the same and have a lower index.
    A model that gives every pair the same score therefore ranks in index
    order and reaches chance, where counting higher scores alone would call it
    perfect.

    Args:
        queries: float array `(num_queries, dim)`. Scores are dot products,
            so unit vectors give cosines.
        candidates: float array `(num_candidates, dim)`.
        positives: integer array `(num_pairs, 2)`. Each row names a query and
            a candidate that answers it. A query may occur several times, or
            never.

    Returns:
        `numpy.ndarray` of int64 `(num_queries,)`. 0 where a positive comes
        first, and -1 for a query without a positive.

    Raises:
        ValueError: an array is empty, not finite or of the wrong shape, or a
            pair names a row that does not exist.

    Example:

    ```python
    best_positive_ranks([[1.0, 0.0]], [[0.6, 0.8], [0.8, 0.6]], [[0, 0]])
    # array([1])
    ```
    """
    queries = as_vectors(queries, "queries")
    candidates = as_vectors(candidates, "candidates")
    if queries.shape[1] != candidates.shape[1]:
        raise ValueError(
            "`queries` and `candidates` must have the same dimension. "
            f"Received: {queries.shape[1]} and {candidates.shape[1]}"
        )
    positives = _check_positives(positives, len(queries), len(candidates))
    # By query, then by candidate: the order that the segments below need.
    owners, targets = positives[np.lexsort(positives.T[::-1])].T

    ranks = np.full(len(queries), -1, dtype="int64")
    step = max(1, vectors.BLOCK // len(candidates))
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        pairs = slice(*np.searchsorted(owners, [start, start + step]))
        if pairs.start == pairs.stop:
            continue
        scores = exact_scores(queries[rows], candidates)
        asked, row_ranks = _rank_block(
            scores, owners[pairs] - start, targets[pairs]
        )
        ranks[rows][asked] = row_ranks
    return ranks


def _check_positives(positives, num_queries, num_candidates):
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


def _rank_block(scores, owners, targets):
    """Rank for each row in `owners`, which is sorted, its best target."""
    asked, starts = np.unique(owners, return_index=True)
    lengths = np.diff(np.append(starts, len(owners)))
    reached = scores[owners, targets]
    best = np.maximum.reduceat(reached, starts)
    # Of the positives that share the best score, the lowest index.
    is_best = reached == np.repeat(best, lengths)
    index = np.minimum.reduceat(
        np.where(is_best, targets, scores.shape[1]), starts
    )
    scores = scores[asked]
    tied = scores == best[:, None]
    tied &= np.arange(scores.shape[1]) < index[:, None]
    ahead = np.count_nonzero(scores > best[:, None], axis=1)
    return asked, ahead + np.count_nonzero(tied, axis=1)


def retrieval_metrics(image_embeddings, text_embeddings, text_to_image, ks=KS):
    """Measure how well images find their captions, and captions their image.

    A query counts as answered at K when any of its positives is among the
    first K candidates, which is what the literature calls recall@K for images
    with several captions (the paper's section 5.1). Ties are broken by index,
    see `best_positive_ranks`. An image without a caption cannot be answered:
    it is left out of the image-to-text queries and counted, and stays a
    candidate for the captions of others.

    Args:
        image_embeddings: float array `(num_images, dim)`, unit vectors.
        text_embeddings: float array `(num_texts, dim)`, unit vectors.
        text_to_image: integer array `(num_texts,)`. For each caption the
            index of its image.
        ks: tuple of integers. The depths of recall. Defaults to `(1, 5, 10)`.

    Returns:
        A dictionary. `"image_to_text_recall@K"` and `"text_to_image_recall@K"`
        for each K, and `"mean_recall"` over all of them, are fractions from 0
        to 1; `"image_to_text_median_rank"` and `"text_to_image_median_rank"`
        count from 1; `"images"`, `"texts"` and `"images_without_text"` are
        integers.

    Raises:
        ValueError: an array is empty, not finite, or does not fit the others.

    Example:

    ```python
    images = np.eye(2)
    texts = np.eye(2)[[0, 0, 1]]
    retrieval_metrics(images, texts, [0, 0, 1])["mean_recall"]  # 1.0
    ```
    """
    images = as_vectors(image_embeddings, "image_embeddings")
    texts = as_vectors(text_embeddings, "text_embeddings")
    if images.shape[1] != texts.shape[1]:
        raise ValueError(
            "`image_embeddings` and `text_embeddings` must have the same "
            f"dimension. Received: {images.shape[1]} and {texts.shape[1]}"
        )
    text_to_image = _check_owners(text_to_image, len(texts), len(images))
    ks = _check_ks(ks)

    pairs = np.stack([text_to_image, np.arange(len(texts))], axis=1)
    image_ranks = best_positive_ranks(images, texts, pairs)
    answerable = image_ranks >= 0
    ranks = {
        "image_to_text": image_ranks[answerable],
        "text_to_image": best_positive_ranks(texts, images, pairs[:, ::-1]),
    }
    recalls = {
        f"{way}_recall@{k}": float(np.mean(rank < k))
        for way, rank in ranks.items()
        for k in ks
    }
    return {
        **recalls,
        "mean_recall": sum(recalls.values()) / len(recalls),
        **{
            f"{way}_median_rank": float(np.median(rank) + 1)
            for way, rank in ranks.items()
        },
        "images": len(images),
        "texts": len(texts),
        "images_without_text": int(np.count_nonzero(~answerable)),
    }


def retrieval_chance(text_to_image, num_images, ks=KS):
    """Give the recall that a random order reaches on the same pairs.

    With m captions among T, one of them is in K random places with
    probability `1 - C(T - m, K) / C(T, K)`.

    Args:
        text_to_image: integer array `(num_texts,)`. For each caption the
            index of its image.
        num_images: integer. Images among which a caption has to find its own.
        ks: tuple of integers. The depths of recall. Defaults to `(1, 5, 10)`.

    Returns:
        A dictionary with the recalls of `retrieval_metrics` and their mean.

    Example:

    ```python
    retrieval_chance([0, 1, 2, 3], 4)["image_to_text_recall@1"]  # 0.25
    ```
    """
    num_texts = len(np.asarray(text_to_image))
    owners = _check_owners(text_to_image, num_texts, num_images)
    _, counts = np.unique(owners, return_counts=True)
    sizes, images_of_size = np.unique(counts, return_counts=True)
    chance = {}
    for k in _check_ks(ks):
        depth = min(k, num_texts)
        orders = math.comb(num_texts, depth)
        hits = [
            (orders - math.comb(num_texts - int(size), depth)) / orders
            for size in sizes
        ]
        chance[f"image_to_text_recall@{k}"] = float(
            np.average(hits, weights=images_of_size)
        )
        chance[f"text_to_image_recall@{k}"] = min(k, num_images) / num_images
    return {**chance, "mean_recall": sum(chance.values()) / len(chance)}


def _check_owners(text_to_image, num_texts, num_images):
    owners = np.asarray(text_to_image)
    if owners.shape != (num_texts,) or owners.dtype.kind not in "iu":
        raise ValueError(
            "`text_to_image` must hold one integer for each of the "
            f"{num_texts} texts. Received: shape={owners.shape}, "
            f"dtype={owners.dtype}"
        )
    if num_texts == 0:
        raise ValueError("`text_to_image` must name at least one text.")
    wrong = (owners < 0) | (owners >= num_images)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"`text_to_image` must lie between 0 and {num_images - 1}, the "
            f"last image. Received: {owners[first]} at index {first}"
        )
    return owners.astype("int64")


def _check_ks(ks):
    ks = tuple(ks)
    if not ks or any(int(k) != k or k < 1 for k in ks):
        raise ValueError(
            f"`ks` must be one or more positive integers. Received: ks={ks}"
        )
    return tuple(int(k) for k in ks)
