"""Moving statistics: right after a few batches, the usual rule in the end."""

import keras
import numpy as np
import pytest
from keras import ops

from align_keras import AlignDualEncoder
from align_keras import BertTextEncoder
from align_keras.interop.links import Tensors
from align_keras.interop.links import assign
from align_keras.interop.links import torch_links
from align_keras.models import GhostBatchNormalization
from align_keras.models.batch_normalization import BatchNormalization
from align_keras.models.step_scope import step_scope


def make(kind, **kwargs):
    layers = {"local": BatchNormalization, "ghost": GhostBatchNormalization}
    layer = layers[kind](**{"momentum": 0.9, **kwargs})
    layer.build((None, 3, 3, 4))
    return layer


def batches(count, rows=16):
    rng = np.random.default_rng(0)
    return [
        rng.normal(1 + i, 2 + i % 7, (rows, 3, 3, 4)).astype("float32")
        for i in range(count)
    ]


def averaged(values, momentum):
    """The documented weights of the batches, written out."""
    shares = [max(1 - momentum, 10 / (10 + n)) for n in range(len(values))]
    weights = [
        share * np.prod([1 - later for later in shares[n + 1 :]])
        for n, share in enumerate(shares)
    ]
    assert sum(weights) == pytest.approx(1)
    return sum(w * v for w, v in zip(weights, values, strict=True))


def statistics(layer):
    return [
        ops.convert_to_numpy(v)
        for v in (layer.moving_mean, layer.moving_variance)
    ]


@pytest.mark.parametrize("count", [1, 2, 7, 150])
@pytest.mark.parametrize("kind", ["local", "ghost", "flat", "padded"])
def test_moving_statistics_are_the_documented_average(kind, count):
    layer = make("ghost" if kind == "ghost" else "local")
    data, axes = batches(count), (0, 1, 2)
    means = [x.mean(axes, "float64") for x in data]
    variances = [x.var(axes, dtype="float64") for x in data]
    if kind == "ghost":  # The data are one run.
        assert layer.virtual_batch_size == 16
    if kind == "flat":  # Without the short form of maps.
        layer = BatchNormalization(momentum=0.9)
        layer.build((None, 4))
    for x in data:
        if kind == "padded":
            padding = np.full((4, 3, 3, 4), 1e3, "float32")
            mask = ops.convert_to_tensor([True] * 16 + [False] * 4)
            with step_scope(mask):
                layer(np.concatenate([x, padding]), training=True)
        else:
            layer(x.reshape(-1, 4) if kind == "flat" else x, training=True)
    for got, values in zip(statistics(layer), (means, variances), strict=True):
        np.testing.assert_allclose(got, averaged(values, 0.9), rtol=1e-4)


def test_a_long_run_has_the_usual_rule():
    """After 990 updates the initial values and the warm-up are forgotten."""
    layer, data = make("local", momentum=0.99), batches(40)
    rng = np.random.default_rng(1)
    order = rng.integers(0, len(data), 2500)
    mean, plain = np.zeros(4), []
    for i in order:
        layer(data[i], training=True)
        mean = 0.99 * mean + 0.01 * data[i].mean((0, 1, 2), "float64")
        plain.append(mean)
    got = statistics(layer)[0]
    np.testing.assert_allclose(got, plain[-1], rtol=1e-4)
    # Had it begun with the usual rule, the start would still be there at 70.
    assert abs(plain[69] / np.mean([d.mean() for d in data]) - 1).min() > 0.3


def test_statistics_from_elsewhere_count_as_settled():
    encoder = keras.Sequential([keras.Input((3, 3, 4)), BatchNormalization()])
    layer = encoder.layers[0]
    links = torch_links("bn", layer)
    assign(
        encoder,
        links,
        Tensors({name: np.full(4, 5.0) for name in links}, "a test"),
    )
    x = batches(1)[0]
    layer(x, training=True)
    np.testing.assert_allclose(
        statistics(layer)[0], 0.99 * 5 + 0.01 * x.mean((0, 1, 2)), rtol=1e-5
    )


