"""`evaluate all` on small files, with a model that sees mean colors."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from seer import Seer
from seer import write_root

from align_keras.cli import main
from align_keras.embedding import Embedder
from align_keras.evaluation import datasets
from align_keras.evaluation import suite
from align_keras.evaluation.describe_results import describe_counts
from align_keras.evaluation.results import Result


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_root(tmp_path_factory.mktemp("root"))


def test_all_runs_what_is_there_and_resumes(root, tmp_path, capsys):
    seer = Seer()

    def run(model):
        return suite.measure_all([model], root, tmp_path, 3, False, 20)

    found = run(seer.embedder("f1"))
    names = {(r["task"], r["dataset"]) for r in found["results"]}
    assert names == {
        ("retrieval", "mscoco"),
        ("cxc", "cxc"),
        ("zero-shot", "imagenet"),
        ("knn", "imagenet"),
        ("linear-probe", "imagenet"),
        ("words", "simlex999"),
    }
    skipped = found["skipped"]
    assert "flickr30k" in skipped["retrieval-flickr30k"]
    # Four images cannot be cut into five folds: named, and no end.
    assert "folds=5" in skipped["retrieval-mscoco_5_folds of seer"]
    assert "no subfolders" in skipped["zero-shot-imagenet_r of seer"]
    report = (tmp_path / "report.md").read_text()
    assert "| text to image recall@1 |" in report and "| 45.6 |" in report
    assert "retrieval-flickr30k: there is no" in report
    plots = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert "zero-shot-imagenet.png" in plots and len(plots) == 6

    seen = seer.embedded
    again = run(seer.embedder("f1"))
    assert seer.embedded == seen
    assert [dict(r) for r in again["results"]] == [
        dict(r) for r in found["results"]
    ]
    # What went before an interruption is kept, the rest is done from vectors.
    (tmp_path / "seer" / "knn-imagenet.json").unlink()
    assert dict(run(seer.embedder("f1"))["results"][3]) == dict(
        found["results"][3]
    )
    assert seer.embedded == seen
    # One without a fingerprint may have changed under its name.
    run(Embedder("blind", seer.images, seer.texts))
    assert seer.embedded > seen
    # Another model is measured anew, and the two can be compared.
    run(Embedder("blind", lambda b: np.ones((len(b), 3)), seer.texts))
    results = [
        str(tmp_path / name / "zero-shot-imagenet.json")
        for name in ("seer", "blind")
    ]
    assert main(["evaluate", "compare", *results, "--bootstrap", "200"]) == 0
    said = capsys.readouterr().out
    row = next(line for line in said.splitlines() if line.startswith("top1"))
    assert row.endswith("A is better")
    assert Result.load(results[1])["top1"] == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="No evaluation could run"):
        suite.measure_all([seer.embedder()], tmp_path, tmp_path)


def test_all_notices_other_names_and_survives_any_error(
    root, tmp_path, monkeypatch
):
    data = tmp_path / "data"
    shutil.copytree(root / "imagenet", data / "imagenet")
    shutil.copytree(root / "simlex999", data / "simlex999")
    ran = []

    def run(root=data):
        ran.clear()
        return suite.measure_all(
            [Seer().embedder("f1")], root, tmp_path, 3, False, 20
        )

    measure = suite.measure_zero_shot

    def counted(*args, **options):
        ran.append("zero-shot")
        return measure(*args, **options)

    monkeypatch.setattr(suite, "measure_zero_shot", counted)
    monkeypatch.setattr(suite, "measure_knn", lambda *_, **__: 1 / 0)
    found = run()
    reason = found["skipped"]["knn-imagenet of seer"]
    assert reason == "failed: ZeroDivisionError: division by zero"
    assert [r["task"] for r in found["results"]] == [
        "zero-shot",
        "linear-probe",
        "words",
    ]
    assert found["results"][0]["top1"] == 1.0
    assert ran == ["zero-shot"] and run() and ran == []
    # Red and blue change their names, in a file of the same size.
    names = data / "imagenet" / "classes.json"
    content = json.loads(names.read_text())
    content["classes"].update(n0="blue", n2="red")
    names.write_text(json.dumps(content))
    assert run()["results"][0]["top1"] < 1.0 and ran == ["zero-shot"]
    # A directory is known by the number and the sizes of its files.
    (data / "imagenet" / "val" / "n0" / "note.txt").write_text("new")
    assert run() and ran == ["zero-shot"]


def test_all_runs_tfds_data_sets(tmp_path):
    import tensorflow_datasets as tfds

    folder = tmp_path / "data" / "tfds"
    for name in ("oxford_flowers102", "coco_captions"):
        (folder / name).mkdir(parents=True)

    def run():
        return suite.measure_all(
            [Seer().embedder()],
            tmp_path / "data",
            tmp_path,
            3,
            False,
            20,
        )

    # Nothing was downloaded, which is said for each, and how to do it.
    with pytest.raises(ValueError, match="No evaluation could run"):
        run()
    command = f"tfds build oxford_flowers102 --data_dir {folder}"
    with pytest.raises(FileNotFoundError, match=command):
        datasets.tfds_labels("oxford_flowers102", "test", str(folder))
    with tfds.testing.mock_data(num_examples=5):
        found = run()
    assert {(r["task"], r["dataset"]) for r in found["results"]} == {
        ("zero-shot", "oxford_flowers102/test"),
        ("linear-probe", "oxford_flowers102/test"),
    }
    probe = found["results"][1]
    # Training and validation images.
    assert (probe["images"], probe["train_images"]) == (5, 10)
    skipped = found["skipped"]["retrieval-tfds-coco_captions of seer"]
    assert skipped.startswith("failed: ")


def test_own_data_of_the_same_name_do_not_mix(root, tmp_path):
    data = tmp_path / "data"
    own = data / "retrieval" / "colors"
    shutil.copytree(root / "imagenet" / "val", data / "zero_shot" / "colors")
    shutil.copy(
        root / "imagenet" / "classes.json", data / "zero_shot" / "colors"
    )
    own.mkdir(parents=True)
    shutil.copy(root / "imagenet" / "train" / "n0" / "0.png", own)
    (own / "captions.csv").write_text("image,caption\n0.png,red\n")
    found = suite.measure_all(
        [Seer().embedder("f1")], data, tmp_path, 3, False, 20
    )
    assert [(r["task"], r["images"]) for r in found["results"]] == [
        ("retrieval", 1),
        ("zero-shot", 12),
    ]
    own.rename(own.with_name("flickr30k"))
    with pytest.raises(ValueError, match="retrieval/flickr30k` has the name"):
        suite.list_jobs(data)


def test_all_repeats_named_models_without_a_fingerprint(
    root, tmp_path, monkeypatch
):
    data = tmp_path / "data"
    shutil.copytree(root / "simlex999", data / "simlex999")
    seer, ran = Seer(), []
    measure = suite.measure_words

    def counted(*args, **options):
        ran.append(1)
        return measure(*args, **options)

    monkeypatch.setattr(suite, "measure_words", counted)
    kept = "f1"
    monkeypatch.setattr(suite, "load_embedder", lambda _: seer.embedder(kept))

    def run(*models):
        return suite.measure_all(list(models), data, tmp_path, 3, False, 20)

    run("hf://me/seer"), run("hf://me/seer")
    assert len(ran) == 1
    kept = None
    found = run("hf://me/seer")
    assert len(ran) == 2
    # Words have no images, and the line says nothing after a colon.
    (result,) = found["results"]
    assert describe_counts(result) == "words, simlex999"
    with pytest.raises(ValueError, match="Two models would write"):
        run("hf://me/seer", "hf://you/seer")


def test_plots_of_names_with_spaces_are_linked(root, tmp_path):
    own = tmp_path / "data" / "retrieval" / "my colors"
    shutil.copytree(root / "imagenet" / "val" / "n0", own)
    names = sorted(path.name for path in own.iterdir())
    lines = ["image,caption", *(f"{name},red" for name in names)]
    (own / "captions.csv").write_text("\n".join(lines))
    found = suite.measure_all(
        [Seer().embedder()], tmp_path / "data", tmp_path, 3, False, 20
    )
    text = Path(found["report"]).read_text()
    assert "](plots/retrieval-my%20colors.png)" in text
    assert (tmp_path / "plots" / "retrieval-my colors.png").is_file()
