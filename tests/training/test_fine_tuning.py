"""Whole runs that freeze, unfreeze, adapt, and look at themselves."""

import dataclasses
import json

import numpy as np
import pytest
from colors import FIELDS
from colors import VOCABULARY
from colors import tiny_model
from colors import write_images
from colors import write_vocabulary
from runs import Seen
from runs import checkpoint
from runs import embed
from runs import metrics_of

from align_keras import AlignDualEncoder
from align_keras.data import pack
from align_keras.models.lora import lora_layers
from align_keras.training import Recipe
from align_keras.training import train
from align_keras.training.callbacks import read_metrics

pytestmark = pytest.mark.usefixtures("eager_steps")

RECIPE = Recipe(
    **{**FIELDS, "steps": 12, "warmup_steps": 2, "checkpoint_every": 4}
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Packed images, a vocabulary, and a preset with weights."""
    folder = tmp_path_factory.mktemp("inputs")
    write_images(folder / "photos")
    write_vocabulary(folder / "words.txt")
    captions = folder / "photos" / "captions.csv"
    pack(folder / "photos", folder / "packed", captions, records_per_shard=6)
    model = tiny_model(len(VOCABULARY), dropout=0.05)
    model.save_to_preset(str(folder / "preset"))
    return folder


def begin(folder, workdir, seen=None, **fields):
    diagnostics = fields.pop("diagnostics", True)
    return train(
        str(folder / "preset"),
        dataclasses.replace(RECIPE, **fields),
        data=str(folder / "packed"),
        vocabulary=str(folder / "words.txt"),
        workdir=workdir,
        validation_data=str(folder / "packed"),
        evaluate=seen or Seen(),
        verbose=False,
        diagnostics=diagnostics,
    )


def assert_same(ours, theirs, step=12):
    one, other = checkpoint(ours, step), checkpoint(theirs, step)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    lines = [
        [
            {k: v for k, v in line.items() if k != "images_per_second"}
            for _, line in read_metrics(workdir)
        ]
        for workdir in (ours, theirs)
    ]
    assert lines[0] == lines[1]


def table(workdir, step):
    """The vectors of tokens, which the text encoder holds."""
    arrays = checkpoint(workdir, step)
    (found,) = [
        value
        for name, value in arrays.items()
        if value.shape == (len(VOCABULARY), 16) and "optimizer" not in name
    ]
    return found


FREEZE = {"freeze": "text", "unfreeze_after": 6}


class Tables(Seen):
    """Notes the vectors of tokens at each evaluation, too."""

    def __init__(self):
        super().__init__()
        self.tables = []

    def __call__(self, model, data):
        table = model.text_encoder.token_embedding.embeddings
        self.tables.append(table.numpy())
        return super().__call__(model, data)


@pytest.fixture(scope="module")
def unfrozen(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unfrozen")
    seen = Tables()
    begin(folder, workdir, seen, **FREEZE)
    return workdir, seen.tables


def test_what_is_frozen_learns_after_some_steps(folder, unfrozen):
    workdir, tables = unfrozen
    training, evaluation = metrics_of(workdir)
    # The end of a part is reported, saved and measured.
    assert [line["step"] for line in training] == [1, 4, 6, 8, 12]
    assert [line["step"] for line in evaluation] == [4, 6, 8, 12]
    for line in training:
        step = line["step"]
        rate = 0.02 * (step / 2 if step < 2 else (12 - step) / 10)
        if step > 6:
            rate *= min(1, (step - 6) / 2)
        assert line["learning_rate"] == pytest.approx(rate, rel=1e-5)
    frozen = AlignDualEncoder.from_preset(str(folder / "preset"))
    start = frozen.text_encoder.token_embedding.embeddings.numpy()
    np.testing.assert_array_equal(tables[0], start)
    np.testing.assert_array_equal(tables[1], start)
    assert np.abs(tables[2] - start).max() > 1e-3


@pytest.mark.parametrize(
    "stop_at", [2, pytest.param(3, marks=pytest.mark.thorough)]
)
def test_a_run_resumes_across_the_end_of_what_is_frozen(
    stop_at, folder, unfrozen, tmp_path
):
    """Stopped in the evaluation of step 6, and of the one after it."""
    with pytest.raises(InterruptedError):
        begin(folder, tmp_path, Seen(stop_at=stop_at), **FREEZE)
    begin(folder, tmp_path, **FREEZE)
    assert_same(tmp_path, unfrozen[0])


LORA = {"lora_rank": 2, "ema": 0.5, "optimizer": "lamb", "layer_decay": 0.7}


def test_low_rank_updates_resume_and_are_merged(folder, tmp_path):
    seen = Seen()
    result = begin(folder, tmp_path / "whole", seen, **LORA)
    with pytest.raises(InterruptedError):
        begin(folder, tmp_path / "parts", Seen(stop_at=2), **LORA)
    begin(folder, tmp_path / "parts", **LORA)
    assert_same(tmp_path / "parts", tmp_path / "whole")
    arrays = checkpoint(tmp_path / "whole", 12)
    factors = [v for k, v in arrays.items() if k.startswith("lora/")]
    # Both factors of each have moved from where they start.
    assert len(factors) > 6 and all(np.abs(f).max() > 1e-4 for f in factors)
    # What is frozen is saved as it was.
    preset = AlignDualEncoder.from_preset(str(folder / "preset"))
    start = preset.text_encoder.token_embedding.embeddings.numpy()
    np.testing.assert_array_equal(table(tmp_path / "whole", 12), start)

    model = AlignDualEncoder.from_preset(result["model"])
    assert not lora_layers(model) and "lora" not in _config(result["model"])
    merged = model.text_encoder.token_embedding.embeddings.numpy()
    assert np.abs(merged - start).max() > 1e-4
    best = seen.iterations.index(result["best"]["step"])
    got = embed(model, str(folder / "packed"))
    for ours, theirs in zip(got, seen.embeddings[best], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


def _config(preset):
    with open(f"{preset}/config.json") as file:
        return file.read()


def test_diagnostics_change_no_bit(folder, tmp_path):
    begin(folder, tmp_path / "with")
    begin(folder, tmp_path / "without", diagnostics=False)
    one, other = (
        checkpoint(tmp_path / name, 12) for name in ("with", "without")
    )
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    states = [
        json.loads(
            (tmp_path / name / "checkpoints/step-000000012.json").read_text()
        )
        for name in ("with", "without")
    ]
    assert states[0]["random"] == states[1]["random"] != []
    lines = [metrics_of(tmp_path / name)[0] for name in ("with", "without")]
    for ours, theirs in zip(*lines, strict=True):
        assert ours["loss"] == theirs["loss"]
        assert "text_gradient_norm" not in theirs


def test_diagnostics_are_in_the_log(folder, unfrozen):
    training, evaluation = metrics_of(unfrozen[0])
    assert 0 < training[0]["text_self_match"] <= 1
    assert -1 < training[0]["text_cosine"] < 1
    assert all("text_self_match" not in line for line in training[1:])
    for line in training:
        assert line["image_gradient_norm"] > 0
        assert line["text_gradient_norm"] > 0
    # A frozen encoder has no gradient; its projection has one.
    frozen, whole = training[2], training[3]
    assert frozen["text_gradient_norm"] < whole["text_gradient_norm"]
    names = {
        "validation_image_cosine",
        "validation_image_cosine_batch_statistics",
        "validation_text_cosine",
    }
    assert all(names <= set(line) for line in evaluation)
    last = evaluation[-1]
    assert (
        last["validation_image_cosine"]
        != last["validation_image_cosine_batch_statistics"]
    )


def test_other_settings_are_another_run(folder, unfrozen):
    with pytest.raises(ValueError, match="freeze='text', but freeze=None"):
        begin(folder, unfrozen[0])
    with pytest.raises(ValueError, match="diagnostics=True, but"):
        begin(folder, unfrozen[0], diagnostics=False, **FREEZE)
