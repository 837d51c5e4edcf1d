"""Keras' callbacks, and the ways of `fit`, with one small model."""

import csv

import keras
import numpy as np
import pytest
from keras import ops

from align_keras import AlignDualEncoder
from align_keras import ContrastiveLoss
from align_keras import Lamb

BACKEND = keras.config.backend()


def build():
    keras.utils.set_random_seed(0)
    images = keras.Input((4, 4, 3), name="images")
    tokens = keras.Input((None,), dtype="int32", name="token_ids")
    return AlignDualEncoder(
        keras.Model(images, keras.layers.Conv2D(4, 3)(images)),
        keras.Model(
            {"token_ids": tokens}, keras.layers.Embedding(50, 4)(tokens)
        ),
        text_pooling="average",
        initial_temperature=0.1,
    )


@pytest.fixture(scope="module")
def shared():
    """One compiled model, its first weights, and its function of a step."""
    model = build()
    model.compile(keras.optimizers.Adam(0.05), ContrastiveLoss(0.1))
    return model, model.get_weights()


@pytest.fixture
def model(shared):
    model, weights = shared
    model.set_weights(weights)
    if model.optimizer.built:
        for variable in model.optimizer.variables:
            variable.assign(np.zeros(variable.shape))
    model.optimizer.learning_rate = 0.05
    model.stop_training = False
    return model


@pytest.fixture
def x(pairs):
    return pairs(8, size=4)


def fit(model, x, *callbacks, **kwargs):
    kwargs = {"epochs": 3, "batch_size": 8, "shuffle": False, **kwargs}
    return model.fit(x, callbacks=list(callbacks), verbose=0, **kwargs).history


def weights_of(model):
    return [ops.convert_to_numpy(w) for w in model.weights]


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


# === Callbacks ===


@pytest.mark.parametrize("weights_only", [False, True])
def test_model_checkpoint(weights_only, model, x, tmp_path):
    suffix = "weights.h5" if weights_only else "keras"
    history = fit(
        model,
        x,
        keras.callbacks.ModelCheckpoint(
            str(tmp_path / ("{epoch}-{val_loss:.3f}." + suffix)),
            save_weights_only=weights_only,
        ),
        validation_data=x,
    )
    names = [
        f"{epoch}-{value:.3f}.{suffix}"
        for epoch, value in enumerate(history["val_loss"], 1)
    ]
    assert sorted(f.name for f in tmp_path.iterdir()) == names
    if weights_only:
        again = build()
        again.load_weights(tmp_path / names[-1])
    else:
        again = keras.saving.load_model(tmp_path / names[-1])
        assert int(again.optimizer.iterations) == 3
    assert_equal(weights_of(again), weights_of(model))


def test_backup_and_restore(model, x, tmp_path):
    """A run that stops after two epochs resumes with the third."""
    expected = fit(model, x)["loss"]
    whole = weights_of(model)

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    runs = []
    for extra in ([Stop()], []):
        again = build()
        again.compile(keras.optimizers.Adam(0.05), ContrastiveLoss(0.1))
        backup = keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))
        try:
            runs.append(fit(again, x, backup, *extra)["loss"])
        except KeyboardInterrupt:
            assert extra
    assert runs == [[pytest.approx(expected[-1], rel=1e-5)]]
    for found, value in zip(weights_of(again), whole, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6)


def test_early_stopping(model, x):
    """No loss is better than the first by 99; its weights are restored."""
    stop = keras.callbacks.EarlyStopping(
        "loss", min_delta=99.0, patience=2, restore_best_weights=True
    )
    best = []
    keep = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: best.append(weights_of(model))
    )
    history = fit(model, x, keep, stop, epochs=9)
    assert len(history["loss"]) == len(best) == 3
    assert_equal(weights_of(model), best[0])


def test_reduce_lr_on_plateau(model, x):
    plateau = keras.callbacks.ReduceLROnPlateau(
        "loss", factor=0.1, patience=1, min_delta=99.0
    )
    history = fit(model, x, plateau, epochs=3)
    assert history["learning_rate"] == pytest.approx([0.05, 0.05, 0.005])
    assert float(model.optimizer.learning_rate) == pytest.approx(0.0005)


