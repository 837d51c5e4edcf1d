"""Queries made of words and pictures."""

import numpy as np

from align_keras.embedding.scores import as_vectors

# The weights that the paper found best (section 7, its footnote on image and
# text queries).
TEXT_WEIGHT = 2.0
IMAGE_WEIGHT = 1.0


def compose_query(
    model,
    text=None,
    image=None,
    minus_text=None,
    text_weight=TEXT_WEIGHT,
    image_weight=IMAGE_WEIGHT,
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
    try:
        return combine(parts)
    except ValueError as error:
        raise ValueError(
            f"{error} Received: text={text!r}, minus_text={minus_text!r}, "
            f"text_weight={text_weight}, image_weight={image_weight}"
        ) from None


def combine(parts):
    """Make one search vector of weighted vectors.

    Args:
        parts: list of pairs of a float, the weight, and a float array
            `(dim,)`, which is scaled to unit length. A negative weight leads
            away from its vector.

    Returns:
        `numpy.ndarray` of float32 `(dim,)`, a unit vector.

    Raises:
        ValueError: there is no part, a vector is not finite, or the parts
            cancel out.

    Example:

    ```python
    combine([(1.0, bus), (2.0, blue), (-2.0, red)])
    ```
    """
    query = sum(weight * _unit(part) for weight, part in parts)
    length = np.linalg.norm(query)
    # Below this the sum holds rounding errors and no direction.
    if not length > 1e-6 * sum(abs(weight) for weight, _ in parts):
        raise ValueError(
            "The parts of the query cancel out, so that it has no direction."
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
