"""Runs that end before their last step, and models that overfit."""

import dataclasses
import json

import numpy as np
import pytest
from colors import FIELDS
from colors import tiny_model
from colors import write_images
from colors import write_vocabulary
from runs import checkpoint
from runs import metrics_of

from align_keras.data import pack
from align_keras.training import Recipe
from align_keras.training import train
from align_keras.training.early_stopping import Patience
from align_keras.training.early_stopping import describe_overfitting

RECIPE = Recipe(**{**FIELDS, "steps": 40, "checkpoint_every": 4, "patience": 3})
# Of the ten evaluations, the fifth is the third without a better one.
SCORES = [0.1, 0.3, 0.2, 0.3, 0.25, 0.9, 0.9, 0.9, 0.9, 0.9]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_images(folder / "photos")
    write_vocabulary(folder / "words.txt")
    captions = folder / "photos" / "captions.csv"
    pack(folder / "photos", folder / "packed", captions)
    return folder


@pytest.fixture(scope="module")
def begin(inputs):
    def begin(workdir, evaluate, recipe=RECIPE, **options):
        data = inputs / "packed"
        return train(
            tiny_model,
            recipe,
            data=data,
            workdir=workdir,
            vocabulary=inputs / "words.txt",
            strategy="one-device",
            evaluate=evaluate,
            **{"validation_data": data, "verbose": True, **options},
        )

    return begin


def scores(broken=()):
    """Evaluations as listed; those of some steps are cut off at first."""
    broken = list(broken)

    def evaluate(model, data):
        number = int(np.array(model.optimizer.iterations)) // 4
        if number in broken:
            broken.remove(number)
            raise InterruptedError
        return {"mean_recall": SCORES[number - 1]}

    return evaluate


