"""Measure retrieval between images and captions in many languages."""

import gzip
import warnings
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import keras
import numpy as np

from align_keras.embedding.embed_streams import embed_data_set
from align_keras.embedding.embed_streams import embed_texts
from align_keras.embedding.embedder import Embedder
from align_keras.embedding.embedder import as_embedder
from align_keras.embedding.vector_cache import names_digest
from align_keras.evaluation import datasets
from align_keras.evaluation.bootstrap import SAMPLES
from align_keras.evaluation.ranks import check_ks
from align_keras.evaluation.results import Result
from align_keras.evaluation.results import summarize
from align_keras.evaluation.retrieval import KS
from align_keras.evaluation.retrieval import retrieval_chance
from align_keras.evaluation.retrieval import retrieval_outcomes
from align_keras.evaluation.retrieval import retrieval_recalls
from align_keras.io.lists import check_list
from align_keras.io.mirrors import reads
from align_keras.io.rows import RowError
from align_keras.io.rows import read_rows
from align_keras.io.text import MAX_TEXT
from align_keras.io.text import as_texts
from align_keras.io.text import decode_text
from align_keras.io.text import read_text
from align_keras.io.text import split_lines

# === Data ===

# The task of Multi30k with the captions of each language: the second task has
# five captions per image, the first one translation per image.
_TASK_OF = {"en": 2, "de": 2, "fr": 1, "cs": 1}


@reads("folder", "images")
def multi30k(
    folder: str | Path,
    images: str | Path,
    languages: Sequence[str] | None = None,
    name: str = "multi30k",
    allow_outside: bool = False,
) -> datasets.DataSet:
    """Read Multi30k's 2016 test images with captions in four languages.

    Args:
        folder: string or `pathlib.Path`. The published repository, a folder
            with `data/task1` and `data/task2`, whose files may be gzipped or
            not.
        images: string or `pathlib.Path`. The images of Flickr30k.
        languages: list of strings. Any of `"en"`, `"de"`, `"fr"` and `"cs"`.
            Defaults to `None`, all.
        name: string. Defaults to `"multi30k"`.
        allow_outside: bool. See
            `align_keras.evaluation.datasets.captioned`.

    Returns:
        `DataSet` with dictionaries from a language to a list of captions.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the files differ in length or in their images, or have no
            such language.

    Reference:
        - [Elliott et al., 2016](https://arxiv.org/abs/1605.00459)
    """
    folder = Path(folder) / "data"
    chosen = _choose_languages(languages, _TASK_OF, folder)
    read = partial(_lines, folder, allow_outside=allow_outside)
    first = "task1/image_splits/test_2016_flickr.txt"
    names = read(first)
    captions: dict[str, dict] = {key: {} for key in names}
    for language in chosen:
        listed, files = first, [f"task1/raw/test_2016_flickr.{language}"]
        if _TASK_OF[language] == 2:
            listed = "task2/image_splits/test_2016_images.txt"
            files = [f"task2/raw/test_2016.{n}.{language}" for n in range(1, 6)]
        keys, columns = read(listed), [read(file) for file in files]
        for file, column in zip(files, columns, strict=True):
            if len(column) != len(keys):
                raise ValueError(
                    f"`{folder / file}` has {len(column)} lines, but there are "
                    f"{len(keys)} images in `{folder / listed}`."
                )
        odd = set(keys) ^ set(names)
        if odd:
            raise ValueError(
                f"`{folder / first}` and `{folder / listed}` must list the "
                "same images. Only one of them has: "
                f"{', '.join(sorted(odd)[:5])}"
            )
        for key, texts in zip(keys, zip(*columns, strict=True), strict=True):
            captions[key][language] = as_texts(texts)
    return datasets.DataSet(
        name,
        lambda: (
            (
                key,
                datasets.find_image(images, key, allow_outside),
                captions[key],
            )
            for key in names
        ),
        len(captions),
    )


