"""Compose search queries from words and images."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from align_keras.embedding.embed_files import MAX_PIXELS
from align_keras.embedding.embed_streams import embed_images
from align_keras.embedding.embed_streams import embed_texts
from align_keras.embedding.embedder import Embedder
from align_keras.embedding.embedder import as_embedder
from align_keras.embedding.embedder import read_bytes
from align_keras.embedding.similarity import as_vectors
from align_keras.embedding.similarity import unit_rows
from align_keras.io.images import decode_with_pillow

# The weights that the paper found best (section 7, its footnote on image and
# text queries).
TEXT_WEIGHT = 2.0
IMAGE_WEIGHT = 1.0


def compose_query(
    model: Any,
    text: str | list[str] | None = None,
    image: Any = None,
    minus_text: str | list[str] | None = None,
    text_weight: float = TEXT_WEIGHT,
    image_weight: float = IMAGE_WEIGHT,
    minus_weight: float | None = None,
) -> np.ndarray:
    """Make a search vector from an image, words to add and words to subtract.

    Each part is embedded as a unit vector. The query is their weighted sum,
    scaled to unit length. The default weights, 2 for text and 1 for the
    image, are those that the paper found best (section 7, footnote on image
    and text queries).

    Args:
        model: an `align_keras.AlignDualEncoder` with a preprocessor, or an
            `Embedder`.
        text: string or list of strings. What the results should show, or show
            in addition to `image`.
        image: an image to start from: a file path, encoded bytes, a uint8
            array `(height, width, 3)`, or its embedding, a float array
            `(dim,)`, for example a row of the index.
        minus_text: string or list of strings. What the results should not
            show.
        text_weight: float. The weight of each text. Defaults to `2.0`.
        image_weight: float. The weight of `image`. Defaults to `1.0`.
        minus_weight: float. The weight of each subtracted text. Defaults to
            `None`: the same as `text_weight`.

    Returns:
        `numpy.ndarray` of float32 `(dim,)`, a unit vector.

    Raises:
        ValueError: no part was given, the image does not decode, or the parts
            cancel out.

    Example:

    ```python
    query = compose_query(model, image="bus.jpg", text="in blue")
    indices, scores = top_k(query, vectors, 10)
    ```
    """
    texts, minus = as_texts(text), as_texts(minus_text)
    if not texts and not minus and image is None:
        raise ValueError(
            "A query needs at least one of `text`, `image` and `minus_text`. "
            "Received: none of them"
        )
    if minus_weight is None:
        minus_weight = text_weight
    embedder = as_embedder(model)
    parts = []
    if image is not None:
        parts.append((image_weight, embed_image(embedder, image)))
    if texts + minus:
        weights = [text_weight] * len(texts) + [-minus_weight] * len(minus)
        vectors = embed_texts(
            embedder, texts + minus, len(weights), progress=False
        )
        parts.extend(zip(weights, vectors, strict=True))
    try:
        return combine_vectors(parts)
    except ValueError as error:
        raise ValueError(
            f"{error} Received: text={text!r}, minus_text={minus_text!r}, "
            f"text_weight={text_weight}, image_weight={image_weight}, "
            f"minus_weight={minus_weight}"
        ) from None


def combine_vectors(parts: Sequence[tuple[float, np.ndarray]]) -> np.ndarray:
    """Make a search vector from weighted vectors.

    Args:
        parts: list of pairs of a float, the weight, and a float array
            `(dim,)`, which is scaled to unit length. A negative weight
            subtracts its vector.

    Returns:
        `numpy.ndarray` of float32 `(dim,)`, a unit vector.

    Raises:
        ValueError: `parts` is empty, a vector is not finite, or the parts
            cancel out.

    Example:

    ```python
    combine_vectors([(1.0, bus), (2.0, blue), (-2.0, red)])
    ```
    """
    weights = np.array([weight for weight, _ in parts], "float64")
    vectors = as_vectors([vector for _, vector in parts], "vectors")
    query = weights @ unit_rows(vectors).astype("float64")
    # Below this, the sum consists of rounding errors and has no direction.
    if not np.linalg.norm(query) > 1e-6 * np.abs(weights).sum():
        raise ValueError(
            "The parts of the query cancel out, so it has no direction."
        )
    return unit_rows(query[None])[0]


def embed_image(
    embedder: Embedder, image: Any, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Embed the image of a query.

    Args:
        embedder: `Embedder`.
        image: in a form that `compose_query` takes.
        max_pixels: int. Files with more pixels are refused before they are
            decoded.

    Returns:
        float32 array `(dim,)`, a unit vector.

    Raises:
        ValueError: the image does not decode or is too large.
    """
    if hasattr(image, "__array__"):
        image = np.asarray(image)
        if image.ndim == 1 and image.dtype.kind == "f":
            return unit_rows(image[None])[0]
    else:
        name = "The image" if isinstance(image, bytes) else f"Image `{image}`"
        try:
            image = decode_with_pillow(read_bytes(image), max_pixels)
        except ValueError as error:
            raise type(error)(f"{name} is not readable: {error}.") from error
    return embed_images(embedder, [image], 1, progress=False)[0]


def as_texts(value: str | list[str] | None) -> list[str]:
    """Return a string, a list of strings or `None` as a list of strings."""
    if value is None:
        return []
    values = [value] if isinstance(value, str) else list(value)
    for one in values:
        if not isinstance(one, str):
            raise ValueError(
                "`text` and `minus_text` must be strings. "
                f"Received: {one!r} of type {type(one).__name__}"
            )
    return values
