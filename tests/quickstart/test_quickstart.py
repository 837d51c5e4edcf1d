"""The quickstart from end to end, much shortened, and its questions."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from align_keras import AlignDualEncoder
from align_keras.cli import main
from align_keras.data import open_records
from align_keras.quickstart import run_quickstart
from align_keras.quickstart.first_run import CLIENT
from align_keras.quickstart.scene_queries import ask_by_changes
from align_keras.quickstart.scene_queries import ask_by_words
from align_keras.quickstart.scenes import plan_scenes
from align_keras.search import Index
from align_keras.search.contact_sheet import RIGHT
from align_keras.training import Recipe

RECIPE = Recipe(
    steps=12,
    batch_size=32,
    learning_rate=3e-3,
    warmup_steps=2,
    image_size=32,
    resize_size=36,
    sequence_length=16,
    optimizer="adamw",
    vocabulary_size=300,
)
SCENES = {"train_scenes": 150, "evaluation_scenes": 40}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished quickstart: its directory and its report."""
    workdir = tmp_path_factory.mktemp("quickstart")
    report = run_quickstart(workdir, recipe=RECIPE, **SCENES)
    return workdir, report


def records_of(workdir):
    """The packed evaluation records, in the order of their images."""
    records = open_records(str(workdir / "packed" / "evaluation"))
    return sorted(records, key=lambda record: record["key"])


def embed(model, workdir, texts):
    paths = sorted((workdir / "evaluation" / "images").glob("*.jpg"))
    images = np.asarray(model.encode_image([str(path) for path in paths]))
    return paths, images, np.asarray(model.encode_text(texts))


@pytest.mark.thorough
def test_report_agrees_with_the_model_and_the_data(finished):
    workdir, report = finished
    assert json.loads((workdir / "report.json").read_text()) == report
    model = AlignDualEncoder.from_preset(str(workdir / "run" / "model"))
    records = records_of(workdir)
    _, images, texts = embed(
        model, workdir, [record["captions"][0] for record in records]
    )
    assert len(records) == 40
    similarities = texts @ images.T
    recall = (similarities.argmax(axis=1) == np.arange(40)).mean()
    retrieval = report["retrieval"]
    # Scores that differ in the last digit may change one place.
    assert abs(retrieval["text_to_image_recall@1"] - recall) <= 1 / 40 + 1e-9
    assert retrieval["chance_text_to_image_recall@1"] == pytest.approx(1 / 40)
    worse = min(
        retrieval["text_to_image_recall@1"],
        retrieval["image_to_text_recall@1"],
    )
    assert report["times_chance"] == pytest.approx(40 * worse)
    assert report["passed"] == (40 * worse >= 20)


@pytest.mark.thorough
def test_the_other_process_answers_like_the_model(finished):
    workdir, report = finished
    answers = report["answers"]
    asked = ask_by_words(plan_scenes(40, split="evaluation"))
    texts = [question.text for question in asked]
    assert [answer["text"] for answer in answers] == texts
    model = AlignDualEncoder.from_preset(str(workdir / "run" / "model"))
    paths, images, vectors = embed(model, workdir, texts)
    for answer, scores in zip(answers, vectors @ images.T, strict=True):
        assert answer["score"] == pytest.approx(scores.max(), abs=1e-5)
        place = paths.index(Path(answer["image"]))
        assert scores[place] == pytest.approx(scores.max(), abs=1e-5)


@pytest.mark.thorough
def test_client_needs_tensorflow_alone(finished, tmp_path):
    workdir, _ = finished
    client = (workdir / CLIENT).read_text()
    imported = {
        line.split()[1]
        for line in client.splitlines()
        if line.startswith(("import ", "from "))
    }
    standard = {"json", "pathlib", "sys"}
    assert imported == standard | {"tensorflow", "tensorflow_text"}


@pytest.mark.thorough
def test_contact_sheet_shows_the_queries(finished):
    workdir, report = finished
    sheet = Image.open(report["files"]["contact sheet"])
    pixels = np.asarray(sheet.convert("RGB")).astype(int)
    words = ask_by_words(plan_scenes(40, split="evaluation"))
    # Eight rows of thumbnails at least as high as a thumbnail.
    assert sheet.height > 132 * len(words)
    # Something on it is marked as right.
    assert (np.abs(pixels - RIGHT).max(axis=2) <= 2).any()
    for path in report["files"].values():
        assert Path(path).exists()


