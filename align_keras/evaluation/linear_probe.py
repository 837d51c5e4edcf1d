"""Multinomial logistic regression on frozen vectors."""

import numpy as np

from align_keras.embedding.scores import as_vectors
from align_keras.evaluation.classification import check_labels

# The closed set of weight decays that the sweep may choose from.
DECAYS = tuple(np.logspace(-6, 2, 97).tolist())
# The sweep first looks at every so-manieth of them, then halves its step.
_FIRST_STEP = 16
# Rows of logits that are held at once.
_ROWS = 8192


def fit_logistic(
    features, labels, num_classes, decay, start=None, iterations=1000
):
    """Fit a linear classifier by L-BFGS.

    The mean cross entropy plus `decay / 2` times the squared weights is
    minimised; biases are free. scikit-learn's `LogisticRegression(C)` has the
    same minimum for `C = 1 / (decay * count)`.

    Args:
        features: float array `(count, dim)`.
        labels: integer array `(count,)`.
        num_classes: integer. Classes without examples are allowed.
        decay: float, positive.
        start: float64 array `(dim + 1, num_classes)` to start from. Defaults
            to `None`, zeros.
        iterations: integer. Their greatest number. Defaults to `1000`.

    Returns:
        float64 array `(dim + 1, num_classes)`: weights, and the biases in the
        last row.

    Raises:
        ImportError: SciPy is not installed.
        ValueError: the arrays do not fit, or `decay` is not positive.
    """
    try:
        from scipy.optimize import minimize
    except ImportError as error:
        raise ImportError(
            "The linear probe needs SciPy: pip install "
            '"align-keras[evaluation]".'
        ) from error
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

    found = minimize(
        objective,
        start.ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": iterations, "gtol": 1e-7, "ftol": 1e-12},
    )
    return found.x.reshape(shape)


def fit_sgd(
    features,
    labels,
    num_classes,
    learning_rate=0.1,
    epochs=100,
    batch_size=1024,
    drop=0.2,
    drop_every=30,
    momentum=0.9,
    decay=0.0,
    seed=0,
):
    """Fit a linear classifier as the paper trains its head on frozen features.

    Section 5.3: stochastic gradient descent with momentum; the rate falls to
    a fifth every 30 of 100 epochs. The paper augments the pictures meanwhile,
    which vectors that were computed once cannot show; for that, see the first
    stage of `finetune_classifier`.

    The paper's rate is for features before the projection. Those of unit
    vectors are so small that it would hardly move the weights, so each
    dimension is brought to a mean of 0 and a deviation of 1 on `features`;
    the weights that are returned take the vectors as they are.

    Args:
        features: float array `(count, dim)`.
        labels: integer array `(count,)`.
        num_classes: integer.
        learning_rate: float. Defaults to `0.1`.
        epochs: integer. Defaults to `100`.
        batch_size: integer. Defaults to `1024`.
        drop: float. Factor of the learning rate. Defaults to `0.2`.
        drop_every: integer. Epochs between drops. Defaults to `30`.
        momentum: float. Defaults to `0.9`.
        decay: float. Weight decay. Defaults to `0.0`.
        seed: integer. Of the order of the examples. Defaults to `0`.

    Returns:
        float64 array `(dim + 1, num_classes)`, as `fit_logistic` gives it.
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
    """Mean cross entropy and its gradient, a block of rows at a time."""
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


def predict_scores(features, weights):
    """Score every class.

    Args:
        features: float array `(count, dim)`.
        weights: float64 array `(dim + 1, num_classes)`.

    Returns:
        float64 array `(count, num_classes)`.
    """
    return as_vectors(features, "features") @ weights[:-1] + weights[-1]


def sweep_decay(
    features, labels, validation_features, validation_labels, num_classes
):
    """Choose the weight decay that is best on held-out examples.

    The search is closed: 97 values from 1e-6 to 1e2, evenly spaced in their
    logarithm. Every sixteenth is tried, then the neighbours of the best at
    half the distance, and so on. Among equals the stronger decay wins.

    Args:
        features: float array `(count, dim)`.
        labels: integer array `(count,)`.
        validation_features: float array `(held_out, dim)`.
        validation_labels: integer array `(held_out,)`.
        num_classes: integer.

    Returns:
        A pair: the decay, and a dictionary from each decay that was tried to
        its accuracy.
    """
    validation_labels = check_labels(
        validation_labels, len(validation_features), num_classes
    )
    tried, weights = {}, None
    step = _FIRST_STEP
    places = list(range(0, len(DECAYS), step))
    while step:
        # From strong to weak: each solution starts the next one.
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
