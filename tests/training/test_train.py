"""Training from end to end on images of one color each."""

import dataclasses
import functools
import io
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from colors import COLORS
from colors import FIELDS
from colors import VOCABULARY
from colors import tiny_model
from colors import write_images
from colors import write_vocabulary
from PIL import Image
from runs import Seen
from runs import checkpoint
from runs import embed
from runs import metrics_of

from align_keras import AlignDualEncoder
from align_keras import BertTextEncoder
from align_keras import EfficientNetBackbone
from align_keras.data import open_records
from align_keras.data import pack
from align_keras.data import records
from align_keras.io import optional
from align_keras.training import Recipe
from align_keras.training import train
from align_keras.training.checkpoints import Checkpoints

SCRIPT = Path(__file__).with_name("train_mirrored.py")
RECIPE = Recipe(**FIELDS)
# The dropout masks of a run that goes on must continue, too.
noisy_model = functools.partial(tiny_model, dropout=0.05)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder of images, the same packed, and a vocabulary."""
    folder = tmp_path_factory.mktemp("inputs")
    write_images(folder / "photos")
    write_vocabulary(folder / "words.txt")
    captions = folder / "photos" / "captions.csv"
    pack(folder / "photos", folder / "packed", captions, records_per_shard=6)
    return folder


@pytest.fixture(scope="module")
def begin(inputs):
    """Train on the packed images, with a choice of arguments."""

    def begin(workdir, model=noisy_model, recipe=RECIPE, **kwargs):
        defaults = {
            "data": str(inputs / "packed"),
            "vocabulary": str(inputs / "words.txt"),
            "verbose": False,
        }
        return train(model, recipe, workdir=workdir, **{**defaults, **kwargs})

    return begin


@pytest.fixture(scope="module")
def run(begin, inputs, tmp_path_factory):
    """A run from the first step to the last: directory, result, what it saw.

    It needs no package of an extra.
    """
    workdir = tmp_path_factory.mktemp("run")
    seen = Seen()
    data = str(inputs / "packed")

    def none(name):
        raise ImportError(name)

    with pytest.MonkeyPatch.context() as patch:
        missing = SimpleNamespace(import_module=none)
        patch.setattr(optional, "importlib", missing)
        result = begin(workdir, validation_data=data, evaluate=seen)
    return workdir, result, seen


def test_a_run_learns(run):
    workdir, result, seen = run
    training, evaluation = metrics_of(workdir)
    # A constant model has a loss of 2 ln 8 and finds one of eight.
    assert training[0]["loss"] > training[-1]["loss"]
    assert training[-1]["loss"] < 0.7 * 2 * np.log(8)
    assert training[-1]["image_to_text_recall_at_1"] > 3 / 8
    assert training[-1]["text_to_image_recall_at_1"] > 3 / 8
    assert result["best"]["score"] > 4 / 16
    assert result["best"]["score"] == max(
        line["validation_mean_recall"] for line in evaluation
    )
    assert result["step"] == 40 and result["skipped"] == {}


def test_metrics_say_what_happened(run):
    workdir, _, seen = run
    training, evaluation = metrics_of(workdir)
    # The first step, every twenty, and before each checkpoint.
    assert [line["step"] for line in training] == [1, 16, 20, 32, 40]
    assert [line["step"] for line in evaluation] == [16, 32, 40]
    assert seen.iterations == [16, 32, 40]
    for line in training:
        # Warm-up over 4 steps to 0.02, then down to 0 at step 40.
        step = line["step"]
        rate = 0.02 * (step / 4 if step < 4 else (40 - step) / 36)
        assert line["learning_rate"] == pytest.approx(rate, rel=1e-5)
        assert line["images_per_second"] > 0
        for way in ("image_to_text", "text_to_image"):
            assert 0 <= line[f"{way}_recall_at_1"] <= 1
    temperatures = [line["temperature"] for line in training]
    assert len(set(temperatures)) == 5
    weights = checkpoint(workdir, 40)["layers/contrastive_head/vars/0"]
    assert temperatures[-1] == pytest.approx(np.exp(weights), rel=1e-6)


def test_tensorboard_shows_the_same_figures(run):
    workdir, _, _ = run
    shown = {}
    for path in (workdir / "tensorboard").glob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                number = float(tf.make_ndarray(value.tensor))
                shown.setdefault(value.tag, {})[event.step] = number
    training, evaluation = metrics_of(workdir)
    for name in (
        "loss",
        "image_to_text_recall_at_1",
        "text_to_image_recall_at_1",
        "temperature",
        "learning_rate",
        "images_per_second",
    ):
        expected = {line["step"]: line[name] for line in training}
        assert shown[name] == pytest.approx(expected, rel=1e-6), name
    name = "validation_mean_recall"
    expected = {line["step"]: line[name] for line in evaluation}
    assert shown[name] == pytest.approx(expected, rel=1e-6)


def test_the_best_model_is_a_whole_preset(run, inputs):
    workdir, result, seen = run
    assert result["model"] == str(workdir / "model")
    model = AlignDualEncoder.from_preset(result["model"])
    best = seen.iterations.index(result["best"]["step"])
    data = str(inputs / "packed")
    for ours, theirs in zip(
        embed(model, data), seen.embeddings[best], strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    preprocessor = model.preprocessor
    assert preprocessor.tokenizer.get_vocabulary() == VOCABULARY
    assert preprocessor.sequence_length == 6
    assert preprocessor.image_converter.image_size == (32, 32)
    assert preprocessor.image_converter.resize_size == (36, 36)
    # The optimizer's moments, twice the weights, stay in the checkpoints.
    with h5py.File(workdir / "model" / "model.weights.h5") as file:
        assert "optimizer" not in file
    assert "optimizer/vars/2" in checkpoint(workdir, 40)


def test_averages_are_what_is_measured_and_kept(begin, inputs, tmp_path):
    seen = {}

    def measure(model, data):
        iteration = int(model.optimizer.iterations.numpy())
        seen[iteration] = {w.path: w.numpy() for w in model.trainable_weights}
        return {"mean_recall": iteration}

    recipe = dataclasses.replace(
        RECIPE, ema=0.8, steps=6, warmup_steps=1, checkpoint_every=3
    )
    data = str(inputs / "packed")
    result = begin(
        tmp_path, validation_data=data, evaluate=measure, recipe=recipe
    )
    kept = AlignDualEncoder.from_preset(result["model"])
    for weight in kept.trainable_weights:
        np.testing.assert_array_equal(weight, seen[6][weight.path])
    # Training goes on from the weights; the averages are the optimizer's.
    average = next(v for k, v in seen[6].items() if "projection" in k)
    holders = {
        name.split("/")[0]
        for name, value in checkpoint(tmp_path, 6).items()
        if np.array_equal(value, average)
    }
    assert holders == {"optimizer"}


def test_two_checkpoints_are_kept(run):
    workdir, _, _ = run
    names = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    assert names == [
        "step-000000032.json",
        "step-000000032.weights.h5",
        "step-000000040.json",
        "step-000000040.weights.h5",
    ]


@pytest.fixture(scope="module")
def resumed(begin, inputs, tmp_path_factory):
    """A run that died in its second evaluation, and went on."""
    workdir = tmp_path_factory.mktemp("resumed")
    data = str(inputs / "packed")
    with pytest.raises(InterruptedError):
        begin(workdir, validation_data=data, evaluate=Seen(stop_at=2))
    # It was saved first, and is evaluated when it goes on.
    state = Checkpoints(workdir).state()
    assert state["step"] == 32 and state["pending"]
    seen = Seen()
    result = begin(workdir, validation_data=data, evaluate=seen)
    return workdir, result, seen


def test_a_run_goes_on_as_if_nothing_had_happened(run, resumed):
    """Weights, moments, iterations, and the order and augmentation of data."""
    workdir, result, seen = resumed
    assert seen.iterations == [32, 40]
    whole, parts = checkpoint(run[0], 40), checkpoint(workdir, 40)
    assert whole.keys() == parts.keys()
    assert whole["optimizer/vars/0"] == parts["optimizer/vars/0"] == 40
    for name in whole:
        np.testing.assert_array_equal(parts[name], whole[name], err_msg=name)
    assert result["best"]["step"] == run[1]["best"]["step"]
    whole, parts = metrics_of(run[0])[0], metrics_of(workdir)[0]
    assert [line["step"] for line in parts] == [1, 16, 20, 32, 40]
    for ours, theirs in zip(parts, whole, strict=True):
        for name in ("loss", "temperature", "learning_rate"):
            assert ours[name] == theirs[name]


def test_another_seed_is_another_run(run, begin, tmp_path):
    """Else the test above would pass for a model that never changes."""
    result = begin(tmp_path, seed=1, checkpoint_every=40)
    ours, theirs = checkpoint(tmp_path, 40), checkpoint(run[0], 40)
    name = "layers/dense/vars/0"
    assert np.abs(ours[name] - theirs[name]).max() > 0.01
    # Without evaluation, the newest model counts as the best.
    assert result["best"] == {"step": 40, "score": None, "metrics": {}}


def test_a_finished_run_says_so(run, begin, capsys):
    workdir, result, _ = run
    before = (workdir / "metrics.jsonl").read_bytes()

    def refuse(vocabulary_size):
        raise AssertionError("no model is needed")

    again = begin(workdir, refuse, verbose=True)
    assert "This run is finished: 40 steps." in capsys.readouterr().out
    assert again == result
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_another_recipe_needs_another_directory(run, begin):
    with pytest.raises(ValueError) as caught:
        begin(run[0], learning_rate=0.5)
    message = str(caught.value)
    assert str(run[0]) in message
    assert "learning_rate=0.02" in message and "learning_rate=0.5" in message
    with pytest.raises(ValueError, match="model='custom', but model='align_b0"):
        begin(run[0], "align_b0_bert_tiny")


def test_a_folder_of_images_trains_at_once(inputs, tmp_path, capsys):
    """An EfficientNet, a learned vocabulary, and a broken file."""
    folder = shutil.copytree(inputs / "photos", tmp_path / "photos")
    (folder / "red.png").write_bytes(b"not an image")
    result = train(
        lambda size: AlignDualEncoder(
            EfficientNetBackbone(0.2, 0.2),
            BertTextEncoder(size, 1, 2, 16, 32),
        ),
        RECIPE,
        data=str(folder),
        workdir=tmp_path / "run",
        steps=2,
        warmup_steps=1,
        batch_size=4,
        sequence_length=16,
    )
    said = capsys.readouterr().out
    packed = tmp_path / "run" / "packed"
    assert f"Packing {folder} with captions.csv" in said
    assert f"1 not an image: see {packed}/manifest.json" in said
    kept, aside = (
        [record["key"] for record in open_records(path)]
        for path in (packed, packed / "held_out")
    )
    assert sorted(kept + aside) == sorted(set(COLORS) - {"red"})
    # It was measured on the images that training did not see.
    assert result["best"]["metrics"]["images"] == len(aside) >= 3
    assert f"(chance {1 / len(aside):.1%}) among {len(aside)} images" in said
    model = AlignDualEncoder.from_preset(result["model"])
    assert isinstance(model.image_encoder, EfficientNetBackbone)
    learned = model.preprocessor.tokenizer.get_vocabulary()
    assert learned[:5] == VOCABULARY[:5] and "##e" in learned
    file = tmp_path / "run" / "vocabulary.txt"
    assert file.read_text().splitlines() == learned


def test_broken_records_are_skipped_counted_and_named(begin, tmp_path, capsys):
    photo = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(photo, "PNG")
    contents = {
        "good": (photo.getvalue(), ["all red"]),
        "cut": (photo.getvalue()[:60], ["all blue"]),
        "empty": (b"", ["all blue"]),
        "silent": (photo.getvalue(), [" "]),
    }
    path = tmp_path / "data.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for key, (image, captions) in contents.items():
            writer.write(records.encode_record(key, image, captions, 40, 40))
    # What others skip in this process is none of the run's.
    shutil.copy(path, tmp_path / "other.tfrecord")
    assert len([*open_records(tmp_path / "other.tfrecord")]) == 2
    result = begin(
        tmp_path / "run",
        data=str(path),
        verbose=True,
        steps=2,
        warmup_steps=0,
        batch_size=4,
    )
    skipped = result["skipped"]
    assert len(skipped) == 3
    for index, key in enumerate(contents):
        name = f"{path}[{index}] {key}"
        assert (name in skipped) == (key != "good")
    assert skipped[f"{path}[3] silent"] == "no caption"
    assert f"Skipped {path}[1] cut" in capsys.readouterr().out


def test_missing_inputs_are_one_clear_error(begin, inputs, tmp_path):
    def refusal(error, **kwargs):
        workdir = tmp_path / "run"
        with pytest.raises(error) as caught:
            begin(workdir, **kwargs)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    nowhere = str(tmp_path / "nowhere")
    assert nowhere in refusal(FileNotFoundError, data=nowhere)
    pattern = str(inputs / "packed" / "*.tfrec")
    assert pattern in refusal(FileNotFoundError, data=pattern)
    empty = tmp_path / "empty"
    empty.mkdir()
    message = refusal(FileNotFoundError, data=str(empty))
    assert str(empty) in message and "captions.csv" in message
    (empty / "data.tfrecord").touch()
    message = refusal(ValueError, data=str(empty))
    assert str(empty) in message and "no records" in message
    assert nowhere in refusal(FileNotFoundError, vocabulary=nowhere)
    message = refusal(ValueError, model="align_b7_bert_bas")
    assert "Did you mean `align_b7_bert_base`" in message
    with pytest.raises(ValueError, match="`batchsize`.*`batch_size`"):
        begin(tmp_path / "run", batchsize=4)


def test_an_attempt_without_checkpoint_binds_nobody(begin, inputs, tmp_path):
    """As when the first batch did not fit into memory."""

    def fail(vocabulary_size):
        raise MemoryError

    with pytest.raises(MemoryError):
        begin(tmp_path, fail, vocabulary=None, vocabulary_size=9, steps=7)
    begun = json.loads((tmp_path / "recipe.json").read_text())
    assert (begun["steps"], begun["vocabulary_size"]) == (7, 9)
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "loss": 9.0}\n')
    begin(tmp_path, vocabulary=None, steps=1, warmup_steps=0, batch_size=16)
    assert json.loads((tmp_path / "recipe.json").read_text())["steps"] == 1
    # Learned anew, not that of the attempt.
    assert len((tmp_path / "vocabulary.txt").read_text().split()) > 9
    assert [line["step"] for line in metrics_of(tmp_path)[0]] == [1]
    with pytest.raises(ValueError, match="vocabulary=None"):
        begin(tmp_path, steps=1, warmup_steps=0, batch_size=16)


@pytest.mark.thorough
@pytest.mark.multiprocess
@pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="a strategy of TensorFlow"
)
def test_two_replicas(run_script, inputs, run, tmp_path):
    """Two replicas of half the batch learn as one device does.

    `test_resume.py` compares their numbers.
    """
    output = run_script(
        SCRIPT,
        inputs,
        tmp_path,
        timeout=180,
        KERAS_BACKEND="tensorflow",
        PYTHONPATH=str(SCRIPT.parents[1]),
    ).stdout
    report = json.loads(output.splitlines()[-1])
    assert "batch_size=9, 2 replicas" in report["error"]
    assert "\n" not in report["error"]
    assert not os.listdir(tmp_path / "odd")

    assert report["result"]["step"] == 40
    training, _ = metrics_of(tmp_path / "even")
    assert training[-1]["loss"] < 0.7 * 2 * np.log(8)
    assert training[-1]["image_to_text_recall_at_1"] > 3 / 8
    state = checkpoint(tmp_path / "even", 40)
    assert state["optimizer/vars/0"] == 40
    model = AlignDualEncoder.from_preset(report["result"]["model"])
    images, texts = embed(model, str(inputs / "packed"))
    hits = (images @ texts.T).argmax(axis=1) == np.arange(len(COLORS))
    assert hits.mean() == report["result"]["best"]["score"] > 5 / 16


def test_a_shard_that_disappears_is_named_and_the_run_resumes(
    begin, run, inputs, tmp_path
):
    packed = shutil.copytree(inputs / "packed", tmp_path / "packed")
    shard = sorted(packed.glob("*.tfrecord"))[1]
    away = tmp_path / "away"
    seen = Seen()

    def evaluate(model, data):
        if shard.exists() and not away.exists():
            shard.rename(away)
        return seen(model, data)

    def again():
        return begin(
            tmp_path / "run",
            data=str(packed),
            validation_data=str(inputs / "packed"),
            evaluate=evaluate,
        )

    with pytest.raises(
        OSError, match=f"{shard.name}.*step 16 is kept"
    ) as error:
        again()
    assert "File " not in str(error.value)
    shutil.copy(away, shard)
    assert again()["step"] == 40
    whole, resumed = (checkpoint(p, 40) for p in (run[0], tmp_path / "run"))
    for name, values in whole.items():
        np.testing.assert_array_equal(resumed[name], values, err_msg=name)
