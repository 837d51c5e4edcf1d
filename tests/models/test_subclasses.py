"""What a subclass overrides counts, and what is frozen is read in time."""

import keras
import numpy as np
import pytest
from keras import ops

from align_keras import AlignDualEncoder
from align_keras import ContrastiveLoss
from align_keras import PairRecall
from align_keras import backend


def towers(dropout=0.0):
    keras.utils.set_random_seed(0)
    images = keras.Input((4, 4, 3), name="images")
    features = keras.layers.Dropout(dropout)(images)
    features = keras.layers.Conv2D(6, 3)(features)
    tokens = keras.Input((None,), dtype="int32", name="token_ids")
    vectors = keras.layers.Embedding(50, 6)(tokens)
    vectors = keras.layers.Dropout(dropout)(vectors)
    return (
        keras.Model(images, features),
        keras.Model({"token_ids": tokens}, vectors),
    )


def build(cls=AlignDualEncoder, dropout=0.0, frozen=(), **options):
    pair = towers(dropout)
    for place in frozen:
        pair[place].trainable = False
    model = cls(*pair, text_pooling="average", initial_temperature=0.1)
    model.compile(keras.optimizers.SGD(0.0), ContrastiveLoss(0.1), **options)
    return model


def fit(model, x, **kwargs):
    return model.fit(
        x, batch_size=8, verbose=0, shuffle=False, **kwargs
    ).history


class DoubleLoss(AlignDualEncoder):
    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        return 2 * loss + ops.mean(y_pred["image_embeddings"][:, 0])


class Turned(AlignDualEncoder):
    def call(self, inputs, training=None, mask=None):
        y = super().call(inputs, training, mask)
        return {**y, "image_embeddings": -y["image_embeddings"]}


class WithoutImages(AlignDualEncoder):
    def image_features(self, images, training=None):
        return ops.ones_like(super().image_features(images, training))


class MoreLogs(AlignDualEncoder):
    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        logs = super().compute_metrics(x, y, y_pred, sample_weight)
        return {**logs, "first": ops.mean(y_pred["image_embeddings"][:, 0])}


class OwnStep(AlignDualEncoder):
    def train_step(self, *args):
        found = super().train_step(*args)
        if keras.config.backend() == "jax":
            return {**found[0], "more": 7.0}, found[1]
        return {**found, "more": ops.convert_to_tensor(7.0)}


class AddsLoss(AlignDualEncoder):
    """Of the squares of one embedding, whose mean microbatches keep."""

    def call(self, inputs, training=None, mask=None):
        y = super().call(inputs, training, mask)
        self.add_loss(3 * ops.mean(y["image_embeddings"][:, 0]))
        return y


class WithoutTraining(AlignDualEncoder):
    """Overrides as Keras allows it since before 3.3."""

    def compute_loss(self, x, y, y_pred, sample_weight):
        return 2 * super().compute_loss(x, y, y_pred, sample_weight)


