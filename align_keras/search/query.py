"""Queries made of words and pictures, and the vectors nearest to them."""

import numpy as np

from align_keras.vectors import BLOCK
from align_keras.vectors import as_vectors
from align_keras.vectors import exact_scores


def compose_query(
    model,
    text=None,
    image=None,
    minus_text=None,
    text_weight=2.0,
    image_weight=1.0,
):
    """Make one search vector of a picture, words to add and words to take off.

    Every part is a unit vector; their weighted sum, scaled to unit length
    again, is the query. The weights 2 for text and 1 for the picture are those
    that the paper found best (section 7, footnote on image and text queries).
    Words that are taken off have the weight of words that are added.

    Args:
        model: an `align_keras.AlignDualEncoder` with a preprocessor.
        text: optional string. What the results should show, or have in
            addition to `image`.
        image: optional picture to start from: a file path, encoded bytes, a
            uint8 array `(height, width, 3)`, or a float array `(dim,)` that
            was embedded before, for example a row of the index.
        minus_text: optional string. What the results should not show.
        text_weight: float. The weight of `text` and `minus_text`. Defaults to
            `2.0`.
        image_weight: float. The weight of `image`. Defaults to `1.0`.

    Returns:
        `numpy.ndarray` of float32 `(dim,)`, a unit vector.

    Raises:
        ValueError: no part was given, or the parts cancel out.

    Example:

    ```python
    query = compose_query(model, image="bus.jpg", text="in blue")
    indices, scores = top_k(query, vectors, 10)
    ```
    """
    parts = []
    if image is not None:
        parts.append((image_weight, _embed_image(model, image)))
    if text is not None:
        parts.append((text_weight, _embed_text(model, text)))
    if minus_text is not None:
        parts.append((-text_weight, _embed_text(model, minus_text)))
    if not parts:
        raise ValueError(
            "A query needs at least one of `text`, `image` and `minus_text`. "
            "Received: all None"
        )
    query = sum(weight * _unit(part) for weight, part in parts)
    length = np.linalg.norm(query)
    # Below this the sum holds rounding errors and no direction.
    if not length > 1e-6 * sum(abs(weight) for weight, _ in parts):
        raise ValueError(
            "The parts of the query cancel out, so that it has no direction. "
            f"Received: text={text!r}, minus_text={minus_text!r}, "
            f"text_weight={text_weight}, image_weight={image_weight}"
        )
    return (query / length).astype("float32")


def _embed_image(model, image):
    if isinstance(image, (list, np.ndarray)) or hasattr(image, "__array__"):
        image = np.asarray(image)
        if image.ndim == 1 and image.dtype.kind == "f":
            return image
        return model.encode_image(image[None])
    return model.encode_image([image])


def _embed_text(model, text):
    if not isinstance(text, str):
        raise ValueError(
            "`text` and `minus_text` must each be one string. "
            f"Received: {text!r} of type {type(text).__name__}"
        )
    return model.encode_text([text])


def _unit(vector):
    vector = as_vectors(np.reshape(vector, (1, -1)), "image or text vector")
    vector = vector[0].astype("float64")
    length = np.linalg.norm(vector)
    return vector / length if length else vector


def top_k(query, vectors, k):
    """Find the vectors that score highest against a query.

    The search is exact. Among equal scores the lower index comes first, so
    that the answer is the same every time.

    Args:
        query: float array `(dim,)`, or `(num_queries, dim)` for several.
        vectors: float array `(count, dim)` to search in.
        k: integer. How many results to give; all of them when fewer exist.

    Returns:
        A pair of arrays `(k,)`, or `(num_queries, k)`: int64 indices into
        `vectors`, best first, and their float32 scores. Scores are dot
        products, so cosines for unit vectors.

    Raises:
        ValueError: the arrays do not fit, hold values that are not finite, or
            `k` is not positive.

    Example:

    ```python
    top_k([0.0, 1.0], np.eye(2), k=1)  # (array([1]), array([1.]))
    ```
    """
    single = np.ndim(query) == 1
    queries = as_vectors(np.atleast_2d(query), "query")
    vectors = as_vectors(vectors, "vectors")
    if queries.shape[1] != vectors.shape[1]:
        raise ValueError(
            "`query` and `vectors` must have the same dimension. "
            f"Received: {queries.shape[1]} and {vectors.shape[1]}"
        )
    if int(k) != k or k < 1:
        raise ValueError(f"`k` must be a positive integer. Received: k={k}")
    k = min(int(k), len(vectors))
    found = []
    step = max(1, BLOCK // len(vectors))
    for start in range(0, len(queries), step):
        scores = exact_scores(queries[start : start + step], vectors)
        found.extend(_top_k_of_row(row, k) for row in scores)
    indices = np.stack([index for index, _ in found])
    scores = np.stack([score for _, score in found])
    return (indices[0], scores[0]) if single else (indices, scores)


def _top_k_of_row(scores, k):
    threshold = np.partition(scores, -k)[-k]
    # Every index that ties with the last place takes part in the sort.
    kept = np.flatnonzero(scores >= threshold)
    best = kept[np.argsort(-scores[kept], kind="stable")[:k]]
    return best.astype("int64"), scores[best]
