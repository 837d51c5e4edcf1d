"""Measure WinoGAViL: which images people associate with a word."""

import math
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from align_keras.embedding.embed_streams import embed_data_set
from align_keras.embedding.embed_streams import embed_texts
from align_keras.embedding.embedder import Embedder
from align_keras.embedding.similarity import exact_scores
from align_keras.evaluation.datasets import SUFFIXES
from align_keras.evaluation.datasets import DataSet
from align_keras.evaluation.datasets import find_image
from align_keras.evaluation.datasets import path_within
from align_keras.io.json_files import parse_json
from align_keras.io.mirrors import reads
from align_keras.io.rows import RowError
from align_keras.io.rows import read_rows

TABLE = "winogavil_dataset.csv"
# DataComp uses only examples with at least this many.
FEWEST_CANDIDATES = 10
_VOWELS = "aeiou"


class Association(NamedTuple):
    """One example: a word, and images to choose from.

    Attributes:
        cue: string. The word.
        candidates: list of strings. The names of images.
        right: set of strings. The candidates that people associate with the
            cue.
    """

    cue: str
    candidates: list[str]
    right: set[str]


@reads("folder")
def winogavil(
    folder: str | Path,
    fewest: int = FEWEST_CANDIDATES,
    allow_outside: bool = False,
) -> list[Association]:
    """Read WinoGAViL in its published form.

    Args:
        folder: string or `pathlib.Path`. Holds `winogavil_dataset.csv`.
        fewest: int. Examples with fewer candidates are left out. Defaults to
            `10`, as in DataComp.
        allow_outside: bool. Whether links may lead out of the folder.
            Defaults to `False`.

    Returns:
        A list of `Association`.

    Raises:
        FileNotFoundError: The table is missing.
        ValueError: A row has another format, or none has enough candidates.

    Reference:
        - [Bitton et al., 2022](https://arxiv.org/abs/2207.12576)
    """
    path = path_within(folder, TABLE, allow_outside)
    found = []
    for number, row in enumerate(read_rows(path), 1):
        if isinstance(row, RowError):
            raise ValueError(f"Row {number} of `{path}` is {row}.")
        cue = (row.get("cue") or "").strip()
        candidates = _names(path, number, row, "candidates")
        right = set(_names(path, number, row, "associations"))
        if not cue or not right or right - set(candidates):
            raise ValueError(
                f"Row {number} of `{path}` must have a `cue`, and "
                "`associations` that are among its `candidates`."
            )
        if len(candidates) >= fewest:
            found.append(Association(cue, candidates, right))
    if not found:
        raise ValueError(
            f"`{path}` has no example of at least {fewest} candidates."
        )
    return found


def _names(path, number, row, field):
    try:
        names = parse_json(row.get(field) or "")
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(
        isinstance(n, str) for n in names
    ):
        raise ValueError(
            f"In row {number} of `{path}`, `{field}` must be a JSON list of "
            f"names. Received: {row.get(field)!r:.80}"
        )
    return names


def prompt(cue: str) -> str:
    """Put an article before a cue, by its first letter, as DataComp does."""
    cue = cue.lower()
    return f"An {cue}" if cue[0] in _VOWELS else f"A {cue}"


def jaccard(scores: np.ndarray, right: np.ndarray) -> float:
    """Compute the Jaccard index of the best candidates and the right ones.

    As many candidates are chosen as there are right ones.

    Args:
        scores: float array `(num_candidates,)`. In case of ties, the first
            candidates are chosen.
        right: bool array `(num_candidates,)`.

    Returns:
        A float: among candidates that are chosen or right, the share that are
        both.
    """
    count = np.count_nonzero(right)
    chosen = np.argsort(-scores, kind="stable")[:count]
    both = np.count_nonzero(right[chosen])
    return both / (2 * count - both)


def jaccard_chance(candidates: int, right: int) -> float:
    """Compute the mean of `jaccard` over all orders of the candidates."""
    return sum(
        math.comb(right, both)
        * math.comb(candidates - right, right - both)
        / math.comb(candidates, right)
        * both
        / (2 * right - both)
        for both in range(right + 1)
    )


def associate(
    embedder: Embedder,
    examples: list[Association],
    images: str | Path,
    batch_size: int = 64,
    progress: bool = True,
    cache: str | Path | None = None,
    allow_outside: bool = False,
) -> tuple[dict[str, np.ndarray], dict]:
    """Choose the images that a model associates with each cue.

    Args:
        embedder: `Embedder`.
        examples: list of `Association`.
        images: string or `pathlib.Path`. The folder of images, which may have
            a suffix after their names.
        batch_size, progress, cache: See `measure_retrieval`.
        allow_outside: bool. Whether links may lead out of the folder.
            Defaults to `False`.

    Returns:
        A pair of dictionaries: arrays `(count,)`, with the numbers of
        `"candidates"` and right `"associations"`, and the `"score"`, see
        `jaccard`; and fields of the result about the images. Examples with an
        unreadable image are left out.
    """
    names = sorted({name for each in examples for name in each.candidates})
    data = DataSet(
        "winogavil",
        lambda: (
            (
                name,
                partial(find_image, images, name, allow_outside, SUFFIXES),
                place,
            )
            for place, name in enumerate(names)
        ),
        len(names),
    )
    vectors, places, skipped, digest = embed_data_set(
        embedder, data, batch_size, progress, cache
    )
    row = {names[place]: number for number, place in enumerate(places)}
    whole = [each for each in examples if row.keys() >= set(each.candidates)]
    if not whole:
        raise ValueError("No example of WinoGAViL has all of its images.")
    texts = sorted({prompt(each.cue) for each in whole})
    cues = embed_texts(embedder, texts, progress=progress, cache=cache)
    line = {text: number for number, text in enumerate(texts)}
    scores = []
    for each in whole:
        of_cue = cues[line[prompt(each.cue)]][None]
        shown = vectors[[row[name] for name in each.candidates]]
        right = np.array([name in each.right for name in each.candidates])
        scores.append(jaccard(exact_scores(of_cue, shown)[0], right))
    outcomes = {
        "candidates": np.array([len(each.candidates) for each in whole]),
        "associations": np.array([len(each.right) for each in whole]),
        "score": np.array(scores),
    }
    values = {
        "images": len(vectors),
        "images_skipped": skipped,
        "examples_skipped": len(examples) - len(whole),
        "image_digest": digest,
        "prompts": [[each.cue, each.candidates] for each in whole],
    }
    return outcomes, values
