"""Retrieval and word similarity of a model, on data from disk."""

from functools import partial
from pathlib import Path

import numpy as np

from align_keras.embedding.embedder import Embedder
from align_keras.embedding.embedder import as_embedder
from align_keras.embedding.streams import embed_data_set
from align_keras.embedding.streams import embed_texts
from align_keras.evaluation import datasets
from align_keras.evaluation.bootstrap import SAMPLES
from align_keras.evaluation.ranks import pair_scores
from align_keras.evaluation.results import summarize
from align_keras.evaluation.retrieval import KS
from align_keras.evaluation.retrieval import check_ks
from align_keras.evaluation.retrieval import retrieval_chance
from align_keras.evaluation.retrieval import retrieval_figures
from align_keras.evaluation.retrieval import retrieval_outcomes
from align_keras.evaluation.words import read_simlex
from align_keras.evaluation.words import word_figures


def evaluate_retrieval(model, data, batch_size=64, ks=KS, progress=True):
    """Measure retrieval in both directions on packed data, in plain numbers.

    `measure_retrieval` without intervals, for use within a training run.

    Args:
        model: an `align_keras.AlignDualEncoder` with a preprocessor, or an
            `Embedder`.
        data: string or list of strings. TFRecord files: a folder, a glob or
            a list of paths.
        batch_size: int. Pictures in one call of the network. Defaults to
            `64`.
        ks: tuple of ints. The depths of recall. Defaults to `(1, 5, 10)`.
        progress: bool. Whether to draw progress bars on the standard error
            stream. Defaults to `True`.

    Returns:
        A dict: that of `retrieval_metrics`; under `"chance_…"` each recall
        that a random order would reach; and `"pictures_skipped"`.

    Raises:
        FileNotFoundError: No file matches `data`.
        ValueError: The model has no preprocessor, or no picture is readable.

    Example:

    ```python
    evaluate_retrieval(model, "packed/*.tfrecord")["mean_recall"]
    ```
    """
    result = measure_retrieval(
        model, data, batch_size, ks, progress=progress, samples=0
    )
    return {
        name: value
        for name, value in result.items()
        if isinstance(value, (int, float)) and name != "folds"
    }


def measure_retrieval(
    model,
    data,
    batch_size=64,
    ks=KS,
    folds=1,
    progress=True,
    cache=None,
    samples=SAMPLES,
):
    """Measure retrieval in both directions.

    Every picture is embedded once and every one of its captions (section 5.1
    of the paper). A picture that does not decode is left out together with
    its captions, named in a warning, and counted.

    Args:
        model: an `align_keras.AlignDualEncoder` with a preprocessor, or an
            `Embedder`.
        data: a `DataSet` with captions; or a string or list of strings,
            TFRecord files.
        batch_size: int. Pictures in one call of the network. Defaults to
            `64`.
        ks: tuple of ints. The depths of recall. Defaults to `(1, 5, 10)`.
        folds: int. See `retrieval_outcomes`; 5 for MSCOCO's 1K figures.
            Defaults to `1`.
        progress: bool. Whether to draw progress bars on the standard error
            stream. Defaults to `True`.
        cache: string or `pathlib.Path`. A directory for vectors, see
            `embed_readable`. Defaults to `None`.
        samples: int. Resamples of the intervals, which draw images with all
            of their captions; 0 for none. Defaults to `1000`.

    Returns:
        A `Result`: the figures of `retrieval_figures`, `"intervals"`, the
        numbers of images and texts, `"pictures_skipped"`, and under
        `"chance_…"` each recall that a random order would reach.

    Raises:
        FileNotFoundError: No file matches `data`.
        ValueError: The model has no preprocessor, or no picture is readable.
    """
    ks = check_ks(ks)
    if not isinstance(data, datasets.DataSet):
        data = datasets.records(data)
    embedder = as_embedder(model)
    images, captions, skipped, pictures = embed_data_set(
        embedder, data, batch_size, progress, cache
    )
    texts = [text for group in captions for text in group]
    owners = np.repeat(np.arange(len(captions)), list(map(len, captions)))
    vectors = embed_texts(embedder, texts, progress=progress, cache=cache)
    outcomes = retrieval_outcomes(images, vectors, owners, folds)
    without = np.count_nonzero(outcomes["image_rank"] < 0)
    return summarize(
        "retrieval",
        partial(retrieval_figures, ks=ks),
        outcomes,
        len(images),
        samples,
        dataset=data.name if folds == 1 else f"{data.name}_{folds}_folds",
        model=embedder.name,
        unit="image with its captions",
        images=len(images),
        texts=len(texts),
        images_without_text=int(without),
        pictures=pictures,
        pictures_skipped=skipped,
        folds=folds,
        ks=list(ks),
        **_chance(owners, len(images), folds, ks),
    )


def _chance(owners, num_images, folds, ks):
    """The mean of the folds' chances, each fold on its own."""
    size = num_images // folds
    parts = [
        owners[owners // size == fold] - fold * size for fold in range(folds)
    ]
    chances = [retrieval_chance(part, size, ks) for part in parts if len(part)]
    return {
        f"chance_{name}": float(np.mean([chance[name] for chance in chances]))
        for name in chances[0]
    }


def measure_words(model, path, progress=True, samples=SAMPLES):
    """Measure how the similarity of words agrees with human judgement.

    Words are compared by the cosine of `Embedder.words`: for ALIGN the vector
    of the `[CLS]` token before the projection, as in the paper's Table 12.

    Args:
        model: an `align_keras.AlignDualEncoder` with a preprocessor, or an
            `Embedder`.
        path: string or `pathlib.Path`. A file in SimLex-999's form.
        progress: bool. Whether to draw a progress bar. Defaults to `True`.
        samples: int. Resamples of the intervals. Defaults to `1000`.

    Returns:
        A `Result` with Spearman's correlation for each category.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has another form.
    """
    embedder = as_embedder(model)
    pairs, judgements, members = read_simlex(path)
    words = sorted({word for pair in pairs for word in pair})
    place = {word: number for number, word in enumerate(words)}
    by_words = embedder.words or embedder.texts
    vectors = embed_texts(
        Embedder(embedder.name, embedder.images, by_words),
        words,
        progress=progress,
    )
    first, second = np.array([[place[a], place[b]] for a, b in pairs]).T
    outcomes = {
        "judgement": judgements,
        "similarity": pair_scores(vectors, vectors, first, second),
        **{f"is_{name}": held for name, held in members.items()},
    }
    return summarize(
        "words",
        word_figures,
        outcomes,
        len(pairs),
        samples,
        dataset=Path(path).stem.lower().replace("-", ""),
        model=embedder.name,
        unit="pair of words",
        pairs={name: int(held.sum()) for name, held in members.items()},
        before_projection=embedder.words is not None,
    )
