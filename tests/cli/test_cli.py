"""The commands one after the other, as a user types them."""

import dataclasses
import json
import re

import keras
import numpy as np
import pytest
import yaml
from colors import COLORS
from colors import FIELDS
from colors import VOCABULARY
from colors import tiny_model
from colors import write_images
from colors import write_vocabulary

from align_keras import AlignDualEncoder
from align_keras import list_pretrained_presets
from align_keras.cli import COMMANDS
from align_keras.cli import main
from align_keras.data import open_records
from align_keras.evaluation import measure_retrieval
from align_keras.training import load_recipe


def run(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.fixture
def ask(capsys):
    """Run a command and return the JSON that is all of its output."""

    def ask(*arguments):
        assert run(*arguments, "--json") == 0
        return json.loads(capsys.readouterr().out)

    return ask


@pytest.fixture
def refusal(capsys):
    """Run a command that must fail, and return its one line."""

    def refusal(*arguments):
        assert run(*arguments) == 2
        said = capsys.readouterr().err
        # Progress bars and warnings may stand before it.
        line = said.splitlines()[-1]
        assert line.startswith("align-keras: error: ")
        assert said.count("align-keras: error: ") == 1
        assert "Traceback" not in said
        return line.removeprefix("align-keras: error: ")

    return refusal


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images, a vocabulary, a recipe and a preset of a tiny model."""
    folder = tmp_path_factory.mktemp("cli")
    write_images(folder / "photos")
    write_vocabulary(folder / "words.txt")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(FIELDS))
    keras.utils.set_random_seed(0)
    tiny_model(len(VOCABULARY)).save_to_preset(str(folder / "preset"))
    return folder


@pytest.fixture(scope="module")
def packed(folder):
    captions = folder / "photos" / "captions.csv"
    output = folder / "packed"
    photos = folder / "photos"
    assert run("pack", photos, "--captions", captions, "--output", output) == 0
    return output


def train_arguments(folder, **changes):
    options = {
        "preset": folder / "preset",
        "recipe": folder / "recipe.yaml",
        "data": folder / "packed",
        "workdir": folder / "run",
        "vocabulary": folder / "words.txt",
        "strategy": "one-device",
        **changes,
    }
    return [
        "train",
        *(word for k, v in options.items() for word in (f"--{k}", v)),
    ]


@pytest.fixture(scope="module")
def trained(folder, packed):
    """Preset directory of the best model of a run."""
    arguments = train_arguments(folder, **{"validation-data": packed})
    arguments += ["--seed", "5", "--set", "steps=6", "--set", "batch_size=4"]
    assert run(*arguments, "--set", "learning_rate=1e-2") == 0
    return folder / "run" / "model"


def test_train_beside_a_plan(folder, packed, tmp_path, capsys):
    """Six steps, of which every report but the first is counted."""
    fields = {**FIELDS, "steps": 6, "batch_size": 4, "checkpoint_every": 2}
    recipe = load_recipe(str(folder / "recipe.yaml"), **fields)
    plan = {
        "preset": str(folder / "preset"),
        "recipe": dataclasses.asdict(recipe),
        "seconds": {"step": 0.25},
        "topology": "v5e:2x2",
        "shard_state": False,
    }
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    arguments = train_arguments(folder, workdir=tmp_path / "run", plan=path)
    arguments += ["--no-export", "--set", "steps=6"]
    arguments += ["--set", "checkpoint_every=2"]
    assert run(*arguments, "--set", "batch_size=4") == 0
    words = r"A step took .* times the 0.2500 s planned for v5e:2x2\."
    assert re.search(words, capsys.readouterr().out)
    assert run(*arguments, "--set", "batch_size=8") == 2
    assert "has batch_size=4" in capsys.readouterr().err


def test_presets_as_a_table(capsys):
    assert run("presets") == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.startswith("align_")]
    known = list_pretrained_presets()
    assert len({row[0] for row in rows} - set(known)) == 9 * 6
    for name, row in known.items():
        at = [line.split()[:1] for line in lines].index([name])
        assert lines[at].split() == [name, str(row["megabytes"]), row["handle"]]
        assert lines[at + 1].strip() == row["license"]
        for value in row["results"].values():
            assert value in lines[at + 2]
    # Section 6.1: the width follows the image encoder, 1376 for L2. 873
    # million parameters with a vocabulary of 100,000.
    (row,) = [row for row in rows if row[0] == "align_l2_bert_large"]
    assert row[2:4] == ["M", "1376"]
    assert float(row[1]) == pytest.approx(873.8, abs=1)
    assert lines[0].split() == ["preset", "parameters", "embedding", "GFLOPs"]


def test_presets_as_json(ask):
    table = ask("presets")
    known = list_pretrained_presets()
    assert len(table) == 9 * 6 + len(known)
    assert {name: table[name] for name in known} == known
    row = table["align_b7_bert_base"]
    assert row["embedding_dim"] == 640
    # Image tower, text tower, projection.
    parameters = 62.14e6 + 162.25e6 + 769 * 640
    assert row["parameters"] == pytest.approx(parameters, rel=1e-3)
    # Twice the multiply-adds of both towers; those of the image tower are
    # published for padding that ends in 10 x 10 places, not 9 x 9.
    upper = 2 * (9.58 + 5.51)
    assert 0.9 * upper < row["gflops"] < upper


def test_pack(folder, packed, ask, capsys):
    manifest = ask(
        "pack",
        folder / "photos",
        "--captions",
        folder / "photos" / "captions.csv",
        "--output",
        packed,
    )
    assert manifest["records"] == manifest["captions"] == 16
    captions = [r["captions"] for r in open_records(str(packed))]
    assert sorted(captions) == sorted([f"all {color}"] for color in COLORS)
    # The folder is sorted by name; what is packed is mixed.
    assert captions != sorted(captions)


def test_train_as_the_options_say(folder, trained, ask):
    workdir = folder / "run"
    recipe = json.loads((workdir / "recipe.json").read_text())
    changed = {"steps": 6, "batch_size": 4, "learning_rate": 0.01, "seed": 5}
    assert {name: recipe[name] for name in FIELDS | changed} == FIELDS | changed
    assert recipe["model"] == str(folder / "preset")
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in lines]
    assert [line["step"] for line in lines] == [1, 6, 6]
    # Asked again, it knows that it is done.
    arguments = ["--set", "steps=6", "--set", "batch_size=4", "--seed", "5"]
    result = ask(
        *train_arguments(folder),
        *arguments,
        *("--set", "learning_rate=0.01", "--export", folder / "exported"),
    )
    assert (folder / "exported" / "saved_model.pb").is_file()
    assert result["export"] == str(folder / "exported")
    # The first run exported to where it worked, and does so once.
    exported = (workdir / "saved_model" / "saved_model.pb").stat()
    again = ask(
        *train_arguments(folder), *arguments, *("--set", "learning_rate=0.01")
    )
    assert again["export"] == str(workdir / "saved_model")
    assert (workdir / "saved_model" / "saved_model.pb").stat() == exported
    assert result["step"] == result["best"]["step"] == 6
    assert result["model"] == str(trained)
    score = result["best"]["score"]
    assert lines[2]["validation_mean_recall"] == score
    # It started from the weights of the preset: six steps of Adam at 0.01.
    moved = []
    for before, after in zip(
        AlignDualEncoder.from_preset(folder / "preset").trainable_weights,
        AlignDualEncoder.from_preset(trained).trainable_weights,
        strict=True,
    ):
        moved.append(np.abs(np.subtract(before, after)).max())
    assert 1e-3 < max(moved) < 0.07


def test_measure_retrieval(packed, trained, ask, capsys):
    command = ["evaluate", "retrieval", "--model", trained, "--data", packed]
    result = ask(*command, "--batch-size", 5)
    model = AlignDualEncoder.from_preset(trained)
    expected = measure_retrieval(model, str(packed), progress=False, samples=0)
    numbers = {
        name: value
        for name, value in expected.items()
        if isinstance(value, (int, float))
    }
    assert {name: result[name] for name in numbers} == pytest.approx(numbers)
    low, high = result["intervals"]["mean_recall"]
    assert low < result["mean_recall"] < high
    assert run(*command) == 0
    said = capsys.readouterr().out
    assert "16 images, 16 captions" in said
    recall = result["image_to_text_recall@5"]
    assert f"{recall:8.1%}{5 / 16:9.2%}" in said


def test_export(folder, trained, ask):
    import tensorflow as tf

    output = folder / "saved_model"
    result = ask("export", "--model", trained, "--output", output)
    assert result["embedding_dim"] == 16
    served = tf.saved_model.load(str(output)).signatures
    assert sorted(served) == sorted(result["signatures"])
    vectors = served["encode_text"](texts=tf.constant(["all red"]))
    model = AlignDualEncoder.from_preset(trained)
    np.testing.assert_allclose(
        vectors["embeddings"], model.encode_text(["all red"]), atol=1e-5
    )


def test_bad_arguments_are_one_line(folder, packed, refusal, tmp_path):
    def train(*arguments, **changes):
        changes = {"workdir": tmp_path / "run", **changes}
        return refusal(*train_arguments(folder, **changes), *arguments)

    nowhere = tmp_path / "nowhere"
    message = train(preset="align_b7_bert_bass")
    assert "Did you mean `align_b7_bert_base`?" in message
    assert str(nowhere) in train(data=nowhere)
    assert str(tmp_path) in train(data=tmp_path)
    assert str(nowhere) in train(vocabulary=nowhere)
    assert "Did you mean `coyo700m`?" in train(recipe="coyo-700m")
    assert "Did you mean `batch_size`?" in train("--set", "batchsize=3")
    assert "FIELD=VALUE" in train("--set", "steps")
    assert "--seed 1, --set seed=2" in train("--seed", "1", "--set", "seed=2")
    twice = train("--set", "steps=2", "--set", "steps=3")
    assert "--set steps=2, --set steps=3" in twice
    assert "steps='many'" in train("--set", "steps=many")
    # Names that the function has, but a recipe has not.
    assert "unknown field `data`" in train("--set", "data=x")
    assert "unknown field `recipe`" in train("--set", "recipe=x")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**FIELDS, "optimiser": "lamb"}))
    message = train(recipe=recipe)
    assert "`optimiser`" in message and "`optimizer`" in message
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_unreadable_inputs_are_one_line(folder, packed, refusal, tmp_path):
    captions = tmp_path / "captions.csv"
    captions.write_text("picture,caption\nred.png,all red\n")
    pack = ["pack", folder / "photos", "--output", tmp_path / "packed"]
    message = refusal(*pack, "--captions", captions)
    assert str(captions) in message and "image" in message
    assert "its columns are: picture, caption" in message
    assert str(tmp_path / "no.csv") in refusal(
        *pack, "--captions", tmp_path / "no.csv"
    )
    (tmp_path / "empty").mkdir()
    message = refusal("pack", tmp_path / "empty", "--output", tmp_path / "p")
    assert "is empty" in message

    nowhere = tmp_path / "nowhere"
    evaluate = ["evaluate", "retrieval", "--data", packed, "--model"]
    assert str(nowhere) in refusal(*evaluate, nowhere)
    # No preprocessor: it was never trained here.
    assert "no preprocessor" in refusal(*evaluate, folder / "preset")
    message = refusal("export", "--model", tmp_path, "--output", nowhere)
    assert "config.json" in message
    message = refusal(
        "export", "--model", folder / "preset", "--output", nowhere
    )
    assert "no preprocessor" in message
    assert not nowhere.exists()


def test_a_vocabulary_that_does_not_fit_the_weights(
    folder, packed, refusal, tmp_path
):
    words = tmp_path / "words.txt"
    words.write_text("\n".join(VOCABULARY[:-3]) + "\n")
    message = refusal(
        *train_arguments(folder, vocabulary=words, workdir=tmp_path / "run")
    )
    assert str(folder / "preset") in message
    assert "a vocabulary of 22 tokens" in message
    assert "a vocabulary of 19" in message


def test_what_is_no_record_file_is_one_line(folder, refusal, tmp_path):
    photo = folder / "photos" / "red.png"
    message = refusal(
        *train_arguments(folder, data=photo, workdir=tmp_path / "run")
    )
    assert "red.png` is one image: give the folder" in message


@pytest.mark.parametrize("arguments", [[], ["trian"], ["train"], ["evaluate"]])
def test_usage_is_shown_for_a_wrong_command_line(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("usage: align-keras")


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    for name, text in COMMANDS.items():
        assert name in said and text.split(",")[0] in " ".join(said.split())
    for name in COMMANDS:
        with pytest.raises(SystemExit) as caught:
            main([name, "--help"])
        assert caught.value.code == 0
        assert f"align-keras {name}" in capsys.readouterr().out


def test_interruption_ends_without_a_traceback(monkeypatch, capsys):
    from align_keras.models import shipped_presets

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(shipped_presets, "list_presets", interrupt)
    assert main(["presets"]) == 130
    assert capsys.readouterr().err.strip() == "align-keras: interrupted"
