"""Measure whether a model understands how words are put together.

Each example has captions of nearly the same words, only one of which is right.
Winoground pairs two images with two captions; SugarCrepe and ARO's Visual
Genome tests have one image, its caption, and a wrong caption.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
from PIL import Image

from align_keras.embedding.embed_files import MAX_PIXELS
from align_keras.embedding.embed_streams import embed_data_set
from align_keras.embedding.embed_streams import embed_texts
from align_keras.embedding.embedder import Embedder
from align_keras.embedding.embedder import as_embedder
from align_keras.embedding.embedder import read_pixels
from align_keras.evaluation.bootstrap import SAMPLES
from align_keras.evaluation.datasets import SUFFIXES
from align_keras.evaluation.datasets import DataSet
from align_keras.evaluation.datasets import find_image
from align_keras.evaluation.datasets import path_within
from align_keras.evaluation.ranks import pair_scores
from align_keras.evaluation.results import Result
from align_keras.evaluation.results import summarize
from align_keras.io.fingerprints import fingerprint
from align_keras.io.json_files import read_json
from align_keras.io.mirrors import reads
from align_keras.io.rows import RowError
from align_keras.io.rows import read_rows

# The files of SugarCrepe: how a caption was changed, and which part of it.
SUGAR_CREPE = (
    *("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel"),
    *("swap_att", "swap_obj"),
)
ARO = {
    "relation": "visual_genome_relation.json",
    "attribution": "visual_genome_attribution.json",
}
# Largest number of a box; no image that can be decoded is wider or higher.
_MAX_SIDE = 1_000_000
# The metrics of a random order of the four scores of an example.
_CHANCE = {"text_score": 1 / 4, "image_score": 1 / 4, "group_score": 1 / 6}


@dataclasses.dataclass(frozen=True)
class Composition:
    """Examples of one or two images with two captions.

    Args:
        name: string. The name of the data set in results.
        images: list of callables. Each takes no arguments and returns the
            path, the bytes or the pixels of an image.
        keys: list of strings. A unique key for each image.
        examples: list of triples: a tuple of one or two indices into
            `images`; two captions, the first for the first image, the second
            for the second image or, if there is only one, wrong; and the
            index of a category.
        categories: list of strings. Their names.
        each: bool. Whether results include each category, or only the mean.
            Defaults to `True`.
    """

    name: str
    images: list[Callable[[], Any]]
    keys: list[str]
    examples: list[tuple[tuple[int, ...], tuple[str, str], int]]
    categories: list[str]
    each: bool = True


# === Data ===


@reads("folder")
def winoground(
    folder: str | Path, name: str = "winoground", allow_outside: bool = False
) -> Composition:
    """Read Winoground in its published form.

    Args:
        folder: string or `pathlib.Path`. Holds `examples.jsonl` and `images`.
        name: string. Defaults to `"winoground"`.
        allow_outside: bool. Whether links may lead out of the folder.
            Defaults to `False`.

    Returns:
        `Composition` with two images and two captions per example. The
        categories are the collapsed tags, such as `"object"`.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A row lacks a field.

    Reference:
        - [Thrush et al., 2022](https://arxiv.org/abs/2204.03162)
    """
    path = path_within(folder, "examples.jsonl", allow_outside)
    images = path_within(folder, "images", allow_outside)
    made = _Builder(name)
    for number, row in enumerate(read_rows(path), 1):
        if isinstance(row, RowError):
            raise ValueError(f"Row {number} of `{path}` is {row}.")
        values = [
            _text(path, f"row {number}", row, field)
            for field in ("image_0", "image_1", "caption_0", "caption_1")
        ]
        tag = _text(path, f"row {number}", row, "collapsed_tag").lower()
        places = [
            made.image(
                image,
                partial(find_image, images, image, allow_outside, SUFFIXES),
            )
            for image in values[:2]
        ]
        made.add(places, values[2:], tag)
    return made.build(path)


@reads("folder", "images")
def sugar_crepe(
    folder: str | Path,
    images: str | Path,
    name: str = "sugarcrepe",
    allow_outside: bool = False,
) -> Composition:
    """Read SugarCrepe in its published form.

    Args:
        folder: string or `pathlib.Path`. Holds `add_att.json` and the six
            other files.
        images: string or `pathlib.Path`. MSCOCO's folder `val2017`.
        name: string. Defaults to `"sugarcrepe"`.
        allow_outside: bool. Whether links may lead out of `folder` and
            `images`. Defaults to `False`.

    Returns:
        `Composition` with one image, its caption and a wrong caption per
        example. The categories are the files.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A row lacks a field.

    Reference:
        - [Hsieh et al., 2023](https://arxiv.org/abs/2306.14610)
    """
    made = _Builder(name)
    for category in SUGAR_CREPE:
        path = path_within(folder, f"{category}.json", allow_outside)
        for number, row in _rows(path):
            file, right, wrong = (
                _text(path, number, row, field)
                for field in ("filename", "caption", "negative_caption")
            )
            place = made.image(
                file, partial(find_image, images, file, allow_outside)
            )
            made.add([place], [right, wrong], category)
    return made.build(folder)


@reads("folder", "images")
def visual_genome(
    folder: str | Path,
    kind: str = "relation",
    images: str | Path | None = None,
    name: str | None = None,
    allow_outside: bool = False,
) -> Composition:
    """Read ARO's Visual Genome Relation or Attribution as published.

    Args:
        folder: string or `pathlib.Path`. Holds
            `visual_genome_relation.json` or `visual_genome_attribution.json`.
        kind: string. `"relation"` or `"attribution"`. Defaults to
            `"relation"`.
        images: string or `pathlib.Path`. Defaults to `None`: `images` in
            `folder`. Each image is cropped to the box in its row.
        name: string. Defaults to `None`: `"vg_relation"` or
            `"vg_attribution"`.
        allow_outside: bool. Whether links may lead out of `folder` and
            `images`. Defaults to `False`.

    Returns:
        `Composition` with one image, its caption and a wrong caption per
        example. The categories are relations, or pairs of attributes.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A row lacks a field, or `kind` is unknown.

    Reference:
        - [Yuksekgonul et al., 2023](https://arxiv.org/abs/2210.01936)
    """
    if kind not in ARO:
        raise ValueError(
            f"`kind` must be one of {', '.join(ARO)}. Received: kind={kind!r}"
        )
    path = path_within(folder, ARO[kind], allow_outside)
    if images is None:
        images = path_within(folder, "images", allow_outside)
    made = _Builder(name or f"vg_{kind}", each=False)
    for number, row in _rows(path):
        file, right, wrong = (
            _text(path, number, row, field)
            for field in ("image_path", "true_caption", "false_caption")
        )
        if kind == "relation":
            category = _text(path, number, row, "relation_name")
        else:
            category = _attributes(path, number, row)
        x, y, width, height = box = [
            _number(path, number, row, f"bbox_{side}") for side in "xywh"
        ]
        if width < 1 or height < 1 or width * height > MAX_PIXELS:
            raise ValueError(
                f"In `{path}`, {number}, `bbox_w` and `bbox_h` must be at "
                f"least 1, and their product at most {MAX_PIXELS:,}. "
                f"Received: {width} and {height}"
            )
        place = made.image(
            f"{file} {box}",
            partial(
                _cropped,
                *(images, file, allow_outside),
                (x, y, x + width, y + height),
            ),
        )
        made.add([place], [right, wrong], category)
    return made.build(path)


class _Builder:
    """Collect examples, and number images and categories."""

    def __init__(self, name, each=True):
        self.name, self.each = name, each
        self.places, self.images = {}, []
        self.numbers, self.examples = {}, []

    def image(self, key, read):
        if key not in self.places:
            self.places[key] = len(self.places)
            self.images.append(read)
        return self.places[key]

    def add(self, places, captions, category):
        number = self.numbers.setdefault(category, len(self.numbers))
        self.examples.append((tuple(places), tuple(captions), number))

    def build(self, source):
        if not self.examples:
            raise ValueError(f"`{source}` has no examples.")
        return Composition(
            self.name,
            self.images,
            list(self.places),
            self.examples,
            list(self.numbers),
            self.each,
        )


def _rows(path):
    """Yield the rows of a JSON object or list, each with its name."""
    rows = read_json(path)
    if isinstance(rows, dict):
        pairs = rows.items()
    elif isinstance(rows, list):
        pairs = enumerate(rows)
    else:
        raise ValueError(f"`{path}` must hold a list or an object of rows.")
    for number, row in pairs:
        yield f"row {number}", row


def _field(path, place, row, name):
    if not isinstance(row, dict) or row.get(name) is None:
        raise ValueError(f"In `{path}`, {place} lacks the field `{name}`.")
    return row[name]


def _text(path, place, row, name):
    value = _field(path, place, row, name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f"In `{path}`, {place}, the field `{name}` must be a text. "
            f"Received: {value!r:.80}"
        )
    return value


def _attributes(path, place, row):
    value = _field(path, place, row, "attributes")
    if not isinstance(value, list):
        raise ValueError(
            f"In `{path}`, {place}, the field `attributes` must be a list. "
            f"Received: {value!r:.80}"
        )
    return "_".join(map(str, value))


def _number(path, place, row, name):
    value = _field(path, place, row, name)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # `not <=` rather than `>` also refuses NaN.
    if not is_number or not abs(value) <= _MAX_SIDE:
        raise ValueError(
            f"In `{path}`, {place}, the field `{name}` must be a number of at "
            f"most {_MAX_SIDE:,}. Received: {value!r:.80}"
        )
    return value


def _cropped(folder, name, allow_outside, box):
    pixels = read_pixels(find_image(folder, name, allow_outside))
    # Pixels beyond the edges are black, as in the published code.
    return np.asarray(Image.fromarray(pixels).crop(box))


# === Metrics ===


def composition_scores(
    outcomes: dict[str, np.ndarray],
    weights: np.ndarray | None = None,
    categories: list[str] | None = None,
    each: bool = True,
) -> dict[str, float]:
    """Compute how often the right caption or image scores higher.

    Equal scores count as wrong, as in the published code of all three tests.

    Args:
        outcomes: dictionary of arrays: `"score"` `(count, images, 2)`, the
            cosines of each image with both captions; and `"category"`
            `(count,)`.
        weights: integer array `(count,)`. How often each example counts.
            Defaults to `None`, once each.
        categories: list of strings. The names of the categories. Defaults to
            `None`: their indices.
        each: bool. Whether to include each category. Defaults to `True`.

    Returns:
        A dictionary of floats. With two images: `"text_score"`, the share of
        examples in which each image prefers its caption; `"image_score"`, the
        share in which each caption prefers its image; `"group_score"`, the
        share in which both hold; and these three for each category. With one
        image: `"accuracy"`, the share in which the image prefers its caption;
        `"mean_per_category"`; and the accuracy of each category. A category
        without examples is NaN, and left out of the mean.
    """
    scores, category = outcomes["score"], outcomes["category"]
    if weights is None:
        weights = np.ones(len(scores), "int64")
    names = categories or [str(n) for n in range(category.max() + 1)]
    if scores.shape[1] == 2:
        text = _all(
            scores[:, 0, 0] > scores[:, 0, 1], scores[:, 1, 1] > scores[:, 1, 0]
        )
        image = _all(
            scores[:, 0, 0] > scores[:, 1, 0], scores[:, 1, 1] > scores[:, 0, 1]
        )
        right = {
            "text_score": text,
            "image_score": image,
            "group_score": _all(text, image),
        }
    else:
        right = {"accuracy": scores[:, 0, 0] > scores[:, 0, 1]}
    found = {
        name: float(weights @ hits / weights.sum())
        for name, hits in right.items()
    }
    counts = np.bincount(category, weights, len(names))
    shares = {
        name: _shares(np.bincount(category, weights * hits, len(names)), counts)
        for name, hits in right.items()
    }
    if "accuracy" in shares:
        found["mean_per_category"] = float(np.nanmean(shares["accuracy"]))
    if each:
        for name, values in shares.items():
            for label, value in zip(names, values, strict=True):
                found[f"{label}_{name}"] = float(value)
    return found


def _all(*conditions):
    return np.logical_and.reduce(conditions)


def _shares(part, whole):
    return np.divide(part, whole, np.full(len(whole), np.nan), where=whole > 0)


def measure_composition(
    model: Embedder | keras.Model,
    data: Composition,
    batch_size: int = 64,
    progress: bool = True,
    cache: str | Path | None = None,
    samples: int = SAMPLES,
) -> Result:
    """Measure whether a model distinguishes captions of nearly the same words.

    If an image does not decode, a warning names it, and its examples are left
    out and counted.

    Args:
        model: an `align_keras.AlignDualEncoder` with a preprocessor, or an
            `Embedder`.
        data: `Composition`, as returned by `winoground`, `sugar_crepe` and
            `visual_genome`.
        batch_size, progress, cache, samples: See `measure_retrieval`. The
            intervals resample examples.

    Returns:
        A `Result`: the metrics of `composition_scores`, chance, and how many
        examples were measured and left out.

    Raises:
        ValueError: No example has all of its images.

    Example:

    ```python
    data = sugar_crepe("sugar-crepe/data", "mscoco/val2017")
    measure_composition(model, data)["accuracy"]
    ```
    """
    embedder = as_embedder(model)
    stream = DataSet(
        data.name,
        lambda: (
            (key, read, place)
            for place, (key, read) in enumerate(
                zip(data.keys, data.images, strict=True)
            )
        ),
        len(data.images),
    )
    images, places, skipped, digest = embed_data_set(
        embedder, stream, batch_size, progress, cache
    )
    row = {place: number for number, place in enumerate(places)}
    whole = [
        example
        for example in data.examples
        if all(place in row for place in example[0])
    ]
    if not whole:
        raise ValueError(f"No example of `{data.name}` has all of its images.")
    texts = sorted({text for _, captions, _ in whole for text in captions})
    vectors = embed_texts(embedder, texts, progress=progress, cache=cache)
    line = {text: number for number, text in enumerate(texts)}
    count = len(whole[0][0])
    wanted = [
        (row[place], line[caption])
        for own, captions, _ in whole
        for place in own
        for caption in captions
    ]
    scores = pair_scores(images, vectors, *np.array(wanted).T)
    outcomes = {
        "score": scores.reshape(len(whole), count, 2),
        "category": np.array([category for *_, category in whole]),
    }
    options: dict[str, Any] = {
        "categories": data.categories,
        "each": data.each,
    }
    result = summarize(
        "composition",
        partial(composition_scores, **options),
        outcomes,
        len(whole),
        samples,
        dataset=data.name,
        model=embedder.name,
        unit="example",
        images=len(images),
        examples=len(whole),
        examples_skipped=len(data.examples) - len(whole),
        image_digest=digest,
        images_skipped=skipped,
        prompts=fingerprint(data.examples),
        **options,
    )
    for name in result.metrics:
        chances = [v for k, v in _CHANCE.items() if name.endswith(k)]
        result[f"chance_{name}"] = chances[0] if chances else 1 / 2
    return result
