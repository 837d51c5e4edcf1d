"""Crisscrossed Captions of a model, on the files of the data set."""

import inspect
from functools import partial

import numpy as np

from align_keras.embedding.embedder import as_embedder
from align_keras.embedding.streams import embed_readable
from align_keras.embedding.streams import embed_texts
from align_keras.evaluation import cxc
from align_keras.evaluation import datasets
from align_keras.evaluation.bootstrap import SAMPLES
from align_keras.evaluation.bootstrap import interval
from align_keras.evaluation.results import Result
from align_keras.evaluation.results import summarize
from align_keras.evaluation.retrieval import KS


def measure_cxc(
    model,
    ratings,
    captions,
    images,
    split="test",
    batch_size=64,
    ks=KS,
    progress=True,
    cache=None,
    samples=SAMPLES,
    drop_empty=True,
    positives=None,
    correlation=None,
):
    """Measure retrieval and correlation on Crisscrossed Captions.

    Args:
        model: an `align_keras.AlignDualEncoder` with a preprocessor, or an
            `Embedder`.
        ratings: string or `pathlib.Path`. The directory of the rating files.
        captions: string or `pathlib.Path`. Karpathy's `dataset_coco.json`,
            which holds the texts.
        images: string or `pathlib.Path`. The pictures of MSCOCO.
        split: string, `"val"` or `"test"`. Defaults to `"test"`.
        batch_size: int. Pictures in one call of the network. Defaults to
            `64`.
        ks: tuple of ints. The depths of recall. Defaults to `(1, 5, 10)`.
        progress: bool. Whether to draw progress bars. Defaults to `True`.
        cache: string or `pathlib.Path`. A directory for the vectors. Defaults
            to `None`.
        samples: int. Samples of the correlation's bootstrap and of the
            recalls' intervals. Defaults to `1000`.
        drop_empty: bool. See `cxc_retrieval_figures`. Defaults to `True`.
        positives: dictionary of options of `retrieval_positives`.
        correlation: dictionary of options of `rating_correlations`.

    Returns:
        A `Result`: twelve recalls; `"sts_correlation"`, `"sis_correlation"`,
        `"sits_correlation"` and their mean; `"deviations"` of these over the
        samples; and numbers of queries and positives.

    Raises:
        FileNotFoundError: a file or picture is missing.
        ValueError: a file is wrong, or a picture does not decode.
    """
    embedder = as_embedder(model)
    rated = cxc.read_ratings(ratings, split)
    texts = datasets.read_sentences(captions, rated.captions)
    pictures = (
        (name, datasets.find_picture(images, f"val2014/{name}"))
        for name in rated.images
    )
    image_vectors, readable = embed_readable(
        embedder,
        pictures,
        batch_size,
        progress,
        len(rated.images),
        cache,
        f"cxc_{split}",
    )
    if not readable.all():
        raise ValueError(
            f"The picture `{rated.images[int(np.argmin(readable))]}` does not "
            "decode; Crisscrossed Captions needs all of them."
        )
    text_vectors = embed_texts(embedder, texts, progress=progress, cache=cache)
    positives = _options(cxc.retrieval_positives, positives)
    positives["thresholds"] = {
        **cxc.THRESHOLDS,
        **(positives["thresholds"] or {}),
    }
    correlation = _options(
        cxc.rating_correlations,
        {"samples": samples or SAMPLES, **(correlation or {})},
    )
    correlation["query_columns"] = {
        **cxc.QUERY_COLUMNS,
        **(correlation["query_columns"] or {}),
    }
    pairs = cxc.retrieval_positives(rated, **positives)
    ranks = cxc.cxc_ranks(image_vectors, text_vectors, pairs)
    outcomes = {f"{task}_rank": rank for task, rank in ranks.items()}
    outcomes["caption_image"] = rated.caption_image
    result = summarize(
        "cxc",
        partial(cxc.cxc_retrieval_figures, ks=ks, drop_empty=drop_empty),
        outcomes,
        len(rated.images),
        samples,
        dataset="cxc" if split == "test" else f"cxc_{split}",
        model=embedder.name,
        unit="image with its captions",
        split=split,
        queries={task: int((rank >= 0).sum()) for task, rank in ranks.items()},
        positives={task: len(found) for task, found in pairs.items()},
        drop_empty=drop_empty,
        ks=list(ks),
        positives_options=positives,
        correlation_options=correlation,
    )
    scores = cxc.model_scores(rated, image_vectors, text_vectors)
    drawn = cxc.rating_correlations(rated, scores, **correlation)
    return _with_correlations(result, drawn)


def _options(function, given):
    """All options of a function, so that results name their definition."""
    parameters = inspect.signature(function).parameters.values()
    defaults = {
        p.name: p.default for p in parameters if p.default is not p.empty
    }
    return {**defaults, **(given or {})}


def _with_correlations(result, drawn):
    drawn = {f"{task}_correlation": values for task, values in drawn.items()}
    drawn["mean_correlation"] = np.mean(list(drawn.values()), axis=0)
    # A sample of equal ratings, which a small file may give, has none.
    found = {name: float(np.nanmean(values)) for name, values in drawn.items()}
    ends = {name: interval(values) for name, values in drawn.items()}
    deviations = {
        name: float(np.nanstd(values)) for name, values in drawn.items()
    }
    # The draws follow from the files and the seed, the same for every model.
    samples = {f"sample_{name}": values for name, values in drawn.items()}
    return Result(
        {
            **result,
            **found,
            "deviations": deviations,
            "intervals": {**result["intervals"], **ends},
        },
        {**result.outcomes, **samples},
    )
