"""Crisscrossed Captions: retrieval and correlation with human ratings.

Parekh et al., 2021 (https://arxiv.org/abs/2004.15020) rated pairs of captions
(STS), of images (SIS), and of a caption and an image (SITS) of MSCOCO from 0
to 5. Their files say which pairs answer which query beyond the original ones.
"""

import csv
import itertools
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from align_keras.evaluation.correlation import spearman
from align_keras.evaluation.ranks import best_positive_ranks
from align_keras.evaluation.ranks import check_pair
from align_keras.evaluation.ranks import pair_scores
from align_keras.evaluation.ranks import ranks_both_ways
from align_keras.evaluation.retrieval import KS

# From this rating on, a pair counts as matching (section 3 of the paper).
THRESHOLDS = {"sts": 3.0, "sis": 2.5, "sits": 3.0}
COLUMNS = {
    "sts": ("caption1", "caption2"),
    "sis": ("image1", "image2"),
    "sits": ("caption", "image"),
}
REPEATED = ("keep", "mean")
TASKS = {
    "image_to_text": "image",
    "text_to_image": "text",
    "text_to_text": "text",
    "image_to_image": "image",
}


class Ratings(NamedTuple):
    """The rated pairs of one split.

    Attributes:
        captions: list of strings, the ids of all captions, in order of their
            number, as in `"COCO_val2014:sentid:411553"`.
        images: list of strings, the file names of all images, sorted.
        caption_image: int64 array `(num_captions,)`. The image for which each
            caption was written.
        pairs: dictionary from `"sts"`, `"sis"` and `"sits"` to an int64 array
            `(num_ratings, 2)` of indices, in the order of the file's columns.
        scores: dictionary from the same to a float64 array `(num_ratings,)`.
        methods: dictionary from the same to an array of strings, how the
            pairs were sampled.
    """

    captions: list
    images: list
    caption_image: np.ndarray
    pairs: dict
    scores: dict
    methods: dict


def read_ratings(directory, split="test"):
    """Read the rating files `{sts,sis,sits}_SPLIT.csv` of a directory.

    Args:
        directory: string or `pathlib.Path`.
        split: string, `"val"` or `"test"`. Defaults to `"test"`.

    Returns:
        `Ratings`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file has other columns or a score that is no number, or
            a caption has no image of its own.
    """
    rows = {
        task: _read_rows(Path(directory) / f"{task}_{split}.csv", columns)
        for task, columns in COLUMNS.items()
    }
    originals = {
        row[0]: row[1] for row in rows["sits"] if row[3] == "c2i_original"
    }
    captions = sorted(originals, key=lambda name: (len(name), name))
    images = sorted(set(originals.values()))
    index = {name: number for number, name in enumerate(captions)}
    image_index = {name: number for number, name in enumerate(images)}
    kinds = {
        "sts": (index, index),
        "sis": (image_index, image_index),
        "sits": (index, image_index),
    }
    pairs = {}
    for task, (first, second) in kinds.items():
        try:
            pairs[task] = np.array(
                [(first[row[0]], second[row[1]]) for row in rows[task]], "int64"
            ).reshape(-1, 2)
        except KeyError as error:
            raise ValueError(
                f"`{directory}/{task}_{split}.csv` names {error}, which has no "
                f"row `c2i_original` in sits_{split}.csv."
            ) from None
    return Ratings(
        captions,
        images,
        np.array([image_index[originals[name]] for name in captions], "int64"),
        pairs,
        {task: np.array([row[2] for row in rows[task]]) for task in rows},
        {task: np.array([row[3] for row in rows[task]]) for task in rows},
    )


