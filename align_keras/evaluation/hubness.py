"""Find hubs, and images that are nearest to a wrong text."""

import math

import numpy as np

from align_keras.evaluation.knn import nearest_neighbours

# How many hubs to return.
HUBS = 10


def hubness(neighbours: np.ndarray, count: int) -> dict:
    """Describe how unevenly candidates occur among nearest neighbours.

    Args:
        neighbours: integer array `(num_queries, k)`. See
            `nearest_neighbours`.
        count: int. Number of candidates.

    Returns:
        A dictionary: `"k"`; `"skewness"`, the third standardised moment of
        the occurrences, NaN if all candidates occur equally often;
        `"never_retrieved"`, the share of candidates that are a neighbour of
        no query; `"hubs"`, the most frequent candidates with their `"index"`
        and `"occurrences"`, in case of ties the lower index first.

    Reference:
        - [Radovanović et al.,
          2010](https://jmlr.org/papers/v11/radovanovic10a.html)
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
        own: float32 array `(num_pairs,)`. The cosines of the pairs.
        found, scores: what `nearest_neighbours` returned for the images.
        examples: int. How many images to return.

    Returns:
        A list of dictionaries: the indices `"image"`, `"text"` (the nearest
        text of its own) and `"wrong_text"` (the nearest text of others), and
        the cosines of both. They are sorted by how far the cosine of the
        wrong text exceeds the other, in case of ties the lower index first.
    """
    # Sort by image, then by descending cosine, then by index.
    order = np.lexsort((pairs[:, 1], -own, pairs[:, 0]))
    asked, first = np.unique(pairs[order, 0], return_index=True)
    best, cosine = pairs[order[first], 1], own[order[first]]
    wrong, wrong_cosine = _first_wrong(
        asked, found[asked], scores[asked], pairs, len(texts)
    )
    lost = np.flatnonzero(wrong < 0)
    if len(lost):
        # All neighbours found are their own texts, so search deeper.
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
    """Return the first neighbour of each image that is wrong, or -1."""
    codes = asked[:, None] * num_texts + found
    wrong = ~np.isin(codes, pairs @ [num_texts, 1])
    place = np.argmax(wrong, axis=1)[:, None]
    index = np.take_along_axis(found, place, 1)[:, 0]
    score = np.take_along_axis(scores, place, 1)[:, 0]
    return np.where(wrong.any(axis=1), index, -1), score
