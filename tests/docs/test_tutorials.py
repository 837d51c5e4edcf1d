"""The commands of the tutorials run as they stand, one after the other."""

import csv
import re
import shlex
import shutil
from pathlib import Path

import hub_server
import pytest

from align_keras.cli import main
from align_keras.quickstart import write_scenes

TUTORIALS = Path(__file__).resolve().parents[2] / "docs" / "tutorials"


def commands(name):
    """The commands of a page that end by themselves, but for pip's."""
    page = (TUTORIALS / f"{name}.md").read_text("utf-8")
    found = []
    for block in re.findall(r"^```shell\n(.*?)^```", page, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line)
            if words[0] == "align-keras":
                found.append(words[1:])
            else:
                assert words[:2] == ["pip", "install"]
    return found


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_scenes("photos", 20)
    shutil.copy(min(Path("photos/images").iterdir()), "photos/one.jpg")
    return tmp_path / "photos"


def run(words):
    assert main(words) == 0, words


def test_train_on_your_photos(photos):
    ran = []
    for words in commands("train_on_your_photos"):
        if words[0] == "train":
            # The same run, over in seconds.
            words = [*words, "--set", "epochs=1", "--set", "image_size=32"]
            words += ["--set", "batch_size=4"]
        run(words)
        ran.append(words[0])
    assert ran == ["train", "evaluate", "embed", "index", "search"]
    assert Path("run/saved_model/saved_model.pb").is_file()


def test_the_captions_of_the_page_are_read(tmp_path):
    from align_keras.data import read_captions

    page = (TUTORIALS / "train_on_your_photos.md").read_text("utf-8")
    (table,) = re.findall(r"^```\n(image,caption\n.*?)^```", page, re.M | re.S)
    path = tmp_path / "captions.csv"
    path.write_text(table)
    expected = {}
    for row in csv.DictReader(table.splitlines()):
        expected.setdefault(row["image"], []).append(row["caption"])
    assert read_captions(path) == expected


def test_search_your_photos(photos, monkeypatch, tmp_path, capsys):
    pytest.importorskip("torch", reason="It makes the pretrained model")
    pytest.importorskip("transformers", reason="It makes the pretrained model")
    from huggingface_models import make_align
    from huggingface_models import make_processor

    make_align().save_pretrained(tmp_path / "published")
    make_processor().save_pretrained(tmp_path / "published")
    with hub_server.hub_running() as hub:
        hub.add("kakaobrain/align-base", tmp_path / "published")
        hub_server.use(hub, monkeypatch, tmp_path / "cache")
        ran = []
        for words in commands("search_your_photos"):
            run(words)
            ran.append(words[0])
    assert ran == ["classify", "embed", "index", *["search"] * 3]
    assert "one.jpg" in capsys.readouterr().out
