"""Describe what happens inside a dual encoder, in numbers and on a page."""

import base64
import contextlib
import dataclasses
import itertools
import logging
import os
from collections.abc import Iterable
from pathlib import Path

import keras
import numpy as np

from align_keras.embedding.embed_files import thumbnail
from align_keras.embedding.embed_streams import embed_data_set
from align_keras.embedding.embed_streams import embed_texts
from align_keras.embedding.embed_streams import opened
from align_keras.embedding.embedder import Embedder
from align_keras.embedding.embedder import as_embedder
from align_keras.embedding.embedder import read_pixels
from align_keras.embedding.loading import load_embedder
from align_keras.evaluation import datasets
from align_keras.evaluation.diagnosis_page import write_diagnosis_page
from align_keras.evaluation.geometry import NEIGHBOURS
from align_keras.evaluation.geometry import check_options
from align_keras.evaluation.geometry import geometry_metrics
from align_keras.evaluation.results import plain
from align_keras.io.atomic import atomic_file
from align_keras.io.json_files import is_count
from align_keras.io.json_files import read_object
from align_keras.io.json_files import write_json
from align_keras.io.mirrors import local_copy
from align_keras.io.mirrors import locked
from align_keras.io.progress import progress_bar
from align_keras.io.stores import is_directory
from align_keras.io.stores import is_file
from align_keras.io.text import clean_text

logger = logging.getLogger("align_keras")

# Images of a softmax if the batch size of the training is unknown.
BATCH = 256
# Shorter side of the images on the page.
_PIXELS = 160


@locked("output")
def diagnose(
    model: Embedder | keras.Model | str | Path,
    data: datasets.DataSet | str | list[str],
    output: str | Path,
    temperature: float | None = None,
    softmax_batch: int | None = None,
    k: int = NEIGHBOURS,
    examples: int = 24,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
    cache: str | Path | None = None,
) -> dict:
    """Describe how a model places images and texts, as numbers and a page.

    Writes `diagnosis.json` and `index.html` into `output`. Identical captions
    count as one text, so that none of them is wrong for the image of another.
    An image that does not decode is left out together with its captions; a
    warning names it, and it is counted.

    Args:
        model: an `align_keras.AlignDualEncoder` with a preprocessor, an
            `Embedder`, or a string for `load_embedder`.
        data: a `DataSet` with captions; or a string or list of strings, see
            `align_keras.evaluation.datasets.captioned`.
        output: string or `pathlib.Path`. The directory to write, or its
            address.
        temperature: float. What cosines are divided by before the softmax.
            Defaults to `None`: the temperature of the model, if it is known.
        softmax_batch: int. The number of images in the softmax that gives the
            true match its probability. Defaults to `None`: the batch size of
            the run in whose directory the model lies, or 256 without a run.
        k: int. How many nearest neighbours of each query count for hubness.
            Defaults to `10`.
        examples: int. How many images that are nearest to a wrong caption to
            show. Defaults to `24`.
        seed: int. The seed of what is estimated from samples. Defaults to
            `0`.
        batch_size: int. Images per call of the network. Defaults to `64`.
        progress: bool. Whether to draw progress bars on the standard error
            stream. Defaults to `True`.
        cache: string or `pathlib.Path`. A directory for vectors, see
            `embed_readable`. Defaults to `None`.

    Returns:
        The dictionary that `diagnosis.json` holds: that of
        `geometry_metrics`, with keys of images and captions instead of
        indices, and `None` instead of NaN; and the counts `"images"`,
        `"captions"`, `"texts"`, `"images_without_text"` and
        `"images_skipped"`.

    Raises:
        BlockingIOError: Another process is writing to `output`.
        FileNotFoundError: No file matches `data`.
        ValueError: The model has no preprocessor, no image is readable, no
            image has a caption, or an option is out of range.

    Example:

    ```python
    diagnose("run/model", "packed/*.tfrecord", "diagnosis")["modality_gap"]
    ```
    """
    named = isinstance(model, (str, Path))
    if softmax_batch is None:
        run = _batch_of_run(str(model)) if named else None
        softmax_batch = run or BATCH
    check_options(temperature, softmax_batch, k, examples)
    if not isinstance(data, datasets.DataSet):
        data = datasets.captioned(data)
    embedder = load_embedder(str(model)) if named else as_embedder(model)
    images, notes, skipped, digest = embed_data_set(
        embedder, _numbered(data), batch_size, progress, cache
    )
    places, keys, captions = zip(*notes, strict=True)
    texts, pairs = _distinct(captions)
    if not texts:
        raise ValueError(
            f"None of the {len(images)} images of `{data.name}` has a caption."
        )
    vectors = embed_texts(embedder, texts, progress=progress, cache=cache)
    if temperature is None:
        temperature = embedder.temperature
    total = len(images) + len(texts)
    with progress_bar("Searching neighbours", total, progress) as advance:
        found = geometry_metrics(
            images,
            vectors,
            pairs,
            temperature,
            softmax_batch,
            k,
            examples,
            seed,
            advance,
        )
    shown = _indices_of_images(found)
    small = _thumbnails(data, {places[n]: n for n in shown})
    found = plain(
        {
            "task": "diagnose",
            "dataset": data.name,
            "model": embedder.name,
            "captions": sum(map(len, captions)),
            "images_without_text": len(images) - len({*pairs[:, 1].tolist()}),
            "images_skipped": skipped,
            "image_digest": digest,
            **found,
        }
    )
    page = write_diagnosis_page(found, keys, texts, small)
    with atomic_file(Path(output, "index.html")) as temporary:
        temporary.write_text(page, "utf-8")
    _name(found, keys, texts)
    write_json(Path(output, "diagnosis.json"), found)
    return found


