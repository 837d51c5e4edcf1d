"""Measure retrieval between images and captions, in both directions."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import keras
import numpy as np
from numpy.typing import ArrayLike

from align_keras.embedding.embed_streams import embed_data_set
from align_keras.embedding.embed_streams import embed_texts
from align_keras.embedding.embedder import Embedder
from align_keras.embedding.embedder import as_embedder
from align_keras.embedding.vector_cache import names_digest
from align_keras.evaluation import datasets
from align_keras.evaluation.bootstrap import SAMPLES
from align_keras.evaluation.ranks import check_ks
from align_keras.evaluation.ranks import check_pair
from align_keras.evaluation.ranks import check_positives
from align_keras.evaluation.ranks import ranks_both_ways
from align_keras.evaluation.results import Result
from align_keras.evaluation.results import summarize

# The depths that the paper's Tables 1 to 3 report.
KS = (1, 5, 10)


def retrieval_metrics(
    image_embeddings: ArrayLike,
    text_embeddings: ArrayLike,
    text_to_image: ArrayLike,
    ks: Sequence[int] = KS,
) -> dict[str, float]:
    """Measure how well images retrieve their captions, and vice versa.

    A query is a hit at K if any of its positives is among the first K
    candidates. The literature calls this recall@K for images with several
    captions (the paper's section 5.1). Ties are broken by index, see
    `best_positive_ranks`. An image without a caption is no image-to-text
    query; it is counted, and remains a candidate for the captions of other
    images.

    Args:
        image_embeddings: float array `(num_images, dim)`, unit vectors.
        text_embeddings: float array `(num_texts, dim)`, unit vectors.
        text_to_image: integer array `(num_texts,)`, the index of each
            caption's image; or `(num_pairs, 2)`, with a caption and an image
            in each row, if a caption may belong to several images.
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
    ks = check_ks(ks)
    outcomes = retrieval_outcomes(
        image_embeddings, text_embeddings, text_to_image
    )
    without = outcomes["image_rank"] < 0
    return {
        **retrieval_recalls(outcomes, ks=ks),
        "images": len(without),
        "texts": len(outcomes["text_rank"]),
        "images_without_text": int(np.count_nonzero(without)),
    }


def retrieval_outcomes(
    image_embeddings: ArrayLike,
    text_embeddings: ArrayLike,
    text_to_image: ArrayLike,
    folds: int = 1,
) -> dict[str, np.ndarray]:
    """Rank every query, for `retrieval_recalls`.

    Args:
        image_embeddings: float array `(num_images, dim)`, unit vectors.
        text_embeddings: float array `(num_texts, dim)`, unit vectors.
        text_to_image: integer array. See `retrieval_metrics`.
        folds: integer. The number of equal folds of consecutive images, each
            of which is searched separately. MSCOCO's 1K metrics are the mean
            of five folds of its 5,000 images. Defaults to `1`.

    Returns:
        A dictionary of arrays: `"image_rank"` int64 `(num_images,)` and
        `"text_rank"` int64 `(num_texts,)`, from 0, or -1 for a query without
        an answer; `"text_image"` int64 `(num_texts,)`, the first image of
        each caption; `"fold"` int64 `(num_images,)`.

    Raises:
        ValueError: an array is empty, not finite, or does not fit the others.
    """
    images, texts = check_pair(
        image_embeddings, text_embeddings, "image_embeddings", "text_embeddings"
    )
    pairs = check_owners(text_to_image, len(texts), len(images))
    if not 1 <= folds <= len(images) or len(images) % folds:
        raise ValueError(
            f"`folds` must divide the {len(images)} images evenly. "
            f"Received: folds={folds}"
        )
    fold: np.ndarray = np.arange(len(images)) // (len(images) // folds)
    text_image: np.ndarray = np.full(len(texts), -1, "int64")
    text_image[pairs[::-1, 0]] = pairs[::-1, 1]
    if folds == 1:
        image_rank, text_rank = ranks_both_ways(images, texts, pairs[:, ::-1])
    else:
        image_rank, text_rank = _ranks_in_folds(images, texts, pairs, fold)
    return {
        "image_rank": image_rank,
        "text_rank": text_rank,
        "text_image": text_image,
        "fold": fold,
    }


def _ranks_in_folds(images, texts, pairs, fold):
    image_rank = np.full(len(images), -1, "int64")
    text_rank = np.full(len(texts), -1, "int64")
    for number in range(fold[-1] + 1):
        inside = pairs[fold[pairs[:, 1]] == number]
        if not len(inside):
            continue
        rows = np.flatnonzero(fold == number)
        columns, text = np.unique(inside[:, 0], return_inverse=True)
        image = np.searchsorted(rows, inside[:, 1])
        image_rank[rows], text_rank[columns] = ranks_both_ways(
            images[rows], texts[columns], np.stack([image, text], axis=1)
        )
    return image_rank, text_rank


def retrieval_recalls(
    outcomes: dict[str, np.ndarray],
    weights: np.ndarray | None = None,
    ks: Sequence[int] = KS,
) -> dict[str, float]:
    """Compute recalls and median ranks from ranks, averaged over the folds.

    Args:
        outcomes: dictionary of arrays. See `retrieval_outcomes`.
        weights: integer array `(num_images,)`. How often each image counts,
            with its captions, in a draw of the bootstrap. Defaults to `None`,
            once each.
        ks: tuple of integers. The depths of recall. Defaults to `(1, 5, 10)`.

    Returns:
        A dictionary of floats: the recalls, their mean, and the median ranks
        of `retrieval_metrics`.
    """
    fold, owner = outcomes["fold"], outcomes["text_image"]
    if weights is None:
        weights = np.ones(len(fold), "int64")
    ways = {
        "image_to_text": (outcomes["image_rank"], weights, fold),
        "text_to_image": (
            outcomes["text_rank"],
            np.where(owner < 0, 0, weights[owner]),
            fold[owner],
        ),
    }
    recalls, medians = {}, {}
    folds = int(fold[-1]) + 1
    for way, (rank, weight, part) in ways.items():
        counts = [
            np.bincount(rank[kept], weight[kept])
            for kept in (
                (rank >= 0) if folds == 1 else (rank >= 0) & (part == number)
                for number in range(folds)
            )
        ]
        for k in ks:
            recalls[f"{way}_recall@{k}"] = _mean(
                [_share(count[:k].sum(), count.sum()) for count in counts]
            )
        medians[f"{way}_median_rank"] = _mean(map(_median, counts))
    mean_recall = sum(recalls.values()) / len(recalls)
    return {**recalls, "mean_recall": mean_recall, **medians}


def _mean(values):
    return float(np.mean(list(values)))


def _share(part, whole):
    return part / whole if whole else math.nan


def _median(counts):
    """Return the median rank, from 1, of a histogram of ranks from 0."""
    reached = np.cumsum(counts)
    if not len(counts) or not reached[-1]:
        return math.nan
    middle = (reached[-1] - 1) // 2, reached[-1] // 2
    return np.searchsorted(reached, middle, side="right").mean() + 1


def retrieval_chance(
    text_to_image: ArrayLike, num_images: int, ks: Sequence[int] = KS
) -> dict[str, float]:
    """Compute the expected recall of a random order of the same pairs.

    If m of T captions are right, at least one of them is among K random ones
    with probability `1 - C(T - m, K) / C(T, K)`.

    Args:
        text_to_image: integer array `(num_texts,)`. The index of each
            caption's image.
        num_images: integer. The number of images that a caption is compared
            with.
        ks: tuple of integers. The depths of recall. Defaults to `(1, 5, 10)`.

    Returns:
        A dictionary with the recalls of `retrieval_metrics` and their mean.

    Example:

    ```python
    retrieval_chance([0, 1, 2, 3], 4)["image_to_text_recall@1"]  # 0.25
    ```
    """
    num_texts = len(np.asarray(text_to_image))
    pairs = check_owners(text_to_image, num_texts, num_images)
    _, counts = np.unique(pairs[:, 1], return_counts=True)
    sizes, images_of_size = np.unique(counts, return_counts=True)
    chance = {}
    for k in check_ks(ks):
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


def check_owners(text_to_image, num_texts, num_images):
    """Return int64 pairs `(num_pairs, 2)` of a text and an image."""
    owners = np.asarray(text_to_image)
    if num_texts == 0:
        raise ValueError("`text_to_image` must name at least one text.")
    if owners.ndim == 2 and owners.shape[1] == 2 and owners.dtype.kind in "iu":
        return check_positives(owners, num_texts, num_images)
    if owners.shape != (num_texts,) or owners.dtype.kind not in "iu":
        raise ValueError(
            "`text_to_image` must hold one integer for each of the "
            f"{num_texts} texts. Received: shape={owners.shape}, "
            f"dtype={owners.dtype}"
        )
    wrong = (owners < 0) | (owners >= num_images)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"`text_to_image` must lie between 0 and {num_images - 1}, the "
            f"last image. Received: {owners[first]} at index {first}"
        )
    return np.stack([np.arange(num_texts), owners.astype("int64")], axis=1)


