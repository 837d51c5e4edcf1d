"""Each command that has `--allow-outside`, on a folder with a way out."""

import argparse
import dataclasses
import json
import shutil

import keras
import pytest
import yaml
from colors import FIELDS
from hostile import write_captions
from seer import COLORS
from seer import Seer
from seer import paint
from seer import write_root
from tiny_align import tiny_align

from align_keras import embedding
from align_keras.cli import main
from align_keras.cli import make_parser
from align_keras.data import pack
from align_keras.evaluation import diagnosis
from align_keras.evaluation import suite
from align_keras.models import AlignDualEncoder

# It is about where files lie.
pytestmark = pytest.mark.usefixtures("plain_decoder")

# The folders of INPUTS are given to each command anew, with a way out of the
# one that is named first; it is the file after it.
CASES = {
    "vocab": ("pairs", "b.csv", "vocab pairs --output OUT --size 60"),
    "curate": ("pairs", "b.csv", "curate pairs --output OUT --config web_text"),
    "classify": ("photos", "1.png", "classify photos red blue --model MODEL"),
    "pack": ("photos", "1.png", "pack photos --output OUT"),
    "embed": ("photos", "1.png", "embed photos --model MODEL --output OUT"),
    "score": ("photos", "1.png", "score photos --model MODEL --output OUT"),
    "train": (
        "photos",
        "1.png",
        "train --preset MODEL --recipe recipe.yaml --data photos --workdir OUT",
    ),
    "average": (
        "packed",
        "0.tfrecord",
        "average MODEL MODEL --sweep --old-data packed --new-data packed "
        "--output OUT",
    ),
    "ablate": ("photos", "1.png", "ablate plan.yaml --workdir OUT"),
    "evaluate retrieval": (
        "photos",
        "1.png",
        "evaluate retrieval --model MODEL --data photos --bootstrap 0",
    ),
    "diagnose": (
        "photos",
        "1.png",
        "diagnose --model MODEL --data photos --output OUT",
    ),
    "evaluate zero-shot": (
        "imagenet",
        "val/n1/1.png",
        "evaluate zero-shot --model MODEL --data imagenet/val --bootstrap 0 "
        "--classes imagenet/classes.json",
    ),
    "evaluate knn": (
        "imagenet",
        "train/n1/1.png",
        "evaluate knn --model MODEL --train imagenet/train "
        "--data imagenet/val --bootstrap 0",
    ),
    "evaluate linear-probe": (
        "imagenet",
        "train/n1/1.png",
        "evaluate linear-probe --model MODEL --train imagenet/train "
        "--data imagenet/val --bootstrap 0",
    ),
    "evaluate finetune": (
        "imagenet",
        "train/n1/1.png",
        "evaluate finetune --model MODEL --train imagenet/train "
        "--data imagenet/val --workdir OUT --bootstrap 0",
    ),
    "evaluate cxc": (
        "mscoco",
        "images/val2014/COCO_val2014_000000000001.jpg",
        "evaluate cxc --model MODEL --data cxc --images mscoco/images "
        "--captions mscoco/dataset_coco.json --bootstrap 0",
    ),
    "evaluate composition": (
        "words",
        "images/1.png",
        "evaluate composition --model MODEL --test winoground --data words "
        "--bootstrap 0",
    ),
    "evaluate multilingual": (
        "languages",
        "images/1.jpg",
        "evaluate multilingual --model MODEL --test xm3600 --data languages "
        "--bootstrap 0",
    ),
    "evaluate all": (
        "mscoco",
        "images/val2014/COCO_val2014_000000000001.jpg",
        "evaluate all --model MODEL --data-root . --output OUT --bootstrap 0",
    ),
}


def commands_with(option):
    """Walk the parser; returns the words of each command that has it."""
    found = set()

    def walk(parser, words):
        for action in parser._actions:
            if option in action.option_strings:
                found.add(" ".join(words))
            if isinstance(action, argparse._SubParsersAction):
                for name, inner in action.choices.items():
                    walk(inner, [*words, name])

    walk(make_parser(), [])
    return found


