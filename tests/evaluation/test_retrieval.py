import math

import numpy as np
import pytest

from align_keras.embedding import similarity as vectors
from align_keras.evaluation.ranks import best_positive_ranks
from align_keras.evaluation.retrieval import retrieval_chance
from align_keras.evaluation.retrieval import retrieval_metrics


def brute_force(images, texts, owners, ks):
    """The definition, one query at a time, by sorting whole rankings."""

    def recalls(queries, candidates, positives_of):
        ranks = []
        for query, positives in zip(queries, positives_of, strict=True):
            if not positives:
                continue
            scores = [
                np.float32(math.fsum(np.multiply(query, c, dtype=float)))
                for c in candidates
            ]
            order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
            ranks.append(min(order.index(p) for p in positives))
        return ranks

    captions = [
        [t for t, owner in enumerate(owners) if owner == i]
        for i in range(len(images))
    ]
    ranks = {
        "image_to_text": recalls(images, texts, captions),
        "text_to_image": recalls(texts, images, [[o] for o in owners]),
    }
    result = {}
    for way, way_ranks in ranks.items():
        for k in ks:
            hits = [rank < k for rank in way_ranks]
            result[f"{way}_recall@{k}"] = sum(hits) / len(hits)
    result["mean_recall"] = np.mean(list(result.values()))
    for way, way_ranks in ranks.items():
        result[f"{way}_median_rank"] = np.median(way_ranks) + 1
    return result


def assert_same(result, expected):
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, abs=1e-12), name


def unit(rng, *shape):
    values = rng.normal(size=shape).astype("float32")
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["random", "ties", "duplicates"])
def test_metrics_match_brute_force(seed, kind, monkeypatch):
    rng = np.random.default_rng(seed)
    num_images, num_texts, dim = 23, 57, 7
    if kind == "random":
        images, texts = unit(rng, num_images, dim), unit(rng, num_texts, dim)
    elif kind == "ties":
        # Few distinct scores, so that nearly every rank is decided by a tie.
        images = rng.integers(-1, 2, (num_images, dim)).astype("float32")
        texts = rng.integers(-1, 2, (num_texts, dim)).astype("float32")
    else:
        images = unit(rng, 4, dim)[rng.integers(0, 4, num_images)]
        texts = unit(rng, 5, dim)[rng.integers(0, 5, num_texts)]
    # Captions in any order; images 20 to 22 have none.
    owners = rng.integers(0, 20, num_texts)
    monkeypatch.setattr(vectors, "BLOCK", 100)  # several ragged blocks
    result = retrieval_metrics(images, texts, owners, ks=(1, 3, 10))
    assert_same(result, brute_force(images, texts, owners, (1, 3, 10)))
    without = num_images - len(set(owners.tolist()))
    assert result["images_without_text"] == without >= 3
    assert (result["images"], result["texts"]) == (num_images, num_texts)


@pytest.mark.parametrize("block", [1, 40, 1000, 1 << 24])
def test_block_size_does_not_matter(block, monkeypatch):
    rng = np.random.default_rng(0)
    images = unit(rng, 50, 33)[rng.integers(0, 9, 50)]
    texts = unit(rng, 120, 33)[rng.integers(0, 9, 120)]
    owners = rng.integers(0, 50, 120)
    expected = retrieval_metrics(images, texts, owners)
    monkeypatch.setattr(vectors, "BLOCK", block)
    assert retrieval_metrics(images, texts, owners) == expected