def _read_rows(path, columns):
    if not path.is_file():
        raise FileNotFoundError(f"There is no rating file `{path}`.")
    rows = []
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        wanted = (*columns, "agg_score", "sampling_method")
        missing = set(wanted) - set(reader.fieldnames or ())
        if missing:
            raise ValueError(
                f"`{path}` lacks the column `{min(missing)}`; it needs "
                f"{', '.join(wanted)}."
            )
        for row in reader:
            first, second, score, method = (row[name] for name in wanted)
            try:
                score = float(score)
                if not math.isfinite(score):
                    raise ValueError
            except (TypeError, ValueError):
                raise ValueError(
                    f"`{path}` has the score {score!r} in line "
                    f"{reader.line_num}, which is no number."
                ) from None
            rows.append((first, second, score, method))
    return rows


# === Retrieval ===


def retrieval_positives(
    ratings,
    thresholds=None,
    originals=True,
    co_captions=True,
    repeated="keep",
):
    """List the pairs that answer each query in the four retrieval tasks.

    Args:
        ratings: `Ratings`.
        thresholds: dictionary that replaces entries of `THRESHOLDS`: 3 for
            STS and SITS, 2.5 for SIS.
        originals: bool. Whether a caption matches the image for which it was
            written even where it was rated below the threshold. Defaults to
            `True`.
        co_captions: bool. Whether all captions of one image match each other,
            rated or not. Defaults to `True`.
        repeated: string. Some pairs of images were rated once in each order.
            `"keep"`: either rating suffices; `"mean"`: their mean counts.
            Defaults to `"keep"`.

    Returns:
        A dictionary from `"image_to_text"`, `"text_to_image"`,
        `"text_to_text"` and `"image_to_image"` to an int64 array `(num_pairs,
        2)` of a query and a candidate, without repetition, sorted.

    Raises:
        ValueError: an option is unknown.
    """
    limits = {**THRESHOLDS, **(thresholds or {})}
    if set(limits) != set(THRESHOLDS):
        raise ValueError(
            f"`thresholds` may name {sorted(THRESHOLDS)}. "
            f"Received: {sorted(thresholds)}"
        )
    rated = {}
    for task in COLUMNS:
        pairs, scores = _merge_repeated(ratings, task, repeated)
        rated[task] = pairs[scores >= limits[task]]
    caption_image = ratings.caption_image
    matches = [rated["sits"]]
    if originals:
        own = np.arange(len(caption_image))
        matches.append(np.stack([own, caption_image], axis=1))
    texts = [rated["sts"]]
    if co_captions:
        texts.append(_co_captions(caption_image))
    text_image = _unique(np.concatenate(matches))
    return {
        "image_to_text": _unique(text_image[:, ::-1]),
        "text_to_image": text_image,
        "text_to_text": _both_ways(np.concatenate(texts)),
        "image_to_image": _both_ways(rated["sis"]),
    }


def _merge_repeated(ratings, task, repeated):
    if repeated not in REPEATED:
        raise ValueError(
            f"`repeated` must be one of {REPEATED}. "
            f"Received: repeated={repeated!r}"
        )
    pairs, scores = ratings.pairs[task], ratings.scores[task]
    if task == "sits" or repeated == "keep":
        return pairs, scores
    pairs, place = np.unique(
        np.sort(pairs, axis=1), axis=0, return_inverse=True
    )
    place = place.ravel()
    return pairs, np.bincount(place, scores) / np.bincount(place)


def _co_captions(caption_image):
    order = np.argsort(caption_image, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(caption_image[order])) + 1)
    pairs = [pair for g in groups for pair in itertools.combinations(g, 2)]
    return np.array(pairs, "int64").reshape(-1, 2)


def _both_ways(pairs):
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    return _unique(np.concatenate([pairs, pairs[:, ::-1]]))


def _unique(pairs):
    # As single numbers, which sort much faster than rows.
    width = int(pairs.max(initial=0)) + 1
    codes = np.unique(pairs[:, 0] * width + pairs[:, 1])
    return np.stack(np.divmod(codes, width), axis=1)