@pytest.mark.parametrize("size", [None, 4])
def test_overridden_methods_count_in_fit(size, pairs):
    x = pairs(8, size=4)
    plain = build(microbatch_size=size)
    loss = fit(plain, x)["loss"][0]
    y = {k: ops.convert_to_numpy(v) for k, v in plain(x).items()}
    first = y["image_embeddings"][:, 0].mean()
    doubled = build(DoubleLoss, microbatch_size=size)
    history = fit(doubled, x)
    assert history["loss"][0] == pytest.approx(2 * loss + first, rel=1e-5)
    found = doubled.evaluate(x, batch_size=8, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(2 * loss + first, rel=1e-5)
    recall = "image_to_text_recall_at_1"
    assert history[recall] == fit(plain, x)[recall]

    for cls, expected in (
        (AddsLoss, loss + 3 * first),
        (WithoutTraining, 2 * loss),
    ):
        history = fit(build(cls, microbatch_size=size), x, validation_data=x)
        for name in ("loss", "val_loss"):
            assert history[name][0] == pytest.approx(expected, rel=1e-5)

    turned = ContrastiveLoss(0.1)(
        -y["image_embeddings"], y["text_embeddings"], temperature=0.1
    )
    turned_model = build(Turned, microbatch_size=size, frozen=[0])
    found = fit(turned_model, x)["loss"][0]
    assert abs(float(turned) - loss) > 1e-2
    assert found == pytest.approx(float(turned), rel=1e-5)

    blind = build(WithoutImages, microbatch_size=size, frozen=[0])
    alike = ContrastiveLoss(0.1)(
        np.full((8, 6), 6**-0.5), y["text_embeddings"], temperature=0.1
    )
    assert fit(blind, x)["loss"][0] == pytest.approx(float(alike), rel=1e-5)

    more = build(MoreLogs, microbatch_size=size)
    assert fit(more, x)["first"][0] == pytest.approx(first, rel=1e-4)
    found = more.evaluate(x, batch_size=8, verbose=0, return_dict=True)
    assert found["first"] == pytest.approx(first, rel=1e-4)
    history = fit(build(OwnStep, microbatch_size=size), x)
    assert history["more"] == [7.0]
    assert history["loss"][0] == pytest.approx(loss, rel=1e-5)


class StepOfTorch(AlignDualEncoder):
    """A step from scratch, as Keras' guide for torch has it."""

    def train_step(self, data):
        self.zero_grad()
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        y = self(x, training=True)
        loss = self.compute_loss(x, None, y)
        loss.backward()
        gradients = [v.value.grad for v in self.trainable_weights]
        self.optimizer.apply(gradients, self.trainable_weights)
        return {"loss": loss.detach()}


@pytest.mark.skipif(
    keras.config.backend() != "torch", reason="is about torch's gradients"
)
def test_a_step_from_scratch_forgets_the_gradients_of_the_last(pairs):
    """`zero_grad` passes over what torch does not see."""
    found = []
    for cls in (AlignDualEncoder, StepOfTorch):
        model = build(cls)
        model.optimizer.learning_rate = 0.1
        losses = fit(model, pairs(8, size=4), epochs=3)["loss"]
        found.append([*losses, *map(np.sum, model.get_weights())])
    assert found[0][2] != pytest.approx(found[0][0], rel=1e-3)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)


def test_logs_that_would_be_lost_are_refused(pairs):
    x = pairs(8, size=4)
    for options in ({"steps_per_execution": 2}, {"skip_nonfinite": True}):
        model = build(MoreLogs, **options)
        with pytest.raises(ValueError, match="MoreLogs.train_step.*be lost"):
            fit(model, x)


def test_steps_per_execution_is_a_number(pairs):
    for steps in ("auto", 0, 1.5):
        with pytest.raises(ValueError, match=f"int of at least 1.*{steps}"):
            build(steps_per_execution=steps)


@pytest.mark.parametrize("size", [None, 4])
def test_a_model_of_float64_learns_in_float64(size, pairs):
    if keras.config.backend() == "jax":
        pytest.skip("JAX has no float64 unless JAX_ENABLE_X64 is set")
    x = pairs(8, size=4)
    expected = fit(build(), x)["loss"]
    model = AlignDualEncoder(
        *towers(),
        text_pooling="average",
        initial_temperature=0.1,
        dtype="float64",
    )
    head = model.contrastive_head
    head = type(head).from_config(head.get_config())
    assert head.compute_dtype == "float64"
    model.set_weights(build().get_weights())
    model.compile(
        keras.optimizers.SGD(0.0), ContrastiveLoss(0.1), microbatch_size=size
    )
    assert fit(model, x)["loss"] == pytest.approx(expected, rel=1e-5)
    for value in model.predict(x, verbose=0).values():
        assert value.dtype == "float64"


def gradients(model, x, name):
    """Gradients of a custom loop through `model(x, training=True)`."""
    encoder = getattr(model, name)
    tower = encoder.layers[-1] if name == "image_encoder" else encoder.layers[1]
    weight = tower.weights[0]
    before = backend.values([weight])

    def objective(values):
        with keras.StatelessScope([(weight, values[0])]):
            y = model(x, training=True)
            loss = ops.sum(y["image_embeddings"] * y["text_embeddings"])
        return loss, ()

    return backend.value_and_gradients(objective, before)[2][0]


@pytest.mark.parametrize("place", [0, 1])
def test_trainable_is_read_when_the_model_is_called(place, pairs):
    x = {k: ops.convert_to_tensor(v) for k, v in pairs(8, size=4).items()}
    name = ("image_encoder", "text_encoder")[place]
    key = ("image_embeddings", "text_embeddings")[place]
    model = build(dropout=0.5, frozen=[place])

    def spread():
        """How much two calls differ, by dropout."""
        calls = [ops.convert_to_numpy(model(x, training=True)[key])] * 1
        calls.append(ops.convert_to_numpy(model(x, training=True)[key]))
        return np.abs(calls[0] - calls[1]).max()

    assert spread() == 0.0
    assert np.abs(ops.convert_to_numpy(gradients(model, x, name))).max() == 0
    getattr(model, name).trainable = True
    assert spread() > 1e-3
    free = np.abs(ops.convert_to_numpy(gradients(model, x, name))).max()
    assert free > 1e-3
    getattr(model, name).trainable = False
    assert spread() == 0.0


