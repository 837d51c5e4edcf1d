"""What `fit` and `evaluate` take: weights, marks, batches of any size."""

import keras
import numpy as np
import pytest
from keras import ops

from align_keras import AlignDualEncoder
from align_keras import ContrastiveLoss

WEIGHTS = np.array([1, 0, 1, 1, 0, 2, 1, 1], "float32")


@pytest.fixture
def still_model():
    """A model whose steps change nothing, and that knows no batches."""

    def build(microbatch_size=None, **kwargs):
        keras.utils.set_random_seed(0)
        images = keras.Input((32, 32, 3), name="images")
        features = keras.layers.Conv2D(8, 3, strides=4)(images)
        tokens = keras.Input((None,), dtype="int32", name="token_ids")
        model = AlignDualEncoder(
            keras.Model(images, features),
            keras.Model(
                {"token_ids": tokens}, keras.layers.Embedding(50, 6)(tokens)
            ),
            text_pooling="average",
            initial_temperature=0.1,
        )
        model.compile(
            keras.optimizers.SGD(0.0),
            ContrastiveLoss(0.1),
            microbatch_size=microbatch_size,
            **kwargs,
        )
        return model

    return build


def weighted_loss(model, x, weights=WEIGHTS):
    y = model(x)
    losses, *hits = ContrastiveLoss(0.1).score(
        y["image_embeddings"], y["text_embeddings"], model.temperature
    )
    losses, *hits = (ops.convert_to_numpy(v) for v in (losses, *hits))
    assert abs((losses * weights).mean() - losses.mean()) > 1e-2
    return (losses * weights).mean()


def dataset(x, weights, drop_remainder=False, batch_size=8):
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((x, weights))
    data = data.batch(batch_size, drop_remainder=drop_remainder)
    return data.map(lambda x, w: (x, None, w))


@pytest.mark.parametrize("microbatch_size", [None, 4])
def test_the_weights_of_pairs_count_wherever_they_are_given(
    microbatch_size, still_model, pairs
):
    model, x = still_model(microbatch_size), pairs(8)
    expected = pytest.approx(weighted_loss(model, x), rel=1e-5)
    options = {"batch_size": 8, "verbose": 0}

    def fitted(*args, key="loss", **kwargs):
        return model.fit(*args, verbose=0, **kwargs).history[key][0]

    assert fitted(x, sample_weight=WEIGHTS, batch_size=8) == expected
    assert fitted(x, sample_weight=WEIGHTS[:, None], batch_size=8) == expected
    assert model.evaluate(x, sample_weight=WEIGHTS, **options)[0] == expected
    assert fitted(dataset(x, WEIGHTS)) == expected
    assert fitted(dataset(x, WEIGHTS, drop_remainder=True)) == expected
    assert model.evaluate(dataset(x, WEIGHTS), verbose=0)[0] == expected
    assert model.train_on_batch(x, sample_weight=WEIGHTS)[0] == expected
    assert model.test_on_batch(x, sample_weight=WEIGHTS)[0] == expected
    assert fitted(({**x}, None, WEIGHTS) for _ in range(1)) == expected
    for validation in ((x, None, WEIGHTS), dataset(x, WEIGHTS)):
        found = fitted(
            x, validation_data=validation, batch_size=8, key="val_loss"
        )
        assert found == expected
    zeros = np.zeros(8)
    assert fitted(x, sample_weight=zeros, batch_size=8) == 0.0
    assert model.evaluate(x, sample_weight=zeros, **options)[0] == 0.0


@pytest.mark.parametrize("microbatch_size", [None, 2])
def test_a_validation_split_takes_its_weights_along(
    microbatch_size, still_model, pairs
):
    model, x = still_model(microbatch_size), pairs(8)
    history = model.fit(
        x,
        sample_weight=WEIGHTS,
        validation_split=0.5,
        batch_size=4,
        verbose=0,
        shuffle=False,
    ).history
    for key, rows in (("loss", slice(0, 4)), ("val_loss", slice(4, 8))):
        part = {name: value[rows] for name, value in x.items()}
        expected = weighted_loss(model, part, WEIGHTS[rows])
        assert history[key][0] == pytest.approx(expected, rel=1e-5)


