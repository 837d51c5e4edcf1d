import dataclasses

import keras
import numpy as np
import pytest
from dark_and_bright import small_model
from PIL import Image

from align_keras.evaluation import finetune_data
from align_keras.evaluation.compare import compare_results
from align_keras.evaluation.describe_results import describe_result
from align_keras.evaluation.finetune import ImageClassifier
from align_keras.evaluation.finetune import encoder_fingerprint
from align_keras.evaluation.finetune import measure_finetune
from align_keras.evaluation.finetune_data import check_images
from align_keras.evaluation.finetune_recipes import RECIPES
from align_keras.evaluation.finetune_recipes import FinetuneRecipe
from align_keras.evaluation.finetune_recipes import Stage
from align_keras.evaluation.finetune_recipes import load_finetune_recipe
from align_keras.evaluation.results import Result

pytestmark = pytest.mark.usefixtures("plain_decoder")

HEAD = Stage("head", 0.5, 32, 40, steps=6, batch_size=6)


REST = Stage("all", 0.01, 40, 48, steps=4, batch_size=6, freeze_statistics=True)


RECIPE = FinetuneRecipe((HEAD, REST), 1e-5, checkpoint_every=3)


def finetune(folders, workdir, **options):
    return measure_finetune(
        small_model,
        folders["train"],
        folders["test"],
        RECIPE,
        workdir,
        samples=50,
        progress=False,
        **options,
    )


@pytest.mark.thorough
def test_learns_and_resumes_after_an_interruption(
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
    assert not compare_results(whole, again, 50)["metrics"][0]["differs"]
    with pytest.raises(ValueError, match="a run with seed=0, but seed=1"):
        finetune(folders, tmp_path / "cut", seed=1)
    with pytest.raises(ValueError, match="but model='other'"):
        finetune(folders, tmp_path / "cut", identity="other")
    with pytest.raises(ValueError, match="runs=0"):
        finetune(folders, tmp_path / "cut", runs=0)


def test_unreadable_images_are_left_out_before_training(
    folders, tmp_path, caplog
):
    name, path, label = next(folders["test"].examples())

    def with_a_broken_one(data):
        def examples():
            yield "broken.png", b"no image", label
            yield from data.examples()

        return dataclasses.replace(data, examples=examples)

    broken = {name: with_a_broken_one(data) for name, data in folders.items()}
    found = finetune(broken, tmp_path / "broken")
    assert found["images_skipped"] == 1
    assert (found["images"], found["train_images"]) == (12, 18)
    assert caplog.text.count("Image broken.png is left out") == 2
    whole = finetune(folders, tmp_path / "whole")
    np.testing.assert_array_equal(
        found.outcomes["rank"], whole.outcomes["rank"]
    )
    # Of two classes, the right one is among the first five always.
    assert set(whole.metrics) == {"top1", "mean_per_class"}
    nothing = dataclasses.replace(
        folders["test"], examples=lambda: iter([("a", b"", 0)])
    )
    with pytest.raises(ValueError, match="No image of `test` is readable"):
        finetune({**folders, "test": nothing}, tmp_path / "nothing")


def test_images_that_tensorflow_cannot_show_are_learned_from(folders, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), "uint8")
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    Image.fromarray(pixels).save(tmp_path / "b.png")
    odd = dataclasses.replace(
        folders["test"],
        examples=lambda: iter(
            [(name, tmp_path / name, 0) for name in ("a.tif", "b.png")]
        ),
    )
    (batch,) = finetune_data.test_batches(check_images(odd), HEAD)
    assert len(batch) == 2
    np.testing.assert_array_equal(batch[0], batch[1])


def test_frozen_features_stand_beside_their_own_row(folders, tmp_path):
    (stage,) = RECIPES["imagenet_frozen"].stages
    assert stage == RECIPES["imagenet"].stages[0] and stage.part == "head"
    result = measure_finetune(
        small_model,
        folders["train"],
        dataclasses.replace(folders["test"], name="imagenet"),
        FinetuneRecipe((HEAD,)),
        tmp_path,
        runs=2,
        samples=20,
        progress=False,
    )
    said = describe_result(result)
    assert said.startswith("finetune-head, imagenet: 12 images")
    assert "ALIGN, frozen features" in said and "85.5%" in said
    assert "± std" in said
    assert f"{result['deviations']['top1']:8.1%}" in said
    assert "88.6%" in describe_result(Result({**result, "task": "finetune"}))


def test_a_model_is_known_by_its_image_encoder():
    first, second = small_model(), small_model()
    assert encoder_fingerprint(first) == encoder_fingerprint(second)
    statistics = second.image_encoder.weights[-1]
    statistics.assign(statistics + 1e-6)
    assert encoder_fingerprint(first) != encoder_fingerprint(second)


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
    with pytest.raises(ValueError, match="mine.yaml` is invalid"):
        load_finetune_recipe(str(path))
    with pytest.raises(FileNotFoundError, match="imagenet, fine_grained"):
        load_finetune_recipe("nothing")
    with pytest.raises(ValueError, match="part='tail'"):
        Stage("tail", 1.0, 1, 1, steps=1)


def test_functions_and_other_arrays(folders):
    def with_image(image):
        return dataclasses.replace(
            folders["test"], examples=lambda: iter([("a", image, 0)])
        )

    pixels = np.full((8, 8, 3), 90, "uint8")
    checked = check_images(with_image(lambda: pixels))
    ((_, image, _),) = checked.examples()
    np.testing.assert_array_equal(image, pixels)
    with pytest.raises(TypeError, match="dtype=float32"):
        check_images(with_image(pixels.astype("float32")))
