"""Linear classifiers, against scikit-learn and their definition."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from align_keras.embedding import Embedder
from align_keras.evaluation import linear_probe
from align_keras.evaluation.datasets import DataSet


def unit(rng, *shape):
    values = rng.normal(size=shape).astype("float32")
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def blobs():
    rng = np.random.default_rng(2)
    centres = unit(rng, 4, 12)
    labels = rng.integers(0, 4, 240)
    features = centres[labels] + 0.5 * rng.normal(size=(240, 12))
    return features.astype("float32"), labels


@pytest.mark.parametrize("decay", [1e-4, 0.3])
def test_logistic_regression_matches_scikit_learn(blobs, decay, monkeypatch):
    features, labels = blobs
    monkeypatch.setattr(linear_probe, "_ROWS", 100)
    weights = linear_probe.fit_logistic(features, labels, 4, decay)
    reference = LogisticRegression(
        C=1 / (decay * len(labels)), tol=1e-9, max_iter=10_000
    ).fit(features.astype("float64"), labels)
    scores = linear_probe.predict_scores(features, weights)
    expected = reference.decision_function(features)
    # Scores are defined up to a constant for each row.
    scores -= scores.mean(axis=1, keepdims=True)
    expected -= expected.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(scores, expected, atol=2e-3)


def test_sweep_is_closed_and_finds_a_maximum(blobs):
    features, labels = blobs
    chosen, tried = linear_probe.sweep_decay(
        features[:80], labels[:80], features[80:], labels[80:], 5
    )
    assert set(tried) <= set(linear_probe.DECAYS)
    assert tried[chosen] == max(tried.values()) > 0.5
    place = linear_probe.DECAYS.index(chosen)
    for neighbour in (place - 1, place + 1):
        assert linear_probe.DECAYS[neighbour] in tried


def test_sgd_follows_its_definition(blobs):
    features, labels = blobs
    found = linear_probe.fit_sgd(
        features, labels, 4, 0.5, epochs=3, batch_size=100, drop_every=2, seed=7
    )
    rng = np.random.default_rng(7)
    weights, velocity = np.zeros((13, 4)), np.zeros((13, 4))
    mean, deviation = features.mean(0), features.std(0)
    inputs = np.c_[(features - mean) / deviation, np.ones(240)]
    for rate in (0.5, 0.5, 0.1):
        order = rng.permutation(240)
        for batch in (order[:100], order[100:200], order[200:]):
            logits = np.exp(inputs[batch] @ weights)
            errors = logits / logits.sum(1, keepdims=True)
            errors = errors - np.eye(4)[labels[batch]]
            gradient = inputs[batch].T @ errors / len(batch)
            velocity = 0.9 * velocity - rate * gradient
            weights = weights + velocity
    np.testing.assert_allclose(
        linear_probe.predict_scores(features, found),
        inputs @ weights,
        atol=1e-4,
    )


def test_the_papers_recipe_is_enough_for_unit_vectors():
    """Many classes that overlap, few images of each, one common part."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(30, 96))

    def draw(count):
        labels = rng.integers(0, 30, count)
        rows = centres[labels] + 3.5 * rng.normal(size=(count, 96)) + 4
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows.astype("float32"), labels

    (features, labels), (queries, wanted) = draw(1500), draw(1500)

    def accuracy(weights):
        scores = linear_probe.predict_scores(queries, weights)
        return np.mean(scores.argmax(axis=1) == wanted)

    # The decay that a sweep finds.
    best = accuracy(linear_probe.fit_logistic(features, labels, 30, 2e-4))
    assert 0.3 < best < 0.9
    assert accuracy(linear_probe.fit_sgd(features, labels, 30)) > best - 0.05


@pytest.mark.parametrize("names", [None, ["a", "b"]])
def test_labels_that_only_the_test_has(names):
    seer = Embedder("eye", lambda batch: np.stack(batch)[:, 0, 0], None)

    def data(*labels):
        rows = [np.array([[[n, 9, 1]]], "uint8") for n in range(len(labels))]
        return DataSet(
            "own",
            lambda: (
                (str(n), row, label)
                for n, (row, label) in enumerate(zip(rows, labels, strict=True))
            ),
            class_names=names,
        )

    def measure():
        return linear_probe.measure_linear_probe(
            seer,
            data(*[0, 1] * 5),
            data(0, 1, 2),
            progress=False,
            samples=0,
        )

    if names:
        with pytest.raises(ValueError, match="between 0 and 1.*Received: 2"):
            measure()
    else:
        # A class that nobody learned is never right, which counts.
        result = measure()
        assert result["images"] == 3 and result["top1"] < 1