@pytest.mark.parametrize("kind", ["local", "ghost"])
def test_saved_weights_continue_the_warm_up(kind, tmp_path):
    models = [
        keras.Sequential([keras.Input((3, 3, 4)), make(kind)]) for _ in range(2)
    ]
    data = batches(12)
    for x in data[:5]:
        models[0].layers[0](x, training=True)
    models[0].save_weights(tmp_path / "a.weights.h5")
    models[1].load_weights(tmp_path / "a.weights.h5")
    for model in models:
        for x in data[5:]:
            model.layers[0](x, training=True)
    for one, other in zip(*(m.get_weights() for m in models), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(
        statistics(models[1].layers[0])[0],
        averaged([x.mean((0, 1, 2), "float64") for x in data], 0.9),
        rtol=1e-4,
    )


@pytest.mark.parametrize("compile", [{}, {"remat": True}])
def test_microbatches_update_once_a_step(compile, pairs):
    """Three steps of four microbatches are three updates, not twelve."""
    images = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(4, 3, strides=8)(images)
    layer = BatchNormalization(momentum=0.5)
    model = AlignDualEncoder(
        keras.Model(images, layer(x)), BertTextEncoder(50, 1, 2, 16, 32)
    )
    model.compile("sgd", microbatch_size=4, **compile)
    means, share = [], 1.0
    for seed in range(3):
        data = pairs(16, seed=seed)
        maps = model.image_encoder.layers[1](data["images"])
        means.append(ops.convert_to_numpy(maps).mean((0, 1, 2), "float64"))
        model.train_on_batch(data)
        share = share / (1 + share / 10)
    np.testing.assert_allclose(layer.moving_share, share, rtol=1e-6)
    np.testing.assert_allclose(
        statistics(layer)[0], averaged(means, 0.5), rtol=1e-4, atol=1e-6
    )


def test_a_frozen_layer_keeps_its_share():
    layer = make("local")
    layer.trainable = False
    layer(batches(1)[0], training=True)
    assert float(layer.moving_share) == 1
    assert statistics(layer)[0].tolist() == [0] * 4


def test_what_is_trained_does_not_depend_on_the_share(pairs):
    """Training uses the statistics of the batch, so long runs lose nothing."""
    trained = []
    for settled in (False, True):
        keras.utils.set_random_seed(0)
        images = keras.Input((32, 32, 3))
        x = keras.layers.Conv2D(4, 3, strides=8)(images)
        layer = BatchNormalization()
        model = AlignDualEncoder(
            keras.Model(images, layer(x)), BertTextEncoder(50, 1, 2, 16, 32)
        )
        if settled:
            layer.settle()
        model.compile(keras.optimizers.SGD(0.1))
        model.fit(pairs(16), batch_size=4, epochs=2, shuffle=False, verbose=0)
        trained.append(model)
    for one, other in zip(
        *(model.trainable_variables for model in trained), strict=True
    ):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(one), ops.convert_to_numpy(other)
        )
    first, second = (
        model.image_encoder.layers[-1].moving_variance for model in trained
    )
    assert np.abs(ops.convert_to_numpy(first - second)).max() > 0.1


@pytest.mark.parametrize("rows", [4, 3])
@pytest.mark.parametrize("shape", [(4, 3, 3), (4, 1, 1)])
def test_a_mask_leaves_places_out(shape, rows):
    """Of maps, which have a short form without one; and beside padding."""
    rng = np.random.default_rng(0)
    (x,) = batches(1, rows=4)
    mask = rng.random(shape) < 0.6
    mask[0] = True
    counted = np.broadcast_to(mask, (4, 3, 3)).copy()
    counted[rows:] = False
    layer = make("local", epsilon=1e-3)
    padded = ops.convert_to_tensor(np.arange(4) < rows) if rows < 4 else None
    with step_scope(padded):
        found = layer(x, training=True, mask=mask)
    kept = x[counted].astype("float64")
    mean, variance = kept.mean(0), kept.var(0)
    expected = (x - mean) / np.sqrt(variance + 1e-3)
    np.testing.assert_allclose(
        ops.convert_to_numpy(found), expected, rtol=1e-4, atol=1e-5
    )
    for value, same in zip(statistics(layer), (mean, variance), strict=True):
        np.testing.assert_allclose(value, same, rtol=1e-4)
