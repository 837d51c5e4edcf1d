import random
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from align_keras.embedding.similarity import exact_scores
from align_keras.evaluation import cxc

SPLITS = ("val", "test")
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def ratings():
    if not (DATA / "cxc").is_dir():
        pytest.skip(f"There are no rating files in {DATA / 'cxc'}")
    return {split: cxc.read_ratings(DATA / "cxc", split) for split in SPLITS}


def unit(values):
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(
        "float32"
    )


@pytest.fixture(scope="module")
def embeddings(ratings):
    """Vectors of a model that is half right."""
    rng = np.random.default_rng(0)
    owners = ratings["test"].caption_image
    images = unit(rng.normal(size=(5000, 12)))
    noise = rng.normal(size=(25000, 12))
    return images, unit(images[owners] + 0.25 * noise)


def test_counts_of_the_files(ratings):
    # Rows, rows rated 3 or more, of each file.
    counts = {
        "val": {
            "sts": (44009, 14783),
            "sis": (42767, 21942),
            "sits": (44722, 37254),
        },
        "test": {
            "sts": (44045, 16184),
            "sis": (46719, 15458),
            "sits": (44833, 35585),
        },
    }
    total = 0
    for split, rated in ratings.items():
        assert (len(rated.captions), len(rated.images)) == (25000, 5000)
        assert (np.bincount(rated.caption_image) == 5).all()
        for task, expected in counts[split].items():
            scores = rated.scores[task]
            assert (len(scores), (scores >= 3).sum()) == expected
            total += len(scores)
        assert (rated.methods["sts"] == "c2c_cocaption").sum() == 25000
    assert total == 267_095


def test_counts_of_positives(ratings):
    def queries(task, **options):
        pairs = cxc.retrieval_positives(ratings["test"], **options)[task]
        return len(np.unique(pairs[:, 0])), len(pairs)

    rated_only = {"originals": False, "co_captions": False}
    assert queries("image_to_image") == (4791, 40492)
    assert queries("image_to_image", thresholds={"sis": 3})[0] == 4464
    assert queries("image_to_image", repeated="mean") == (4772, 39980)
    assert queries("text_to_text", **rated_only)[0] == 20205
    assert queries("text_to_image", **rated_only) == (24972, 35585)
    # 29 original pairs were rated below 3.
    assert queries("text_to_image") == (25000, 35614)
    assert queries("text_to_text")[0] == 25000
    with pytest.raises(ValueError, match="'sos'"):
        cxc.retrieval_positives(ratings["test"], thresholds={"sos": 1})
    with pytest.raises(ValueError, match="repeated='first'"):
        cxc.retrieval_positives(ratings["test"], repeated="first")


def test_positives_match_their_definition(ratings):
    rated = ratings["test"]
    found = cxc.retrieval_positives(rated)
    texts = set()
    for (a, b), score in zip(
        rated.pairs["sts"].tolist(), rated.scores["sts"], strict=True
    ):
        if score >= 3:
            texts |= {(a, b), (b, a)}
    groups = {}
    for caption, image in enumerate(rated.caption_image.tolist()):
        groups.setdefault(image, []).append(caption)
    for group in groups.values():
        texts |= {(a, b) for a in group for b in group if a != b}
    assert {tuple(pair) for pair in found["text_to_text"].tolist()} == texts
    crossed = set(enumerate(rated.caption_image.tolist()))
    crossed |= {
        tuple(pair)
        for pair in rated.pairs["sits"][rated.scores["sits"] >= 3].tolist()
    }
    assert {tuple(p) for p in found["text_to_image"].tolist()} == crossed


