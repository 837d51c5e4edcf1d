"""Fit linear classifiers on frozen vectors, and measure them."""

from functools import partial
from pathlib import Path

import keras
import numpy as np
from numpy.typing import ArrayLike

from align_keras.embedding.embed_streams import embed_data_set
from align_keras.embedding.embedder import Embedder
from align_keras.embedding.embedder import as_embedder
from align_keras.embedding.similarity import as_vectors
from align_keras.evaluation.accuracy import check_labels
from align_keras.evaluation.accuracy import classification_accuracies
from align_keras.evaluation.accuracy import label_ranks
from align_keras.evaluation.accuracy import useful_depths
from align_keras.evaluation.bootstrap import SAMPLES
from align_keras.evaluation.datasets import DataSet
from align_keras.evaluation.datasets import require_same_classes
from align_keras.evaluation.results import Result
from align_keras.evaluation.results import summarize
from align_keras.io.optional import OptionalModule

optimize = OptionalModule("scipy.optimize", extra="evaluation")

# The weight decays that the sweep chooses from.
DECAYS = tuple(np.logspace(-6, 2, 97).tolist())
# The sweep first tries every sixteenth of them, then halves its step.
_FIRST_STEP = 16
# Rows of logits that are in memory at once.
_ROWS = 8192


def fit_logistic(
    features: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    decay: float,
    start: np.ndarray | None = None,
    iterations: int = 1000,
) -> np.ndarray:
    """Fit a linear classifier by L-BFGS.

    It minimises the mean cross entropy plus `decay / 2` times the sum of
    squared weights; biases are not penalised. scikit-learn's
    `LogisticRegression(C)` has the same minimum for
    `C = 1 / (decay * count)`.

    Args:
        features: float array `(count, dim)`.
        labels: integer array `(count,)`.
        num_classes: integer. Classes without examples are allowed.
        decay: float. Positive.
        start: float64 array `(dim + 1, num_classes)`. Initial weights.
            Defaults to `None`, zeros.
        iterations: integer. Maximum number of iterations. Defaults to
            `1000`.

    Returns:
        float64 array `(dim + 1, num_classes)`: weights, and the biases in the
        last row.

    Raises:
        ImportError: SciPy is not installed.
        ValueError: the arrays do not fit, or `decay` is not positive.
    """
    features = as_vectors(features, "features")
    labels = check_labels(labels, len(features), num_classes)
    if not decay > 0:
        raise ValueError(f"`decay` must be positive. Received: decay={decay}")
    shape = features.shape[1] + 1, num_classes
    start = np.zeros(shape) if start is None else start

    def objective(flat):
        weights = flat.reshape(shape)
        loss, gradient = _cross_entropy(features, labels, weights)
        loss += decay / 2 * np.sum(weights[:-1] ** 2)
        gradient[:-1] += decay * weights[:-1]
        return loss, gradient.ravel()

    found = optimize.minimize(
        objective,
        start.ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": iterations, "gtol": 1e-7, "ftol": 1e-12},
    )
    return found.x.reshape(shape)


