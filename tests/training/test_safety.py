"""Losses that are not finite, and SIGTERM where there is nothing to save."""

import dataclasses
import json
import os
import signal

import keras
import numpy as np
import pytest
from colors import FIELDS
from colors import tiny_model
from colors import write_images
from colors import write_vocabulary
from runs import checkpoint
from runs import metrics_of

from align_keras import AlignDualEncoder
from align_keras.data import pack
from align_keras.data import records_of_step
from align_keras.models.snapshot import Snapshot
from align_keras.training import Recipe
from align_keras.training import train
from align_keras.training.checkpoints import Checkpoints
from align_keras.training.safety import UNFINISHED
from align_keras.training.safety import LossGuard
from align_keras.training.safety import Preemption

RECIPE = Recipe(
    **{**FIELDS, "steps": 30, "checkpoint_every": 5, "batch_size": 4}
)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_images(folder / "photos")
    write_vocabulary(folder / "words.txt")
    captions = folder / "photos" / "captions.csv"
    pack(folder / "photos", folder / "packed", captions, records_per_shard=6)
    return folder


def run(folder, model, workdir, recipe=RECIPE):
    return train(
        model,
        recipe,
        data=folder / "packed",
        workdir=workdir,
        vocabulary=folder / "words.txt",
        strategy="one-device",
        verbose=False,
    )


class FailsOnWhite(keras.layers.Layer):
    """Not a number for an image that is nearly white."""

    def call(self, images):
        # 1 / 0 where it is white, and 0 * (1 / 0) is none.
        darkness = 0.9 - keras.ops.mean(images, axis=(1, 2, 3), keepdims=True)
        return images + 0.0 / (keras.ops.relu(darkness))


def sensitive_model(vocabulary_size):
    model = tiny_model(vocabulary_size)
    images = keras.Input((32, 32, 3), name="images")
    features = model.image_encoder(FailsOnWhite()(images))
    return AlignDualEncoder(
        keras.Model(images, features),
        model.text_encoder,
        initial_temperature=0.1,
    )


@pytest.mark.parametrize("at_once", [1, 3])
def test_the_step_and_its_records_are_named(packed, tmp_path, at_once):
    """The first batch with the white image, found without training."""
    folder = packed
    batches = {
        step: records_of_step(folder / "packed", step - 1, 4)
        for step in range(1, 20)
    }
    expected, batch = next(
        (step, batch)
        for step, batch in batches.items()
        if "white" in [record["key"] for record in batch]
    )
    # Keras takes some steps at once, and reports their mean loss.
    first = expected - (expected - 1) % at_once
    last = first + at_once - 1
    every = max(at_once, first - 1)
    recipe = Recipe(
        **{
            **FIELDS,
            "checkpoint_every": every,
            "batch_size": 4,
            "steps": 30,
            "steps_per_execution": at_once,
        }
    )
    with pytest.raises(FloatingPointError) as caught:
        run(folder, sensitive_model, tmp_path, recipe)
    message = str(caught.value)
    if at_once == 1:
        assert f"In step {expected}, the loss is nan." in message
    else:
        assert f"In one of the steps {first} to {last}, the loss" in message
    assert "\n" not in message
    for record in batch:
        assert record["key"] in message
        assert os.path.basename(record["file"]) in message
    listed = json.loads((tmp_path / "nonfinite.json").read_text())
    assert listed["steps"] == [*range(first, last + 1)]
    assert listed["records"] == [
        record for step in listed["steps"] for record in batches[step]
    ]
    # What was saved before is whole, and nothing was saved over it.
    last = first - 1
    assert Checkpoints(tmp_path).state()["step"] == last
    assert f"checkpoint of step {last} is kept" in message
    for values in checkpoint(tmp_path, last).values() if last else ():
        assert np.isfinite(values).all()
    assert all(np.isfinite(m["loss"]) for m in metrics_of(tmp_path)[0])


class Spoils(keras.optimizers.SGD):
    """Makes a weight infinite in its seventh step, when the loss is known."""

    def update_step(self, gradient, variable, learning_rate):
        late = keras.ops.cast(self.iterations >= 6, "float32")
        spoiled = keras.ops.ones_like(gradient) * late / (1.0 - late)
        variable.assign_sub(spoiled)


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    blamed = []

    def blame(steps, reason):
        blamed.append((steps, reason))
        return FloatingPointError(reason)

    guard = LossGuard(blame)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(Spoils(), "mse")
    for step in range(1, 8):
        loss = model.train_on_batch(np.ones((2, 4)), np.ones((2, 3)))
        guard.watch([step], loss)
        if step < 7:
            guard.inspector()(Snapshot(model))
    inspect, snapshot = guard.inspector(), Snapshot(model)
    # The run has gone on when it is looked at.
    guard.watch([8], 0.5)
    with pytest.raises(FloatingPointError, match="kernel"):
        inspect(snapshot)
    assert len(blamed) == 1 and blamed[0][0] == [7]


