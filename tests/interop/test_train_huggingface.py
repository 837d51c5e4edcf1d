"""Training goes on from a directory or handle of Hugging Face's."""

import shutil

import huggingface_hub
import keras
import numpy as np
import pytest
from colors import write_pictures
from without_xla import disable_xla

from align_keras import AlignDualEncoder
from align_keras.cli import main
from align_keras.data import pack
from align_keras.interop import save_huggingface
from align_keras.training import Recipe
from align_keras.training import train
from align_keras.training.assembly import build_model

OVERRIDES = {
    "steps": 4,
    "batch_size": 4,
    "image_size": 32,
    "sequence_length": 8,
    "checkpoint_every": 2,
    "precision": "float32",
}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = write_pictures(tmp_path_factory.mktemp("data") / "pictures")
    pack(folder, folder.parent / "packed", folder / "captions.csv")
    return str(folder.parent / "packed")


@pytest.fixture
def handle(directory, monkeypatch):
    """A name on the hub, whose files come from the directory."""

    def download(repo_id, filename, **kwargs):
        if not (directory / filename).is_file():
            raise huggingface_hub.errors.EntryNotFoundError("404")
        return str(directory / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return "hf://kakaobrain/align-base"


def weights_of(preset):
    model = AlignDualEncoder.from_preset(str(preset))
    return model, [keras.ops.convert_to_numpy(w) for w in model.weights]


def test_runs_start_from_a_checkpoint_and_resume(
    directory, converted, handle, packed, tmp_path, monkeypatch
):
    disable_xla(monkeypatch)
    whole = ["--workdir", str(tmp_path / "whole"), "--no-export"]
    for name, value in OVERRIDES.items():
        whole += ["--set", f"{name}={value}"]
    command = ["train", "--preset", str(directory), "--data", packed]
    command += ["--recipe", "finetune_flickr30k", *whole]
    assert main(command) == 0
    model, weights = weights_of(tmp_path / "whole" / "model")
    # Vocabulary, pixels and weights are those of the checkpoint, which four
    # steps at the rate of the recipe move a little.
    theirs = converted.preprocessor
    assert (
        model.preprocessor.tokenizer.get_vocabulary()
        == theirs.tokenizer.get_vocabulary()
    )
    ours = model.preprocessor.image_converter.get_config()
    for name, value in theirs.image_converter.get_config().items():
        if name not in ("name", "image_size", "resize_size"):
            assert ours[name] == value, name
    assert model.contrastive_head.temperature_form == "raw"
    start = keras.ops.convert_to_numpy(converted.text_projection.kernel)
    end = keras.ops.convert_to_numpy(model.text_projection.kernel)
    assert 0 < np.abs(end - start).max() < 1e-4 * np.abs(start).max()

    # The same by its name, interrupted at the second checkpoint.
    steps = []

    def evaluate(model, data):
        iterations = keras.ops.convert_to_numpy(model.optimizer.iterations)
        steps.append(int(iterations))
        if steps == [2, 4]:
            raise InterruptedError
        return {"mean_recall": np.float32(len(steps))}

    def run():
        return train(
            handle,
            "finetune_flickr30k",
            packed,
            tmp_path / "parts",
            validation_data=packed,
            evaluate=evaluate,
            verbose=False,
            **OVERRIDES,
        )

    with pytest.raises(InterruptedError):
        run()
    assert run()["step"] == 4
    assert steps == [2, 4, 4]
    _, again = weights_of(tmp_path / "parts" / "model")
    for one, other in zip(again, weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_fields_of_a_recipe_reach_the_checkpoint(directory, tmp_path):
    fields = {**OVERRIDES, "learning_rate": 0.01}
    recipe = Recipe(**fields, loss="sigmoid")
    model = build_model(str(directory), recipe, None, replicas=2)
    assert model.image_encoder.batch_norm == "synchronized"
    assert float(model.contrastive_head.bias) == -10.0
    assert model.temperature == pytest.approx(0.7)
    with pytest.raises(ValueError, match="cannot express.*bias"):
        save_huggingface(model, tmp_path / "out")
    recipe = Recipe(**fields, initial_temperature=0.1)
    model = build_model(str(directory), recipe, None)
    assert model.temperature == pytest.approx(0.1)


def test_another_vocabulary_is_refused(directory, packed, tmp_path):
    copy = shutil.copytree(directory, tmp_path / "copy")
    for path in copy.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ValueError, match="vocabulary of 68 tokens. Received a"):
        train(
            str(copy),
            "finetune_coco",
            packed,
            tmp_path / "run",
            verbose=False,
            **OVERRIDES,
        )
