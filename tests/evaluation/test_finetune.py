import dataclasses

import keras
import numpy as np
import pytest
from PIL import Image
from tiny_align import tiny_align

from align_keras import AlignDualEncoder
from align_keras import BertTextEncoder
from align_keras.cli import main
from align_keras.evaluation import datasets
from align_keras.evaluation import vtab
from align_keras.evaluation.compare import compare_results
from align_keras.evaluation.finetune import ImageClassifier
from align_keras.evaluation.finetune import finetune_classifier
from align_keras.evaluation.finetune import weights_digest
from align_keras.evaluation.finetune_recipes import RECIPES
from align_keras.evaluation.finetune_recipes import FinetuneRecipe
from align_keras.evaluation.finetune_recipes import Stage
from align_keras.evaluation.finetune_recipes import load_finetune_recipe
from align_keras.evaluation.report import describe
from align_keras.evaluation.results import Result

HEAD = Stage("head", 0.5, 32, 40, steps=6, batch_size=6)
REST = Stage("all", 0.01, 40, 48, steps=4, batch_size=6, freeze_statistics=True)
RECIPE = FinetuneRecipe((HEAD, REST), 1e-5, checkpoint_every=3)


def small_model():
    """A dual encoder that compiles in a second, for pictures of any size."""
    keras.utils.set_random_seed(0)
    images = keras.Input((None, None, 3), name="images")
    features = keras.layers.Conv2D(8, 3, strides=4)(images)
    features = keras.layers.BatchNormalization()(features)
    features = keras.layers.ReLU()(features)
    return AlignDualEncoder(
        keras.Model(images, features), BertTextEncoder(50, 1, 2, 16, 32)
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Dark and bright pictures, a hard task for nobody."""
    root = tmp_path_factory.mktemp("folders")
    rng = np.random.default_rng(0)
    for split, count in (("train", 9), ("test", 6)):
        for name, level in (("bright", 215), ("dark", 30)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                size = rng.integers(30, 60, 2)
                noise = rng.integers(-30, 31, (*size, 3))
                pixels = (level + noise).astype("uint8")
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return {
        split: datasets.class_folders(root / split)
        for split in ("train", "test")
    }


def finetune(folders, workdir, **options):
    return finetune_classifier(
        small_model,
        folders["train"],
        folders["test"],
        RECIPE,
        workdir,
        samples=50,
        progress=False,
        **options,
    )


def test_learns_and_goes_on_after_an_interruption(
    folders, tmp_path, monkeypatch
):
    whole = finetune(folders, tmp_path / "whole")
    assert whole["top1"] >= 0.75 and whole["runs"] == 1

    fit, calls = ImageClassifier.fit, []

    def interrupted(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return fit(self, *arguments, **options)

    monkeypatch.setattr(ImageClassifier, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        finetune(folders, tmp_path / "cut")
    # Six steps of the head were done; four remain, in two spans.
    again = finetune(folders, tmp_path / "cut")
    assert len(calls) == 3 + 2
    np.testing.assert_array_equal(
        again.outcomes["rank"], whole.outcomes["rank"]
    )
    # A finished run is not repeated.
    assert finetune(folders, tmp_path / "cut")["top1"] == whole["top1"]
    assert len(calls) == 5
    assert not compare_results(whole, again, 50)["figures"][0]["differs"]
    with pytest.raises(ValueError, match="another `seed`.*: 0, now 1"):
        finetune(folders, tmp_path / "cut", seed=1)
    with pytest.raises(ValueError, match="another `model`.*'other'"):
        finetune(folders, tmp_path / "cut", identity="other")
    with pytest.raises(ValueError, match="runs=0"):
        finetune(folders, tmp_path / "cut", runs=0)


def test_unreadable_pictures_are_left_out_before_training(
    folders, tmp_path, caplog
):
    name, path, label = next(folders["test"].examples())

    def with_a_broken_one(data):
        def examples():
            yield "broken.png", b"no picture", label
            yield from data.examples()

        return dataclasses.replace(data, examples=examples)

    broken = {name: with_a_broken_one(data) for name, data in folders.items()}
    found = finetune(broken, tmp_path / "broken")
    assert found["pictures_skipped"] == 1
    assert (found["images"], found["train_images"]) == (12, 18)
    assert caplog.text.count("Picture broken.png is left out") == 2
    whole = finetune(folders, tmp_path / "whole")
    np.testing.assert_array_equal(
        found.outcomes["rank"], whole.outcomes["rank"]
    )
    # Of two classes, the right one is among the first five always.
    assert set(whole.figures) == {"top1", "mean_per_class"}
    nothing = dataclasses.replace(
        folders["test"], examples=lambda: iter([("a", b"", 0)])
    )
    with pytest.raises(ValueError, match="No picture of `test` is readable"):
        finetune({**folders, "test": nothing}, tmp_path / "nothing")


def test_frozen_features_stand_beside_their_own_row(folders, tmp_path):
    (stage,) = RECIPES["imagenet_frozen"].stages
    assert stage == RECIPES["imagenet"].stages[0] and stage.part == "head"
    result = finetune_classifier(
        small_model,
        folders["train"],
        dataclasses.replace(folders["test"], name="imagenet"),
        FinetuneRecipe((HEAD,)),
        tmp_path,
        runs=2,
        samples=20,
        progress=False,
    )
    said = describe(result)
    assert said.startswith("finetune-head, imagenet: 12 pictures")
    assert "ALIGN, frozen features" in said and "85.5%" in said
    assert "± std" in said
    assert f"{result['deviations']['top1']:8.1%}" in said
    assert "88.6%" in describe(Result({**result, "task": "finetune"}))


def test_a_model_is_known_by_its_image_encoder():
    first, second = small_model(), small_model()
    assert weights_digest(first) == weights_digest(second)
    statistics = second.image_encoder.weights[-1]
    statistics.assign(statistics + 1e-6)
    assert weights_digest(first) != weights_digest(second)


def weights_of(classifier, part):
    return [
        keras.ops.convert_to_numpy(weight)
        for weight in classifier.image_encoder.weights
        if ("moving" in weight.path) == (part == "statistics")
    ]


@pytest.mark.parametrize(
    "stage, kernels, statistics",
    [
        (HEAD, False, False),
        (REST, True, False),
        (Stage("all", 0.01, 32, 32, steps=1), True, True),
    ],
)
def test_what_each_stage_changes(stage, kernels, statistics):
    classifier = ImageClassifier(small_model(), 3)
    classifier.set_stage(stage)
    inputs = np.random.default_rng(0).uniform(-1, 1, (6, 32, 32, 3))
    classifier(inputs)
    # A head of zeros has no gradient for what lies before it.
    classifier.head.kernel.assign(
        np.random.default_rng(1).normal(size=classifier.head.kernel.shape)
    )
    classifier.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=True,
    )
    before = {p: weights_of(classifier, p) for p in ("kernels", "statistics")}
    head = keras.ops.convert_to_numpy(classifier.head.kernel)
    classifier.train_on_batch(inputs, np.array([0, 1, 2, 0, 1, 2]))
    for part, expected in (("kernels", kernels), ("statistics", statistics)):
        changed = any(
            np.abs(new - old).max() > 0
            for new, old in zip(
                weights_of(classifier, part), before[part], strict=True
            )
        )
        assert changed == expected, part
    assert np.abs(classifier.head.kernel - head).max() > 0


def test_the_encoder_learns_ten_times_slower():
    moves = []
    for rate in (1.0, 0.1):
        classifier = ImageClassifier(small_model(), 2)
        stage = Stage(
            "all",
            0.1,
            32,
            32,
            steps=1,
            encoder_rate=rate,
            freeze_statistics=True,
        )
        classifier.set_stage(stage)
        inputs = np.random.default_rng(0).uniform(-1, 1, (4, 32, 32, 3))
        classifier(inputs)
        classifier.head.kernel.assign(
            np.random.default_rng(1).normal(size=classifier.head.kernel.shape)
        )
        classifier.compile(
            keras.optimizers.SGD(0.1),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            run_eagerly=True,
        )
        before = weights_of(classifier, "kernels")[0]
        classifier.train_on_batch(inputs, np.array([0, 1, 0, 1]))
        moves.append(weights_of(classifier, "kernels")[0] - before)
    np.testing.assert_allclose(moves[1], 0.1 * moves[0], rtol=1e-3, atol=1e-7)


def test_recipes_are_those_of_the_paper(tmp_path):
    head, rest = RECIPES["imagenet"].stages
    assert (head.image_size, head.eval_size) == (289, 360)
    assert (rest.image_size, rest.eval_size) == (475, 600)
    assert (head.learning_rate, rest.learning_rate) == (0.1, 0.01)
    assert rest.encoder_rate == 0.1 and not rest.freeze_statistics
    head, rest = RECIPES["fine_grained"].stages
    assert (head.learning_rate, rest.learning_rate) == (1e-2, 1e-3)
    assert rest.freeze_statistics and rest.steps == 20_000
    path = tmp_path / "mine.yaml"
    path.write_text(
        "weight_decay: 0.1\nstages:\n- {part: head, learning_rate: 0.1, "
        "image_size: 32, eval_size: 32, steps: 2}\n"
    )
    assert load_finetune_recipe(str(path)).stages[0].steps == 2
    path.write_text("stages:\n- {part: tail, learning_rate: 1}\n")
    with pytest.raises(ValueError, match="mine.yaml` is wrong"):
        load_finetune_recipe(str(path))
    with pytest.raises(FileNotFoundError, match="imagenet, fine_grained"):
        load_finetune_recipe("nothing")
    with pytest.raises(ValueError, match="part='tail'"):
        Stage("tail", 1.0, 1, 1, steps=1)


# === TFDS ===


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


def test_vtab_on_mock_data(tmp_path):
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
        said = []

        def evaluate(identity, sweep=sweep):
            return vtab.evaluate_vtab(
                small_model,
                tmp_path,
                ["dtd"],
                sweep,
                runs=1,
                limits=(8, 4),
                samples=20,
                progress=False,
                say=said.append,
                identity=identity,
            )

        result = evaluate("A")
        # The trials of one model choose for no other.
        with pytest.raises(ValueError, match="another `model`.*'A', now 'B'"):
            evaluate("B")
        with pytest.raises(ValueError, match="another `sweep`"):
            evaluate("A", vtab.Sweep(trials=1))
    assert result["all"] == result["natural"] == result["task_dtd"]
    assert "dtd: best of 2 trials" in said[0]
    assert (tmp_path / "dtd" / "trial-1.json").is_file()
    assert not compare_results(result, result, 20)["figures"][0]["differs"]
    with pytest.raises(ValueError, match="no VTAB task 'cats'"):
        vtab.load_task("cats")


def test_vtab_says_at_once_what_it_lacks(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def evaluate(**options):
        vtab.evaluate_vtab(None, tmp_path, identity="A", **options)

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


def test_vtab_draws_the_pictures_of_each_task(tmp_path):
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
    rows = {row["name"]: row for row in found["figures"]}
    assert rows["task_pets"]["differs"] and rows["natural"]["differs"]
    assert rows["task_dtd"]["difference"] == 0
    assert rows["task_dtd"]["p"] == 1.0
    del second["tasks"][0]
    with pytest.raises(ValueError, match="Received tasks="):
        compare_results(first, second)


def test_tfds_captions_and_labels_on_mock_data(tmp_path, capsys):
    import tensorflow as tf
    import tensorflow_datasets as tfds

    tiny_align().save_to_preset(tmp_path / "model")
    evaluate = ["evaluate", "--model", str(tmp_path / "model"), "--json"]

    # The mock data of MSCOCO would draw the lengths of captions and objects
    # apart from one another, which its own features refuse.
    def captions(builder, **_):
        picture = tf.io.encode_jpeg(tf.zeros((8, 8, 3), "uint8"))
        texts = [f"caption {i}" for i in range(6)]
        example = {"image": picture, "captions": {"text": texts}}
        return tf.data.Dataset.from_tensors(example)

    with tfds.testing.mock_data(num_examples=7, as_dataset_fn=captions):
        data = datasets.tfds_captions(split="val")
        key, picture, texts = next(data.examples())
        assert key == "coco_captions/val/0" and isinstance(picture, bytes)
        assert texts == [f"caption {i}" for i in range(5)]
    with tfds.testing.mock_data(num_examples=7):
        labelled = datasets.tfds_labels("food101", "validation")
        assert labelled.class_names[0] == "apple_pie"
        arguments = ["--tfds", "food101", "--data", "validation"]
        command = ["evaluate", "zero-shot", *evaluate[1:], *arguments]
        assert main([*command, "--bootstrap", "20"]) == 0
    import json

    result = json.loads(capsys.readouterr().out)
    assert result["images"] == 7 and result["classes"] == 101
    assert result["templates"] == 8


def test_missing_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r"align-keras\[evaluation\]"):
        datasets.tfds_labels("dtd", "test")
