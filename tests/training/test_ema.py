import keras
import numpy as np
import pytest
from keras import ops

from align_keras import Lamb
from align_keras.training.ema import averaged_weights


def weights_of(model):
    return [ops.convert_to_numpy(w) for w in model.trainable_variables]


class Record(keras.callbacks.Callback):
    """The weights after each step."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def on_train_batch_end(self, batch, logs=None):
        self.weights.append(weights_of(self.model))


def make_model(**settings):
    keras.utils.set_random_seed(0)
    limit = keras.constraints.MaxNorm(1.0)
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(2, bias_constraint=limit)]
    )
    model.compile(Lamb(0.2, **settings), loss="mse")
    return model


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_averages_are_lent_and_the_weights_returned(wrapped, tmp_path):
    model, record = make_model(use_ema=True, ema_momentum=0.7), Record()
    if wrapped:
        inner = Lamb(0.2, use_ema=True, ema_momentum=0.7)
        model.compile(keras.optimizers.LossScaleOptimizer(inner), loss="mse")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 3)), rng.normal(size=(8, 2))
    seen = {}

    class Evaluate(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            before = weights_of(self.model)
            with averaged_weights(self.model):
                seen[epoch] = weights_of(self.model)
                self.model.save_weights(tmp_path / f"{epoch}.weights.h5")
            for old, new in zip(before, weights_of(self.model), strict=True):
                np.testing.assert_array_equal(old, new)

    model.fit(x, y, 4, 2, verbose=0, callbacks=[record, Evaluate()])
    averages = record.weights[0]
    for step in (1, 2, 3):
        averages = [
            0.7 * average + 0.3 * value
            for average, value in zip(
                averages, record.weights[step], strict=True
            )
        ]
        if step == 1:
            first = averages
    for epoch, expected in enumerate((first, averages)):
        for got, want in zip(seen[epoch], expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5)
    again = make_model()
    again.load_weights(tmp_path / "1.weights.h5")
    for got, want in zip(weights_of(again), seen[1], strict=True):
        np.testing.assert_array_equal(got, want)


def test_evaluating_averages_changes_nothing_of_training():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 3)), rng.normal(size=(8, 2))
    results = []
    for lend in (False, True):
        model, record = make_model(use_ema=True), Record()

        class Evaluate(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                with averaged_weights(self.model):
                    pass

        callbacks = [record, Evaluate()] if lend else [record]
        model.fit(x, y, 4, 2, verbose=0, callbacks=callbacks, shuffle=False)
        results.append(record.weights)
    for without, with_it in zip(*results, strict=True):
        for old, new in zip(without, with_it, strict=True):
            np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("settings", [{}, {"use_ema": True}])
def test_without_averages_the_weights_stay(settings):
    """None were asked for, or no step was taken: averages would be zeros."""
    model = make_model(**settings)
    model.optimizer.build(model.trainable_variables)
    before = weights_of(model)
    with averaged_weights(model):
        for old, new in zip(before, weights_of(model), strict=True):
            np.testing.assert_array_equal(old, new)


def test_weights_return_after_an_error():
    model = make_model(use_ema=True)
    model.fit(np.ones((4, 3)), np.ones((4, 2)), epochs=2, verbose=0)
    model.trainable_variables[0].assign(np.full((3, 2), 5.0))
    with pytest.raises(KeyError), averaged_weights(model):
        assert float(ops.max(model.trainable_variables[0])) < 5.0
        raise KeyError
    assert float(ops.min(model.trainable_variables[0])) == 5.0
