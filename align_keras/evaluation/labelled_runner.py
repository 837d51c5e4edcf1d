"""Classification by a model's vectors, on labelled pictures from disk."""

import hashlib
import json
from functools import partial

import numpy as np

from align_keras.classes import check_templates
from align_keras.classes import class_vectors
from align_keras.embedding.embedder import as_embedder
from align_keras.embedding.streams import embed_data_set
from align_keras.embedding.streams import embed_texts
from align_keras.evaluation import datasets
from align_keras.evaluation.bootstrap import SAMPLES
from align_keras.evaluation.classification import classification_figures
from align_keras.evaluation.classification import classification_outcomes
from align_keras.evaluation.classification import label_ranks
from align_keras.evaluation.classification import useful_depths
from align_keras.evaluation.knn import knn_hits
from align_keras.evaluation.knn import nearest_neighbours
from align_keras.evaluation.linear_probe import fit_logistic
from align_keras.evaluation.linear_probe import fit_sgd
from align_keras.evaluation.linear_probe import predict_scores
from align_keras.evaluation.linear_probe import sweep_decay
from align_keras.evaluation.results import summarize
from align_keras.evaluation.retrieval import check_ks
from align_keras.evaluation.templates import TEMPLATES


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
        ensemble: string. See `class_vectors`. Defaults to `"normalized"`.
        all_classes: bool. Whether a picture competes with all of `classes`,
            or with those that the data set has, as it is usual for the 200
            classes of ImageNet-R and -A. Defaults to `False`.
        batch_size: int. Pictures in one call of the network. Defaults to
            `64`.
        ks: tuple of ints. Defaults to `(1, 5)`.
        progress: bool. Whether to draw progress bars. Defaults to `True`.
        cache: string or `pathlib.Path`. A directory for vectors. Defaults to
            `None`.
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
    templates = check_templates(templates, "templates")
    templates = templates or classes.templates or list(TEMPLATES)
    images, labels, skipped, pictures = _embed_labelled(
        embedder, data, batch_size, progress, cache
    )
    labels, chosen = _match_classes(data, labels, classes, all_classes)
    names = [classes.names[position] for position in chosen]
    vectors = class_vectors(
        partial(embed_texts, embedder, progress=progress, cache=cache),
        names,
        templates,
        ensemble,
    )
    outcomes = classification_outcomes(images, vectors, labels)
    ks = useful_depths(ks, len(chosen))
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
        pictures=pictures,
        pictures_skipped=skipped,
        templates=len(templates),
        prompts=_digest([names, templates]),
        ensemble=ensemble,
        ks=ks,
        **{f"chance_top{k}": min(1.0, k / len(chosen)) for k in ks},
    )


def _digest(prompts):
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16]


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


def _embed_labelled(*args):
    found = embed_data_set(*args)
    return found._replace(notes=np.array(found.notes, "int64"))


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
        cache: string or `pathlib.Path`. A directory for vectors. Defaults to
            `None`.
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
    rows, labels, _, train_pictures = _embed_labelled(
        embedder, train, batch_size, progress, cache
    )
    queries, wanted, skipped, pictures = _embed_labelled(
        embedder, test, batch_size, progress, cache
    )
    found, _ = nearest_neighbours(queries, rows, max(ks))
    hits = knn_hits(labels[found], wanted, ks)
    outcomes = {f"hit@{k}": hit for k, hit in hits.items()}
    outcomes["label"] = wanted
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
        train_pictures=train_pictures,
        pictures=pictures,
        pictures_skipped=skipped,
        **{f"chance_accuracy@{k}": _knn_chance(labels, wanted, k) for k in ks},
    )


def knn_figures(outcomes, weights=None):
    """Share of hits, for each K of `knn_hits`."""
    return {
        name.replace("hit", "accuracy"): float(
            np.average(outcomes[name], weights=weights)
        )
        for name in outcomes
        if name.startswith("hit@")
    }


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
        cache: string or `pathlib.Path`. A directory for vectors. Defaults to
            `None`.
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

    def embed(data):
        return _embed_labelled(embedder, data, batch_size, progress, cache)

    rows, labels, _, train_pictures = embed(train)
    if validation is None:
        held = np.zeros(len(rows), bool)
        order = np.random.default_rng(0).permutation(len(rows))
        held[order[: len(rows) // 5]] = True
    else:
        _same_classes(train, validation)
        more, more_labels, _, more_pictures = embed(validation)
        train_pictures += more_pictures
        held = np.repeat([False, True], [len(rows), len(more)])
        rows = np.concatenate([rows, more])
        labels = np.concatenate([labels, more_labels])
    queries, wanted, skipped, pictures = embed(test)
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
        "rank": label_ranks(predict_scores(queries, weights), wanted),
    }
    ks = useful_depths((1, 5), num_classes)
    return summarize(
        "linear-probe",
        partial(classification_figures, ks=ks),
        outcomes,
        len(queries),
        samples,
        dataset=test.name,
        model=embedder.name,
        unit="picture",
        images=len(queries),
        train_images=len(rows),
        train_pictures=train_pictures,
        pictures=pictures,
        pictures_skipped=skipped,
        solver=solver,
        decay=decay,
        ks=ks,
    )


def _same_classes(train, test):
    if train.class_names != test.class_names:
        odd = set(train.class_names or ()) ^ set(test.class_names or ())
        raise ValueError(
            f"`{train.name}` and `{test.name}` must have the same classes. "
            f"Only one of them has: {', '.join(sorted(odd)[:5])}"
        )