def measure_retrieval(
    model: Embedder | keras.Model,
    data: datasets.DataSet | str | list[str],
    ks: Sequence[int] = KS,
    folds: int = 1,
    batch_size: int = 64,
    progress: bool = True,
    cache: str | Path | None = None,
    samples: int = SAMPLES,
) -> Result:
    """Measure how well a model retrieves captions for images, and vice versa.

    Every image and every caption is embedded once (section 5.1 of the paper).
    An image that does not decode is left out together with its captions; a
    warning names it, and it is counted.

    Args:
        model: an `align_keras.AlignDualEncoder` with a preprocessor, or an
            `Embedder`.
        data: a `DataSet` with captions; or a string or list of strings, see
            `align_keras.evaluation.datasets.captioned`.
        ks: tuple of ints. The depths of recall. Defaults to `(1, 5, 10)`.
        folds: int. See `retrieval_outcomes`; 5 for MSCOCO's 1K metrics.
            Defaults to `1`.
        batch_size: int. Images per call of the network. Defaults to `64`.
        progress: bool. Whether to draw progress bars on the standard error
            stream. Defaults to `True`.
        cache: string or `pathlib.Path`. A directory for vectors, see
            `embed_readable`. Defaults to `None`.
        samples: int. Resamples for the intervals, which draw images with all
            of their captions; 0 for no intervals. Defaults to `1000`.

    Returns:
        A `Result`: the metrics of `retrieval_recalls`, `"intervals"`, the
        numbers of images and texts, `"images_skipped"`, and under
        `"chance_…"` each recall of a random order.

    Raises:
        FileNotFoundError: No file matches `data`.
        ValueError: The model has no preprocessor, or no image is readable.

    Example:

    ```python
    measure_retrieval(model, "packed/*.tfrecord")["mean_recall"]
    ```
    """
    ks = check_ks(ks)
    if not isinstance(data, datasets.DataSet):
        data = datasets.captioned(data)
    embedder = as_embedder(model)
    images, captions, skipped, digest = embed_data_set(
        embedder, data, batch_size, progress, cache
    )
    texts = [text for group in captions for text in group]
    owners: np.ndarray = np.repeat(
        np.arange(len(captions)), list(map(len, captions))
    )
    vectors = embed_texts(embedder, texts, progress=progress, cache=cache)
    outcomes = retrieval_outcomes(images, vectors, owners, folds)
    without = np.count_nonzero(outcomes["image_rank"] < 0)
    return summarize(
        "retrieval",
        partial(retrieval_recalls, ks=ks),
        outcomes,
        len(images),
        samples,
        dataset=data.name if folds == 1 else f"{data.name}_{folds}_folds",
        model=embedder.name,
        unit="image with its captions",
        images=len(images),
        texts=len(texts),
        images_without_text=int(without),
        image_digest=digest,
        text_digest=names_digest(texts),
        images_skipped=skipped,
        folds=folds,
        ks=list(ks),
        **_chance(owners, len(images), folds, ks),
    )


def _chance(owners, num_images, folds, ks):
    """Return the mean over the folds of the recall of a random order."""
    size = num_images // folds
    parts = [
        owners[owners // size == fold] - fold * size for fold in range(folds)
    ]
    chances = [retrieval_chance(part, size, ks) for part in parts if len(part)]
    return {
        f"chance_{name}": float(np.mean([chance[name] for chance in chances]))
        for name in chances[0]
    }
