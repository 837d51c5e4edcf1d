"""Zero-shot classification, against brute force and on small files."""

import shutil

import numpy as np
import pytest
from seer import Seer
from seer import write_root

from align_keras.classes import Classes
from align_keras.classes import class_vectors
from align_keras.embedding import Embedder
from align_keras.embedding import embed_streams as embed
from align_keras.embedding import vector_cache
from align_keras.evaluation import datasets
from align_keras.evaluation.accuracy import classification_accuracies
from align_keras.evaluation.describe_results import describe_result
from align_keras.evaluation.zero_shot import classification_outcomes
from align_keras.evaluation.zero_shot import measure_zero_shot


def unit(rng, *shape):
    values = rng.normal(size=shape).astype("float32")
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def test_prompts_of_a_class():
    rows = {
        "a cat": [4.0, 0.0],
        "the cat": [0.0, 1.0],
        "a dog": [-3.0, 4.0],
        "the dog": [-0.6, 0.8],
        "a hound": [1.0, 0.0],
        "the hound": [-2.0, 0.0],
    }

    def embed(texts):
        return np.array([rows[text] for text in texts])

    classes = ["cat", ["dog", "hound"]]
    templates = ["a {}", "the {}"]
    np.testing.assert_allclose(
        class_vectors(embed, classes, templates),
        [[np.sqrt(0.5)] * 2, [-0.6, 0.8]],
        atol=1e-7,
    )
    np.testing.assert_allclose(
        class_vectors(embed, classes, templates, "plain"),
        [[4, 1] / np.sqrt(17), [-4.6, 4.8] / np.hypot(4.6, 4.8)],
        atol=1e-7,
    )
    with pytest.raises(ValueError, match="'hound' cancel out"):
        class_vectors(embed, ["cat", "hound"], templates)
    with pytest.raises(ValueError, match="'mean'"):
        class_vectors(embed, classes, templates, "mean")
    with pytest.raises(ValueError, match="hold `{}` once.*'a cat'"):
        class_vectors(embed, classes, ["a cat"])


def test_accuracies_match_brute_force():
    rng = np.random.default_rng(1)
    images, classes = np.sign(unit(rng, 50, 4)), np.sign(unit(rng, 8, 4))
    labels = rng.integers(0, 7, 50)  # The class 7 has no image.
    outcomes = classification_outcomes(images, classes, labels)
    order = np.argsort(-(images @ classes.T), axis=1, kind="stable")
    right = order[:, 0] == labels
    metrics = classification_accuracies(outcomes, ks=(1, 3))
    assert metrics["top1"] == np.mean(right)
    in_three = (order[:, :3] == labels[:, None]).any(axis=1)
    assert metrics["top3"] == np.mean(in_three)
    by_class = [np.mean(right[labels == c]) for c in range(7)]
    assert metrics["mean_per_class"] == pytest.approx(np.mean(by_class))
    weights = rng.integers(0, 3, 50)
    weighted = classification_accuracies(outcomes, weights, ks=(1,))
    assert weighted["top1"] == np.mean(np.repeat(right, weights))
    with pytest.raises(ValueError, match="Received: 8 at index 0"):
        classification_outcomes(images[:1], classes, [8])
    images[3, 0] = np.inf
    with pytest.raises(ValueError, match="infinity.*index 3"):
        classification_outcomes(images, classes, labels)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_root(tmp_path_factory.mktemp("root"))


def quiet(**options):
    return {"progress": False, "samples": 50, "batch_size": 3, **options}


def test_zero_shot_restricts_the_classes(root):
    data = datasets.class_folders(root / "imagenet" / "val", "imagenet")
    names = root / "imagenet" / "classes.json"
    result = measure_zero_shot(Seer().embedder(), data, names, **quiet())
    assert (result["classes"], result["images"]) == (3, 12)
    assert result["top1"] == result["mean_per_class"] == 1.0
    everything = measure_zero_shot(
        Seer().embedder(), data, names, all_classes=True, **quiet()
    )
    assert everything["classes"] == 4
    assert everything["classes_without_images"] == 1
    assert "76.4%" in describe_result(result)

    own = measure_zero_shot(
        Seer().embedder(), data, None, ["{}", "my {}"], **quiet()
    )
    # Without names, folders are called n0, n1, n2: the seer knows nothing.
    assert own["templates"] == 2 and own["top1"] == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="no entry for the label 'n0'"):
        classes = Classes(["a"], [["b"]])
        measure_zero_shot(Seer().embedder(), data, classes, **quiet())


def test_unreadable_images_and_nan(root, tmp_path, caplog):
    shutil.copytree(root / "imagenet" / "val", tmp_path / "val")
    (tmp_path / "val" / "n1" / "0.png").write_bytes(b"no image")
    data = datasets.class_folders(tmp_path / "val")
    names = root / "imagenet" / "classes.json"
    result = measure_zero_shot(Seer().embedder(), data, names, **quiet())
    assert result["images_skipped"] == 1 and result["images"] == 11
    assert "n1/0.png" in caplog.text and "left out" in caplog.text

    def broken(batch):
        return np.full((len(batch), 3), np.nan)

    nan = Embedder("nan", broken, Seer().texts)
    with pytest.raises(ValueError, match="NaN or infinity for `n0/0.png`"):
        measure_zero_shot(nan, data, names, **quiet())


def test_vectors_on_disk_are_used_and_checked(root, tmp_path, monkeypatch):
    monkeypatch.setattr(vector_cache, "CHUNK", 5)
    data = datasets.class_folders(root / "imagenet" / "val", "imagenet")
    images = [(key, image) for key, image, _ in data.examples()]

    def embed_all(seer, named=images):
        return embed.embed_readable(
            seer.embedder("f1"), named, 3, False, cache=tmp_path, name="val"
        )[0]

    class Interrupted(Seer):
        def images(self, batch):
            if self.embedded >= 6:
                raise KeyboardInterrupt
            return super().images(batch)

    with pytest.raises(KeyboardInterrupt):
        embed_all(Interrupted())
    second = Seer()
    rows = embed_all(second)
    # The first five were on disk; batches of three are filled up.
    assert second.embedded == 6 + 3
    third = Seer()
    np.testing.assert_array_equal(embed_all(third), rows)
    assert third.embedded == 0
    fresh = embed.embed_images(Seer().embedder(), [p for _, p in images])
    np.testing.assert_allclose(rows, fresh, atol=1e-6)
    with pytest.raises(ValueError, match="vectors of other images"):
        embed_all(Seer(), images[::-1])


def test_a_label_without_a_right_class_is_refused():
    rows = np.eye(3, dtype="float32")
    answers = [[0], [], [2]]
    found = classification_outcomes(rows[:2], rows, [0, 2], answers)
    assert found["label"].tolist() == [0, 2]
    with pytest.raises(ValueError, match="none for the label 1"):
        classification_outcomes(rows, rows, [0, 1, 2], answers)
