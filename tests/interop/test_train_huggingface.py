"""Training goes on from a directory or handle of Hugging Face's."""

import shutil

import huggingface_hub
import keras
import numpy as np
import pytest
from colors import write_images
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
    folder = write_images(tmp_path_factory.mktemp("data") / "photos")
    pack(folder, folder.parent / "packed", folder / "captions.csv")
    return str(folder.parent / "packed")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """As few layers as there can be, for they are compiled in each run."""
    pytest.importorskip("transformers", reason="It needs transformers")
    from huggingface_models import make_align
    from huggingface_models import make_processor

    directory = tmp_path_factory.mktemp("small")
    vision = {"width_coefficient": 0.2, "depth_coefficient": 0.1}
    model = make_align(0, vision, {"num_hidden_layers": 1})
    model.save_pretrained(directory)
    make_processor().save_pretrained(directory)
    return directory


@pytest.fixture
def handle(small, monkeypatch):
    """A name on the hub, whose files come from the directory."""

    def download(repo_id, filename, **kwargs):
        if not (small / filename).is_file():
            raise huggingface_hub.errors.EntryNotFoundError("404")
        return str(small / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return "hf://kakaobrain/align-base"


@pytest.mark.thorough
def test_runs_start_from_a_checkpoint_and_resume(
    small, handle, packed, tmp_path, monkeypatch, capsys
):
    disable_xla(monkeypatch)
    seen = []

    def kernel_of(model):
        return keras.ops.convert_to_numpy(model.text_projection.kernel)

    def evaluate(model, data):
        step = int(keras.ops.convert_to_numpy(model.optimizer.iterations))
        seen.append((step, kernel_of(model)))
        if len(seen) == 1:
            raise InterruptedError
        return {"mean_recall": np.float32(len(seen))}

    def run():
        return train(
            handle,
            "finetune_flickr30k",
            packed,
            tmp_path,
            validation_data=packed,
            evaluate=evaluate,
            verbose=False,
            **OVERRIDES,
        )

    with pytest.raises(InterruptedError):
        run()
    assert run()["step"] == 4
    steps, kernels = zip(*seen, strict=True)
    assert steps == (2, 2, 4)
    start = AlignDualEncoder.from_preset(str(small))
    scale = np.abs(kernel_of(start)).max()
    # The rate of the recipe moves what came from the checkpoint a little, and
    # the run goes on from where it was.
    assert 0 < np.abs(kernels[0] - kernel_of(start)).max() < 1e-4 * scale
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert 0 < np.abs(kernels[2] - kernels[1]).max() < 1e-4 * scale

    # The vocabulary and the pixels are those of the checkpoint too.
    model = AlignDualEncoder.from_preset(str(tmp_path / "model"))
    np.testing.assert_array_equal(kernel_of(model), kernels[2])
    assert model.contrastive_head.temperature_form == "raw"
    ours, theirs = model.preprocessor, start.preprocessor
    vocabularies = [p.tokenizer.get_vocabulary() for p in (ours, theirs)]
    assert vocabularies[0] == vocabularies[1]
    ours = ours.image_converter.get_config()
    for name, value in theirs.image_converter.get_config().items():
        if name not in ("name", "image_size", "resize_size"):
            assert ours[name] == value, name

    command = ["train", "--preset", handle, "--data", packed, "--no-export"]
    command += ["--recipe", "finetune_flickr30k", "--workdir", str(tmp_path)]
    for name, value in OVERRIDES.items():
        command += ["--set", f"{name}={value}"]
    assert main(command) == 0
    assert "This run is finished: 4 steps" in capsys.readouterr().out


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