def cxc_ranks(image_embeddings, caption_embeddings, positives):
    """Rank the best answer of every query in the four tasks.

    Args:
        image_embeddings: float array `(num_images, dim)`, in the order of
            `Ratings.images`.
        caption_embeddings: float array `(num_captions, dim)`, in the order of
            `Ratings.captions`.
        positives: dictionary, see `retrieval_positives`.

    Returns:
        A dictionary from task to int64 ranks from 0, and -1 for a query
        without an answer. A caption does not find itself, nor an image.
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


def cxc_retrieval_figures(outcomes, weights=None, ks=KS, drop_empty=True):
    """Sum up ranks to recalls.

    Args:
        outcomes: dictionary of arrays: `"TASK_rank"` for each task, and
            `"caption_image"`.
        weights: integer array `(num_images,)`. How often each image counts,
            with its captions. Defaults to `None`, once each.
        ks: tuple of integers. Defaults to `(1, 5, 10)`.
        drop_empty: bool. Whether a query without an answer is left out, or
            counts as missed. Defaults to `True`.

    Returns:
        A dictionary of floats, `"TASK_recall@K"`.
    """
    owner = outcomes["caption_image"]
    if weights is None:
        weights = np.ones(len(outcomes["image_to_text_rank"]), "int64")
    figures = {}
    for task, kind in TASKS.items():
        rank = outcomes[f"{task}_rank"]
        weight = weights if kind == "image" else weights[owner]
        counted = (rank >= 0) if drop_empty else np.ones(len(rank), bool)
        total = weight @ counted
        for k in ks:
            hits = weight @ ((rank >= 0) & (rank < k))
            figures[f"{task}_recall@{k}"] = (
                float(hits / total) if total else math.nan
            )
    return figures


# === Correlation ===

# What a query is, as the spread of published figures tells: captions for STS,
# images for the others.
QUERY_COLUMNS = {"sts": (0, 1), "sis": (0, 1), "sits": (1,)}


def rating_correlations(
    ratings,
    model_scores,
    samples=1000,
    seed=0,
    query_columns=None,
    share=0.5,
    replace=False,
    repeated="keep",
):
    """Correlate a model's scores with the ratings, as the paper of CxC does.

    For each of many samples, half of the queries are drawn, and for each of
    them one of the pairs in which it was rated; the figure is the mean over
    the samples of Spearman's correlation, and its spread their standard
    deviation.

    Args:
        ratings: `Ratings`.
        model_scores: dictionary from `"sts"`, `"sis"` and `"sits"` to a float
            array `(num_ratings,)`, see `model_scores`.
        samples: integer. Defaults to `1000`.
        seed: integer. Defaults to `0`.
        query_columns: dictionary that replaces entries of `QUERY_COLUMNS`:
            which columns of a rating file hold the queries. By default
            captions ask in STS, images in SIS and in SITS, as the spread of
            the published figures tells; `{"sits": (0,)}` lets captions ask.
        share: float. The part of the queries that a sample draws. Defaults to
            `0.5`.
        replace: bool. Whether a sample may draw a query twice. Defaults to
            `False`.
        repeated: string. Whether two ratings of one pair of images stay two
            (`"keep"`) or become their mean (`"mean"`). Defaults to `"keep"`.

    Returns:
        A dictionary from task to a float64 array `(samples,)`.

    Raises:
        ValueError: scores are missing or not finite, or an option is wrong.
    """
    if not 0 < share <= 1:
        raise ValueError(f"`share` must lie in (0, 1]. Received: share={share}")
    columns = {**QUERY_COLUMNS, **(query_columns or {})}
    checked = {
        task: _check_scores(model_scores[task], ratings.scores[task], task)
        for task in COLUMNS
    }
    found = {}
    for number, (task, scores) in enumerate(checked.items()):
        pairs, human = ratings.pairs[task], ratings.scores[task]
        if task != "sits" and repeated == "mean":
            merged, human = _merge_repeated(ratings, task, repeated)
            _, place = np.unique(
                np.sort(pairs, axis=1), axis=0, return_inverse=True
            )
            place = place.ravel()
            scores = np.bincount(place, scores) / np.bincount(place)
            pairs = merged
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
    """Ratings by query: their order, and where each query's begin and end."""
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


def model_scores(ratings, image_embeddings, caption_embeddings):
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