@pytest.mark.parametrize("dim", [64, 640, 643])
def test_equal_vectors_tie_whatever_their_place(dim):
    # A product in float32 rounds differently at the edges of its tiles, which
    # would order these copies by place instead of by index.
    rng = np.random.default_rng(3)
    queries = unit(rng, 13, dim)
    vector = unit(rng, 1, dim)
    reference = [math.fsum(q * vector[0].astype(float)) for q in queries]
    for copies in (7, 33, 1031):
        candidates = np.repeat(vector, copies, axis=0)
        for count in (1, 5, 13):
            scores = vectors.exact_scores(queries[:count], candidates)
            expected = np.float32(reference[:count])[:, None]
            np.testing.assert_array_equal(scores, expected + 0 * scores)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_constant_model_scores_chance(dtype):
    owners = np.arange(200) // 2
    rng = np.random.default_rng(1)
    images = np.repeat(unit(rng, 1, 16), 100, axis=0).astype(dtype)
    texts = np.repeat(unit(rng, 1, 16), 200, axis=0).astype(dtype)
    result = retrieval_metrics(images, texts, owners)
    for k in (1, 5, 10):
        assert result[f"text_to_image_recall@{k}"] == k / 100
    assert result["image_to_text_recall@1"] == 1 / 100
    assert result["image_to_text_recall@10"] == 5 / 100


def test_perfect_model_and_depth_beyond_the_candidates():
    result = retrieval_metrics(np.eye(3), np.eye(3)[[2, 0, 1]], [2, 0, 1])
    assert result["mean_recall"] == 1.0
    assert result["image_to_text_median_rank"] == 1.0
    worst = retrieval_metrics(-np.eye(3), np.eye(3), [0, 1, 2], ks=(2, 3, 50))
    assert worst["text_to_image_recall@2"] == 0.0
    assert worst["text_to_image_recall@50"] == 1.0


def test_rank_of_best_positive():
    candidates = [[0.1], [0.9], [0.5], [0.9]]
    pairs = [[0, 2], [0, 3], [2, 0]]
    ranks = best_positive_ranks([[1.0], [1.0], [-1.0]], candidates, pairs)
    # Candidate 3 ties with 1, which comes first; query 1 has no positive.
    assert ranks.tolist() == [1, -1, 0]


def test_chance_matches_random_orders():
    owners = np.array([0, 0, 0, 1, 2, 2, 4])
    chance = retrieval_chance(owners, 6, ks=(1, 3))
    rng = np.random.default_rng(0)
    hits = np.zeros(4)
    trials = 20_000
    for _ in range(trials):
        order = owners[rng.permutation(7)]
        hits += [i in order[:3] for i in (0, 1, 2, 4)]
    measured = np.mean(hits / trials)
    assert chance["image_to_text_recall@3"] == pytest.approx(measured, abs=0.01)
    assert chance["image_to_text_recall@1"] == pytest.approx(7 / 7 / 4)
    assert chance["text_to_image_recall@3"] == 0.5
    assert retrieval_chance([0], 1, ks=(9,))["mean_recall"] == 1.0


def good():
    return {
        "image_embeddings": np.eye(3),
        "text_embeddings": np.eye(3),
        "text_to_image": np.arange(3),
    }


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image_embeddings": np.zeros((0, 3))}, "image_embeddings.*one row"),
        ({"text_embeddings": np.zeros(3)}, r"text_embeddings.*\(3,\)"),
        ({"text_embeddings": np.eye(3, 4)}, "same dimension.*3 and 4"),
        ({"text_embeddings": [[0, 0, 1], [0, np.nan, 0]]}, "first at index 1"),
        ({"image_embeddings": np.full((3, 3), np.inf)}, "3 of 3 rows"),
        ({"text_to_image": [0, 1]}, "each of the 3 texts"),
        ({"text_to_image": [0.0, 1.0, 2.0]}, "float64"),
        ({"text_to_image": [0, 3, 1]}, "0 and 2.*Received: 3 at index 1"),
        ({"text_to_image": [0, 1, -1]}, "Received: -1 at index 2"),
        ({"ks": ()}, "positive integers"),
        ({"ks": (0,)}, "positive integers"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(**{**good(), **change})


def test_bad_pairs_are_named():
    with pytest.raises(ValueError, match=r"pair: \[0, 2\]"):
        best_positive_ranks(np.eye(2), np.eye(2), [[0, 1], [0, 2]])
    with pytest.raises(ValueError, match=r"\(num_pairs, 2\)"):
        best_positive_ranks(np.eye(2), np.eye(2), [0, 1])