def test_a_loss_is_blamed_on_its_own_step():
    guard = LossGuard(lambda steps, reason: FloatingPointError(f"{steps[0]}"))
    guard.watch([1], 0.5)
    guard.watch([2], np.float32("inf"))
    with pytest.raises(FloatingPointError, match="^2$"):
        guard.watch([3], np.float32("nan"))
    # Before a report, there is no waiting.
    guard.watch([4], float("nan"))
    with pytest.raises(FloatingPointError, match="^4$"):
        guard.settle()


def test_sigterm_before_the_first_step(packed, tmp_path, capsys):
    before = signal.getsignal(signal.SIGTERM)

    def model(vocabulary_size):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("this is not reached")

    with pytest.raises(SystemExit) as caught:
        run(packed, model, tmp_path)
    assert caught.value.code == UNFINISHED
    assert Checkpoints(tmp_path).state() == {"step": 0}
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_waits_for_what_is_unsaved():
    with Preemption() as preemption:
        preemption.unsaved = True
        signal.raise_signal(signal.SIGTERM)
        assert preemption.asked
        with pytest.raises(SystemExit):
            preemption.leave()


def test_sigterm_hides_no_checkpoint_that_failed():
    def fail():
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        with Preemption() as preemption:
            preemption.finish = fail
            signal.raise_signal(signal.SIGTERM)


def test_a_checkpoint_that_cannot_be_written_ends_the_run(
    packed, tmp_path, monkeypatch
):
    """Some steps later, with the one before kept, and the run resumes."""
    write = Checkpoints._write_checkpoint

    def fail(self, path, *arguments):
        if "step-000000010" in path.name:
            raise OSError(28, "No space left on device")
        write(self, path, *arguments)

    recipe = dataclasses.replace(RECIPE, steps=10)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_write_checkpoint", fail)
        with pytest.raises(OSError, match="No space left.*step 5 is kept"):
            run(packed, tiny_model, tmp_path, recipe)
    assert Checkpoints(tmp_path).state()["step"] == 5
    assert run(packed, tiny_model, tmp_path, recipe)["step"] == 10


def test_an_exit_that_was_replaced_by_an_error_is_one():
    with pytest.raises(SystemExit) as caught:
        with Preemption():
            try:
                signal.raise_signal(signal.SIGTERM)
            except SystemExit:
                raise RuntimeError("as pybind11 does") from None
    assert caught.value.code == UNFINISHED
    with pytest.raises(RuntimeError, match="another"):
        with Preemption():
            raise RuntimeError("another")


def test_sigterm_during_evaluation(packed, tmp_path):
    """The run goes on with the evaluation that was cut off."""
    steps = []

    def evaluate(model, data):
        steps.append(int(np.array(model.optimizer.iterations)))
        if len(steps) == 2:
            signal.raise_signal(signal.SIGTERM)
        return {"mean_recall": 0.5}

    def go():
        return train(
            tiny_model,
            RECIPE,
            data=packed / "packed",
            validation_data=packed / "packed",
            evaluate=evaluate,
            workdir=tmp_path,
            vocabulary=packed / "words.txt",
            strategy="one-device",
            verbose=False,
            steps=10,
        )

    with pytest.raises(SystemExit):
        go()
    assert go()["step"] == 10
    assert steps == [5, 10, 10]
    evaluation = [line["step"] for line in metrics_of(tmp_path)[1]]
    assert evaluation == [5, 10]


def test_another_data_set_is_refused(packed, tmp_path):
    recipe = Recipe(**{**FIELDS, "steps": 8, "checkpoint_every": 5})
    seen = []

    def stop(model, data):
        seen.append(1)
        raise InterruptedError

    arguments = {
        "workdir": tmp_path / "run",
        "vocabulary": packed / "words.txt",
        "strategy": "one-device",
        "evaluate": stop,
        "verbose": False,
    }
    with pytest.raises(InterruptedError):
        data = packed / "packed"
        train(tiny_model, recipe, data, validation_data=data, **arguments)
    shards = sorted(map(str, data.glob("*.tfrecord")))[1:]
    with pytest.raises(
        ValueError, match="3 files whose names differ from the 2"
    ):
        train(tiny_model, recipe, shards, validation_data=data, **arguments)
    assert seen == [1]
