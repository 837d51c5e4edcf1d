"""Nearest neighbours, against a full sort and scikit-learn."""

import shutil

import numpy as np
import pytest
from seer import Seer
from seer import write_root
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neighbors import NearestNeighbors

from align_keras.embedding import similarity as vectors
from align_keras.evaluation import datasets
from align_keras.evaluation.compare import compare_results
from align_keras.evaluation.describe_results import describe_result
from align_keras.evaluation.knn import knn_hits
from align_keras.evaluation.knn import measure_knn
from align_keras.evaluation.knn import nearest_neighbours
from align_keras.evaluation.linear_probe import measure_linear_probe


def unit(rng, *shape):
    values = rng.normal(size=shape).astype("float32")
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


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


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_root(tmp_path_factory.mktemp("root"))


def quiet(**options):
    return {"progress": False, "samples": 50, "batch_size": 3, **options}


def test_knn_and_linear_probe(root, tmp_path):
    train = datasets.class_folders(root / "imagenet" / "train", "train")
    test = datasets.class_folders(root / "imagenet" / "val", "imagenet")
    result = measure_knn(Seer().embedder(), train, test, ks=(1, 9), **quiet())
    assert result["accuracy@1"] == 1.0 and result["train_images"] == 18
    # The paper measured neighbours in its ablations alone.
    assert "B7 + BERT-base, full data" in describe_result(result)
    assert "69.3%" in describe_result(result) and "64.6%" in describe_result(
        result
    )
    assert result["chance_accuracy@1"] == pytest.approx(1 / 3)
    assert result["chance_accuracy@9"] == pytest.approx(1 - (2 / 3) ** 9)
    for solver in ("lbfgs", "sgd"):
        result = measure_linear_probe(
            Seer().embedder(), train, test, solver=solver, **quiet()
        )
        assert result["top1"] == 1.0
        # Of three classes, five are no question.
        assert set(result.metrics) == {"top1", "mean_per_class"}
        assert describe_result(result).startswith(
            "linear-probe, imagenet: 12 imag"
        )
        assert (result["decay"] is None) == (solver == "sgd")
    shutil.copytree(root / "imagenet" / "val" / "n0", tmp_path / "other" / "n9")
    fewer = tmp_path / "fewer"
    shutil.copytree(root / "imagenet" / "train", fewer)
    (fewer / "n0" / "0.png").unlink()
    fewer = datasets.class_folders(fewer, "train")
    other = measure_knn(Seer().embedder(), fewer, test, **quiet())
    result = measure_knn(Seer().embedder(), train, test, **quiet())
    with pytest.raises(ValueError, match="Received train_image_digest="):
        compare_results(result, other)
    other = datasets.class_folders(tmp_path / "other")
    with pytest.raises(ValueError, match="Only one of them has: n0"):
        measure_knn(Seer().embedder(), train, other, **quiet())
