"""Options of `align-keras evaluate`, as they reach the runners."""

import json

import pytest
import tensorflow_datasets as tfds
from seer import Seer
from seer import write_root

from align_keras import embedding
from align_keras import evaluation
from align_keras.cli import main
from align_keras.embedding import Embedder
from align_keras.evaluation import suite
from align_keras.evaluation import vtab
from align_keras.evaluation.paper import paper_rows_of
from align_keras.evaluation.results import Result
from align_keras.models import presets


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_root(tmp_path_factory.mktemp("root"))


@pytest.fixture
def ask(capsys, monkeypatch, any_model):
    """Run an evaluation of the seer and return its JSON."""
    monkeypatch.setattr(
        embedding, "load_embedder", lambda name: Seer().embedder()
    )
    # No preset is called seer.
    monkeypatch.setattr(presets, "find_preset", str)

    def ask(name, *arguments):
        command = ["evaluate", name, "--model", "seer", "--bootstrap", "20"]
        command += ["--json", *map(str, arguments)]
        assert main(command) == 0
        return json.loads(capsys.readouterr().out)

    return ask


def folders(root):
    data = root / "imagenet"
    return ["--train", data / "train", "--data", data / "val", "--name", "mine"]


def test_knn(root, ask, tmp_path):
    output = tmp_path / "knn.json"
    result = ask("knn", *folders(root), "--k", 1, 4, "--output", output)
    assert result["dataset"] == "mine"
    assert {"accuracy@1", "accuracy@4"} == set(result["intervals"])
    assert dict(Result.load(output)) == result


def test_linear_probe(root, ask):
    result = ask("linear-probe", *folders(root), "--solver", "sgd")
    assert (result["solver"], result["decay"]) == ("sgd", None)
    validation = root / "imagenet" / "val"
    result = ask("linear-probe", *folders(root), "--validation", validation)
    assert result["train_images"] == 18 + 12 and result["decay"] > 0


def test_words(root, ask):
    result = ask("words", "--data", root / "simlex999" / "SimLex-999.txt")
    assert result["dataset"] == "simlex999" and result["pairs"]["all"] == 5


def test_cxc(root, ask):
    files = ["--data", root / "cxc", "--images", root / "mscoco" / "images"]
    files += ["--captions", root / "mscoco" / "dataset_coco.json"]
    plain = ask("cxc", *files, "--k", 2)
    assert plain["ks"] == [2] and plain["drop_empty"] is True
    assert plain["positives_options"] == {
        "thresholds": {"sts": 3.0, "sis": 2.5, "sits": 3.0},
        "originals": True,
        "co_captions": True,
        "repeated": "keep",
    }
    options = ["--sis-threshold", 4, "--rated-only", "--no-co-captions"]
    options += ["--keep-empty", "--repeated", "mean", "--caption-queries"]
    result = ask("cxc", *files, *options, "--with-replacement")
    assert result["drop_empty"] is False
    assert result["positives_options"] == {
        "thresholds": {"sts": 3.0, "sis": 4.0, "sits": 3.0},
        "originals": False,
        "co_captions": False,
        "repeated": "mean",
    }
    assert result["correlation_options"] == {
        "samples": 20,
        "seed": 0,
        "query_columns": {"sts": [0, 1], "sis": [0, 1], "sits": [0]},
        "share": 0.5,
        "replace": True,
        "repeated": "mean",
    }
    for task, count in plain["positives"].items():
        assert result["positives"][task] < count


def recorded(monkeypatch, module, name):
    """Put a function that notes its arguments in the place of another."""
    seen = {}

    def function(*args, **options):
        seen.update(options, args=args)
        return Result(
            {"task": "x", "dataset": "y", "model": "z", "intervals": {}}
        )

    monkeypatch.setattr(module, name, function)
    return seen


