"""Alignment, uniformity and modality gap as metrics, against NumPy."""

import itertools
import math

import keras
import numpy as np
import pytest
from keras import ops

from align_keras import AlignDualEncoder
from align_keras import Alignment
from align_keras import ModalityGap
from align_keras import Uniformity

METRICS = {
    "alignment": Alignment,
    "image_uniformity": Uniformity,
    "text_uniformity": lambda: Uniformity("text"),
    "modality_gap": ModalityGap,
}


def expected(batches):
    """The metrics of batches of images, texts and weights, by loops."""
    pairs = [0.0, 0.0]
    sums = {name: [0.0, 0.0] for name in ("image", "text", "gap")}

    def add(name, value, weight):
        sums[name][0] += weight * value
        sums[name][1] += weight

    for images, texts, weights in batches:
        x, y = images.astype("float64"), texts.astype("float64")
        pairs[0] += weights @ ((x - y) ** 2).sum(1)
        pairs[1] += weights.sum()
        for i, j in itertools.combinations(range(len(x)), 2):
            both = weights[i] * weights[j]
            for name, rows in (("image", x), ("text", y)):
                apart = ((rows[i] - rows[j]) ** 2).sum()
                add(name, math.exp(-2 * apart), both)
            add("gap", (x[i] - y[i]) @ (x[j] - y[j]), both)
    means = {name: total / count for name, (total, count) in sums.items()}
    return {
        "alignment": pairs[0] / pairs[1],
        "image_uniformity": math.log(means["image"]),
        "text_uniformity": math.log(means["text"]),
        "modality_gap": math.sqrt(means["gap"]),
    }


def batches(sizes=(7, 5, 1)):
    rng = np.random.default_rng(0)
    for size in sizes:
        rows = rng.normal(size=(2, size, 6)) + [[[0.5]], [[-0.2]]]
        rows /= np.linalg.norm(rows, axis=2, keepdims=True)
        yield *rows.astype("float32"), rng.uniform(0, 3, size)


@pytest.mark.parametrize("name", METRICS)
def test_batches_are_counted_as_numpy_counts_them(name):
    metric = METRICS[name]()
    assert metric.name == name
    found = [*batches()]
    for images, texts, weights in found:
        # Rows that only fill up the batch, whatever they weigh.
        fill = np.ones((3, 6), "float32")
        mask = np.arange(len(images) + 3) < len(images)
        metric.update_state(
            ops.convert_to_tensor(np.concatenate([images, fill])),
            ops.convert_to_tensor(np.concatenate([texts, fill])),
            sample_weight=ops.convert_to_tensor(np.append(weights, [2, 2, 2])),
            mask=ops.convert_to_tensor(mask),
        )
    value = float(metric.result())
    assert value == pytest.approx(expected(found)[name], rel=1e-5)
    metric.reset_state()
    plain = [(x, y, np.ones(len(x))) for x, y, _ in found]
    for images, texts, _ in plain:
        metric.update_state(images, texts)
    again = float(metric.result())
    assert again == pytest.approx(expected(plain)[name], rel=1e-5)
    assert abs(again - value) > 1e-3


def test_what_is_known_without_computing():
    def value(metric, x, y):
        return float(metric(np.array(x, "float32"), np.array(y, "float32")))

    ones, others = [[1, 0]] * 3, [[0, 1]] * 3
    assert value(Alignment(), ones, others) == 2
    assert value(ModalityGap(), ones, others) == pytest.approx(math.sqrt(2))
    assert value(Uniformity(), ones, others) == 0
    assert value(Uniformity("text"), ones, np.eye(3)) == pytest.approx(-4)
    # Pairs that differ, around the same mean: what is below zero is zero.
    assert value(ModalityGap(), np.eye(2), np.eye(2)[::-1]) == 0
    # One pair has no other; nothing has no value.
    for metric in (Uniformity(), ModalityGap()):
        assert math.isnan(value(metric, ones[:1], others[:1]))


def test_the_gap_does_not_depend_on_the_size_of_a_batch():
    """Where the distance of a batch's means grows as batches shrink."""
    ((images, texts, _),) = batches([400])
    gap = np.linalg.norm(images.mean(0) - texts.mean(0))
    metric = ModalityGap()
    apart = []
    for part in np.split(np.arange(400), 100):
        metric.update_state(images[part], texts[part])
        means = images[part].mean(0) - texts[part].mean(0)
        apart.append(np.linalg.norm(means))
    assert float(metric.result()) == pytest.approx(gap, abs=0.03)
    assert np.mean(apart) > gap + 0.1


@pytest.fixture(scope="module")
def towers():
    keras.utils.set_random_seed(0)
    # What lets all images lie on one side.
    bias = keras.initializers.Constant(1.0)
    images = keras.Input((4, 4, 3), name="images")
    tokens = keras.Input((None,), dtype="int32", name="token_ids")
    return (
        keras.Model(
            images, keras.layers.Conv2D(6, 3, bias_initializer=bias)(images)
        ),
        keras.Model(
            {"token_ids": tokens}, keras.layers.Embedding(50, 6)(tokens)
        ),
    )


def test_a_model_reports_them(towers, pairs):
    keras.utils.set_random_seed(1)
    model = AlignDualEncoder(*towers, text_pooling="average")
    metrics = [make() for make in METRICS.values()]
    model.compile(keras.optimizers.SGD(0.0), metrics=metrics, microbatch_size=2)
    # The last batch is smaller.
    x = pairs(14, size=4)
    y = {k: ops.convert_to_numpy(v) for k, v in model(x).items()}
    weights = np.random.default_rng(1).uniform(0.5, 2, 14).astype("float32")
    history = model.fit(
        x, sample_weight=weights, batch_size=8, shuffle=False, verbose=0
    ).history
    measured = model.evaluate(x, batch_size=8, verbose=0, return_dict=True)
    for logs, weight in (
        ({name: history[name][0] for name in METRICS}, weights),
        (measured, np.ones(14)),
    ):
        parts = [
            (
                y["image_embeddings"][part],
                y["text_embeddings"][part],
                weight[part],
            )
            for part in (slice(8), slice(8, 14))
        ]
        for name, value in expected(parts).items():
            assert logs[name] == pytest.approx(value, rel=1e-4), name


def test_they_are_saved_with_their_settings():
    for metric in (Alignment("a"), Uniformity("text", "b"), ModalityGap("c")):
        saved = keras.saving.serialize_keras_object(metric)
        again = keras.saving.deserialize_keras_object(saved)
        assert type(again) is type(metric)
        assert again.get_config() == metric.get_config()
    assert again.name == "c"
    with pytest.raises(ValueError, match="embeddings='images'"):
        Uniformity("images")
