"""Read the rated pairs of Crisscrossed Captions, and find which of them match.

Parekh et al., 2021 (https://arxiv.org/abs/2004.15020) rated pairs of MSCOCO's
captions (STS), of images (SIS), and of a caption and an image (SITS) from 0 to
5. The ratings tell which further pairs, beyond the original ones, match.
"""

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from align_keras.io.folders import resolve_within
from align_keras.io.json_files import read_json
from align_keras.io.mirrors import reads
from align_keras.io.rows import read_numbers
from align_keras.io.rows import read_table
from align_keras.io.text import clean_text

# Pairs with at least this rating count as matching (section 3 of the paper).
THRESHOLDS = {"sts": 3.0, "sis": 2.5, "sits": 3.0}
COLUMNS = {
    "sts": ("caption1", "caption2"),
    "sis": ("image1", "image2"),
    "sits": ("caption", "image"),
}
REPEATED = ("keep", "mean")


class Ratings(NamedTuple):
    """The rated pairs of one split.

    Attributes:
        captions: list of strings. The ids of all captions, sorted by number,
            as in `"COCO_val2014:sentid:411553"`.
        images: list of strings. The file names of all images, sorted.
        caption_image: int64 array `(num_captions,)`. The image for which each
            caption was written.
        pairs: dictionary from `"sts"`, `"sis"` and `"sits"` to an int64 array
            `(num_ratings, 2)` of indices, in the order of the file's columns.
        scores: dictionary from the same keys to a float64 array
            `(num_ratings,)`.
        methods: dictionary from the same keys to an array of strings: how
            each pair was sampled.
    """

    captions: list[str]
    images: list[str]
    caption_image: np.ndarray
    pairs: dict[str, np.ndarray]
    scores: dict[str, np.ndarray]
    methods: dict[str, np.ndarray]


@reads("directory")
def read_ratings(directory: str | Path, split: str = "test") -> Ratings:
    """Read the rating files `{sts,sis,sits}_SPLIT.csv` of a directory.

    Args:
        directory: string or `pathlib.Path`.
        split: string. `"val"` or `"test"`. Defaults to `"test"`.

    Returns:
        `Ratings`.

    Raises:
        FileNotFoundError: a file is missing.
        OutsideFolder: a file is a link that leads out of the directory.
        ValueError: a file has other columns or a score that is not a number,
            or a caption lacks the image for which it was written.
    """
    rows = {
        task: _read_rows(directory, f"{task}_{split}.csv", columns)
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


def _read_rows(directory, name, columns):
    path = resolve_within(directory, name, None)
    wanted = (*columns, "agg_score", "sampling_method")
    rows = read_table(path, ".csv", wanted)
    scores = read_numbers(path, rows, "agg_score")
    return [
        (*(row[name] for name in columns), score, row["sampling_method"])
        for row, score in zip(rows, scores, strict=True)
    ]


@reads("path")
def read_sentences(path: str | Path, names: list[str]) -> list[str]:
    """Read the texts of captions, given their ids in Crisscrossed Captions.

    Args:
        path: string or `pathlib.Path`. Karpathy's `dataset_coco.json`.
        names: list of strings such as `"COCO_val2014:sentid:411553"`.

    Returns:
        A list of strings, in the order of `names`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a caption is missing, or the file has another format.
    """
    try:
        texts = {
            str(sentence["sentid"]): clean_text(sentence["raw"]).strip()
            for image in read_json(path)["images"]
            for sentence in image["sentences"]
        }
    except (AttributeError, KeyError, TypeError):
        raise ValueError(
            f"The caption file `{path}` is not in Karpathy's form: an object "
            "with `images`, each with `sentences` that have `sentid` and `raw`."
        ) from None
    try:
        return [texts[name.rpartition(":")[2]] for name in names]
    except KeyError as error:
        raise ValueError(
            f"The caption file `{path}` has no sentence with the id {error}, "
            "which Crisscrossed Captions names."
        ) from None


def retrieval_positives(
    ratings: Ratings,
    thresholds: dict[str, float] | None = None,
    originals: bool = True,
    co_captions: bool = True,
    repeated: str = "keep",
) -> dict[str, np.ndarray]:
    """List the pairs that answer each query in the four retrieval tasks.

    Args:
        ratings: `Ratings`.
        thresholds: dictionary that replaces entries of `THRESHOLDS`: 3 for
            STS and SITS, 2.5 for SIS.
        originals: bool. Whether a caption matches the image for which it was
            written even if it was rated below the threshold. Defaults to
            `True`.
        co_captions: bool. Whether all captions of one image match each other,
            rated or not. Defaults to `True`.
        repeated: string. Some pairs of images were rated once in each order.
            With `"keep"`, one high rating suffices; with `"mean"`, their mean
            counts. Defaults to `"keep"`.

    Returns:
        A dictionary from `"image_to_text"`, `"text_to_image"`,
        `"text_to_text"` and `"image_to_image"` to an int64 array `(num_pairs,
        2)` of queries and candidates, sorted and without duplicates.

    Raises:
        ValueError: an option is unknown.
    """
    limits = {**THRESHOLDS, **(thresholds or {})}
    if set(limits) != set(THRESHOLDS):
        raise ValueError(
            f"The keys of `thresholds` must be among {sorted(THRESHOLDS)}. "
            f"Received: {sorted(thresholds or ())}"
        )
    check_repeated(repeated)
    rated = {}
    for task in COLUMNS:
        pairs, scores = ratings.pairs[task], ratings.scores[task]
        if task != "sits" and repeated == "mean":
            pairs, scores = merge_repeated(pairs, scores)
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


def check_repeated(repeated: str) -> None:
    """Raise `ValueError` if the option is not one of `REPEATED`."""
    if repeated not in REPEATED:
        raise ValueError(
            f"`repeated` must be one of {REPEATED}. "
            f"Received: repeated={repeated!r}"
        )


def merge_repeated(
    pairs: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Merge ratings of the same pair in either order into their mean."""
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
    # Single numbers sort much faster than rows.
    width = int(pairs.max(initial=0)) + 1
    codes = np.unique(pairs[:, 0] * width + pairs[:, 1])
    return np.stack(np.divmod(codes, width), axis=1)