def fit_sgd(
    features: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    learning_rate: float = 0.1,
    epochs: int = 100,
    batch_size: int = 1024,
    drop: float = 0.2,
    drop_every: int = 30,
    momentum: float = 0.9,
    decay: float = 0.0,
    seed: int = 0,
) -> np.ndarray:
    """Fit a linear classifier with the paper's recipe for frozen features.

    Section 5.3: stochastic gradient descent with momentum, with a learning
    rate that falls to a fifth every 30 of 100 epochs. The paper also augments
    the images, which is impossible with vectors that are computed once; see
    the first stage of `measure_finetune` for that.

    The paper's learning rate is for features before the projection. The
    values of unit vectors are so small that it would hardly change the
    weights, so each dimension of `features` is standardised to mean 0 and
    deviation 1. The returned weights apply to the original vectors.

    Args:
        features: float array `(count, dim)`.
        labels: integer array `(count,)`.
        num_classes: integer.
        learning_rate: float. Defaults to `0.1`.
        epochs: integer. Defaults to `100`.
        batch_size: integer. Defaults to `1024`.
        drop: float. Factor on the learning rate at each drop. Defaults to
            `0.2`.
        drop_every: integer. Epochs between drops. Defaults to `30`.
        momentum: float. Defaults to `0.9`.
        decay: float. Weight decay. Defaults to `0.0`.
        seed: integer. Determines the order of examples. Defaults to `0`.

    Returns:
        float64 array `(dim + 1, num_classes)`, as from `fit_logistic`.
    """
    features = as_vectors(features, "features")
    labels = check_labels(labels, len(features), num_classes)
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    deviation[deviation == 0] = 1.0
    features = features - mean
    features /= deviation
    rng = np.random.default_rng(seed)
    weights = np.zeros((features.shape[1] + 1, num_classes))
    velocity = np.zeros_like(weights)
    for epoch in range(epochs):
        rate = learning_rate * drop ** (epoch // drop_every)
        order = rng.permutation(len(features))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            _, gradient = _cross_entropy(
                features[batch], labels[batch], weights
            )
            gradient[:-1] += decay * weights[:-1]
            velocity = momentum * velocity - rate * gradient
            weights += velocity
    weights[:-1] /= deviation[:, None]
    weights[-1] -= mean @ weights[:-1]
    return weights


def _cross_entropy(features, labels, weights):
    """Compute the mean cross entropy and its gradient, in blocks of rows."""
    loss, gradient = 0.0, np.zeros_like(weights)
    for start in range(0, len(features), _ROWS):
        block = features[start : start + _ROWS].astype("float64")
        own = np.arange(len(block)), labels[start : start + _ROWS]
        logits = block @ weights[:-1] + weights[-1]
        logits -= logits.max(axis=1, keepdims=True)
        chosen = logits[own]
        np.exp(logits, out=logits)
        totals = logits.sum(axis=1)
        loss += np.sum(np.log(totals) - chosen)
        logits /= totals[:, None]
        logits[own] -= 1.0
        gradient[:-1] += block.T @ logits
        gradient[-1] += logits.sum(axis=0)
    return loss / len(features), gradient / len(features)


def predict_scores(features: ArrayLike, weights: np.ndarray) -> np.ndarray:
    """Score every class.

    Args:
        features: float array `(count, dim)`.
        weights: float64 array `(dim + 1, num_classes)`.

    Returns:
        float64 array `(count, num_classes)`.
    """
    return as_vectors(features, "features") @ weights[:-1] + weights[-1]


def sweep_decay(
    features: ArrayLike,
    labels: ArrayLike,
    validation_features: np.ndarray,
    validation_labels: ArrayLike,
    num_classes: int,
) -> tuple[float, dict[float, float]]:
    """Choose the weight decay that is best on held-out examples.

    There are 97 candidates from 1e-6 to 1e2, evenly spaced in their
    logarithm. Every sixteenth is tried, then the neighbours of the best one
    at half the distance, and so on. In case of ties, the stronger decay wins.

    Args:
        features: float array `(count, dim)`.
        labels: integer array `(count,)`.
        validation_features: float array `(held_out, dim)`.
        validation_labels: integer array `(held_out,)`.
        num_classes: integer.

    Returns:
        A pair: the chosen decay, and a dictionary from each decay that was
        tried to its accuracy.
    """
    validation_labels = check_labels(
        validation_labels, len(validation_features), num_classes
    )
    tried: dict[int, float] = {}
    weights = None
    step = _FIRST_STEP
    places = list(range(0, len(DECAYS), step))
    while step:
        # From strong to weak: each fit starts from the solution before it.
        for place in sorted(places, reverse=True):
            if place not in tried:
                weights = fit_logistic(
                    features, labels, num_classes, DECAYS[place], weights
                )
                scores = predict_scores(validation_features, weights)
                hits = scores.argmax(axis=1) == validation_labels
                tried[place] = float(np.mean(hits))
        best = max(tried, key=lambda place: (tried[place], place))
        step //= 2
        places = [
            place
            for place in (best - step, best + step)
            if 0 <= place < len(DECAYS)
        ]
    return DECAYS[best], {DECAYS[n]: hit for n, hit in sorted(tried.items())}


def measure_linear_probe(
    model: Embedder | keras.Model,
    train: DataSet,
    test: DataSet,
    validation: DataSet | None = None,
    solver: str = "lbfgs",
    batch_size: int = 64,
    progress: bool = True,
    cache: str | Path | None = None,
    samples: int = SAMPLES,
) -> Result:
    """Measure a linear classifier on frozen vectors.

    With the solver `"lbfgs"`, the weight decay is chosen on held-out images
    (`sweep_decay`), and the classifier is then fitted again on all training
    images. `"sgd"` is the paper's recipe for its head, `fit_sgd`.

    Args:
        model: an `align_keras.AlignDualEncoder` with a preprocessor, or an
            `Embedder`.
        train: a `DataSet` with labels.
        test: a `DataSet` with the same classes.
        validation: a `DataSet` with the same classes. The decay is chosen on
            it, and either solver then trains on it, too. Defaults to `None`:
            a fifth of the training images, drawn with a fixed seed.
        solver: string. `"lbfgs"` or `"sgd"`. Defaults to `"lbfgs"`.
        batch_size, progress, cache, samples: See `measure_retrieval`.

    Returns:
        A `Result` with `classification_accuracies`, and the `"decay"`.

    Raises:
        ImportError: SciPy is not installed.
        ValueError: the data sets have different classes, or `solver` is
            unknown.
    """
    if solver not in ("lbfgs", "sgd"):
        raise ValueError(
            f"`solver` must be 'lbfgs' or 'sgd'. Received: solver={solver!r}"
        )
    embedder = as_embedder(model)
    require_same_classes(train, test)

    def embed(data):
        rows, labels, skipped, digest = embed_data_set(
            embedder, data, batch_size, progress, cache
        )
        return rows, np.array(labels, "int64"), skipped, digest

    rows, labels, _, train_digest = embed(train)
    if validation is None:
        held: np.ndarray = np.zeros(len(rows), bool)
        order = np.random.default_rng(0).permutation(len(rows))
        held[order[: len(rows) // 5]] = True
    else:
        require_same_classes(train, validation)
        more, more_labels, _, more_digest = embed(validation)
        train_digest += more_digest
        held = np.repeat([False, True], [len(rows), len(more)])
        rows = np.concatenate([rows, more])
        labels = np.concatenate([labels, more_labels])
    queries, wanted, skipped, digest = embed(test)
    last = max(labels.max(), wanted.max())
    num_classes = len(train.class_names or range(last + 1))
    wanted = check_labels(wanted, len(queries), num_classes)
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
        partial(classification_accuracies, ks=ks),
        outcomes,
        len(queries),
        samples,
        dataset=test.name,
        model=embedder.name,
        unit="image",
        images=len(queries),
        train_images=len(rows),
        train_image_digest=train_digest,
        image_digest=digest,
        images_skipped=skipped,
        solver=solver,
        decay=decay,
        ks=ks,
    )
