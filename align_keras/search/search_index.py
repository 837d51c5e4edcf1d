"""Search an index by words and images."""

from pathlib import Path
from typing import Any

import numpy as np

from align_keras.embedding.embedder import Embedder
from align_keras.search.contact_sheet import Match
from align_keras.search.contact_sheet import Row
from align_keras.search.contact_sheet import contact_sheet
from align_keras.search.index import Index
from align_keras.search.query import IMAGE_WEIGHT
from align_keras.search.query import TEXT_WEIGHT
from align_keras.search.query import as_texts
from align_keras.search.query import compose_query


def search(
    index: Index | str | Path,
    text: str | list[str] | None = None,
    image: Any = None,
    minus_text: str | list[str] | None = None,
    text_weight: float = TEXT_WEIGHT,
    image_weight: float = IMAGE_WEIGHT,
    minus_weight: float | None = None,
    k: int = 10,
    model: Embedder | str | Path | None = None,
) -> list[dict]:
    """Find the images in an index that match words, an image, or both.

    Args:
        index: an `Index`, or its directory.
        text, image, minus_text, text_weight, image_weight, minus_weight: the
            parts of the query, as in `compose_query`.
        k: int. The number of results. Defaults to `10`.
        model: what `index.load_model` returned, or the directory of another
            copy of the index's model. Defaults to `None`: the copy in the
            index.

    Returns:
        list of dicts, best first: `"row"`, `"key"`, `"text"` and `"score"`,
        the cosine with the query.

    Raises:
        ValueError: the query is empty, its parts cancel out, an image does
            not decode, or `model` did not embed the index.

    Example:

    ```python
    search("index", image="bus.jpg", text="blue", minus_text="red")
    ```
    """
    index = index if isinstance(index, Index) else Index(index)
    if not isinstance(model, Embedder):
        model = index.load_model(model)
    query = compose_query(
        model,
        text,
        image,
        minus_text,
        text_weight,
        image_weight,
        minus_weight,
    )
    ((rows, scores),) = index.search(query[None], k)
    return index.describe(rows, scores)


def draw_results(
    index: Index,
    results: list[dict],
    path: str | Path,
    text: str | list[str] | None = None,
    image: Any = None,
    minus_text: str | list[str] | None = None,
) -> None:
    """Draw results as a contact sheet.

    Args:
        index: an `Index`.
        results: list of dicts, as `search` returns it.
        path: string or `pathlib.Path`. The PNG file to write.
        text, image, minus_text: the query, as in `search`, except that an
            embedding cannot be drawn.

    Raises:
        ValueError: a result has no thumbnail, there are no results, or
            `image` is an embedding.
    """
    if hasattr(image, "__array__"):
        image = np.asarray(image)
        if image.ndim == 1:
            raise ValueError(
                "`image` is an embedding, which cannot be drawn: pass the "
                "image itself, or leave it out. Received: "
                f"image of shape {image.shape}"
            )
    shown = []
    for result in results:
        thumbnail = index.thumbnail(result["row"])
        if not thumbnail:
            raise ValueError(
                f"The index has no thumbnail of `{result['key']}`, so no "
                "contact sheet can be drawn: embed the images with thumbnails."
            )
        shown.append(Match(thumbnail, result["score"]))
    words, minus = (
        ", ".join(as_texts(value)) or None for value in (text, minus_text)
    )
    contact_sheet([Row(words, shown, image, minus)], path)