def test_tensorboard_and_csv_logger(model, x, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing import event_accumulator

    history = fit(
        model,
        x,
        keras.callbacks.TensorBoard(str(tmp_path), histogram_freq=1),
        keras.callbacks.CSVLogger(str(tmp_path / "log.csv")),
        validation_data=x,
    )
    with open(tmp_path / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for name, values in history.items():
        assert [float(row[name]) for row in rows] == pytest.approx(values)
    for name, prefix in (("train", ""), ("validation", "val_")):
        events = event_accumulator.EventAccumulator(str(tmp_path / name))
        events.Reload()
        found = [
            float(np.asarray(_number(event)))
            for event in events.Tensors("epoch_loss")
        ]
        assert found == pytest.approx(history[f"{prefix}loss"])


def _number(event):
    from tensorboard.util import tensor_util

    return tensor_util.make_ndarray(event.tensor_proto)


def test_swap_ema_weights(x):
    """Validation and the end of the run see the averages."""
    model = build()
    model.compile(
        keras.optimizers.SGD(0.01, use_ema=True, ema_momentum=0.5),
        ContrastiveLoss(0.1),
    )
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(weights_of(model))

    history = fit(
        model,
        x,
        Watch(),
        keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
        validation_data=x,
        epochs=2,
    )
    average = seen[0]
    average = [(a + b) / 2 for a, b in zip(average, seen[1], strict=True)]
    for found, value in zip(weights_of(model), average, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6)
    value = model.evaluate(x, batch_size=8, verbose=0)[0]
    assert history["val_loss"][-1] == pytest.approx(value, rel=1e-5)


# === Ways of `fit` ===


def test_validation_data_and_split(model, x):
    rows = slice(0, 4), slice(4, 8)
    half = [{name: v[part] for name, v in x.items()} for part in rows]
    options = {"batch_size": 4, "epochs": 1}
    expected = fit(model, half[0], validation_data=half[1], **options)
    after = weights_of(model)
    value = model.evaluate(half[1], batch_size=4, verbose=0)[0]
    assert expected["val_loss"] == [pytest.approx(value, rel=1e-6)]
    again = build()
    again.compile(keras.optimizers.Adam(0.05), ContrastiveLoss(0.1))
    found = fit(again, x, validation_split=0.5, **options)
    assert found["val_loss"] == pytest.approx(expected["val_loss"], rel=1e-5)
    for one, other in zip(weights_of(again), after, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def one_step(x, call=None, **kwargs):
    model = build()
    # What divides by a root of gradients makes much of rounding.
    model.compile(keras.optimizers.SGD(0.1), ContrastiveLoss(0.1), **kwargs)
    if call is None:
        fit(model, x, epochs=1)
    else:
        call(model)
    return weights_of(model)


class Batches(keras.utils.PyDataset):
    def __init__(self, x):
        super().__init__()
        self.x = x

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.x


def loader(x):
    data = pytest.importorskip("torch.utils.data")
    rows = [{k: v[i] for k, v in x.items()} for i in range(8)]
    return data.DataLoader(rows, batch_size=8)


def grain_dataset(x):
    grain = pytest.importorskip("grain")
    rows = [{k: v[i] for k, v in x.items()} for i in range(8)]
    return grain.MapDataset.source(rows).batch(8)


@pytest.fixture(scope="module")
def first_step():
    found = {}

    def find(x):
        if not found:
            found["weights"] = one_step(x)
        return found["weights"]

    return find


WAYS = {
    "run_eagerly": lambda x: one_step(x, run_eagerly=True),
    "jit_compile": lambda x: one_step(x, jit_compile=True),
    "no jit_compile": lambda x: one_step(x, jit_compile=False),
    "train_on_batch": lambda x: one_step(x, lambda m: m.train_on_batch(x)),
    "generator": lambda x: one_step(
        x, lambda m: m.fit((x for _ in range(1)), verbose=0)
    ),
    "PyDataset": lambda x: one_step(x, lambda m: m.fit(Batches(x), verbose=0)),
    "DataLoader": lambda x: one_step(x, lambda m: m.fit(loader(x), verbose=0)),
    "Grain": lambda x: one_step(
        x, lambda m: m.fit(grain_dataset(x), verbose=0)
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_takes_the_same_step(way, x, first_step):
    if way == "jit_compile" and BACKEND == "torch":
        pytest.skip("has no such compiler here")
    for found, value in zip(WAYS[way](x), first_step(x), strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-6)


def test_a_lamb_resumes_from_a_checkpoint(x, tmp_path):
    """The optimizer's moments come back too."""
    model = build()
    model.compile(Lamb(0.05), ContrastiveLoss(0.1))
    path = str(tmp_path / "model.keras")
    fit(model, x, keras.callbacks.ModelCheckpoint(path), epochs=2)
    again = keras.saving.load_model(path)
    losses = [fit(m, x, epochs=2)["loss"] for m in (model, again)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_variables_have_one_order_on_all_backends():
    """Files number the state of an optimizer by it."""
    towers = ["kernel", "bias", "embeddings"]
    projection = ["kernel", "bias"]
    model = build()
    names = [v.path.rpartition("/")[2] for v in model.trainable_variables]
    assert names == [*towers, *projection, "log_temperature"]
