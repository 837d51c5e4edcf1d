"""Comparisons of two models with the same queries."""

import shutil

import numpy as np
import pytest

from align_keras.evaluation.accuracy import classification_accuracies
from align_keras.evaluation.compare import compare_results
from align_keras.evaluation.describe_results import describe_comparison
from align_keras.evaluation.results import Result
from align_keras.evaluation.results import summarize


def result(rank, label, name):
    return summarize(
        "zero-shot",
        classification_accuracies,
        {"rank": rank, "label": label},
        len(rank),
        200,
        dataset="things",
        model=name,
    )


@pytest.fixture(scope="module")
def models():
    """B is right where A is, and in 2% more; C is an equal of A."""
    rng = np.random.default_rng(1)
    label = rng.integers(0, 10, 1000)
    rank = rng.integers(0, 3, 1000)
    better = rank.copy()
    better[np.flatnonzero(rank)[:20]] = 0
    shuffled = rng.permutation(rank)
    ranks = {"A": rank, "B": better, "C": shuffled}
    return [result(rank, label, name) for name, rank in ranks.items()]


def test_a_paired_difference_is_found_that_intervals_hide(models, tmp_path):
    first, second, equal = models
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    first.save(paths[0])
    second.save(paths[1])
    low, _ = second["intervals"]["top1"]
    assert low < first["top1"] < second["top1"]  # The intervals overlap.
    found = compare_results(*paths)
    row = next(row for row in found["metrics"] if row["name"] == "top1")
    assert row["difference"] == pytest.approx(0.02)
    assert row["differs"] and 0 < row["low"] < 0.02 < row["high"]
    text = describe_comparison(found)
    assert "B is better" in text and "A = A, B = B" in text
    row = compare_results(first, equal)["metrics"][0]
    assert not row["differs"] and row["low"] < 0 < row["high"]
    # Five-fold top5 is 1.0 in both, and so is no difference.
    five = next(r for r in found["metrics"] if r["name"] == "top5")
    assert five["difference"] == 0 and five["p"] == 1.0


def test_results_of_other_queries_are_refused(models, tmp_path):
    first = models[0]
    other = Result({**first, "dataset": "others"}, first.outcomes)
    with pytest.raises(ValueError, match="dataset='things' and 'others'"):
        compare_results(first, other)
    moved = {**first.outcomes, "label": first.outcomes["label"][::-1]}
    with pytest.raises(ValueError, match="same queries.*label"):
        compare_results(first, Result(first, moved))
    reworded = Result({**first, "text_digest": "ab"}, first.outcomes)
    with pytest.raises(ValueError, match="same queries.*text_digest"):
        compare_results(first, reworded)
    with pytest.raises(ValueError, match="outcomes of 'A' are missing"):
        compare_results(Result(first), first)
    path = tmp_path / "other.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="is not a valid result of"):
        compare_results(path, path)
    path.write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        compare_results(path, path)


@pytest.mark.parametrize(
    "field, values",
    [
        ("split", ("val", "test")),
        ("solver", ("sgd", "lbfgs")),
        ("train_image_digest", ("ab", "cd")),
        ("prompts", ("ab", "cd")),
        ("correlation_options", ({"samples": 20}, {"samples": 50})),
        ("positives_options", ({"originals": True}, {"originals": False})),
    ],
)
def test_results_of_other_definitions_are_refused(models, field, values):
    first, second = (
        Result({**models[0], field: value}, models[0].outcomes)
        for value in values
    )
    with pytest.raises(ValueError, match=rf"{field}=.*{values[1]}"):
        compare_results(first, second)
    # A tuple and the list that JSON makes of it are the same.
    first[field], second[field] = (1, 2), [1, 2]
    compare_results(first, second, 1)


def test_too_few_draws_are_said_to_show_nothing(models):
    first, second, _ = models
    with pytest.raises(ValueError, match="samples=0"):
        compare_results(first, second, 0)
    # Three metrics, and the smallest p-value of n draws is 2 / (n + 1).
    worst = Result({**first}, {**first.outcomes, "rank": np.full(1000, 9)})
    few, enough = (compare_results(worst, second, n) for n in (119, 120))
    assert not any(row["differs"] for row in few["metrics"])
    assert enough["metrics"][0]["differs"]
    assert "fewer than 120 draws no" in describe_comparison(few)
    assert "fewer than" not in describe_comparison(enough)


def test_two_results_never_share_outcomes(models, tmp_path):
    for name in ("res.a", "res", "res.npz"):
        with pytest.raises(ValueError, match="must end in `.json`.*res"):
            models[0].save(tmp_path / name)
    assert not list(tmp_path.iterdir())
    models[0].save(tmp_path / "res.a.json")
    models[1].save(tmp_path / "res.b.json")
    found = Result.load(tmp_path / "res.a.json").outcomes
    np.testing.assert_array_equal(found["rank"], models[0].outcomes["rank"])
    # Without outcomes there is no file of them, nor an older one.
    Result(models[0]).save(tmp_path / "res.a.json")
    assert not (tmp_path / "res.a.npz").exists()


def test_outcomes_of_another_result_are_refused(models, tmp_path):
    """Two that wrote to one place may have ended in any order."""
    mine, other = tmp_path / "a.json", tmp_path / "b.json"
    models[0].save(mine)
    models[1].save(other)
    shutil.copy(other.with_suffix(".npz"), mine.with_suffix(".npz"))
    with pytest.raises(ValueError, match=r"a.npz` is damaged: .*a.json"):
        Result.load(mine)
    # Of a result that has none, another's are not taken.
    Result(models[0]).save(mine)
    shutil.copy(other.with_suffix(".npz"), mine.with_suffix(".npz"))
    assert not Result.load(mine).outcomes


@pytest.mark.parametrize("name", ["rank", "label"])
def test_outcomes_that_lack_some_are_refused(models, tmp_path, name):
    first, second, _ = models
    lacking = Result(second, dict(second.outcomes))
    del lacking.outcomes[name]
    lacking.save(tmp_path / "b.json")
    for pair in ((first, lacking), (tmp_path / "b.json", first)):
        with pytest.raises(ValueError, match=f"of 'B' lack `{name}`"):
            compare_results(*pair)


def test_result_survives_the_disk(models, tmp_path):
    models[0]["nothing"] = float("nan")
    models[0].save(tmp_path / "a.json")
    loaded = Result.load(tmp_path / "a.json")
    assert loaded["nothing"] is None
    assert loaded.metrics == models[0].metrics
    for name, values in models[0].outcomes.items():
        np.testing.assert_array_equal(loaded.outcomes[name], values)