@pytest.fixture(scope="module")
def whole(begin, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, begin(workdir, scores())


def test_a_run_stops_without_a_better_model(whole, begin, capsys):
    workdir, result = whole
    assert result["stopped_early"] is True
    assert (result["step"], result["best"]["step"]) == (20, 8)
    assert result["best"]["score"] == 0.3
    training, evaluation = metrics_of(workdir)
    assert [line["step"] for line in evaluation] == [4, 8, 12, 16, 20]
    # Reported at the step where it ended, and no step was taken after it.
    assert training[-1]["step"] == 20
    assert checkpoint(workdir, 20)["optimizer/vars/0"] == 20
    # The rate falls as if the run took all of its steps.
    assert training[-1]["learning_rate"] == pytest.approx(0.02 * 20 / 36)

    def refuse(model, data):
        raise AssertionError("nothing is left to evaluate")

    capsys.readouterr()
    before = (workdir / "metrics.jsonl").read_bytes()
    assert begin(workdir, refuse) == result
    assert (workdir / "metrics.jsonl").read_bytes() == before
    said = capsys.readouterr().out
    assert "it stopped early after step 20 of 40, because no evaluation" in said
    assert "after step 8 (patience=3) found a better model" in said


def test_a_first_score_that_is_not_a_number_is_beaten(begin, tmp_path):
    values = iter([np.nan, 0.2, 0.1])

    def evaluate(model, data):
        return {"mean_recall": np.array(next(values)), "counts": [1, 2]}

    recipe = dataclasses.replace(RECIPE, steps=12)
    result = begin(tmp_path, evaluate, recipe)
    assert result["best"]["step"] == 8 and result["best"]["score"] == 0.2


def test_an_evaluation_without_a_recall_is_refused(begin, tmp_path):
    def evaluate(model, data):
        return {"accuracy": 1.0, "mean_recall": [0.5]}

    with pytest.raises(ValueError, match="`mean_recall`.*: accuracy"):
        begin(tmp_path, evaluate)


@pytest.mark.parametrize("broken", [(3, 5)])
def test_a_resumed_run_stops_at_the_same_step(whole, begin, tmp_path, broken):
    evaluate = scores(broken)
    for _ in broken:
        with pytest.raises(InterruptedError):
            begin(tmp_path, evaluate)
    result = begin(tmp_path, evaluate)
    expected = {**whole[1], "model": str(tmp_path / "model")}
    assert result == expected
    ours, theirs = checkpoint(tmp_path, 20), checkpoint(whole[0], 20)
    assert ours.keys() == theirs.keys() and len(ours) > 30
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    logs = []
    for workdir in (tmp_path, whole[0]):
        training, evaluation = metrics_of(workdir)
        logs.append([training, evaluation])
        for line in training:
            del line["images_per_second"]
    assert logs[0] == logs[1]


def test_patience_needs_something_to_go_by(begin, tmp_path, caplog):
    recipe = Recipe(**{**FIELDS, "steps": 3, "warmup_steps": 1, "patience": 1})
    result = begin(tmp_path, None, recipe, validation_data=None)
    assert result["step"] == 3 and result["stopped_early"] is False
    assert "patience=1 has nothing to go by" in caplog.text


def test_a_run_of_epochs_counts_its_data(begin, tmp_path):
    """Sixteen records in batches of eight."""
    fields = {**FIELDS, "epochs": 3, "warmup_steps": 0.5, "steps": None}
    recipe = Recipe(**{**fields, "checkpoint_every": 3})
    result = begin(tmp_path, None, recipe, validation_data=None)
    assert result["step"] == 6
    training, _ = metrics_of(tmp_path)
    # Three steps up and three down, and a report where it is saved.
    rates = {line["step"]: line["learning_rate"] for line in training}
    assert rates == pytest.approx({1: 0.02 / 3, 3: 0.02, 6: 0})
    asked = json.loads((tmp_path / "recipe.json").read_text())
    assert (asked["epochs"], asked["steps"]) == (3, None)
    assert begin(tmp_path, None, recipe, validation_data=None) == result


def test_overfitting_is_said_in_words(begin, tmp_path, caplog):
    def evaluate(model, data):
        step = int(np.array(model.optimizer.iterations))
        return {"mean_recall": 1 - step / 100}

    begin(tmp_path, evaluate, patience=9)
    training, _ = metrics_of(tmp_path)
    losses = {line["step"]: line["loss"] for line in training}
    assert losses[16] < losses[4]
    (message,) = [m for m in caplog.messages if "overfits" in m]
    assert (
        f"from step 4 to 16 the training loss fell from {losses[4]:.3f} to "
        f"{losses[16]:.3f}, and held-out recall from 96.0% to 84.0%"
    ) in message


def lines(losses, recalls):
    for number, (loss, recall) in enumerate(zip(losses, recalls, strict=True)):
        step = 10 * (number + 1)
        yield {"step": step, "loss": loss}
        if recall is not None:
            yield {"step": step, "validation_mean_recall": recall}


@pytest.mark.parametrize(
    "losses, recalls, said",
    [
        ([4, 3, 2, 1], [0.5, 0.4, 0.3, 0.2], True),
        # Between evaluations there may be other reports.
        ([5, 4, 9, 3, 2, 1], [0.6, 0.5, None, 0.4, None, 0.3], True),
        # Recall has not fallen each time, or the loss has not.
        ([4, 3, 2, 1], [0.5, 0.4, 0.4, 0.2], False),
        ([4, 3, 2, 1], [0.5, 0.4, 0.6, 0.2], False),
        ([1, 3, 2, 1], [0.5, 0.4, 0.3, 0.2], False),
        ([3, 2, 1], [0.5, 0.4, 0.3], False),
        # It was said before, and is said of a second fall.
        ([5, 4, 3, 2, 1], [0.6, 0.5, 0.4, 0.3, 0.2], False),
        ([5, 4, 3, 2, 1], [0.5, 0.5, 0.4, 0.3, 0.2], True),
        ([4, 3, 2, 1], [None] * 4, False),
    ],
)
def test_when_a_model_overfits(losses, recalls, said):
    message = describe_overfitting(list(lines(losses, recalls)))
    assert (message is not None) == said
    if said:
        assert "\n" not in message and "overfits" in message


@pytest.mark.parametrize(
    "images, chance, said",
    [
        # Between 50 % and 40 % lie two standard errors of 100 images, and one
        # half of 6.
        (100, 0.1, True),
        (6, 0.1, False),
        (100, 0.6, False),
    ],
)
def test_noise_is_no_overfitting(images, chance, said):
    found = list(lines([4, 3, 2, 1], [0.5, 0.46, 0.43, 0.4]))
    for line in found:
        if "validation_mean_recall" in line:
            line["validation_images"] = images
            line["validation_chance_mean_recall"] = chance
    assert (describe_overfitting(found) is not None) == said


def test_workers_stop_together():
    votes = []

    def sums(mine):
        votes.append(mine)
        return [mine + theirs.pop(0)]

    theirs = [0.0, 1.0]
    patience = Patience(2, {}, sums)
    patience.count(True)
    assert not patience.stopped
    patience.count(True)
    # The other has seen two evaluations of which none was better.
    assert patience.stopped and votes == [0.0, 0.0]
    again = Patience(2, {"waited": 1})
    again.count(False, last=True)
    assert again.state() == {"waited": 2, "stopped": False}
    again = Patience(2, {"waited": 1})
    again.count(False)
    assert again.state() == {"waited": 2, "stopped": True}
    never = Patience(None, {})
    for _ in range(9):
        never.count(False)
    assert never.state() == {"waited": 9, "stopped": False}
