"""Search an index by words and pictures."""

import numpy as np

from align_keras.embedding.embed_files import MAX_PIXELS
from align_keras.embedding.embed_files import unit_rows
from align_keras.preprocessing.decode import decode_with_pillow
from align_keras.search.index import Index
from align_keras.search.query import IMAGE_WEIGHT
from align_keras.search.query import TEXT_WEIGHT
from align_keras.search.query import combine


def search(
    index,
    text=None,
    image=None,
    minus_text=None,
    text_weight=TEXT_WEIGHT,
    image_weight=IMAGE_WEIGHT,
    minus_weight=None,
    k=10,
    model=None,
):
    """Find the pictures of an index that fit words, a picture, or both.

    Args:
        index: an `Index`, or its directory.
        text: string or list of strings. What the results should show.
        image: file path or bytes of a picture to start from.
        minus_text: string or list of strings. What they should not show.
        text_weight: float. Of each text. Defaults to `2.0`, see
            `compose_query`.
        image_weight: float. Of the picture. Defaults to `1.0`.
        minus_weight: float. Of each text that is taken off. Defaults to
            `None`, that of `text_weight`.
        k: int. How many results. Defaults to `10`.
        model: a `SearchModel`, or the directory of another copy of the
            index's model. Defaults to `None`, the copy in the index.

    Returns:
        list of dicts, best first: `"row"`, `"key"`, `"text"` and `"score"`,
        the cosine with the query.

    Raises:
        ValueError: the query is empty, its parts cancel out, a picture does
            not decode, or the model is another one.

    Example:

    ```python
    search("index", image="bus.jpg", text="blue", minus_text="red")
    ```
    """
    index = index if isinstance(index, Index) else Index(index)
    texts, minus = _list(text), _list(minus_text)
    if not texts and not minus and image is None:
        raise ValueError(
            "A query needs at least one of `text`, `image` and `minus_text`."
        )
    if not hasattr(model, "embedder"):
        model = index.load_model(model)
    if minus_weight is None:
        minus_weight = text_weight
    parts = []
    if image is not None:
        parts.append((image_weight, embed_picture(model, image)))
    if texts + minus:
        weights = [text_weight] * len(texts) + [-minus_weight] * len(minus)
        vectors = embed_words(model, texts + minus)
        parts.extend(zip(weights, vectors, strict=True))
    ((rows, scores),) = index.search(combine(parts)[None], k)
    return [
        {
            "row": int(row),
            "key": index.key(row),
            "text": index.text(row),
            "score": float(score),
        }
        for row, score in zip(rows, scores, strict=True)
    ]


def draw_results(index, results, path, text=None, image=None, minus_text=None):
    """Draw results as a contact sheet.

    Args:
        index: an `Index`.
        results: list of dicts, as `search` returns it.
        path: string or `pathlib.Path`. The PNG file to write.
        text, image, minus_text: what was asked for, as in `search`.

    Raises:
        ValueError: a result has no thumbnail.
    """
    from align_keras.search.contact_sheet import Result
    from align_keras.search.contact_sheet import Row
    from align_keras.search.contact_sheet import contact_sheet

    shown = []
    for result in results:
        thumbnail = index.thumbnail(result["row"])
        if not thumbnail:
            raise ValueError(
                f"The index has no thumbnail of `{result['key']}`, so that no "
                "contact sheet can be drawn: embed with thumbnails."
            )
        shown.append(Result(thumbnail, result["score"]))
    words = ", ".join(_list(text)) or None
    minus = ", ".join(_list(minus_text)) or None
    contact_sheet([Row(words, shown, image, minus)], path)


def embed_words(model, texts):
    """Embed texts with the model of an index.

    Args:
        model: a `SearchModel`.
        texts: list of strings.

    Returns:
        float32 array `(count, dim)` of unit vectors.
    """
    return unit_rows(model.embedder.texts(texts))


def embed_picture(model, picture, max_pixels=MAX_PIXELS):
    """Embed one picture with the model of an index.

    Args:
        model: a `SearchModel`.
        picture: file path, or the bytes of a file.
        max_pixels: int. Larger pictures are refused before they are decoded.

    Returns:
        float32 array `(dim,)`, a unit vector.

    Raises:
        ValueError: the picture does not decode or is too large.
    """
    name = "The picture"
    if not isinstance(picture, bytes):
        name = f"The picture `{picture}`"
        with open(picture, "rb") as file:
            picture = file.read()
    try:
        pixels = decode_with_pillow(picture, max_pixels)
    except ValueError as error:
        raise type(error)(f"{name} is not readable: {error}.") from error
    prepared = model.embedder.read(pixels)
    return unit_rows(model.embedder.images([prepared]))[0]


def classify(model, vector, label_vectors):
    """Compare a picture with labels, as zero-shot classification does.

    Args:
        model: a `SearchModel`.
        vector: float32 array `(dim,)`, a unit vector.
        label_vectors: float32 array `(labels, dim)` of unit vectors.

    Returns:
        A pair of float32 arrays `(labels,)`: cosines, and probabilities, or
        `None` where the temperature of the model is not known.
    """
    scores = label_vectors @ vector
    if model.temperature is None:
        return scores, None
    logits = scores.astype("float64") / model.temperature
    powers = np.exp(logits - logits.max())
    return scores, (powers / powers.sum()).astype("float32")


def _list(value):
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