def test_weights_of_a_padded_batch_count(still_model, pairs):
    """Six rows after four: the last batch is filled up for microbatches."""
    model, x = still_model(microbatch_size=2), pairs(6)
    weights = np.array([1, 3, 0, 1, 2, 0], "float32")
    found = model.fit(
        x, sample_weight=weights, batch_size=4, verbose=0, shuffle=False
    ).history["loss"][0]
    losses = []
    for rows in (slice(0, 4), slice(4, 6)):
        part = {name: value[rows] for name, value in x.items()}
        count = len(part["images"])
        losses.append(weighted_loss(model, part, weights[rows]) * count)
    assert found == pytest.approx(sum(losses) / 6, rel=1e-5)


def test_what_belongs_to_labels_is_refused(still_model, pairs):
    model, x = still_model(), pairs(4)
    with pytest.raises(ValueError, match="class_weight={0: 2.0}"):
        model.fit(x, class_weight={0: 2.0}, verbose=0)
    with pytest.raises(ValueError, match="class_weight={0: 2.0}"):
        model.train_on_batch(x, class_weight={0: 2.0})
    with pytest.raises(ValueError, match="shape .*, 2."):
        model.fit(pairs(8), sample_weight=np.ones((8, 2)), verbose=0)


@pytest.mark.parametrize("dtype", ["bool", "int32"])
def test_no_labels_pass_for_a_mask_of_padding(dtype, still_model, pairs):
    model, x = still_model(), pairs(4)
    labels = np.array([1, 1, 0, 0], dtype)
    for call in (model.fit, model.evaluate):
        with pytest.raises(ValueError, match="There are no labels"):
            call(x, labels, verbose=0)
    for call in (model.train_on_batch, model.test_on_batch):
        for y in (labels, ["a red bus"] * 4):
            with pytest.raises(ValueError, match="There are no labels"):
                call(x, y)


