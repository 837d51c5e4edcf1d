"""Describe where the vectors of images and texts lie on the sphere.

All sums are taken in float64, block by block, so that results do not depend on
the size of a block and the matrix of all pairs is never held in memory.
Estimates from samples report the size of the sample, which a seed determines.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from align_keras.evaluation.hubness import hubness
from align_keras.evaluation.hubness import wrong_texts
from align_keras.evaluation.knn import nearest_neighbours
from align_keras.evaluation.pair_cosines import compare_cosines
from align_keras.evaluation.pair_cosines import non_pair_scores
from align_keras.evaluation.pair_cosines import row_blocks
from align_keras.evaluation.pair_cosines import softmax_probabilities
from align_keras.evaluation.ranks import check_ks
from align_keras.evaluation.ranks import check_pair
from align_keras.evaluation.ranks import pair_scores
from align_keras.evaluation.retrieval import check_owners

# Most rows for uniformity: they form 134 million pairs, for a standard error of
# about 0.01.
ROWS = 1 << 14
# Nearest neighbours that count for hubness, as in the literature.
NEIGHBOURS = 10


def geometry_metrics(
    image_embeddings: ArrayLike,
    text_embeddings: ArrayLike,
    text_to_image: ArrayLike,
    temperature: float | None = None,
    softmax_batch: int = 256,
    k: int = NEIGHBOURS,
    examples: int = 24,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> dict:
    """Describe how the vectors of images and texts lie relative to each other.

    A pair is an image with one of its texts; any other image and text form a
    non-pair. All texts of an image are therefore right for it.

    Args:
        image_embeddings: float array `(num_images, dim)`, unit vectors.
        text_embeddings: float array `(num_texts, dim)`, unit vectors.
        text_to_image: integer array. See `retrieval_metrics`.
        temperature: float. What cosines are divided by before the softmax.
            Defaults to `None`, unknown; `"softmax"` is then `None`.
        softmax_batch: int. Number of images in the softmax, each with one of
            its texts. Defaults to `256`.
        k: int. How many nearest neighbours of each query count for hubness.
            Defaults to `10`.
        examples: int. How many images that are nearest to a wrong text to
            return. Defaults to `24`.
        seed: int. The seed of the samples. Defaults to `0`.
        progress: callable. Takes the number of images and texts that were
            searched since its last call. Defaults to `None`.

    Returns:
        A dictionary: `"alignment"`, `"image_uniformity"`,
        `"text_uniformity"`, `"modality_gap"` and `"modality_separation"` are
        floats; `"cosines"`, `"softmax"` and `"hubness"` are dictionaries of
        numbers and histograms; `"wrong_texts"` is a list of dictionaries, the
        worst first, with indices under `"image"`, `"text"` and
        `"wrong_text"`. Numbers that are not defined are NaN.
        docs/evaluation.md defines all of them.

    Raises:
        ValueError: an array is empty, not finite, or does not fit the others,
            or an option is out of range.

    Example:

    ```python
    images, texts = np.eye(3), np.eye(3)[[0, 1, 2, 2]]
    geometry_metrics(images, texts, [0, 1, 2, 2])["alignment"]  # 0.0
    ```
    """
    check_options(temperature, softmax_batch, k, examples)
    images, texts = check_pair(
        image_embeddings, text_embeddings, "image_embeddings", "text_embeddings"
    )
    pairs = np.unique(
        check_owners(text_to_image, len(texts), len(images))[:, ::-1], axis=0
    )
    own = pair_scores(images, texts, *pairs.T)
    found, scores = nearest_neighbours(images, texts, k, progress)
    back, _ = nearest_neighbours(texts, images, k, progress)
    gap, separation = modality_gap(images, texts)
    return {
        "images": len(images),
        "texts": len(texts),
        "pairs": len(pairs),
        "alignment": alignment(images, texts, pairs),
        "image_uniformity": uniformity(images, seed),
        "text_uniformity": uniformity(texts, seed),
        "uniformity_rows": {
            "image": min(len(images), ROWS),
            "text": min(len(texts), ROWS),
        },
        "modality_gap": gap,
        "modality_separation": separation,
        "cosines": compare_cosines(
            own, non_pair_scores(images, texts, pairs, seed)
        ),
        "softmax": None
        if temperature is None
        else softmax_probabilities(
            images, texts, pairs, temperature, softmax_batch, seed
        ),
        "hubness": {
            "image_to_text": hubness(found, len(texts)),
            "text_to_image": hubness(back, len(images)),
        },
        "wrong_texts": wrong_texts(
            images, texts, pairs, own, found, scores, examples
        ),
        "seed": seed,
    }


def check_options(
    temperature: float | None, softmax_batch: int, k: int, examples: int
) -> None:
    """Check the options of `geometry_metrics` before hours of embedding."""
    check_ks([k])
    if temperature is not None and not 0 < temperature < math.inf:
        raise ValueError(
            "`temperature` must be positive and finite. Received: "
            f"temperature={temperature}"
        )
    for name, value, least in (
        ("softmax_batch", softmax_batch, 2),
        ("examples", examples, 0),
    ):
        if int(value) != value or value < least:
            raise ValueError(
                f"`{name}` must be an integer of at least {least}. Received: "
                f"{name}={value}"
            )


# === Pairs, spread and gap ===


def alignment(
    images: np.ndarray, texts: np.ndarray, pairs: np.ndarray
) -> float:
    """Compute the mean of `||x - y||^2` over the pairs.

    Args:
        images: float32 array `(num_images, dim)`.
        texts: float32 array `(num_texts, dim)`.
        pairs: integer array `(num_pairs, 2)` of an image and a text.

    Returns:
        float. 0 if every text coincides with its image; 2 if they are
        orthogonal.

    Reference:
        - [Wang and Isola, 2020](https://arxiv.org/abs/2005.10242), with its
          exponent of 2.
    """
    total = 0.0
    for rows in row_blocks(len(pairs), images.shape[1]):
        image, text = pairs[rows].T
        apart = images[image].astype("float64") - texts[text]
        total += float((apart**2).sum())
    return total / len(pairs)


def uniformity(rows: np.ndarray, seed: int = 0) -> float:
    """Compute the log of the mean of `exp(-2 ||x_i - x_j||^2)` over `i < j`.

    Args:
        rows: float32 array `(count, dim)`. If there are more than 16,384
            rows, this many are drawn without replacement.
        seed: int. The seed of the draw. Defaults to `0`.

    Returns:
        float. 0 if all rows are equal; about -4 if unit vectors of many
        dimensions are spread evenly; NaN for a single row.

    Reference:
        - [Wang and Isola, 2020](https://arxiv.org/abs/2005.10242), with its
          factor of 2.
    """
    if len(rows) > ROWS:
        rng = np.random.default_rng([seed, 0])
        rows = rows[np.sort(rng.choice(len(rows), ROWS, replace=False))]
    if len(rows) < 2:
        return math.nan
    values = rows.astype("float64")
    squares = (values**2).sum(axis=1)
    total = 0.0
    for part in row_blocks(len(rows), len(rows)):
        # Starting at the diagonal takes each pair once.
        others = values[part.start :]
        apart = squares[part, None] + squares[part.start :]
        apart -= 2 * values[part] @ others.T
        weights = np.exp(-2 * np.maximum(apart, 0, out=apart), out=apart)
        total += float(np.triu(weights, 1).sum())
    return math.log(total / (len(rows) * (len(rows) - 1) / 2))


def modality_gap(images: np.ndarray, texts: np.ndarray) -> tuple[float, float]:
    """Measure how far apart the two clouds of images and texts lie.

    Args:
        images: float32 array `(num_images, dim)`.
        texts: float32 array `(num_texts, dim)`.

    Returns:
        A pair of floats: the distance of the two means, and the balanced
        accuracy of separating images from texts by the plane halfway between
        the means. A vector on the plane counts half. 0.5 means that the
        clouds are mixed, 1 that they are separate.

    Reference:
        - [Liang et al., 2022](https://arxiv.org/abs/2203.02053) for the gap.
    """
    means = [rows.mean(axis=0, dtype="float64") for rows in (images, texts)]
    gap = means[0] - means[1]
    middle = (means[0] + means[1]) @ gap / 2
    shares = []
    for rows, sign in ((images, 1), (texts, -1)):
        sides = [
            np.sign(sign * (rows[part] @ gap - middle)).sum()
            for part in row_blocks(len(rows), rows.shape[1])
        ]
        shares.append((1 + sum(sides) / len(rows)) / 2)
    return float(np.linalg.norm(gap)), float(np.mean(shares))