def test_recalls_match_brute_force_on_the_real_files(ratings, embeddings):
    rated, (images, texts) = ratings["test"], embeddings
    positives = cxc.retrieval_positives(rated)
    ranks = cxc.cxc_ranks(images, texts, positives)
    sides = {
        "image_to_text": (images, texts),
        "text_to_image": (texts, images),
        "text_to_text": (texts, texts),
        "image_to_image": (images, images),
    }
    rng = np.random.default_rng(1)
    for task, (queries, candidates) in sides.items():
        answers = {}
        for query, candidate in positives[task].tolist():
            answers.setdefault(query, set()).add(candidate)
        for query in rng.integers(0, len(queries), 40):
            scores = exact_scores(queries[query][None], candidates)[0]
            order = np.lexsort((np.arange(len(scores)), -scores))
            if queries is candidates:
                order = order[order != query]
            hits = np.isin(order, list(answers.get(query, ())))
            expected = int(np.argmax(hits)) if hits.any() else -1
            assert ranks[task][query] == expected, (task, query)
    outcomes = {f"{task}_rank": rank for task, rank in ranks.items()}
    outcomes["caption_image"] = rated.caption_image
    metrics = cxc.cxc_recalls(outcomes)
    rank = ranks["image_to_image"]
    assert (rank < 0).sum() == 5000 - 4791
    expected = np.mean(rank[rank >= 0] < 10)
    assert metrics["image_to_image_recall@10"] == pytest.approx(expected)
    kept = cxc.cxc_recalls(outcomes, drop_empty=False)
    assert kept["image_to_image_recall@10"] == pytest.approx(
        expected * 4791 / 5000
    )


def noisy(rated):
    """Scores about as good as those of published models."""
    rng = np.random.default_rng(2)
    return {
        task: scores + 1.2 * rng.normal(size=len(scores))
        for task, scores in rated.scores.items()
    }


def test_correlation_and_its_spread(ratings):
    rated = ratings["test"]
    scores = noisy(rated)
    found = cxc.rating_correlations(rated, scores, samples=25)
    # Half of 25,000 captions, of 5,000 images, and of 5,000 images: the
    # spread of a correlation goes with the root of their number.
    assert 0.2 < found["sts"].std() / found["sits"].std() < 0.65
    by_caption = cxc.rating_correlations(
        rated, scores, samples=25, query_columns={"sits": (0,)}
    )
    assert by_caption["sits"].std() < 0.7 * found["sits"].std()

    # One sample, drawn by the definition.
    rng = np.random.default_rng([0, 2])
    items = {}
    for row, (_, image) in enumerate(rated.pairs["sits"].tolist()):
        items.setdefault(image, []).append(row)
    chosen = rng.choice(5000, 2500, replace=False, shuffle=False)
    draws = rng.random(2500)
    rows = [
        items[image][int(draw * len(items[image]))]
        for image, draw in zip(chosen.tolist(), draws, strict=True)
    ]
    expected = scipy.stats.spearmanr(
        rated.scores["sits"][rows], scores["sits"][rows]
    ).statistic
    assert found["sits"][0] == pytest.approx(expected, abs=1e-12)


