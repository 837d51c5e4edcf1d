"""Compare the cosines of pairs and non-pairs, and compute their softmax."""

import math
from collections.abc import Iterator

import numpy as np

from align_keras.embedding import similarity as vectors
from align_keras.evaluation.ranks import pair_scores

# Most non-pairs to use: the standard error of the AUC is at most 0.0005.
NON_PAIRS = 1 << 20
COSINE_EDGES = np.round(np.linspace(-1, 1, 101), 2)
PROBABILITY_EDGES = np.round(np.linspace(0, 1, 21), 2)
WAYS = ("image_to_text", "text_to_image")


def non_pair_scores(
    images: np.ndarray, texts: np.ndarray, pairs: np.ndarray, seed: int = 0
) -> np.ndarray:
    """Compute exact cosines of images and texts that are not pairs.

    Args:
        images: float32 array `(num_images, dim)`.
        texts: float32 array `(num_texts, dim)`.
        pairs: integer array `(num_pairs, 2)` of distinct pairs.
        seed: int. The seed of the draw. Defaults to `0`.

    Returns:
        float32 array with the cosines of all non-pairs; if there are more
        than 1,048,576, this many are drawn with replacement.
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
    """Compare the cosines of pairs with those of non-pairs.

    Args:
        pairs: float32 array.
        non_pairs: float32 array.

    Returns:
        A dictionary: `"auc"`, the area under the ROC curve, which is the
        probability that a pair has a greater cosine than a non-pair, with
        ties counted half; `"pair_mean"` and `"non_pair_mean"`;
        `"non_pairs_compared"`; and the histograms `"pairs"` and
        `"non_pairs"`, with the bounds of their bins in `"edges"`.
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
    """Compute the probability of the true match, as training does.

    Each image is drawn once, in random order, with one of its texts. The
    sequence is divided into batches; an incomplete last batch is dropped. As
    in training, every other row of the batch is a negative.

    Args:
        images: float32 array `(num_images, dim)`.
        texts: float32 array `(num_texts, dim)`.
        pairs: integer array `(num_pairs, 2)` of an image and a text.
        temperature: float. What cosines are divided by.
        batch: int. Images per batch; if fewer images have a text, all of them
            form one batch.
        seed: int. The seed of the order. Defaults to `0`.

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
    """Return the softmax probability of each pair, in both directions."""
    images, texts = images.astype("float64"), texts.astype("float64")
    own = np.einsum("ij,ij->i", images, texts) / temperature
    by_image = np.empty(len(images))
    by_text = np.full(len(texts), -np.inf)
    for part in row_blocks(len(images), len(texts)):
        scores = images[part] @ texts.T / temperature
        by_image[part] = _log_sum(scores, 1)
        by_text = np.logaddexp(by_text, _log_sum(scores, 0))
    return np.exp(np.minimum(own - np.stack([by_image, by_text]), 0))


def _log_sum(scores, axis):
    most = scores.max(axis=axis, keepdims=True)
    total = np.exp(scores - most).sum(axis=axis)
    return np.log(total) + most.squeeze(axis)


def row_blocks(count: int, width: int) -> Iterator[slice]:
    """Yield slices of rows whose blocks of scores fit in memory."""
    step = max(1, vectors.BLOCK // 4 // width)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _histogram(values, edges):
    clipped = np.clip(values.astype("float64"), edges[0], edges[-1])
    return np.histogram(clipped, edges)[0].tolist()


def _mean(values):
    return float(values.mean(dtype="float64")) if len(values) else math.nan
