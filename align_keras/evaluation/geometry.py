"""Where images and texts lie on the sphere, from arrays of their vectors.

All sums are taken in float64 over blocks, so that no number depends on the
size of a block and no matrix of all pairs is held. What is estimated from a
sample says from how many; samples are drawn by a seed.
"""

import math
from collections.abc import Callable
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from align_keras.embedding import similarity as vectors
from align_keras.evaluation.knn import nearest_neighbours
from align_keras.evaluation.ranks import check_ks
from align_keras.evaluation.ranks import check_pair
from align_keras.evaluation.ranks import pair_scores
from align_keras.evaluation.retrieval import check_owners

# Rows whose pairs uniformity takes: 134 million, and its standard error is
# about 0.01.
ROWS = 1 << 14
# Non-pairs of the histogram: the standard error of the AUC is at most 0.0005.
NON_PAIRS = 1 << 20
# Neighbours that count occurrences, as in the literature on hubs.
NEIGHBOURS = 10
# Most occurrences that are named.
HUBS = 10
COSINE_EDGES = np.round(np.linspace(-1, 1, 101), 2)
PROBABILITY_EDGES = np.round(np.linspace(0, 1, 21), 2)
WAYS = ("image_to_text", "text_to_image")


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
    """Describe how the vectors of images and texts lie to one another.

    A pair is an image with one of its texts. Every other image and text are a
    non-pair, so that texts of one image are not wrong for it.

    Args:
        image_embeddings: float array `(num_images, dim)`, unit vectors.
        text_embeddings: float array `(num_texts, dim)`, unit vectors.
        text_to_image: integer array, see `retrieval_metrics`.
        temperature: float. What cosines are divided by before the softmax.
            Defaults to `None`: it is not known, and `"softmax"` is `None`.
        softmax_batch: int. Number of images, each with one of its texts,
            among which the softmax is taken. Defaults to `256`.
        k: int. Neighbours of a query that count as occurrences. Defaults to
            `10`.
        examples: int. Images to name that are nearest to a wrong text.
            Defaults to `24`.
        seed: int. Of the samples. Defaults to `0`.
        progress: optional callable, called with the number of images and
            texts that were searched since its last call.

    Returns:
        A dictionary: `"alignment"`, `"image_uniformity"`,
        `"text_uniformity"`, `"modality_gap"` and `"modality_separation"` are
        floats; `"cosines"`, `"softmax"` and `"hubness"` are dictionaries of
        numbers and histograms; `"wrong_texts"` is a list of dictionaries, the
        worst first, with indices under `"image"`, `"text"` and
        `"wrong_text"`. What has no value is NaN. docs/evaluation.md defines
        them.

    Raises:
        ValueError: an array is empty, not finite, or does not fit the others,
            or an option is out of its range.

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
    """Refuse what `geometry_metrics` cannot use, before hours of embedding."""
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
    """Mean of `||x - y||^2` over the pairs.

    Args:
        images: float32 array `(num_images, dim)`.
        texts: float32 array `(num_texts, dim)`.
        pairs: integer array `(num_pairs, 2)` of an image and a text.

    Returns:
        float. 0 where every text lies on its image; 2 where they are
        orthogonal.

    Reference:
        - [Wang and Isola, 2020](https://arxiv.org/abs/2005.10242), with its
          exponent of 2.
    """
    total = 0.0
    for rows in _blocks(len(pairs), images.shape[1]):
        image, text = pairs[rows].T
        apart = images[image].astype("float64") - texts[text]
        total += float((apart**2).sum())
    return total / len(pairs)


def uniformity(rows: np.ndarray, seed: int = 0) -> float:
    """Logarithm of the mean of `exp(-2 ||x_i - x_j||^2)` over `i < j`.

    Args:
        rows: float32 array `(count, dim)`. Of more than 16,384 rows as many
            are drawn without replacement.
        seed: int. Of that draw. Defaults to `0`.

    Returns:
        float. 0 where all rows are one; about -4 where unit vectors of many
        dimensions are spread evenly. NaN for a single row.

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
    for part in _blocks(len(rows), len(rows)):
        # From the diagonal on: each pair once.
        others = values[part.start :]
        apart = squares[part, None] + squares[part.start :]
        apart -= 2 * values[part] @ others.T
        weights = np.exp(-2 * np.maximum(apart, 0, out=apart), out=apart)
        total += float(np.triu(weights, 1).sum())
    return math.log(total / (len(rows) * (len(rows) - 1) / 2))


def modality_gap(images: np.ndarray, texts: np.ndarray) -> tuple[float, float]:
    """Measure how far apart images and texts lie as two clouds.

    Args:
        images: float32 array `(num_images, dim)`.
        texts: float32 array `(num_texts, dim)`.

    Returns:
        A pair of floats: the distance of the two means, and the balanced
        accuracy of telling images from texts by the plane halfway between the
        means. On the plane, a vector counts half. 0.5 says that they lie
        among each other, 1 that they are apart.

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
            for part in _blocks(len(rows), rows.shape[1])
        ]
        shares.append((1 + sum(sides) / len(rows)) / 2)
    return float(np.linalg.norm(gap)), float(np.mean(shares))


# === Cosines ===


def non_pair_scores(
    images: np.ndarray, texts: np.ndarray, pairs: np.ndarray, seed: int = 0
) -> np.ndarray:
    """Exact cosines of images and texts that are not pairs.

    Args:
        images: float32 array `(num_images, dim)`.
        texts: float32 array `(num_texts, dim)`.
        pairs: integer array `(num_pairs, 2)` of different pairs.
        seed: int. Of the draw. Defaults to `0`.

    Returns:
        float32 array of all of them; of more than 1,048,576, as many that are
        drawn with replacement.
    """
    total = len(images) * len(texts)
    own = pairs @ [len(texts), 1]
    if total - len(own) <= NON_PAIRS:
        codes = np.setdiff1d(np.arange(total), own, assume_unique=True)
    else:
        rng = np.random.default_rng([seed, 1])
        codes = np.zeros(0, "int64")
        while len(codes) < NON_PAIRS:
            drawn = rng.integers(total, size=NON_PAIRS)
            codes = np.append(codes, drawn[~np.isin(drawn, own)])
        codes = codes[:NON_PAIRS]
    return pair_scores(images, texts, *np.divmod(codes, len(texts)))


def compare_cosines(pairs: np.ndarray, non_pairs: np.ndarray) -> dict:
    """Put cosines of pairs beside those of non-pairs.

    Args:
        pairs: float32 array.
        non_pairs: float32 array.

    Returns:
        A dictionary: `"auc"` is the probability that a pair has a greater
        cosine than a non-pair, where equal ones count half, which is the area
        under the ROC curve; `"pair_mean"` and `"non_pair_mean"`;
        `"non_pairs_compared"`; and histograms, with the bounds of their bins
        in `"edges"`.
    """
    ordered = np.sort(non_pairs)
    below = np.searchsorted(ordered, pairs, "left").sum(dtype="float64")
    not_above = np.searchsorted(ordered, pairs, "right").sum(dtype="float64")
    compared = len(pairs) * len(non_pairs)
    return {
        "auc": float((below + not_above) / 2 / compared)
        if compared
        else math.nan,
        "pair_mean": _mean(pairs),
        "non_pair_mean": _mean(non_pairs),
        "non_pairs_compared": len(non_pairs),
        "edges": COSINE_EDGES.tolist(),
        "pairs": _histogram(pairs, COSINE_EDGES),
        "non_pairs": _histogram(non_pairs, COSINE_EDGES),
    }


def softmax_probabilities(
    images: np.ndarray,
    texts: np.ndarray,
    pairs: np.ndarray,
    temperature: float,
    batch: int,
    seed: int = 0,
) -> dict:
    """Give the probability of the true match, as training computes it.

    Each image is drawn once, with one of its texts, and the order is cut into
    batches, of which an incomplete last one is left out. As in training, every
    other row of the batch is a negative.

    Args:
        images: float32 array `(num_images, dim)`.
        texts: float32 array `(num_texts, dim)`.
        pairs: integer array `(num_pairs, 2)` of an image and a text.
        temperature: float.
        batch: int. All images where fewer have a text.
        seed: int. Of the order. Defaults to `0`.

    Returns:
        A dictionary: `"temperature"`, `"batch"`, `"batches"`, `"edges"`, and
        for `"image_to_text"` and `"text_to_image"` the `"mean_probability"`
        and its `"histogram"`.
    """
    order = np.random.default_rng([seed, 2]).permutation(pairs)
    _, first = np.unique(order[:, 0], return_index=True)
    drawn = order[np.sort(first)]
    batch = min(batch, len(drawn))
    batches = len(drawn) // batch
    found = [
        _true_matches(images[chosen[:, 0]], texts[chosen[:, 1]], temperature)
        for chosen in np.split(drawn[: batches * batch], batches)
    ]
    values = np.concatenate(found, axis=1)
    return {
        "temperature": float(temperature),
        "batch": batch,
        "batches": batches,
        "edges": PROBABILITY_EDGES.tolist(),
        **{
            way: {
                "mean_probability": _mean(row),
                "histogram": _histogram(row, PROBABILITY_EDGES),
            }
            for way, row in zip(WAYS, values, strict=True)
        },
    }


def _true_matches(images, texts, temperature):
    """Probabilities of row `i` of one for row `i` of the other, both ways."""
    images, texts = images.astype("float64"), texts.astype("float64")
    own = np.einsum("ij,ij->i", images, texts) / temperature
    by_image = np.empty(len(images))
    by_text = np.full(len(texts), -np.inf)
    for part in _blocks(len(images), len(texts)):
        scores = images[part] @ texts.T / temperature
        by_image[part] = _log_sum(scores, 1)
        by_text = np.logaddexp(by_text, _log_sum(scores, 0))
    return np.exp(np.minimum(own - np.stack([by_image, by_text]), 0))


def _log_sum(scores, axis):
    most = scores.max(axis=axis, keepdims=True)
    total = np.exp(scores - most).sum(axis=axis)
    return np.log(total) + most.squeeze(axis)


# === Neighbours ===


def hubness(neighbours: np.ndarray, count: int) -> dict:
    """Describe how unevenly candidates occur among nearest neighbours.

    Args:
        neighbours: integer array `(num_queries, k)`, see
            `nearest_neighbours`.
        count: int. Number of candidates.

    Returns:
        A dictionary. `"k"`; `"skewness"` of the occurrences, the third
        standardised moment, NaN where all occur equally often;
        `"never_retrieved"`, the share of candidates that are no neighbour of
        any query; `"hubs"`, those that occur most, with their `"index"` and
        `"occurrences"`, of equal ones the lower index first.

    Reference:
        - [Radovanović et al.,
          2010](https://jmlr.org/papers/v11/radovanovic10a.html), equation 1.
    """
    occurrences = np.bincount(neighbours.ravel(), minlength=count)
    apart = occurrences - occurrences.mean()
    spread = occurrences.std()
    most = np.argsort(-occurrences, kind="stable")[:HUBS]
    return {
        "k": neighbours.shape[1],
        "skewness": float((apart**3).mean() / spread**3)
        if spread
        else math.nan,
        "never_retrieved": float((occurrences == 0).mean()),
        "hubs": [
            {"index": int(index), "occurrences": int(occurrences[index])}
            for index in most
            if occurrences[index]
        ],
    }


def wrong_texts(
    images: np.ndarray,
    texts: np.ndarray,
    pairs: np.ndarray,
    own: np.ndarray,
    found: np.ndarray,
    scores: np.ndarray,
    examples: int,
) -> list[dict]:
    """Find the images that are nearest to a wrong text.

    Args:
        images: float32 array `(num_images, dim)`.
        texts: float32 array `(num_texts, dim)`.
        pairs: integer array `(num_pairs, 2)` of an image and a text, sorted.
        own: float32 array `(num_pairs,)`. Their cosines.
        found, scores: what `nearest_neighbours` found for the images.
        examples: int. How many to give.

    Returns:
        A list of dictionaries with the indices `"image"`, `"text"`, its best,
        and `"wrong_text"`, the nearest one that is not its own, and both
        cosines; sorted by how much greater the cosine of the wrong one is, of
        equal ones the lower index first.
    """
    # By image, the greatest cosine first, then the lower index.
    order = np.lexsort((pairs[:, 1], -own, pairs[:, 0]))
    asked, first = np.unique(pairs[order, 0], return_index=True)
    best, cosine = pairs[order[first], 1], own[order[first]]
    wrong, wrong_cosine = _first_wrong(
        asked, found[asked], scores[asked], pairs, len(texts)
    )
    lost = np.flatnonzero(wrong < 0)
    if len(lost):
        # All that was found is their own, so the next is beyond it.
        most = int(np.bincount(pairs[:, 0])[asked[lost]].max())
        more = nearest_neighbours(images[asked[lost]], texts, most + 1)
        wrong[lost], wrong_cosine[lost] = _first_wrong(
            asked[lost], *more, pairs, len(texts)
        )
    ahead = wrong_cosine.astype("float64") - cosine
    kept = np.flatnonzero(wrong >= 0)
    kept = kept[np.argsort(-ahead[kept], kind="stable")][:examples]
    return [
        {
            "image": int(asked[n]),
            "text": int(best[n]),
            "cosine": float(cosine[n]),
            "wrong_text": int(wrong[n]),
            "wrong_cosine": float(wrong_cosine[n]),
        }
        for n in kept
    ]


def _first_wrong(asked, found, scores, pairs, num_texts):
    """First neighbour of each image that is not its own, -1 for none."""
    codes = asked[:, None] * num_texts + found
    wrong = ~np.isin(codes, pairs @ [num_texts, 1])
    place = np.argmax(wrong, axis=1)[:, None]
    index = np.take_along_axis(found, place, 1)[:, 0]
    score = np.take_along_axis(scores, place, 1)[:, 0]
    return np.where(wrong.any(axis=1), index, -1), score


# === Helpers ===


def _blocks(count: int, width: int) -> Iterator[slice]:
    """Slices of rows, of which a block holds few enough values."""
    step = max(1, vectors.BLOCK // 4 // width)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _histogram(values, edges):
    clipped = np.clip(values.astype("float64"), edges[0], edges[-1])
    return np.histogram(clipped, edges)[0].tolist()


def _mean(values):
    return float(values.mean(dtype="float64")) if len(values) else math.nan
