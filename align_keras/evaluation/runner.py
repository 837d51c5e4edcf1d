"""Evaluations that read their data from disk and embed them."""

from functools import partial
from pathlib import Path

import numpy as np

from align_keras.evaluation import cxc
from align_keras.evaluation import datasets
from align_keras.evaluation.bootstrap import SAMPLES
from align_keras.evaluation.bootstrap import interval
from align_keras.evaluation.classification import class_vector
from align_keras.evaluation.classification import classification_figures
from align_keras.evaluation.classification import classification_outcomes
from align_keras.evaluation.embed import embed_readable
from align_keras.evaluation.embed import embed_texts
from align_keras.evaluation.embedder import Embedder
from align_keras.evaluation.embedder import as_embedder
from align_keras.evaluation.knn import knn_hits
from align_keras.evaluation.knn import nearest_neighbours
from align_keras.evaluation.linear_probe import fit_logistic
from align_keras.evaluation.linear_probe import fit_sgd
from align_keras.evaluation.linear_probe import predict_scores
from align_keras.evaluation.linear_probe import sweep_decay
from align_keras.evaluation.ranks import pair_scores
from align_keras.evaluation.results import Result
from align_keras.evaluation.results import summarize
from align_keras.evaluation.retrieval import KS
from align_keras.evaluation.retrieval import check_ks
from align_keras.evaluation.retrieval import retrieval_chance
from align_keras.evaluation.retrieval import retrieval_figures
from align_keras.evaluation.retrieval import retrieval_outcomes
from align_keras.evaluation.templates import TEMPLATES
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
        cache: string or `pathlib.Path`. A directory for this data set's
            vectors, see `embed_readable`. Defaults to `None`.
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
    captions = []

    def pictures():
        for key, picture, texts in data.examples():
            captions.append(texts)
            yield key, picture

    images, readable = embed_readable(
        embedder, pictures(), batch_size, progress, data.total, cache
    )
    kept = [captions[n] for n in np.flatnonzero(readable)]
    texts = [text for group in kept for text in group]
    owners = np.repeat(np.arange(len(kept)), list(map(len, kept)))
    vectors = embed_texts(embedder, texts, progress=progress, cache=cache)
    outcomes = retrieval_outcomes(images, vectors, owners, folds)
    without = np.count_nonzero(outcomes["image_rank"] < 0)
    return summarize(
        "retrieval",
        partial(retrieval_figures, ks=ks),
        outcomes,
        len(images),
        samples,
        dataset=data.name,
        model=embedder.name,
        unit="image with its captions",
        images=len(images),
        texts=len(texts),
        images_without_text=int(without),
        pictures_skipped=int(np.count_nonzero(~readable)),
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


# === Labels ===


def measure_zero_shot(
    model,
    data,
    classes=None,
    templates=None,
    ensemble="normalized",
    all_classes=False,
    batch_size=64,
    ks=(1, 5),
    progress=True,
    cache=None,
    samples=SAMPLES,
):
    """Measure classification by the names of the classes alone.

    Args:
        model: an `align_keras.AlignDualEncoder` with a preprocessor, or an
            `Embedder`.
        data: a `DataSet` with labels.
        classes: `Classes`, or the path of a file for `read_classes`. Defaults
            to `None`: the names in the data set's own metadata or folders.
        templates: list of strings with `{}`. Defaults to those of `classes`,
            or else to our own eight.
        ensemble: string. See `class_vector`. Defaults to `"normalized"`.
        all_classes: bool. Whether a picture competes with all of `classes`,
            or with those that the data set has, as it is usual for the 200
            classes of ImageNet-R and -A. Defaults to `False`.
        batch_size: int. Pictures in one call of the network. Defaults to
            `64`.
        ks: tuple of ints. Defaults to `(1, 5)`.
        progress: bool. Whether to draw progress bars. Defaults to `True`.
        cache: string or `pathlib.Path`. A directory for this data set's
            vectors. Defaults to `None`.
        samples: int. Resamples of the intervals. Defaults to `1000`.

    Returns:
        A `Result`: the figures of `classification_figures`.

    Raises:
        ValueError: a class has no name, or no picture is readable.
    """
    embedder = as_embedder(model)
    if classes is None:
        if data.class_names is None:
            raise ValueError(
                f"The data set `{data.name}` does not name its classes: give "
                "their names in a JSON file."
            )
        names = [name.replace("_", " ") for name in data.class_names]
        keys = list(data.class_names)
        classes = datasets.Classes(keys, [[name] for name in names])
    elif not isinstance(classes, datasets.Classes):
        classes = datasets.read_classes(classes)
    templates = datasets.check_templates(templates, "templates")
    templates = templates or classes.templates or list(TEMPLATES)
    images, labels, skipped = _embed_labelled(
        embedder, data, batch_size, progress, cache
    )
    labels, chosen = _match_classes(data, labels, classes, all_classes)
    vectors = _class_vectors(
        embedder, classes, chosen, templates, ensemble, progress, cache
    )
    outcomes = classification_outcomes(images, vectors, labels)
    # A depth beyond the number of classes would say nothing.
    ks = [k for k in check_ks(ks) if k == 1 or k < len(chosen)]
    return summarize(
        "zero-shot",
        partial(classification_figures, ks=ks),
        outcomes,
        len(images),
        samples,
        dataset=data.name,
        model=embedder.name,
        unit="picture",
        images=len(images),
        classes=len(chosen),
        classes_without_pictures=int(len(chosen) - len(np.unique(labels))),
        pictures_skipped=skipped,
        templates=len(templates),
        ensemble=ensemble,
        ks=ks,
        **{f"chance_top{k}": min(1.0, k / len(chosen)) for k in ks},
    )


def _match_classes(data, labels, classes, all_classes):
    """Labels among the classes that compete, and which those are."""
    names = data.class_names
    if names is None:
        names = [
            str(n) for n in range(max(len(classes.keys), labels.max() + 1))
        ]
    found = np.array(classes.find(names))
    chosen = np.arange(len(classes.keys)) if all_classes else np.unique(found)
    return np.searchsorted(chosen, found[labels]), chosen


def _class_vectors(
    embedder, classes, chosen, templates, ensemble, progress, cache
):
    prompts, owners = [], []
    for place, position in enumerate(chosen):
        for name in classes.names[position]:
            prompts += [template.replace("{}", name) for template in templates]
            owners += [place] * len(templates)
    vectors = embed_texts(embedder, prompts, progress=progress, cache=cache)
    starts = np.searchsorted(owners, np.arange(len(chosen) + 1))
    return np.stack(
        [
            class_vector(vectors[start:end], ensemble)
            for start, end in zip(starts[:-1], starts[1:], strict=True)
        ]
    )


def _embed_labelled(embedder, data, batch_size, progress, cache):
    """Vectors, labels, and the number of pictures that were left out."""
    labels = []

    def pictures():
        for key, picture, label in data.examples():
            labels.append(label)
            yield key, picture

    vectors, readable = embed_readable(
        embedder, pictures(), batch_size, progress, data.total, cache
    )
    skipped = int(np.count_nonzero(~readable))
    return vectors, np.array(labels, "int64")[readable], skipped


def measure_knn(
    model,
    train,
    test,
    ks=(1,),
    batch_size=64,
    progress=True,
    cache=None,
    samples=SAMPLES,
):
    """Measure how often near training pictures share the label.

    Args:
        model: an `align_keras.AlignDualEncoder` with a preprocessor, or an
            `Embedder`.
        train: a `DataSet` with labels, among whose pictures neighbours are
            looked for.
        test: a `DataSet` with the same labels.
        ks: tuple of ints. A hit at K is a label that appears among the K
            nearest (footnote 3 of the paper, which reports K = 1). Defaults
            to `(1,)`.
        batch_size: int. Pictures in one call of the network. Defaults to
            `64`.
        progress: bool. Whether to draw progress bars. Defaults to `True`.
        cache: string or `pathlib.Path`. A directory for the vectors of both
            data sets. Defaults to `None`.
        samples: int. Resamples of the intervals. Defaults to `1000`.

    Returns:
        A `Result` with `"accuracy@K"`.

    Raises:
        ValueError: the data sets have other classes, or no picture is
            readable.
    """
    ks = check_ks(ks)
    embedder = as_embedder(model)
    _same_classes(train, test)
    rows, labels, _ = _embed_labelled(
        embedder, train, batch_size, progress, _part(cache, "train")
    )
    queries, wanted, skipped = _embed_labelled(
        embedder, test, batch_size, progress, _part(cache, "test")
    )
    found, _ = nearest_neighbours(queries, rows, max(ks))
    hits = knn_hits(labels[found], wanted, ks)
    outcomes = {f"hit@{k}": hit for k, hit in hits.items()}
    return summarize(
        "knn",
        knn_figures,
        outcomes,
        len(queries),
        samples,
        dataset=test.name,
        model=embedder.name,
        unit="picture",
        images=len(queries),
        train_images=len(rows),
        pictures_skipped=skipped,
        **{f"chance_accuracy@{k}": _knn_chance(labels, wanted, k) for k in ks},
    )


def knn_figures(outcomes, weights=None):
    """Share of hits, for each K of `knn_hits`."""
    figures = {}
    for name, hits in outcomes.items():
        figures[f"accuracy@{name.partition('@')[2]}"] = float(
            np.average(hits, weights=weights)
        )
    return figures


def _knn_chance(labels, wanted, k):
    """Chance that one of K random training pictures has the label."""
    share = np.bincount(labels, minlength=wanted.max() + 1) / len(labels)
    return float(np.mean(1 - (1 - share[wanted]) ** k))


def measure_linear_probe(
    model,
    train,
    test,
    validation=None,
    solver="lbfgs",
    batch_size=64,
    progress=True,
    cache=None,
    samples=SAMPLES,
):
    """Measure a linear classifier on frozen vectors.

    With the solver `"lbfgs"`, a weight decay is chosen from a closed set on
    held-out pictures, and the classifier is fitted again on all of them
    (`sweep_decay`). `"sgd"` is the paper's recipe for its head, `fit_sgd`.

    Args:
        model: an `align_keras.AlignDualEncoder` with a preprocessor, or an
            `Embedder`.
        train: a `DataSet` with labels.
        test: a `DataSet` with the same labels.
        validation: a `DataSet` to choose the decay on. Defaults to `None`: a
            fifth of the training pictures, drawn with a fixed seed.
        solver: string, `"lbfgs"` or `"sgd"`. Defaults to `"lbfgs"`.
        batch_size: int. Pictures in one call of the network. Defaults to
            `64`.
        progress: bool. Whether to draw progress bars. Defaults to `True`.
        cache: string or `pathlib.Path`. A directory for the vectors of all
            data sets. Defaults to `None`.
        samples: int. Resamples of the intervals. Defaults to `1000`.

    Returns:
        A `Result` with the figures of `classification_figures`, and `"decay"`.

    Raises:
        ImportError: SciPy is not installed.
        ValueError: the data sets have other classes, or `solver` is unknown.
    """
    if solver not in ("lbfgs", "sgd"):
        raise ValueError(
            f"`solver` must be 'lbfgs' or 'sgd'. Received: solver={solver!r}"
        )
    embedder = as_embedder(model)
    _same_classes(train, test)

    def embed(data, part):
        return _embed_labelled(
            embedder, data, batch_size, progress, _part(cache, part)
        )

    rows, labels, _ = embed(train, "train")
    if validation is None:
        held = np.zeros(len(rows), bool)
        order = np.random.default_rng(0).permutation(len(rows))
        held[order[: len(rows) // 5]] = True
    else:
        _same_classes(train, validation)
        more, more_labels, _ = embed(validation, "validation")
        held = np.repeat([False, True], [len(rows), len(more)])
        rows = np.concatenate([rows, more])
        labels = np.concatenate([labels, more_labels])
    queries, wanted, skipped = embed(test, "test")
    num_classes = len(train.class_names or range(labels.max() + 1))
    decay = None
    if solver == "lbfgs":
        decay, _ = sweep_decay(
            rows[~held], labels[~held], rows[held], labels[held], num_classes
        )
        weights = fit_logistic(rows, labels, num_classes, decay)
    else:
        weights = fit_sgd(rows, labels, num_classes)
    outcomes = {
        "label": wanted,
        "rank": _label_ranks(predict_scores(queries, weights), wanted),
    }
    return summarize(
        "linear-probe",
        classification_figures,
        outcomes,
        len(queries),
        samples,
        dataset=test.name,
        model=embedder.name,
        unit="picture",
        images=len(queries),
        train_images=len(rows),
        pictures_skipped=skipped,
        solver=solver,
        decay=decay,
    )


def _label_ranks(scores, labels):
    """Rank of each label among its row's scores, ties by index."""
    own = scores[np.arange(len(labels)), labels][:, None]
    before = np.arange(scores.shape[1]) < labels[:, None]
    return np.count_nonzero((scores > own) | ((scores == own) & before), axis=1)


def _same_classes(train, test):
    if train.class_names != test.class_names:
        odd = set(train.class_names or ()) ^ set(test.class_names or ())
        raise ValueError(
            f"`{train.name}` and `{test.name}` must have the same classes. "
            f"Only one of them has: {', '.join(sorted(odd)[:5])}"
        )


def _part(cache, name):
    return None if cache is None else Path(cache) / name


# === Crisscrossed Captions and words ===


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
        embedder, pictures, batch_size, progress, len(rated.images), cache
    )
    if not readable.all():
        raise ValueError(
            f"The picture `{rated.images[int(np.argmin(readable))]}` does not "
            "decode; Crisscrossed Captions needs all of them."
        )
    text_vectors = embed_texts(embedder, texts, progress=progress, cache=cache)
    pairs = cxc.retrieval_positives(rated, **(positives or {}))
    ranks = cxc.cxc_ranks(image_vectors, text_vectors, pairs)
    outcomes = {f"{task}_rank": rank for task, rank in ranks.items()}
    outcomes["caption_image"] = rated.caption_image
    result = summarize(
        "cxc",
        partial(cxc.cxc_retrieval_figures, ks=ks, drop_empty=drop_empty),
        outcomes,
        len(rated.images),
        samples,
        dataset="cxc",
        model=embedder.name,
        unit="image with its captions",
        split=split,
        queries={task: int((rank >= 0).sum()) for task, rank in ranks.items()},
        positives={task: len(found) for task, found in pairs.items()},
        drop_empty=drop_empty,
        ks=list(ks),
        positives_options=positives or {},
        correlation_options=correlation or {},
    )
    scores = cxc.model_scores(rated, image_vectors, text_vectors)
    drawn = cxc.rating_correlations(
        rated, scores, **{"samples": samples or SAMPLES, **(correlation or {})}
    )
    return _with_correlations(result, drawn)


def _with_correlations(result, drawn):
    drawn = {f"{task}_correlation": values for task, values in drawn.items()}
    drawn["mean_correlation"] = np.mean(list(drawn.values()), axis=0)
    found = {name: float(np.mean(values)) for name, values in drawn.items()}
    ends = {name: interval(values) for name, values in drawn.items()}
    deviations = {name: float(np.std(values)) for name, values in drawn.items()}
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