ROWS = "Received numbers of rows"
MISTAKES = {
    "no inputs": (lambda x: {"x": None}, "NoneType"),
    "no rows": (lambda x: {"x": {k: v[:0] for k, v in x.items()}}, ROWS),
    "rows": (lambda x: {"x": {**x, "images": x["images"][:4]}}, ROWS),
    "weights": (lambda x: {"x": x, "sample_weight": WEIGHTS[:4]}, ROWS),
    "named weights": (lambda x: {"x": x, "sample_weight": {"a": 1}}, "'a'"),
    "a batch": (lambda x: {"x": (x, None, WEIGHTS)}, "dict, NoneType, nd"),
    "array": (lambda x: {"x": x["images"]}, "Received: ndarray"),
    "another input": (lambda x: {"x": {**x, "weight": WEIGHTS}}, "'weight'"),
    "a missing input": (
        lambda x: {"x": {k: x[k] for k in ("images", "token_ids")}},
        "padding_mask",
    ),
    "weights of a data set": (
        lambda x: {"x": Batches(x, 1), "sample_weight": WEIGHTS},
        "must yield its weights itself",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_inputs_is_named(mistake, still_model, pairs):
    arguments, told = MISTAKES[mistake]
    for microbatch_size in (None, 4):
        model, given = still_model(microbatch_size), arguments(pairs(8))
        for method in (model.fit, model.evaluate, model.predict):
            if method == model.predict and "sample_weight" in given:
                continue
            with pytest.raises(ValueError, match=told):
                method(**given, verbose=0)


UNEVEN = {
    "one weight": lambda x: (x, None, np.ones(1, "float32")),
    "few weights": lambda x: (x, None, WEIGHTS[:4]),
    "named weights": lambda x: (x, None, {"a": WEIGHTS}),
    "images": lambda x: ({**x, "images": x["images"][:4]},),
    "one text": lambda x: (
        {**x, **{k: x[k][:1] for k in ("token_ids", "padding_mask")}},
    ),
}


@pytest.mark.parametrize("mistake", UNEVEN)
def test_no_row_of_a_batch_spreads_over_others(mistake, still_model, pairs):
    """Broadcasting would take one weight, or one text, for all pairs."""
    model, batch = still_model(), UNEVEN[mistake](pairs(8))
    told = "row for each pair|number for each pair"
    for call in (model.train_on_batch, model.test_on_batch):
        with pytest.raises(ValueError, match=told):
            call(*batch)
    # TensorFlow learns of sizes when a step runs, and may fail of others first.
    if keras.config.backend() == "tensorflow" and mistake != "one weight":
        told = ""
    for call in (model.fit, model.evaluate):
        with pytest.raises(Exception, match=told):
            call((rows for rows in [batch]), verbose=0)


@pytest.mark.parametrize("weights", [["a"] * 8, 2.0, np.array([None] * 8)])
def test_weights_are_numbers(weights, still_model, pairs):
    model, x = still_model(), pairs(8)
    for call in (
        model.fit,
        model.evaluate,
        model.train_on_batch,
        model.test_on_batch,
    ):
        with pytest.raises(ValueError, match="one number for each pair"):
            call(x, sample_weight=weights)


def test_lists_do_as_well_as_tuples(still_model, pairs):
    model, x = still_model(), pairs(8)
    expected = pytest.approx(weighted_loss(model, x), rel=1e-5)
    options = {"batch_size": 8, "verbose": 0}
    history = model.fit(
        x,
        sample_weight=WEIGHTS.tolist(),
        validation_data=[x, None, WEIGHTS],
        **options,
    ).history
    assert history["loss"][0] == history["val_loss"][0] == expected
    loss = model.evaluate(x, sample_weight=tuple(WEIGHTS), **options)[0]
    assert loss == expected


def test_a_model_that_is_not_compiled_says_so(still_model, pairs):
    model, x = still_model(), pairs(8)
    model = AlignDualEncoder.from_config(model.get_config())
    for call in (model.fit, model.evaluate, model.train_on_batch):
        with pytest.raises(ValueError, match="must call `compile"):
            call(x)


def foreign_statistics(tiny_model):
    model = tiny_model()
    model.compile(keras.optimizers.SGD(0.0), microbatch_size=4)
    return model


def test_a_batch_that_is_full_is_not_refused(tiny_model, pairs):
    """Foreign normalisations mind padding; here is none."""
    model, x = foreign_statistics(tiny_model), pairs(8)
    losses = [
        model.fit(data, verbose=0, shuffle=False).history["loss"][0]
        for data in (x, dataset(x, np.ones(8)), (x for _ in range(1)))
    ]
    assert np.isfinite(losses).all()
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_padding_of_unknown_size_is_refused_where_it_appears(tiny_model, pairs):
    model, x = foreign_statistics(tiny_model), pairs(8)
    parts = [x, {name: value[:4] for name, value in x.items()}]
    with pytest.raises(Exception, match="count the padding in its statistics"):
        model.fit((part for part in parts), verbose=0)


@pytest.mark.parametrize(
    "devices, compiled",
    [
        (1, "compiled"),
        pytest.param(
            *(2, "auto"),
            marks=[pytest.mark.multiprocess, pytest.mark.thorough],
        ),
    ],
)
def test_only_what_is_smaller_is_refused(devices, compiled, run_script):
    """Compiled, and on two devices, where a step cannot fail by itself."""
    if keras.config.backend() == "torch":
        pytest.skip("takes long to compile, and trains on one device")
    found = run_script("tests/models/fit_unknown_sizes.py", devices, compiled)
    assert found.stdout.count("count the padding in its statistics") >= 2


class Batches(keras.utils.PyDataset):
    """Some batches of the same rows."""

    def __init__(self, x, count, fails_at=None):
        super().__init__()
        self.x, self.count, self.fails_at = x, count, fails_at

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index == self.fails_at:
            raise ValueError("a file is gone")
        return self.x, None, WEIGHTS


@pytest.mark.parametrize("count", [1, 2])
def test_a_data_set_in_python_of_any_length(still_model, pairs, count):
    x = pairs(8)
    for microbatch_size in (None, 4):
        model = still_model(microbatch_size)
        loss = model.fit(Batches(x, count), verbose=0).history["loss"][0]
        np.testing.assert_allclose(loss, weighted_loss(model, x), rtol=1e-5)


def test_nothing_to_train_is_no_failure(still_model, pairs):
    model, x = still_model(), pairs(8)
    model.trainable = False
    model.compile("sgd", ContrastiveLoss(0.1))
    given = {"sample_weight": WEIGHTS, "batch_size": 8, "verbose": 0}
    loss = model.fit(x, **given).history["loss"][0]
    np.testing.assert_allclose(loss, weighted_loss(model, x), rtol=1e-5)


class Fails(keras.callbacks.Callback):
    def __init__(self, event):
        super().__init__()
        setattr(self, event, self.fail)

    def fail(self, *args, **kwargs):
        raise KeyboardInterrupt


FAILURES = {
    "labels": lambda x: ((x, np.arange(8)), {}),
    "shape": lambda x: (({**x, "images": x["images"][:, :16]},), {}),
    "weights": lambda x: ((x, None, np.ones((8, 3))), {}),
    "the first batch": lambda x: ((Batches(x, 2, 0),), {}),
    "the second batch": lambda x: ((Batches(x, 2, 1),), {}),
    "train": lambda x: ((x,), {"callbacks": [Fails("on_train_batch_end")]}),
    "test": lambda x: ((x,), {"callbacks": [Fails("on_test_batch_end")]}),
    "predict": lambda x: ((x,), {"callbacks": [Fails("on_predict_batch_end")]}),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_an_error_costs_no_weights(still_model, pairs, failure):
    model, x = still_model(), pairs(8)
    before = model.predict(x, verbose=0)
    failed = 0
    for method in ("fit", "evaluate", "predict"):
        args, options = failure(x)
        if method == "predict":
            args = args[:1]
        try:
            getattr(model, method)(*args, verbose=0, **options)
        except BaseException:
            failed += 1
        after = model(x)
        for name, value in before.items():
            found = keras.ops.convert_to_numpy(after[name])
            np.testing.assert_allclose(found, value, atol=1e-6)
        model.optimizer.variables[0].numpy()
    assert failed


@pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="TensorFlow's graphs"
)
@pytest.mark.parametrize("chosen", [False, True])
def test_only_training_steps_are_not_rewritten(
    chosen, tiny_model, pairs, monkeypatch
):
    """On a CPU, TensorFlow's rewriting delays the first step and gains little.

    What else runs in the process keeps the option that the user chose.
    """
    import tensorflow as tf

    name, seen, failing = "disable_meta_optimizer", [], []

    def option():
        return tf.config.optimizer.get_experimental_options().get(name, False)

    def loss(images, texts, sample_weight, temperature):
        seen.append(option())
        assert not failing, "as asked"
        return ops.sum(images - texts)

    model, before = tiny_model(), option()
    tf.config.optimizer.set_experimental_options({name: chosen})
    try:
        model.compile("sgd", loss)
        model.fit(pairs(4), batch_size=2, verbose=0)
        assert seen and all(seen) and option() == chosen
        seen.clear()
        model.evaluate(pairs(4), batch_size=2, verbose=0)
        assert set(seen) == {chosen}
        failing.append(True)
        model.compile("sgd", loss)
        with pytest.raises(AssertionError, match="as asked"):
            model.fit(pairs(4), batch_size=2, verbose=0)
        assert option() == chosen
        failing.clear()
        seen.clear()
        # Options cannot be unset, so this one is not set for good.
        options = tf.config.optimizer.get_experimental_options
        monkeypatch.setattr(
            tf.config.optimizer,
            "get_experimental_options",
            lambda: {**options(), "remapping": False},
        )
        model.compile("sgd", loss)
        model.fit(pairs(4), batch_size=2, verbose=0)
        assert set(seen) == {chosen}
    finally:
        tf.config.optimizer.set_experimental_options({name: before})