def reference_samples(pairs, columns, human, scores, samples):
    """The protocol once more, query by query, with other random numbers."""
    draw = random.Random(0)
    rated = {}
    for row, pair in enumerate(pairs.tolist()):
        for column in columns:
            rated.setdefault(pair[column], []).append(row)
    found = []
    for _ in range(samples):
        queries = draw.sample(sorted(rated), len(rated) // 2)
        rows = [draw.choice(rated[query]) for query in queries]
        result = scipy.stats.spearmanr(human[rows], scores[rows])
        found.append(result.statistic)
    return len(rated), np.array(found)


@pytest.mark.parametrize(
    "task, columns, queries",
    [("sts", (0, 1), 25000), ("sis", (0, 1), 5000), ("sits", (1,), 5000)],
)
@pytest.mark.parametrize("split", SPLITS)
def test_correlations_match_a_reference(ratings, split, task, columns, queries):
    rated = ratings[split]
    scores = noisy(rated)
    counted, expected = reference_samples(
        rated.pairs[task], columns, rated.scores[task], scores[task], 20
    )
    assert counted == queries
    found = cxc.rating_correlations(rated, scores, samples=20)[task]
    # Means of 20 samples each, four of their standard errors apart at most.
    error = np.hypot(found.std(), expected.std()) / np.sqrt(20)
    assert abs(found.mean() - expected.mean()) < 4 * error < 0.03
    assert 0.5 < found.std() / expected.std() < 2


def small_ratings(pairs, scores):
    """The same rated pairs for all tasks, of as many captions as images."""
    count = int(np.max(pairs)) + 1
    tasks = ("sts", "sis", "sits")
    return cxc.Ratings(
        [f"c{n}" for n in range(count)],
        [f"i{n}" for n in range(count)],
        np.arange(count),
        {task: np.array(pairs) for task in tasks},
        {task: np.array(scores, "float64") for task in tasks},
        {task: np.array(["x"] * len(pairs)) for task in tasks},
    )


def test_replacement_and_repeated_ratings():
    rng = np.random.default_rng(3)
    # One rating for each query: without replacement, all samples are alike.
    pairs = np.stack([np.arange(12), np.roll(np.arange(12), 5)], axis=1)
    rated = small_ratings(pairs, rng.random(12))
    scores = {task: rng.random(12) for task in cxc.COLUMNS}
    once = {task: (0,) for task in cxc.COLUMNS}
    for replace in (False, True):
        found = cxc.rating_correlations(
            rated, scores, 30, 0, once, share=1.0, replace=replace
        )
        assert all((found[t].std() > 1e-6) == replace for t in found), replace
    expected = scipy.stats.spearmanr(rated.scores["sts"], scores["sts"])
    found = cxc.rating_correlations(rated, scores, 1, 0, once, share=1.0)
    assert found["sts"][0] == pytest.approx(expected.statistic)

    # Both orders of each pair, whose ratings agree with the model in their
    # mean alone; a pair of a caption and an image has no other order.
    pairs = [(0, 1), (1, 0), (2, 3), (3, 2), (4, 5), (5, 4)]
    rated = small_ratings(pairs, [5, 1, 0, 8, 3, 7])  # Means 3, 4, 5.
    scores = {task: np.array([0, 0.2, 1, 1.2, 2, 2.2]) for task in cxc.COLUMNS}
    everything = {"share": 1.0, "query_columns": once, "samples": 1}
    found = cxc.rating_correlations(
        rated, scores, repeated="mean", **everything
    )
    kept = cxc.rating_correlations(rated, scores, **everything)
    assert found["sts"] == found["sis"] == pytest.approx(1.0)
    assert kept["sts"] == kept["sis"] == found["sits"] == kept["sits"]
    assert kept["sts"][0] == pytest.approx(
        scipy.stats.spearmanr([5, 1, 0, 8, 3, 7], scores["sts"]).statistic
    )
    assert kept["sts"] < 0.9


def test_model_scores_are_cosines(ratings, embeddings):
    rated, (images, texts) = ratings["test"], embeddings
    scores = cxc.model_scores(rated, images, texts)
    caption, image = rated.pairs["sits"][17]
    assert scores["sits"][17] == pytest.approx(texts[caption] @ images[image])
    first, second = rated.pairs["sis"][5]
    assert scores["sis"][5] == pytest.approx(images[first] @ images[second])
    broken = {**scores, "sis": scores["sis"][1:]}
    with pytest.raises(ValueError, match="'sis'.*46719 finite"):
        cxc.rating_correlations(rated, broken)


def test_files_that_are_links_out_are_refused(tmp_path):
    (tmp_path / "private").touch()
    (tmp_path / "cxc").mkdir()
    (tmp_path / "cxc" / "sts_test.csv").symlink_to(tmp_path / "private")
    with pytest.raises(PermissionError, match="sts_test.csv` leads out of"):
        cxc.read_ratings(tmp_path / "cxc")


def test_broken_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="sts_test.csv"):
        cxc.read_ratings(tmp_path)
    columns = "agg_score,sampling_method"
    (tmp_path / "sts_test.csv").write_text(
        f"caption1,caption2,{columns}\na,a,1,x\n"
    )
    (tmp_path / "sis_test.csv").write_text(
        f"image1,image2,{columns}\na,a,1,x\n"
    )
    sits = tmp_path / "sits_test.csv"
    sits.write_text(f"caption,image,{columns}\na,b,much,c2i_original\n")
    with pytest.raises(ValueError, match="agg_score 'much' in row 1"):
        cxc.read_ratings(tmp_path)
    sits.write_text("caption,agg_score,sampling_method\na,3,x\n")
    with pytest.raises(ValueError, match="lacks the column `image`"):
        cxc.read_ratings(tmp_path)
    # A stray quotation mark would swallow the rows behind it.
    good = "a,b,3,c2i_original\n"
    sits.write_text(f'caption,image,{columns}\n{good}"a,b,3,x\n{good}')
    with pytest.raises(ValueError, match="sits_test.csv` is not valid CSV"):
        cxc.read_ratings(tmp_path)
    sits.write_text(f"caption,image,{columns}\na,b,3,c2i_intrasim\n")
    with pytest.raises(ValueError, match="no row `c2i_original`"):
        cxc.read_ratings(tmp_path)