@reads("folder", "images")
def crossmodal3600(
    folder: str | Path,
    images: str | Path | None = None,
    languages: Sequence[str] | None = None,
    captions_per_image: int | None = None,
    name: str = "xm3600",
    allow_outside: bool = False,
) -> datasets.DataSet:
    """Read Crossmodal-3600 (XM3600), with captions in 36 languages.

    Args:
        folder: string or `pathlib.Path`. Holds the published
            `captions.jsonl`.
        images: string or `pathlib.Path`. The folder of published images,
            `KEY.jpg`. Defaults to `None`: `images` in `folder`.
        languages: list of strings. Such as `["de", "th"]`. Defaults to
            `None`, all languages in the file.
        captions_per_image: int. How many captions of each image to use in
            each language, starting with the first. Defaults to `None`, all.
        name: string. Defaults to `"xm3600"`.
        allow_outside: bool. See
            `align_keras.evaluation.datasets.captioned`.

    Returns:
        `DataSet` with dictionaries from a language to a list of captions,
        which is empty if an image has none.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a row is invalid, or there is no such language.

    Reference:
        - [Thapliyal et al., 2022](https://arxiv.org/abs/2205.12522)
    """
    if captions_per_image is not None and captions_per_image < 1:
        raise ValueError(
            "`captions_per_image` must be positive. "
            f"Received: captions_per_image={captions_per_image}"
        )
    folder = Path(folder)
    if images is None:
        images = datasets.path_within(folder, "images", allow_outside)
    path = datasets.path_within(folder, "captions.jsonl", allow_outside)
    found: dict[str, dict] = {}
    for number, row in enumerate(read_rows(path), 1):
        if isinstance(row, RowError):
            raise ValueError(f"Row {number} of `{path}` is {row}.")
        key = row.get("image/key")
        if not isinstance(key, str) or not key or key in found:
            raise ValueError(
                f"In `{path}`, row {number}, the field `image/key` must be a "
                f"unique text. Received: {key!r:.80}"
            )
        found[key] = {
            language: _captions_of(path, number, language, value)
            for language, value in row.items()
            if not language.startswith("image/")
        }
    if not found:
        raise ValueError(f"`{path}` has no rows.")
    known = sorted({language for row in found.values() for language in row})
    chosen = _choose_languages(languages, known, path)
    return datasets.DataSet(
        name,
        lambda: (
            (
                key,
                datasets.find_image(images, f"{key}.jpg", allow_outside),
                {
                    language: row.get(language, [])[:captions_per_image]
                    for language in chosen
                },
            )
            for key, row in found.items()
        ),
        len(found),
    )


def _captions_of(path, number, language, value):
    texts = value.get("caption") if isinstance(value, dict) else None
    if not isinstance(texts, list):
        raise ValueError(
            f"In `{path}`, row {number}, `{language}` must hold a list of "
            f"texts under `caption`. Received: {value!r:.80}"
        )
    return as_texts(texts)


def _choose_languages(wanted, known, source):
    check_list(wanted, "languages")
    chosen = list(known) if wanted is None else list(dict.fromkeys(wanted))
    # A set, because a file may list any number of languages.
    unknown = sorted({*chosen} - {*known})
    if unknown or not chosen:
        raise ValueError(
            f"`languages` must be among those that `{source}` has: "
            f"{', '.join(known)}. Received: {', '.join(unknown) or 'none'}"
        )
    return chosen


def _lines(folder, name, allow_outside):
    """Return the lines of a text file, or of its gzipped version."""
    path, packed = (
        datasets.path_within(folder, file, allow_outside)
        for file in (name, f"{name}.gz")
    )
    if not path.is_file() and packed.is_file():
        text = _unzip(packed)
    elif path.is_file():
        text = read_text(path)
    else:
        raise FileNotFoundError(
            f"There is neither a file `{path}` nor `{packed}`."
        )
    return "\n".join(split_lines(text)).strip("\n").split("\n")


def _unzip(path):
    try:
        with gzip.open(path) as file:
            contents = file.read(MAX_TEXT + 1)
        if len(contents) > MAX_TEXT:
            raise ValueError(f"it holds more than {MAX_TEXT} bytes")
        return decode_text(contents, "strict")
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise ValueError(
            f"`{path}` cannot be read as gzip-compressed text: {error}."
        ) from None


# === Metrics ===


def multilingual_recalls(
    outcomes: dict[str, np.ndarray],
    weights: np.ndarray | None = None,
    languages: Sequence[str] = (),
    ks: Sequence[int] = KS,
) -> dict[str, float]:
    """Compute the recalls of each language, and their means.

    Args:
        outcomes: dictionary of arrays: `"captions"` int64 `(num_images,
            num_languages)`, the number of captions of each image;
            `"image_rank"` int64 of the same shape, from 0, or -1 without a
            caption; `"text_rank"`, `"text_image"` and `"text_language"` int64
            `(num_texts,)`, where the last two are indices of the image and
            the language. Texts are in the order of the languages.
        weights: integer array `(num_images,)`. How often each image counts,
            with its captions in all languages. Defaults to `None`, once
            each.
        languages: list of strings. The names of the languages.
        ks: tuple of ints. The depths of recall. Defaults to `(1, 5, 10)`.

    Returns:
        A dictionary of floats: the means over the languages, under the names
        that `retrieval_recalls` uses; and the metrics of each language,
        prefixed with its name, as in `"de_mean_recall"`. If no drawn image
        has a caption in a language, its metrics are NaN and left out of the
        means.
    """
    parts, found = [], {}
    texts = np.bincount(outcomes["text_language"], minlength=len(languages))
    ends = np.append(0, np.cumsum(texts))
    for number, language in enumerate(languages):
        own = slice(ends[number], ends[number + 1])
        part = retrieval_recalls(
            {
                "image_rank": outcomes["image_rank"][:, number],
                "text_rank": outcomes["text_rank"][own],
                "text_image": outcomes["text_image"][own],
                "fold": np.zeros(len(outcomes["captions"]), "int64"),
            },
            weights,
            ks,
        )
        parts.append(part)
        found |= {f"{language}_{name}": part[name] for name in part}
    with warnings.catch_warnings():
        # If all values are NaN, the mean is NaN as well.
        warnings.simplefilter("ignore", RuntimeWarning)
        means = {
            name: float(np.nanmean([part[name] for part in parts]))
            for name in parts[0]
            if not name.endswith("_median_rank")
        }
    return {**means, **found}


