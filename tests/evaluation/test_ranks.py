import numpy as np
import pytest

from align_keras.embedding import similarity as vectors
from align_keras.evaluation.ranks import best_positive_ranks
from align_keras.evaluation.retrieval import retrieval_metrics
from align_keras.evaluation.retrieval import retrieval_outcomes
from align_keras.evaluation.retrieval import retrieval_recalls


def unit(rng, *shape):
    values = rng.normal(size=shape).astype("float32")
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def brute_force(queries, candidates, positives, exclude_self=False):
    """open_clip's rule: higher scores, and equal scores of lower index."""
    scores = queries.astype("float64") @ candidates.T.astype("float64")
    scores = scores.astype("float32")
    ranks = []
    for query in range(len(queries)):
        own = [
            sum(
                (scores[query, c], -c) > (scores[query, p], -p)
                for c in range(len(candidates))
                if not (exclude_self and c == query)
            )
            for q, p in positives
            if q == query
        ]
        ranks.append(min(own, default=-1))
    return ranks


@pytest.mark.parametrize("kind", ["random", "ties", "equal", "near"])
@pytest.mark.parametrize("block", [30, 1 << 24])
def test_excluding_oneself(kind, block, monkeypatch):
    monkeypatch.setattr(vectors, "BLOCK", block)
    rng = np.random.default_rng(5)
    rows = unit(rng, 30, 6)
    if kind == "ties":
        rows = np.sign(rows)
    if kind == "equal":
        rows[:] = rows[0]
    if kind == "near":
        # Closer to each other than products in float32 can tell.
        rows = rows[:1] + 1e-7 * rows
    pairs = rng.integers(0, 30, (50, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    ranks = best_positive_ranks(rows, rows, pairs, exclude_self=True)
    assert ranks.tolist() == brute_force(rows, rows, pairs, True)
    assert (ranks == -1).any() and (ranks > 0).any()
    with pytest.raises(ValueError, match=r"answer itself.*\[3, 3\]"):
        best_positive_ranks(rows, rows, [[3, 3]], exclude_self=True)


def test_thousands_that_float32_cannot_tell_apart():
    rng = np.random.default_rng(1)
    base = unit(rng, 1, 640)
    candidates = base + 3e-8 * unit(rng, 3000, 640)
    queries = base + 1e-3 * unit(rng, 90, 640)
    pairs = np.stack([np.arange(90), rng.integers(0, 3000, 90)], axis=1)
    exact = vectors.exact_scores(queries, candidates.astype("float32"))
    best = exact[pairs[:, 0], pairs[:, 1]][:, None]
    tied = (exact == best) & (np.arange(3000) < pairs[:, 1:])
    expected = np.count_nonzero((exact > best) | tied, axis=1)
    ranks = best_positive_ranks(queries, candidates, pairs)
    np.testing.assert_array_equal(ranks, expected)
    # A product in float32 would have got other ranks.
    rough = queries.astype("float32") @ candidates.astype("float32").T
    rough_best = rough[pairs[:, 0], pairs[:, 1]][:, None]
    assert ((rough > rough_best).sum(axis=1) != expected).any()


def test_a_caption_of_two_images_and_an_image_without_captions():
    rng = np.random.default_rng(2)
    images, texts = unit(rng, 9, 5), unit(rng, 14, 5)
    # Text 0 belongs to images 0 and 4; image 8 and text 13 to none.
    pairs = [[t, t % 8] for t in range(13)] + [[0, 4]]
    result = retrieval_metrics(images, texts, np.array(pairs), ks=(1, 2, 4))
    by_text = brute_force(texts, images, pairs)
    by_image = brute_force(images, texts, [p[::-1] for p in pairs])
    assert by_text[13] == by_image[8] == -1
    for k in (1, 2, 4):
        hits = [0 <= rank < k for rank in by_text[:13]]
        assert result[f"text_to_image_recall@{k}"] == np.mean(hits)
        hits = [0 <= rank < k for rank in by_image[:8]]
        assert result[f"image_to_text_recall@{k}"] == np.mean(hits)
    assert result["images_without_text"] == 1


def test_folds_are_searched_by_themselves():
    rng = np.random.default_rng(3)
    owners = np.repeat(np.arange(20), 3)[rng.permutation(60)]
    images, texts = unit(rng, 20, 4), unit(rng, 60, 4)
    outcomes = retrieval_outcomes(images, texts, owners, folds=4)
    metrics = retrieval_recalls(outcomes, ks=(1, 2))
    parts = []
    for fold in range(4):
        inside = owners // 5 == fold
        parts.append(
            retrieval_metrics(
                images[5 * fold : 5 * fold + 5],
                texts[inside],
                owners[inside] - 5 * fold,
                ks=(1, 2),
            )
        )
    for name, value in metrics.items():
        expected = np.mean([part[name] for part in parts])
        assert value == pytest.approx(expected), name
    with pytest.raises(ValueError, match="folds=3"):
        retrieval_outcomes(images, texts, owners, folds=3)


def test_weights_are_repetitions():
    # What a bootstrap draws equals the metrics of the drawn images.
    rng = np.random.default_rng(4)
    owners = np.sort(rng.integers(0, 11, 30))
    outcomes = retrieval_outcomes(unit(rng, 12, 3), unit(rng, 30, 3), owners)
    weights = rng.integers(0, 4, 12)
    drawn = np.repeat(np.arange(12), weights)
    image_rank = outcomes["image_rank"][drawn]
    image_rank = image_rank[image_rank >= 0]
    text_rank = np.concatenate(
        [outcomes["text_rank"][owners == image] for image in drawn]
    )
    metrics = retrieval_recalls(outcomes, weights, ks=(2,))
    assert metrics["image_to_text_recall@2"] == np.mean(image_rank < 2)
    assert metrics["text_to_image_recall@2"] == np.mean(text_rank < 2)
    assert metrics["image_to_text_median_rank"] == np.median(image_rank) + 1
    assert metrics["text_to_image_median_rank"] == np.median(text_rank) + 1
