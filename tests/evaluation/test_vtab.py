import numpy as np
import pytest
from dark_and_bright import small_model

from align_keras.evaluation import vtab
from align_keras.evaluation.compare import compare_results
from align_keras.evaluation.results import Result


def test_labels_of_vtab():
    pixels = np.zeros((3, 3))
    pixels[:, 2] = [9.7, 8.6, 12.0]
    clevr = {"objects": {"pixel_coords": pixels, "size": np.zeros(5)}}
    assert vtab.TASKS["clevr_distance"].label(clevr) == 2
    assert vtab.TASKS["clevr_count"].label(clevr) == 2
    location = np.zeros((3, 3))
    location[:, 2] = [5.0, 30.0, 12.0]
    kitti = {"objects": {"type": np.array([4, 0, 2]), "location": location}}
    assert vtab.TASKS["kitti_distance"].label(kitti) == 1
    kitti["objects"]["type"][:] = 7
    assert vtab.TASKS["kitti_distance"].label(kitti) == 3
    label = vtab.TASKS["dsprites_orientation"].label
    assert [label({"label_orientation": n}) for n in (0, 2, 3, 39)] == [
        0,
        0,
        1,
        15,
    ]
    groups = [task.group for task in vtab.TASKS.values()]
    assert [groups.count(g) for g in ("natural", "specialized")] == [7, 4]
    assert len(vtab.TASKS) == 19


@pytest.mark.thorough
def test_vtab_on_mock_data(tmp_path, caplog):
    import tensorflow_datasets as tfds

    sweep = vtab.Sweep(
        trials=2,
        steps=(1,),
        batch_size=(4,),
        image_size=(32,),
        augmentation=("none",),
    )
    with tfds.testing.mock_data(num_examples=12):
        data = vtab.load_task("cifar100", limits=(8, 4))
        assert data["train"].total == 8
        counts = {
            part: len(list(found.examples())) for part, found in data.items()
        }
        assert counts["train"] == 8 and counts["validation"] == 4
        assert counts["train+validation"] == counts["test"] == 12

        def evaluate(identity, sweep=sweep):
            return vtab.measure_vtab(
                small_model,
                tmp_path,
                ["dtd"],
                sweep,
                runs=1,
                limits=(8, 4),
                samples=20,
                progress=False,
                identity=identity,
            )

        with caplog.at_level("INFO"):
            result = evaluate("A")
        # The trials of one model choose for no other.
        with pytest.raises(ValueError, match="model='A', but model='B'"):
            evaluate("B")
        with pytest.raises(ValueError, match="a sweep with sweep="):
            evaluate("A", vtab.Sweep(trials=1))
    assert result["all"] == result["natural"] == result["task_dtd"]
    assert any("dtd: best of 2 trials" in said for said in caplog.messages)
    assert (tmp_path / "dtd" / "trial-1.json").is_file()
    assert not compare_results(result, result, 20)["metrics"][0]["differs"]
    with pytest.raises(ValueError, match="no VTAB task 'cats'"):
        vtab.load_task("cats")


def test_vtab_says_at_once_what_it_lacks(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def evaluate(**options):
        vtab.measure_vtab(None, tmp_path, identity="A", **options)

    missing = tmp_path / "none"
    for name in ("dtd", "eurosat"):
        with pytest.raises(FileNotFoundError, match=f"tfds build {name}.* --d"):
            evaluate(tasks=[name], data_dir=str(missing))
    load, asked = vtab.load_task, []

    def load_task(name, *rest):
        asked.append(name)
        if name == "pets":
            raise FileNotFoundError(name)
        return load(name, *rest)

    monkeypatch.setattr(vtab, "load_task", load_task)
    with tfds.testing.mock_data(num_examples=3):
        # No model was asked for, and so none trained.
        with pytest.raises(FileNotFoundError, match="pets"):
            evaluate(tasks=["dtd", "pets"])
    assert asked == ["dtd", "pets"]
    with pytest.raises(ValueError, match="trials=0"):
        evaluate(sweep=vtab.Sweep(trials=0))


def test_vtab_draws_the_images_of_each_task(tmp_path):
    rng = np.random.default_rng(0)
    right = {"dtd": 400, "pets": 100, "eurosat": 900}
    right = {name: rng.random(count) < 0.6 for name, count in right.items()}

    def result(right, model):
        labels = {name: np.arange(len(hits)) for name, hits in right.items()}
        parts = {
            name: Result(
                {"model": model},
                # The second of two runs is always right.
                {"rank": np.stack([~hits, 0 * hits]), "label": labels[name]},
            )
            for name, hits in right.items()
        }
        return vtab._summary(parts, 2, 500)

    first = result(right, "A")
    accuracy = {name: (hits.mean() + 1) / 2 for name, hits in right.items()}
    assert first["natural"] == pytest.approx(
        (accuracy["dtd"] + accuracy["pets"]) / 2
    )
    assert first["all"] == pytest.approx(np.mean(list(accuracy.values())))
    # Variances of independent means add.
    variances = [hits.var() / 4 / len(hits) for hits in right.values()]
    low, high = first["intervals"]["all"]
    width = 2 * 1.96 * np.sqrt(sum(variances)) / 3
    assert high - low == pytest.approx(width, rel=0.15)
    better = {name: hits.copy() for name, hits in right.items()}
    better["pets"][:30] = True
    second = result(better, "B")
    for number, found in enumerate((first, second)):
        found.save(tmp_path / f"{number}.json")
    found = compare_results(tmp_path / "0.json", tmp_path / "1.json")
    rows = {row["name"]: row for row in found["metrics"]}
    assert rows["task_pets"]["differs"] and rows["natural"]["differs"]
    assert rows["task_dtd"]["difference"] == 0
    assert rows["task_dtd"]["p"] == 1.0
    del second["tasks"][0]
    with pytest.raises(ValueError, match="Received tasks="):
        compare_results(first, second)
