"""Measure retrieval and correlation with ratings on Crisscrossed Captions."""

import inspect
import math
from collections.abc import Callable
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import keras
import numpy as np
from numpy.typing import ArrayLike

from align_keras.embedding.embed_streams import embed_readable
from align_keras.embedding.embed_streams import embed_texts
from align_keras.embedding.embedder import Embedder
from align_keras.embedding.embedder import as_embedder
from align_keras.embedding.vector_cache import names_digest
from align_keras.evaluation.bootstrap import SAMPLES
from align_keras.evaluation.bootstrap import interval
from align_keras.evaluation.correlation import spearman
from align_keras.evaluation.cxc_data import COLUMNS
from align_keras.evaluation.cxc_data import THRESHOLDS
from align_keras.evaluation.cxc_data import Ratings
from align_keras.evaluation.cxc_data import check_repeated
from align_keras.evaluation.cxc_data import merge_repeated
from align_keras.evaluation.cxc_data import read_ratings
from align_keras.evaluation.cxc_data import read_sentences
from align_keras.evaluation.cxc_data import retrieval_positives
from align_keras.evaluation.datasets import find_image
from align_keras.evaluation.ranks import best_positive_ranks
from align_keras.evaluation.ranks import check_pair
from align_keras.evaluation.ranks import pair_scores
from align_keras.evaluation.ranks import ranks_both_ways
from align_keras.evaluation.results import Result
from align_keras.evaluation.results import summarize
from align_keras.evaluation.retrieval import KS

TASKS = {
    "image_to_text": "image",
    "text_to_image": "text",
    "text_to_text": "text",
    "image_to_image": "image",
}
# Columns that hold queries: captions for STS, images for the others, which
# matches the spread of the published metrics.
QUERY_COLUMNS = {"sts": (0, 1), "sis": (0, 1), "sits": (1,)}


def measure_cxc(
    model: Embedder | keras.Model,
    ratings: str | Path,
    captions: str | Path,
    images: str | Path,
    split: str = "test",
    ks: Sequence[int] = KS,
    drop_empty: bool = True,
    positives: dict | None = None,
    correlation: dict | None = None,
    batch_size: int = 64,
    progress: bool = True,
    cache: str | Path | None = None,
    samples: int = SAMPLES,
    allow_outside: bool = False,
) -> Result:
    """Measure retrieval and correlation on Crisscrossed Captions.

    Args:
        model: an `align_keras.AlignDualEncoder` with a preprocessor, or an
            `Embedder`.
        ratings: string or `pathlib.Path`. The directory of the rating files.
        captions: string or `pathlib.Path`. Karpathy's `dataset_coco.json`,
            which holds the captions.
        images: string or `pathlib.Path`. The folder of MSCOCO's images.
        split: string, `"val"` or `"test"`. Defaults to `"test"`.
        ks: tuple of ints. The depths of recall. Defaults to `(1, 5, 10)`.
        drop_empty: bool. See `cxc_recalls`. Defaults to `True`.
        positives: dictionary. Options of `retrieval_positives`.
        correlation: dictionary. Options of `rating_correlations`.
        batch_size, progress, cache, samples: See `measure_retrieval`. The
            correlations use the same number of samples, or 1,000 if `samples`
            is 0.
        allow_outside: bool. Whether links may lead out of `images`. Defaults
            to `False`.

    Returns:
        A `Result`: twelve recalls; `"sts_correlation"`, `"sis_correlation"`,
        `"sits_correlation"` and their mean; `"deviations"` of these over the
        samples; and the numbers of queries and positives.

    Raises:
        FileNotFoundError: a file or image is missing.
        ValueError: a file is invalid, or an image does not decode.
    """
    embedder = as_embedder(model)
    rated = read_ratings(ratings, split)
    texts = read_sentences(captions, rated.captions)
    image_vectors, readable = embed_readable(
        embedder,
        (
            (n, find_image(images, f"val2014/{n}", allow_outside))
            for n in rated.images
        ),
        batch_size,
        progress,
        len(rated.images),
        cache,
        f"cxc_{split}",
    )
    if not readable.all():
        raise ValueError(
            f"The image `{rated.images[int(np.argmin(readable))]}` cannot be "
            "decoded; Crisscrossed Captions needs all of its images."
        )
    text_vectors = embed_texts(embedder, texts, progress=progress, cache=cache)
    # The result lists all options, so that only equal ones are compared.
    positives = _options(retrieval_positives, positives)
    positives["thresholds"] = {**THRESHOLDS, **(positives["thresholds"] or {})}
    correlation = {"samples": samples or SAMPLES, **(correlation or {})}
    correlation = _options(rating_correlations, correlation)
    columns = correlation["query_columns"] or {}
    correlation["query_columns"] = {**QUERY_COLUMNS, **columns}
    pairs = retrieval_positives(rated, **positives)
    ranks = cxc_ranks(image_vectors, text_vectors, pairs)
    outcomes = {f"{task}_rank": rank for task, rank in ranks.items()}
    outcomes["caption_image"] = rated.caption_image
    result = summarize(
        "cxc",
        partial(cxc_recalls, ks=ks, drop_empty=drop_empty),
        outcomes,
        len(rated.images),
        samples,
        dataset="cxc" if split == "test" else f"cxc_{split}",
        model=embedder.name,
        unit="image with its captions",
        split=split,
        text_digest=names_digest(texts),
        queries={task: int((rank >= 0).sum()) for task, rank in ranks.items()},
        positives={task: len(found) for task, found in pairs.items()},
        drop_empty=drop_empty,
        ks=list(ks),
        positives_options=positives,
        correlation_options=correlation,
    )
    scores = model_scores(rated, image_vectors, text_vectors)
    drawn = rating_correlations(rated, scores, **correlation)
    return _with_correlations(result, drawn)