def test_finetune(root, ask, tmp_path, monkeypatch):
    seen = recorded(monkeypatch, evaluation, "measure_finetune")
    options = ["--workdir", tmp_path, "--runs", 3, "--seed", 5]
    result = ask("finetune", *folders(root), "--recipe", "mine.yaml", *options)
    _, train, test, *rest = seen["args"]
    assert (train.total, test.total, test.name) == (18, 12, "mine")
    assert rest == ["mine.yaml", str(tmp_path), 3, 5, 20]
    # A name without a version stands for itself, a directory for its files.
    assert result["model"] == seen["identity"] == "seer"
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    options += ["--model", tmp_path / "model"]
    ask("finetune", *folders(root), *options)
    assert len(seen["identity"]) == 16


def test_vtab(ask, tmp_path, monkeypatch):
    seen = recorded(monkeypatch, evaluation, "measure_vtab")
    options = ["--tasks", "dtd", "pets", "--trials", 7, "--runs", 2]
    options += ["--tfds-directory", "there", "--workdir", tmp_path]
    ask("vtab", *options)
    assert seen["args"][1:3] == (str(tmp_path), ["dtd", "pets"])
    assert seen["args"][3] == vtab.Sweep(trials=7)
    assert seen["args"][4:] == (2, 0, "there")
    assert (seen["samples"], seen["identity"]) == (20, "seer")


def test_all(root, tmp_path, monkeypatch, capsys, any_model):
    def load(name):
        return Embedder(name, Seer().images, Seer().texts)

    monkeypatch.setattr(suite, "load_embedder", load)
    command = ["evaluate", "all", "--data-root", str(root), "--json"]
    command += ["--output", str(tmp_path), "--bootstrap", "20"]
    assert main([*command, "--model", "a", "--model", "b"]) == 0
    found = json.loads(capsys.readouterr().out)
    models = [result["model"] for result in found["results"]]
    assert models == ["a"] * 6 + ["b"] * 6
    assert found["report"] == str(tmp_path / "report.md")


def test_tfds_data_sets_have_the_papers_names(ask):
    assert paper_rows_of("knn", "imagenet2012/validation")
    assert paper_rows_of("retrieval", "coco_captions/test")
    assert not paper_rows_of("retrieval", "coco_captions/val")
    options = ["--tfds", "oxford_flowers102", "--train", "train"]
    with tfds.testing.mock_data(num_examples=3):
        result = ask("knn", *options, "--data", "test")
        named = ask("knn", *options, "--data", "test", "--name", "mine")
    assert result["dataset"] == "oxford_flowers102/test"
    assert named["dataset"] == "mine"


@pytest.mark.parametrize(
    "arguments, option",
    [
        ("retrieval --tfds coco_captions --captions a.json", "captions"),
        ("retrieval --data a --tfds-directory b", "tfds-directory"),
        ("retrieval --tfds a --allow-outside", "allow-outside"),
        ("zero-shot --tfds a --data b --allow-outside", "allow-outside"),
        ("zero-shot --data a --tfds-directory b", "tfds-directory"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    arguments, option, capsys, monkeypatch, any_model, tmp_path
):
    monkeypatch.setattr(embedding, "load_embedder", lambda name: None)
    # Files are looked for first.
    monkeypatch.chdir(tmp_path)
    for name in ("a", "a.json"):
        (tmp_path / name).touch()
    assert main(["evaluate", *arguments.split(), "--model", "m"]) == 2
    assert f"error: `--{option}` is for" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["--tfds", "--data"])
def test_captions_per_image_are_positive(source, capsys):
    command = ["evaluate", "retrieval", source, "a", "--model", "m"]
    for number in ("0", "-1"):
        with pytest.raises(SystemExit):
            main([*command, "--captions-per-image", number])
        said = f"--captions-per-image: must be at least 1. Received: {number}"
        assert said in capsys.readouterr().err


def test_a_result_is_a_json_file(capsys):
    command = ["evaluate", "words", "--model", "m", "--data", "d"]
    with pytest.raises(SystemExit):
        main([*command, "--output", "res.a"])
    assert "'res.a' does not end in .json" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="nowhere.JSON"):
        Result.load("nowhere.JSON")