@pytest.mark.thorough
def test_it_makes_an_index_of_what_it_trained(finished):
    workdir, report = finished
    index = Index(report["files"]["index"])
    assert index.count == 40
    model = AlignDualEncoder.from_preset(str(workdir / "run" / "model"))
    paths, images, _ = embed(model, workdir, ["a red star"])
    np.testing.assert_allclose(index.vectors, images, rtol=0, atol=1e-5)
    assert [index.key(row) for row in range(40)] == [p.name for p in paths]
    records = records_of(workdir)
    for row, record in enumerate(records):
        assert index.text(row) == record["captions"][0]
    assert {"a red star", "an orange ring"} <= set(index.labels)


@pytest.mark.thorough
def test_running_again_repeats_no_training(finished, caplog):
    workdir, report = finished
    kept = [
        *(workdir / "train" / "images").iterdir(),
        *(workdir / "packed").rglob("*.tfrecord"),
        *(workdir / "run" / "model").rglob("*.h5"),
    ]
    times = [path.stat().st_mtime_ns for path in kept]
    with caplog.at_level("INFO"):
        again = run_quickstart(workdir, recipe=RECIPE, **SCENES)
    assert again["retrieval"] == report["retrieval"]
    assert [path.stat().st_mtime_ns for path in kept] == times
    assert "This run is finished" in caplog.text
    last = caplog.messages[-1].split()
    assert last[1:] == [
        *("-m", "align_keras", "serve"),
        *(str(workdir / "index"), "--open"),
    ]


@pytest.mark.thorough
def test_other_settings_need_another_directory(finished):
    workdir, _ = finished
    with pytest.raises(ValueError, match="seed=0, but seed=1"):
        run_quickstart(workdir, seed=1, recipe=RECIPE, **SCENES)


def test_too_few_scenes_are_refused_before_any_is_drawn(tmp_path):
    with pytest.raises(ValueError, match="Received: evaluation_scenes=2;"):
        run_quickstart(tmp_path, recipe=RECIPE, evaluation_scenes=2)
    assert not list(tmp_path.glob("*"))


@pytest.mark.parametrize("passed", [True, False])
def test_exit_status_tells_whether_it_learned(monkeypatch, passed, capsys):
    def run(workdir, seed, steps, verbose):
        assert (workdir, seed, steps, verbose) == ("here", 3, 7, False)
        return {"passed": passed, "times_chance": 1.0}

    monkeypatch.setattr("align_keras.quickstart.run_quickstart", run)
    command = "quickstart --workdir here --seed 3 --steps 7 --json"
    assert main(command.split()) == (0 if passed else 1)
    assert json.loads(capsys.readouterr().out)["passed"] == passed


# === Questions ===


@pytest.fixture(scope="module")
def scenes():
    return plan_scenes(300, seed=2, split="evaluation")


def values(scene):
    """Every attribute of a scene by its place."""
    flat = {"relation": scene.relation, "background": scene.background}
    for place, thing in enumerate(scene.things):
        for kind in ("color", "shape", "size"):
            flat[kind, place] = getattr(thing, kind)
    return flat


def test_changes_are_all_pairs_that_differ_in_one_value(scenes):
    expected = set()
    for (i, one), (j, other) in itertools.permutations(enumerate(scenes), 2):
        one, other = values(one), values(other)
        if one.keys() != other.keys():
            continue
        different = [name for name in one if one[name] != other[name]]
        if len(different) == 1 and different != ["relation"]:
            expected.add((i, j))
    questions = ask_by_changes(scenes)
    found = {(q.start, answer) for q in questions for answer in q.answers}
    assert found == expected
    assert len(found) > 50


def test_changes_name_what_is_new_and_what_was_there(scenes):
    for question in ask_by_changes(scenes):
        if question.kind == "background":
            continue
        before = scenes[question.start].things
        for answer in question.answers:
            after = scenes[answer].things
            ((old, new),) = [
                (getattr(a, question.kind), getattr(b, question.kind))
                for a, b in zip(before, after, strict=True)
                if a != b
            ]
            assert (question.minus_text, question.text) == (old, new)


def test_words_are_answered_by_what_shows_them(scenes):
    complete, also_complete, arrangement, pair = ask_by_words(scenes)
    for question in (complete, also_complete):
        (answer,) = question.answers
        for thing in scenes[answer].things:
            assert f"{thing.size} {thing.color} {thing.shape}" in question.text
    _, first, relation, _, second = arrangement.text.split()
    assert arrangement.answers == {
        index
        for index, scene in enumerate(scenes)
        if scene.relation == relation
        and [thing.shape for thing in scene.things] == [first, second]
    }
    _, color, shape = pair.text.split()
    assert pair.answers == {
        index
        for index, scene in enumerate(scenes)
        if any((t.color, t.shape) == (color, shape) for t in scene.things)
    }