def ranks(scores):
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.array([list(row).index(i) for i, row in enumerate(order)])


@pytest.mark.parametrize("size", [None, 4])
def test_metrics_of_both_embeddings(size, pairs):
    x = pairs(8, size=4)
    # Two texts alike: of equal scores, the first comes first.
    for name in ("token_ids", "padding_mask"):
        x[name][5] = x[name][2]
    metrics = [PairRecall(5), PairRecall(4, "text_to_image", name="t2i")]
    model = build(metrics=metrics, microbatch_size=size)
    y = {k: ops.convert_to_numpy(v) for k, v in model(x).items()}
    scores = y["image_embeddings"] @ y["text_embeddings"].T
    weights = np.array([1, 2, 0, 1, 3, 1, 1, 2], "float32")
    expected = {
        "image_to_text_recall_at_5": ranks(scores) < 5,
        "t2i": ranks(scores.T) < 4,
    }
    history = fit(model, x, sample_weight=weights, validation_data=x)
    for name, hits in expected.items():
        assert 0 < hits.mean() < 1
        mean = (hits * weights).sum() / weights.sum()
        assert history[name][0] == pytest.approx(mean, abs=1e-6)
        assert history[f"val_{name}"][0] == pytest.approx(hits.mean(), abs=1e-6)
    model.compile("sgd")
    assert "t2i" not in model.evaluate(x, verbose=0, return_dict=True)
    with pytest.raises(ValueError, match=" metrics=\\['accuracy'\\]"):
        model.compile("sgd", metrics=["accuracy"])


def test_recall_leaves_padding_out():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2, 6, 4)).astype("float32")
    mask = np.array([1, 1, 1, 1, 0, 0], bool)
    metric = PairRecall(2)
    metric.update_state(*rows, mask=mask)
    scores = rows[0, :4] @ rows[1, :4].T
    expected = (ranks(scores) < 2).mean()
    assert float(metric.result()) == pytest.approx(expected)
    again = PairRecall.from_config(metric.get_config())
    assert (again.k, again.direction, again.name) == (
        2,
        metric.direction,
        metric.name,
    )
    with pytest.raises(ValueError, match="k=0"):
        PairRecall(0)
    with pytest.raises(ValueError, match="must be an int.*k='5'"):
        PairRecall("5")


class FromScores(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return ops.mean(y_pred, axis=-1)


@pytest.mark.parametrize(
    "loss",
    [
        "mse",
        ["mse"],
        (ContrastiveLoss(),),
        ContrastiveLoss,
        keras.losses.MeanSquaredError(),
        keras.losses.mean_squared_error,
        FromScores(),
        lambda images, texts: 0.0,
    ],
)
def test_a_loss_that_compares_no_pairs_is_refused(loss):
    with pytest.raises(ValueError, match="`loss` must be .*Received: loss="):
        build().compile("sgd", loss)


def test_what_compile_cannot_use_is_refused():
    model = build()
    for metrics in (PairRecall(2), {"a": PairRecall(2)}, ["accuracy"]):
        with pytest.raises(ValueError, match="`metrics` must be a list"):
            model.compile("sgd", metrics=metrics)
    for metrics in ([PairRecall(2), PairRecall(2)], [PairRecall(1)]):
        with pytest.raises(ValueError, match="unique names"):
            model.compile("sgd", metrics=metrics)
    for option, name in (
        ("skip_nonfinite", "nonfinite_steps"),
        ("gradient_norms", "image_gradient_norm"),
        ("gradient_norms", "text_gradient_norm"),
    ):
        metrics = [keras.metrics.Mean(name=name)]
        model.compile("sgd", metrics=metrics)
        with pytest.raises(ValueError, match="unique names"):
            model.compile("sgd", metrics=metrics, **{option: True})
    for size in (0, 1.5, True, "4"):
        with pytest.raises(ValueError, match="microbatch_size="):
            model.compile("sgd", microbatch_size=size)
    # A function does as well as an object.
    model.compile("sgd", lambda a, b, weights, temperature: ops.mean(a - b))


def test_recall_that_is_not_measured_is_not_reported(pairs):
    model = build()
    assert "text_to_image_recall_at_1" in fit(model, pairs(4, size=4))
    model.compile("sgd", lambda a, b, weights, temperature: ops.mean(a - b))
    assert set(fit(model, pairs(4, size=4))) == {"loss"}
