import numpy as np
import pytest

from align_keras.search import top_k


@pytest.mark.parametrize("k", [1, 2, 7, 40, 100])
@pytest.mark.parametrize("kind", ["random", "ties", "constant"])
def test_top_k_matches_a_full_sort(kind, k, monkeypatch):
    monkeypatch.setattr(
        "align_keras.embedding.similarity.BLOCK", 100
    )  # 2 queries
    rng = np.random.default_rng(k)
    vectors = rng.normal(size=(40, 5)).astype("float32")
    queries = rng.normal(size=(6, 5)).astype("float32")
    if kind == "ties":
        vectors, queries = np.sign(vectors), np.sign(queries)
    if kind == "constant":
        vectors[:] = vectors[0]
    indices, scores = top_k(queries, vectors, k)
    assert indices.shape == scores.shape == (6, min(k, 40))
    for query, row, row_scores in zip(queries, indices, scores, strict=True):
        products = (vectors.astype("float64") @ query).astype("float32")
        order = sorted(range(40), key=lambda i: (-products[i], i))[:k]
        assert row.tolist() == order
        np.testing.assert_array_equal(row_scores, products[order])
    one_index, one_scores = top_k(queries[2], vectors, k)
    np.testing.assert_array_equal(one_index, indices[2])
    np.testing.assert_array_equal(one_scores, scores[2])


@pytest.mark.parametrize(
    "query, vectors, k, message",
    [
        (np.ones(2), np.ones((3, 4)), 1, "same dimension.*2 and 4"),
        (np.ones(4), np.ones((0, 4)), 1, "vectors.*one row"),
        ([np.nan] * 4, np.ones((3, 4)), 1, "query.*NaN"),
        (np.ones(4), np.ones((3, 4)), 0, "positive integer.*k=0"),
    ],
)
def test_top_k_refuses(query, vectors, k, message):
    with pytest.raises(ValueError, match=message):
        top_k(query, vectors, k)