def _options(function: Callable, given: dict | None) -> dict:
    """Return the given options of a function, completed by its defaults."""
    parameters = inspect.signature(function).parameters.values()
    defaults = {
        p.name: p.default for p in parameters if p.default is not p.empty
    }
    return {**defaults, **(given or {})}


def _with_correlations(result, drawn):
    drawn = {f"{task}_correlation": values for task, values in drawn.items()}
    drawn["mean_correlation"] = np.mean(list(drawn.values()), axis=0)
    # A sample of equal ratings, possible in a small file, gives NaN.
    found = {name: float(np.nanmean(values)) for name, values in drawn.items()}
    ends = {name: interval(values) for name, values in drawn.items()}
    deviations = {
        name: float(np.nanstd(values)) for name, values in drawn.items()
    }
    # The draws depend only on the files and the seed, not on the model.
    samples = {f"sample_{name}": values for name, values in drawn.items()}
    return Result(
        {
            **result,
            **found,
            "deviations": deviations,
            "intervals": {**result["intervals"], **ends},
        },
        {**result.outcomes, **samples},
    )


# === Retrieval ===


def cxc_ranks(
    image_embeddings: ArrayLike,
    caption_embeddings: ArrayLike,
    positives: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Rank the best answer of every query in the four tasks.

    Args:
        image_embeddings: float array `(num_images, dim)`, in the order of
            `Ratings.images`.
        caption_embeddings: float array `(num_captions, dim)`, in the order of
            `Ratings.captions`.
        positives: dictionary. See `retrieval_positives`.

    Returns:
        A dictionary from task to int64 ranks from 0, or -1 for a query
        without an answer. A caption or an image is not a candidate for
        itself.
    """
    images, texts = check_pair(
        image_embeddings,
        caption_embeddings,
        "image_embeddings",
        "caption_embeddings",
    )
    by_image, by_text = ranks_both_ways(
        images, texts, positives["image_to_text"]
    )
    return {
        "image_to_text": by_image,
        "text_to_image": by_text,
        "text_to_text": best_positive_ranks(
            texts, texts, positives["text_to_text"], exclude_self=True
        ),
        "image_to_image": best_positive_ranks(
            images, images, positives["image_to_image"], exclude_self=True
        ),
    }


def cxc_recalls(
    outcomes: dict[str, np.ndarray],
    weights: np.ndarray | None = None,
    ks: Sequence[int] = KS,
    drop_empty: bool = True,
) -> dict[str, float]:
    """Compute recalls from ranks.

    Args:
        outcomes: dictionary of arrays: `"TASK_rank"` for each task, and
            `"caption_image"`.
        weights: integer array `(num_images,)`. How often each image counts,
            with its captions. Defaults to `None`, once each.
        ks: tuple of integers. Defaults to `(1, 5, 10)`.
        drop_empty: bool. Whether a query without an answer is left out;
            otherwise it counts as missed. Defaults to `True`.

    Returns:
        A dictionary of floats, `"TASK_recall@K"`.
    """
    owner = outcomes["caption_image"]
    if weights is None:
        weights = np.ones(len(outcomes["image_to_text_rank"]), "int64")
    metrics = {}
    for task, kind in TASKS.items():
        rank = outcomes[f"{task}_rank"]
        weight = weights if kind == "image" else weights[owner]
        counted = (rank >= 0) if drop_empty else np.ones(len(rank), bool)
        total = weight @ counted
        for k in ks:
            hits = weight @ ((rank >= 0) & (rank < k))
            metrics[f"{task}_recall@{k}"] = (
                float(hits / total) if total else math.nan
            )
    return metrics


# === Correlation ===


def model_scores(
    ratings: Ratings,
    image_embeddings: ArrayLike,
    caption_embeddings: ArrayLike,
) -> dict[str, np.ndarray]:
    """Score every rated pair.

    Args:
        ratings: `Ratings`.
        image_embeddings: float array `(num_images, dim)`, unit vectors.
        caption_embeddings: float array `(num_captions, dim)`, unit vectors.

    Returns:
        A dictionary from task to a float32 array `(num_ratings,)`, cosines.
    """
    images, texts = check_pair(
        image_embeddings,
        caption_embeddings,
        "image_embeddings",
        "caption_embeddings",
    )
    sides = {
        "sts": (texts, texts),
        "sis": (images, images),
        "sits": (texts, images),
    }
    return {
        task: pair_scores(*sides[task], *ratings.pairs[task].T)
        for task in COLUMNS
    }


def rating_correlations(
    ratings: Ratings,
    model_scores: dict[str, np.ndarray],
    samples: int = 1000,
    seed: int = 0,
    query_columns: dict[str, tuple[int, ...]] | None = None,
    share: float = 0.5,
    replace: bool = False,
    repeated: str = "keep",
) -> dict[str, np.ndarray]:
    """Correlate a model's scores with the ratings, as in the CxC paper.

    Each sample draws half of the queries, and for each query one of the pairs
    in which it was rated. The metric is the mean of Spearman's correlation
    over the samples, and its spread is their standard deviation.

    Args:
        ratings: `Ratings`.
        model_scores: dictionary from `"sts"`, `"sis"` and `"sits"` to a float
            array `(num_ratings,)`. See `model_scores`.
        samples: integer. Defaults to `1000`.
        seed: integer. Defaults to `0`.
        query_columns: dictionary that replaces entries of `QUERY_COLUMNS`:
            which columns of a rating file hold the queries. By default,
            queries are captions in STS, and images in SIS and SITS, which
            matches the spread of the published metrics. `{"sits": (0,)}`
            makes them captions in SITS.
        share: float. The share of queries that a sample draws. Defaults to
            `0.5`.
        replace: bool. Whether a sample may draw a query twice. Defaults to
            `False`.
        repeated: string. Whether two ratings of one pair of images remain two
            (`"keep"`) or are replaced by their mean (`"mean"`). Defaults to
            `"keep"`.

    Returns:
        A dictionary from task to a float64 array `(samples,)`.

    Raises:
        ValueError: scores are missing or not finite, or an option is wrong.
    """
    if not 0 < share <= 1:
        raise ValueError(f"`share` must lie in (0, 1]. Received: share={share}")
    check_repeated(repeated)
    columns = {**QUERY_COLUMNS, **(query_columns or {})}
    checked = {
        task: _check_scores(model_scores[task], ratings.scores[task], task)
        for task in COLUMNS
    }
    found = {}
    for number, (task, scores) in enumerate(checked.items()):
        pairs, human = ratings.pairs[task], ratings.scores[task]
        if task != "sits" and repeated == "mean":
            _, human = merge_repeated(pairs, human)
            pairs, scores = merge_repeated(pairs, scores)
        rng = np.random.default_rng([seed, number])
        items = _items_of_queries(pairs, columns[task])
        found[task] = np.array(
            [
                spearman(human[drawn], scores[drawn])
                for drawn in _draws(items, samples, share, replace, rng)
            ]
        )
    return found


def _check_scores(scores, human, task):
    scores = np.asarray(scores, "float64")
    if scores.shape != human.shape or not np.isfinite(scores).all():
        raise ValueError(
            f"`model_scores[{task!r}]` must hold {len(human)} finite numbers. "
            f"Received: shape={scores.shape}"
        )
    return scores


def _items_of_queries(pairs, columns):
    """Sort ratings by query; return their order, and starts and counts."""
    queries = np.concatenate([pairs[:, column] for column in columns])
    items = np.concatenate([np.arange(len(pairs))] * len(columns))
    order = np.argsort(queries, kind="stable")
    _, starts, counts = np.unique(
        queries[order], return_index=True, return_counts=True
    )
    return items[order], starts, counts


def _draws(items, samples, share, replace, rng):
    items, starts, counts = items
    size = max(1, round(share * len(starts)))
    for _ in range(samples):
        chosen = rng.choice(len(starts), size, replace=replace, shuffle=False)
        place = (rng.random(size) * counts[chosen]).astype("int64")
        yield items[starts[chosen] + place]
