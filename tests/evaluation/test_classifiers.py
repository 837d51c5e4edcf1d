"""Nearest neighbours, zero-shot accuracy and the linear probe on arrays."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neighbors import NearestNeighbors

from align_keras.classes import class_vectors
from align_keras.embedding import scores as vectors
from align_keras.evaluation import linear_probe
from align_keras.evaluation.classification import classification_figures
from align_keras.evaluation.classification import classification_outcomes
from align_keras.evaluation.knn import knn_hits
from align_keras.evaluation.knn import nearest_neighbours


def unit(rng, *shape):
    values = rng.normal(size=shape).astype("float32")
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


# === Nearest neighbours ===


@pytest.mark.parametrize("kind", ["random", "ties", "equal"])
@pytest.mark.parametrize("block", [40, 1 << 24])
@pytest.mark.parametrize("k", [1, 7, 100])
def test_neighbours_match_a_full_sort(kind, block, k, monkeypatch):
    monkeypatch.setattr(vectors, "BLOCK", block)
    rng = np.random.default_rng(k)
    queries, rows = rng.normal(size=(13, 7)), rng.normal(size=(60, 7))
    if kind == "ties":
        queries, rows = np.sign(queries), np.sign(rows)
    if kind == "equal":
        rows[:] = rows[0]
    queries, rows = queries.astype("float32"), rows.astype("float32")
    found, scores = nearest_neighbours(queries, rows, k)
    exact = vectors.exact_scores(queries, rows)
    expected = np.argsort(-exact, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(
        scores, np.take_along_axis(exact, expected, axis=1)
    )


def test_neighbours_match_scikit_learn(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    rows, queries = unit(rng, 900, 20), unit(rng, 70, 20)
    labels, wanted = rng.integers(0, 9, 900), rng.integers(0, 9, 70)
    np.save(tmp_path / "rows.npy", rows)
    on_disk = np.load(tmp_path / "rows.npy", mmap_mode="r")
    monkeypatch.setattr(vectors, "BLOCK", 2000)
    found, _ = nearest_neighbours(queries, on_disk, 5)
    reference = NearestNeighbors(n_neighbors=5, metric="cosine").fit(rows)
    expected = reference.kneighbors(queries, return_distance=False)
    np.testing.assert_array_equal(found, expected)
    hits = knn_hits(labels[found], wanted, (1, 5))
    classifier = KNeighborsClassifier(1, metric="cosine").fit(rows, labels)
    np.testing.assert_array_equal(
        hits[1], classifier.predict(queries) == wanted
    )
    in_five = [
        w in labels[row] for w, row in zip(wanted, expected, strict=True)
    ]
    assert hits[5].tolist() == in_five
    assert hits[1].sum() < hits[5].sum() < 70


def test_bad_neighbours_are_named():
    rows = np.eye(4)
    rows[2, 1] = np.nan
    with pytest.raises(ValueError, match=r"candidates\[0:4096\].*at index 2"):
        nearest_neighbours(np.eye(4), rows, 1)
    with pytest.raises(ValueError, match=r"\(4, 4\) and \(3, 3\)"):
        nearest_neighbours(np.eye(4), np.eye(3), 1)
    with pytest.raises(ValueError, match=r"ks=\(0,\)"):
        nearest_neighbours(np.eye(4), np.eye(4), 0)
    with pytest.raises(ValueError, match="each of the 3"):
        knn_hits(np.zeros((2, 1)), np.zeros(3))


# === Zero-shot ===


def test_prompts_of_a_class():
    rows = {
        "a cat": [4.0, 0.0],
        "the cat": [0.0, 1.0],
        "a dog": [-3.0, 4.0],
        "the dog": [-0.6, 0.8],
        "a hound": [1.0, 0.0],
        "the hound": [-2.0, 0.0],
    }

    def embed(texts):
        return np.array([rows[text] for text in texts])

    classes = ["cat", ["dog", "hound"]]
    templates = ["a {}", "the {}"]
    np.testing.assert_allclose(
        class_vectors(embed, classes, templates),
        [[np.sqrt(0.5)] * 2, [-0.6, 0.8]],
        atol=1e-7,
    )
    np.testing.assert_allclose(
        class_vectors(embed, classes, templates, "plain"),
        [[4, 1] / np.sqrt(17), [-4.6, 4.8] / np.hypot(4.6, 4.8)],
        atol=1e-7,
    )
    with pytest.raises(ValueError, match="'hound' cancel out"):
        class_vectors(embed, ["cat", "hound"], templates)
    with pytest.raises(ValueError, match="'mean'"):
        class_vectors(embed, classes, templates, "mean")
    with pytest.raises(ValueError, match="hold `{}` once.*'a cat'"):
        class_vectors(embed, classes, ["a cat"])


def test_accuracies_match_brute_force():
    rng = np.random.default_rng(1)
    images, classes = np.sign(unit(rng, 50, 4)), np.sign(unit(rng, 8, 4))
    labels = rng.integers(0, 7, 50)  # The class 7 has no picture.
    outcomes = classification_outcomes(images, classes, labels)
    order = np.argsort(-(images @ classes.T), axis=1, kind="stable")
    right = order[:, 0] == labels
    figures = classification_figures(outcomes, ks=(1, 3))
    assert figures["top1"] == np.mean(right)
    in_three = (order[:, :3] == labels[:, None]).any(axis=1)
    assert figures["top3"] == np.mean(in_three)
    by_class = [np.mean(right[labels == c]) for c in range(7)]
    assert figures["mean_per_class"] == pytest.approx(np.mean(by_class))
    weights = rng.integers(0, 3, 50)
    weighted = classification_figures(outcomes, weights, ks=(1,))
    assert weighted["top1"] == np.mean(np.repeat(right, weights))
    with pytest.raises(ValueError, match="Received: 8 at index 0"):
        classification_outcomes(images[:1], classes, [8])
    images[3, 0] = np.inf
    with pytest.raises(ValueError, match="infinity.*index 3"):
        classification_outcomes(images, classes, labels)


# === Linear probe ===


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
    """Many classes that overlap, few pictures of each, one common part."""
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
