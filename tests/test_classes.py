"""One reader of class names, in every command that takes them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from align_keras.classes import TEMPLATES
from align_keras.classes import read_classes
from align_keras.classes import read_templates
from align_keras.cli import main
from align_keras.embedding import Embedder
from align_keras.embedding import embed_texts
from align_keras.evaluation.cxc_data import read_sentences

NAMES = [["red", "crimson"], ["blue"]]
ROWS = {"red": [1, 0, 0.1], "crimson": [1, 0.1, 0], "blue": [0, 0, 1]}
# Contents, the names that they hold, and the templates.
FORMS = {
    "lines": ("red\n\n  blue \n", [["red"], ["blue"]], None),
    "lines with a mark": ("\ufeffred\r\nblue", [["red"], ["blue"]], None),
    "list": (json.dumps(NAMES), NAMES, None),
    "list with a mark": ("\ufeff" + json.dumps(NAMES), NAMES, None),
    "object": (
        json.dumps({"classes": {"0": NAMES[0], "1": NAMES[1]}}),
        NAMES,
        None,
    ),
    "object with templates": (
        "\n " + json.dumps({"classes": NAMES, "templates": ["a {}", "the {}"]}),
        NAMES,
        ["a {}", "the {}"],
    ),
}


def evaluate_zero_shot(file, tmp_path, monkeypatch, capsys):
    """Classify a red and a blue image by the words for these colors."""
    colors = [(200, 0, 0), (0, 0, 200)]
    for label, color in enumerate(colors):
        folder = tmp_path / "data" / str(label)
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8), color).save(folder / "0.png")
    asked = []

    def texts(batch):
        asked.extend(batch)
        words = [next(w for w in ROWS if w in text) for text in batch]
        return np.array([ROWS[word] for word in words], "float32")

    def images(batch):
        return np.array([pixels.mean(axis=(0, 1)) for pixels in batch])

    monkeypatch.setattr(
        "align_keras.embedding.load_embedder",
        lambda _: Embedder("colors", images, texts),
    )
    command = ["evaluate", "zero-shot", "--model", "colors", "--json"]
    command += ["--data", str(tmp_path / "data"), "--classes", str(file)]
    assert main([*command, "--bootstrap", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == 1
    return [asked]


def classify(file, tmp_path, monkeypatch, capsys):
    passed = {}

    def answer(model, images, names, templates, unreadable):
        passed.update(names=names, templates=templates)
        return np.full((len(images), len(names)), 1 / len(names))

    monkeypatch.setattr("align_keras.classes.classify", answer)
    monkeypatch.setattr("align_keras.embedding.load_embedder", lambda _: None)
    (tmp_path / "a.png").touch()
    command = ["classify", str(tmp_path / "a.png"), "--model", "colors"]
    assert main([*command, "--classes", str(file), "--json"]) == 0
    return passed["names"], passed["templates"]


def export(file, tmp_path, monkeypatch, capsys):
    passed = {}
    monkeypatch.setattr(
        "align_keras.AlignDualEncoder.from_preset",
        lambda _: SimpleNamespace(embedding_dim=3),
    )
    monkeypatch.setattr(
        "align_keras.serving.export.require_weights", lambda preset: preset
    )
    monkeypatch.setattr(
        "align_keras.serving.export.export_saved_model",
        lambda *_, **settings: passed.update(settings) or {},
    )
    command = ["export", "--model", "colors", "--runs", "0", "--json"]
    command += ["--output", str(tmp_path), "--classes", str(file)]
    assert main(command) == 0
    return passed["classes"], passed["templates"]


def index(file, tmp_path, monkeypatch, capsys):
    passed = {}
    monkeypatch.setattr(
        "align_keras.search.build_index",
        lambda *_, **settings: passed.update(settings) or {},
    )
    command = ["index", str(tmp_path), "--model", "colors", "--json"]
    command += ["--output", str(tmp_path), "--labels", str(file)]
    assert main(command) == 0
    return passed["labels"], passed["templates"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "command", [evaluate_zero_shot, classify, export, index]
)
def test_every_command_takes_every_form(
    command, form, tmp_path, monkeypatch, capsys, any_model
):
    content, names, templates = FORMS[form]
    # The suffix says nothing.
    file = tmp_path / "classes.list"
    file.write_text(content, "utf-8")
    found = command(file, tmp_path, monkeypatch, capsys)
    if command is evaluate_zero_shot:
        templates = templates or TEMPLATES
        prompts = [
            template.replace("{}", name)
            for group in names
            for name in group
            for template in templates
        ]
        # The last batch is filled up with its first text.
        assert found[0][: len(prompts)] == prompts
    else:
        assert (found[0], list(found[1])) == (names, templates or ["{}"])


@pytest.mark.parametrize("form", ["dog\ncat\ndog\n", '["dog", "cat", "dog"]'])
def test_labels_are_distinct_where_answers_are_labels(
    form, tmp_path, capsys, any_model
):
    file = tmp_path / "classes"
    file.write_text(form)
    assert len(read_classes(file).names) == 3
    index = ["index", str(tmp_path), "--labels"]
    for command in (["export", "--classes"], index):
        command = [*command, str(file), "--model", "a", "--output", "b"]
        assert main(command) == 2
        place = "on line 1" if "\n" in form else "under '0'"
        assert f"`{file}` names the class 'dog' {place} and again" in (
            capsys.readouterr().err
        )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "names no class"),
        (b" \n\n", "names no class"),
        (b"[]", "names no class"),
        (b'{"classes": {}}', "names no class"),
        (b'["a", ["b", 3]]', r"Received for '1': \['b', 3\]"),
        (b'{"classes": "a"}', "Received: str"),
        (b'{"a": []}', r"Received for 'a': \[\]"),
        (b'["a",\n "b"', "not valid JSON: .*line 2"),
        (b'"a"\n"b"', "not valid JSON: .*line 2"),
        (b'{"classes": ["a"], "templates": "{}"}', "must be a list"),
        (b"caf\xe9", "not UTF-8"),
    ],
)
def test_wrong_files_are_named(content, message, tmp_path):
    file = tmp_path / "classes"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_classes(file)
    assert f"`{file}`" in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_classes_and_templates_in_any_encoding_and_of_any_text(
    tmp_path, encoding
):
    """Half a character, as JSON can write it, is U+FFFD as in captions."""
    file = tmp_path / "classes.json"
    content = {"classes": ["é", ["dog\ud83d", "\ud83d\ude3a"]]}
    content["templates"] = ["\udce9 {}"]
    for text in (json.dumps(content), json.dumps(content["classes"])):
        file.write_text(text, encoding)
        names = [["é"], ["dog\ufffd", "\U0001f63a"]]
        assert read_classes(file).names == names
    file.write_text(json.dumps(content["templates"]), encoding)
    assert read_templates(file) == ["\ufffd {}"]
    file.write_text("é\ndog\n", encoding)
    assert read_classes(file).names == [["é"], ["dog"]]
    file.write_text('["a\\ud83d", "b", "a\\udce9"]')
    with pytest.raises(ValueError, match="names the class 'a\ufffd' under '0'"):
        read_classes(file, distinct=True)
    asked = []

    def texts(batch):
        asked.extend(batch)
        return np.eye(len(batch), 8)

    embedder = Embedder("any", texts, texts)
    embed_texts(embedder, ["a", "b\ud83d", "c\udce9"], 4, progress=False)
    assert asked == ["a", "b\ufffd", "c\ufffd", "a"]


def test_labels_are_names_before_they_are_positions(tmp_path):
    file = tmp_path / "classes"
    numbers = [str(n) for n in range(1, 11)]
    file.write_text("\n".join(numbers))
    folders = sorted(numbers)
    found = read_classes(file).find(folders)
    assert [numbers[n] for n in found] == folders
    # All of these are positions, and not all of them names.
    labels = [str(n) for n in range(10)]
    assert read_classes(file).find(labels) == list(range(10))
    # A data set that only numbers its classes has no names to be found.
    file.write_text("\n".join(reversed(labels)))
    assert read_classes(file).find(range(10)) == list(range(10))
    assert read_classes(file).find(labels) == list(range(10))[::-1]
    file.write_text("\n".join(str(n) for n in range(2, 12)))
    with pytest.raises(ValueError, match=r"label '1'.*'10' is neither"):
        read_classes(file).find(numbers)
    # Keys that the file gives say what labels mean.
    file.write_text('{"2": "1", "1": ["2", "Two"]}')
    assert read_classes(file).find(["1", "2", "1"]) == [1, 0, 1]
    assert read_classes(file).find(["two", "2"]) == [1, 0]
    file.write_text('["Cat", "cat", "DOG"]')
    assert read_classes(file).find(["cat", "Cat", "dog"]) == [1, 0, 2]


def test_sentences_of_any_text(tmp_path):
    file = tmp_path / "dataset.json"
    sentence = {"sentid": 7, "raw": " a cat \ud83d"}
    file.write_text(json.dumps({"images": [{"sentences": [sentence]}]}))
    assert read_sentences(file, ["x:7"]) == ["a cat \ufffd"]
