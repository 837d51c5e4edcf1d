"""The recipe for retrieval, from Karpathy's file to a better recall."""

import json

import pytest
from colors import COLORS
from colors import VOCABULARY
from colors import tiny_model
from colors import write_images
from PIL import Image
from PIL import ImageOps
from without_xla import disable_xla

from align_keras import AlignImageConverter
from align_keras import AlignPreprocessor
from align_keras import AlignTokenizer
from align_keras.cli import main
from align_keras.data import open_records

# What must be small here, and what learns in a few steps from nothing.
SETTINGS = {
    "steps": 80,
    "batch_size": 8,
    "learning_rate": 0.02,
    "optimizer": "adam",
    "image_size": 32,
    "sequence_length": 6,
    "checkpoint_every": 20,
}


def write_data(folder):
    """Two captions an image; those of `val` are mirror images of others."""
    write_images(folder / "images")
    names = {color: f"{color}.png" for color in COLORS}
    for color in COLORS[:8]:
        with Image.open(folder / "images" / names[color]) as image:
            mirrored = ImageOps.mirror(image)
        mirrored.save(folder / "images" / f"val_{color}.png")
    rows = [(names[color], color, "train") for color in COLORS[:12]]
    rows += [(names[color], color, "restval") for color in COLORS[12:]]
    rows += [(f"val_{color}.png", color, "val") for color in COLORS[:8]]
    images = [
        {
            "filename": name,
            "split": split,
            "sentences": [{"raw": f"all {color}"}, {"raw": color}],
        }
        for name, color, split in rows
    ]
    content = json.dumps({"images": images})
    (folder / "dataset_coco.json").write_text(content)


@pytest.fixture
def folder(tmp_path):
    """Images, captions, and a model that was trained no further."""
    write_data(tmp_path)
    model = tiny_model(len(VOCABULARY))
    model.preprocessor = AlignPreprocessor(
        AlignTokenizer(VOCABULARY),
        AlignImageConverter(image_size=32),
        sequence_length=6,
    )
    model.save_to_preset(tmp_path / "pretrained")
    return tmp_path


@pytest.mark.usefixtures("plain_decoder")
def test_fine_tuning_for_retrieval(folder, capsys, monkeypatch):
    disable_xla(monkeypatch)
    captions = ["--captions", str(folder / "dataset_coco.json")]
    images = str(folder / "images")

    def run(*arguments):
        assert main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    def recall(model):
        command = ["evaluate", "retrieval", "--data", images, *captions]
        command += ["--split", "val", "--bootstrap", 0, "--json"]
        return json.loads(run(*command, "--model", model))

    for name, split in (("train", "train,restval"), ("val", "val")):
        output = folder / "packed" / name
        run("pack", images, *captions, "--split", split, "--output", output)
    packed = list(open_records(str(folder / "packed" / "train")))
    assert len(packed) == 16 and len(packed[0]["captions"]) == 2

    command = ["train", "--preset", folder / "pretrained", "--no-export"]
    command += ["--recipe", "finetune_coco", "--data"]
    command += [folder / "packed" / "train", "--validation-data"]
    command += [folder / "packed" / "val", "--workdir", folder / "tuned"]
    for name, value in SETTINGS.items():
        command += ["--set", f"{name}={value}"]
    result = json.loads(run(*command, "--json"))
    assert result["best"]["metrics"]["images"] == 8

    before = recall(folder / "pretrained")
    after = recall(result["model"])
    assert before["images"] == 8 and before["texts"] == 16
    assert before["mean_recall"] < 0.7 < 0.85 < after["mean_recall"]

    # What is not replaced is the recipe's, linear decay from the start too.
    asked = json.loads((folder / "tuned" / "recipe.json").read_text())
    assert (asked["precision"], asked["warmup_steps"]) == ("mixed_bfloat16", 0)
    assert (asked["label_smoothing"], asked["weight_decay"]) == (0.1, 1e-5)
    lines = (folder / "tuned" / "metrics.jsonl").read_text().splitlines()
    rates = {
        line["step"]: line["learning_rate"]
        for line in map(json.loads, lines)
        if "learning_rate" in line
    }
    assert len(rates) > 1
    for step, rate in rates.items():
        assert rate == pytest.approx(0.02 * (1 - step / 80), abs=0.02 / 79)