def test_each_command_that_has_the_option_is_tried():
    assert commands_with("--allow-outside") == set(CASES)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_root(folder)
    for number, color in enumerate(COLORS.values()):
        paint(folder / "photos" / f"{number}.png", color, number)
        paint(folder / "words" / "images" / f"{number}.png", color, number)
        paint(folder / "languages/images" / f"{number}.jpg", color, number)
    example = {
        "caption_0": "red",
        "caption_1": "green",
        "collapsed_tag": "Object",
    }
    example |= {"image_0": "0", "image_1": "1"}
    (folder / "words" / "examples.jsonl").write_text(json.dumps(example) + "\n")
    rows = [
        {"image/key": str(number), "en": {"caption": [color]}}
        for number, color in enumerate(COLORS)
    ]
    lines = "\n".join(map(json.dumps, rows))
    (folder / "languages" / "captions.jsonl").write_text(lines)
    names = [f"{number}.png" for number in range(len(COLORS))]
    captions = write_captions(folder / "photos" / "captions.csv", names)
    (folder / "pairs").mkdir()
    for name in "ab":
        lines = [f"http://{name}.b/{n}.jpg,a red bus {n}" for n in range(9)]
        table = "\n".join(["url,text", *lines])
        (folder / "pairs" / f"{name}.csv").write_text(table)
    pack(folder / "photos", folder / "found")
    (folder / "packed").mkdir()
    for number in range(2):
        (record,) = (folder / "found").glob("*.tfrecord")
        shutil.copy(record, folder / "packed" / f"{number}.tfrecord")
    tiny_align().save_to_preset(str(folder / "MODEL"))
    recipe = {**FIELDS, "steps": 2, "batch_size": 2, "warmup_steps": 0}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    text = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16}
    text["intermediate_dim"] = 32
    plan = {
        "data": {
            "images": "photos",
            "captions": str(captions),
            "evaluation": str(folder / "photos"),
        },
        "overrides": {"steps": 1, "batch_size": 2, "warmup_steps": 0},
        "encoders": {
            "image": {
                "b": {"width_coefficient": 0.2, "depth_coefficient": 0.2}
            },
            "text": {"b": text},
        },
        "base": {"image": "b", "text": "b"},
        "runs": {"noisy": {"noise": 0.5}},
    }
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    return folder


class Reached(Exception):
    """Raised where what takes long would begin."""


@pytest.mark.parametrize("command", CASES)
def test_what_leads_out_is_named_and_read_where_that_is_meant(
    command, inputs, tmp_path, monkeypatch, capsys
):
    folder, way, words = CASES[command]
    work, elsewhere = tmp_path / "work", tmp_path / "elsewhere"
    shutil.copytree(inputs, work)
    way = work / folder / way
    elsewhere.mkdir()
    shutil.move(way, elsewhere / way.name)
    way.symlink_to(elsewhere / way.name)
    monkeypatch.chdir(work)
    seer = dataclasses.replace(Seer().embedder(), temperature=0.1)
    for module in (embedding, diagnosis, suite):
        monkeypatch.setattr(module, "load_embedder", lambda _: seer)

    def reached(*args, **kwargs):
        raise Reached

    for model in (AlignDualEncoder, keras.Model):
        monkeypatch.setattr(model, "fit", reached)
    monkeypatch.setattr(
        "align_keras.evaluation.sweep.measure_retrieval", reached
    )
    for option in ([], ["--allow-outside"]):
        line = words.replace("OUT", f"out{len(option)}").split()
        try:
            status = main([*line, *option])
        except Reached:
            status = 0
        captured = capsys.readouterr()
        shown = captured.out + captured.err
        for manifest in (work / f"out{len(option)}").rglob("*.json"):
            shown += manifest.read_text()
        named = "leads out of" in shown and way.name in shown
        assert named == (not option), shown
        if option:
            assert status == 0, shown