def _batch_of_run(model):
    """Return the batch size of the run a model lies in, if any."""
    if not is_directory(model):
        return None
    recipe = os.path.join(os.path.dirname(model.rstrip("/")), "recipe.json")
    if not is_file(recipe):
        return None
    form = {"batch_size?": is_count}
    return read_object(
        local_copy(recipe), form, "recipe of a run", "Copy the run again."
    ).get("batch_size")


def _numbered(data):
    """Add the position and key of each image to its note."""

    def examples():
        for place, (key, image, captions) in enumerate(data.examples()):
            yield key, image, (place, str(key), captions)

    return dataclasses.replace(data, examples=examples)


def _distinct(captions: Iterable[list[str]]) -> tuple[list[str], np.ndarray]:
    """Return distinct captions in order, and pairs of caption and image."""
    numbers: dict[str, int] = {}
    pairs = [
        (numbers.setdefault(clean_text(text), len(numbers)), image)
        for image, group in enumerate(captions)
        for text in group
    ]
    return list(numbers), np.array(pairs, "int64").reshape(-1, 2)


def _indices_of_images(found):
    hubs = found["hubness"]["text_to_image"]["hubs"]
    return {row["image"] for row in found["wrong_texts"]} | {
        row["index"] for row in hubs
    }


def _thumbnails(data, wanted):
    """Read some images again, and return thumbnails as data URLs.

    Args:
        data: `DataSet`.
        wanted: dict from the position of an image in `data` to its index.

    Returns:
        dict from the index to a string. A warning names each image that only
        the model can read.
    """
    small, lost = {}, {}
    with _warned_before():
        last = max(wanted, default=-1)
        rows = itertools.islice(data.examples(), last + 1)
        for place, (key, image, _) in enumerate(rows):
            if place not in wanted:
                continue
            try:
                pixels = read_pixels(opened(image))
            except (ValueError, OSError) as error:
                lost[key] = error
                continue
            if pixels.dtype.kind == "f":
                # Preprocessed already, to values from -1 to 1.
                pixels = np.clip((pixels + 1) * 127.5, 0, 255).astype("uint8")
            contents = base64.b64encode(thumbnail(pixels, _PIXELS)).decode()
            small[wanted[place]] = f"data:image/jpeg;base64,{contents}"
    for key, error in lost.items():
        logger.warning("Image %s is not shown: %s", key, error)
    return small


@contextlib.contextmanager
def _warned_before():
    """Suppress warnings while data are read for the second time."""

    def quiet(record):
        return False

    logger.addFilter(quiet)
    try:
        yield
    finally:
        logger.removeFilter(quiet)


def _name(found, keys, texts):
    """Replace indices by the keys of images and by captions."""
    for row in found["wrong_texts"]:
        row["image"] = keys[row["image"]]
        row["caption"] = texts[row.pop("text")]
        row["wrong_caption"] = texts[row.pop("wrong_text")]
    names = {"image_to_text": ("caption", texts)}
    names["text_to_image"] = ("image", keys)
    for way, (kind, values) in names.items():
        for row in found["hubness"][way]["hubs"]:
            row[kind] = values[row.pop("index")]