def measure_multilingual(
    model: Embedder | keras.Model,
    data: datasets.DataSet,
    ks: Sequence[int] = KS,
    batch_size: int = 64,
    progress: bool = True,
    cache: str | Path | None = None,
    samples: int = SAMPLES,
) -> Result:
    """Measure image–text retrieval in each language.

    Each language is measured separately among all images, as in
    `measure_retrieval`. An image without a caption in a language is counted;
    it is no query in that language, but remains a candidate. Images are
    embedded once. The mean recall of a language is the mean of its recalls in
    both directions (section 8 of the paper).

    Args:
        model: an `align_keras.AlignDualEncoder` with a preprocessor, or an
            `Embedder`.
        data: `DataSet` with dictionaries from a language to captions, as
            returned by `multi30k` and `crossmodal3600`.
        ks, batch_size, progress, cache, samples: See `measure_retrieval`. The
            intervals resample images with their captions in all languages.

    Returns:
        A `Result`: the means over the languages; the mean recall of each
        language, as in `"de_mean_recall"`; chance; and `"by_language"`, which
        holds for each language a dictionary of the metrics of
        `measure_retrieval` with their `"intervals"`, `"texts"` and
        `"images_without_text"`.

    Raises:
        ValueError: The model has no preprocessor, no image is readable, or a
            language has no caption.

    Example:

    ```python
    result = measure_multilingual(model, crossmodal3600("xm3600"))
    result["by_language"]["th"]["image_to_text_recall@1"]
    ```
    """
    ks = check_ks(ks)
    embedder = as_embedder(model)
    images, notes, skipped, digest = embed_data_set(
        embedder, data, batch_size, progress, cache
    )
    languages = list(notes[0])
    ranks, counts, chances, columns, all_texts = [], [], [], [], []
    for number, language in enumerate(languages):
        groups = [note[language] for note in notes]
        texts = [text for group in groups for text in group]
        if not texts:
            raise ValueError(
                f"`{data.name}` has no caption in the language `{language}`: "
                "leave it out of `languages`."
            )
        all_texts += texts
        counts.append(list(map(len, groups)))
        owners = np.repeat(np.arange(len(images)), counts[-1])
        vectors = embed_texts(embedder, texts, progress=progress, cache=cache)
        found = retrieval_outcomes(images, vectors, owners)
        ranks.append(found["image_rank"])
        columns.append((found["text_rank"], owners, [number] * len(texts)))
        chances.append(retrieval_chance(owners, len(images), ks))
    text_rank, text_image, text_language = map(
        np.concatenate, zip(*columns, strict=True)
    )
    result = summarize(
        "multilingual",
        partial(multilingual_recalls, languages=languages, ks=ks),
        {
            "captions": np.stack(counts, axis=1),
            "image_rank": np.stack(ranks, axis=1),
            "text_rank": text_rank,
            "text_image": text_image,
            "text_language": text_language,
        },
        len(images),
        samples,
        dataset=data.name,
        model=embedder.name,
        unit="image with its captions in all languages",
        images=len(images),
        texts=len(text_rank),
        image_digest=digest,
        text_digest=names_digest(all_texts),
        images_skipped=skipped,
        ks=list(ks),
        languages=languages,
        by_language={},
        **{
            f"chance_{name}": float(
                np.mean([chance[name] for chance in chances])
            )
            for name in chances[0]
        },
    )
    ways = "image_to_text", "text_to_image"
    names = [*chances[0], *(f"{way}_median_rank" for way in ways)]
    for number, language in enumerate(languages):
        result["by_language"][language] = _split_off(
            result, language, names
        ) | {
            "texts": sum(counts[number]),
            "images_without_text": counts[number].count(0),
            **{f"chance_{k}": v for k, v in chances[number].items()},
        }
        chance = chances[number]["mean_recall"]
        result[f"chance_{language}_mean_recall"] = chance
    return result


def _split_off(result, language, names):
    """Move the metrics of a language, except the mean, out of the result."""
    intervals, metrics = {}, {}
    for own in names:
        name = f"{language}_{own}"
        intervals[own], metrics[own] = result["intervals"][name], result[name]
        if own != "mean_recall":
            del result["intervals"][name], result[name]
    return {**metrics, "intervals": intervals}
