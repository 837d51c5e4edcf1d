import keras
import numpy as np
import pytest
from keras import ops

from align_keras import Lamb
from align_keras import optimizers


def make_variables():
    paths = ("dense/kernel", "dense/bias", "bn/gamma", "head/log_temperature")
    variables = []
    for path in paths:
        variable = keras.Variable(np.full((2,), 3.0, "float32"), name="x")
        variable._path = path
        variables.append(variable)
    return variables


def step(optimizer, gradients):
    variables = make_variables()
    optimizer.build(variables)
    optimizer.apply([ops.convert_to_tensor(g) for g in gradients], variables)
    return [ops.convert_to_numpy(v) for v in variables]


def test_adamw_does_not_decay_what_lamb_does_not():
    gradients = np.zeros((4, 2), "float32")
    values = step(optimizers.AdamW(0.1, weight_decay=0.5), gradients)
    expected = [3.0 * (1 - 0.1 * 0.5), 3.0, 3.0, 3.0]
    np.testing.assert_allclose(np.array(values)[:, 0], expected, rtol=1e-6)
    optimizer = optimizers.AdamW(
        0.1, weight_decay=0.5, exclude_from_weight_decay=[]
    )
    values = step(optimizer, gradients)
    np.testing.assert_allclose(np.array(values)[:, 0], 2.85, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "amsgrad"),
    [("Adam", False), ("AdamW", False), ("AdamW", True), ("SGD", False)],
)
def test_equals_the_optimizer_of_keras_where_nothing_is_excluded(name, amsgrad):
    settings = {"learning_rate": 0.1, "global_clipnorm": 0.5}
    if name == "AdamW":
        settings |= {"weight_decay": 0.1, "amsgrad": amsgrad}
    extra = {"exclude_from_weight_decay": []} if name == "AdamW" else {}
    results = []
    for optimizer in (
        getattr(optimizers, name)(**settings, **extra),
        getattr(keras.optimizers, name)(**settings),
    ):
        rng = np.random.default_rng(0)
        shapes = ((), (2,), (3, 2), (2, 1, 3))
        variables = [keras.Variable(rng.normal(size=s)) for s in shapes]
        for _ in range(3):
            gradients = [
                ops.convert_to_tensor(rng.normal(size=s), "float32")
                for s in shapes
            ]
            optimizer.apply(gradients, variables)
        results.append(
            [ops.convert_to_numpy(v) for v in optimizer.variables + variables]
        )
    for got, expected in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6)


CHANGED = {"beta_1": 0.5, "beta_2": 0.75, "epsilon": 0.25}


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_numbers_changed_after_a_step_count_as_they_do_in_keras(name):
    results = []
    for module in (optimizers, keras.optimizers):
        optimizer = getattr(module, name)(0.1, weight_decay=0.1)
        variable = keras.Variable(np.arange(1.0, 7).reshape(3, 2), name="w")
        for changed in ({}, CHANGED, {"weight_decay": 0.5}):
            for field, value in changed.items():
                setattr(optimizer, field, value)
            optimizer.apply([ops.ones((3, 2)) * 0.5], [variable])
            results.append(ops.convert_to_numpy(variable))
    assert np.abs(results[1] - results[0]).min() > 0.01
    np.testing.assert_allclose(results[:3], results[3:], rtol=1e-6)


@pytest.mark.skipif(
    keras.config.backend() != "tensorflow",
    reason="elsewhere Keras compares names, without their paths",
)
@pytest.mark.parametrize("module", [optimizers, keras.optimizers])
def test_variables_are_excluded_from_decay_by_a_part_of_their_path(module):
    model = keras.Sequential([keras.layers.Dense(2, name=n) for n in "ab"])
    model.build((None, 2))
    optimizer = module.Adam(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["a/"])
    before = [ops.convert_to_numpy(v) for v in model.weights]
    optimizer.apply([ops.zeros(v.shape) for v in model.weights], model.weights)
    factors = (1, 1, 0.95, 0.95)
    for variable, old, factor in zip(
        model.weights, before, factors, strict=True
    ):
        new = ops.convert_to_numpy(variable)
        np.testing.assert_allclose(new, factor * old, rtol=1e-6)


def test_clipping_scales_the_gradient_of_all_weights_together():
    gradients = np.array([[3, 0], [0, 4], [0, 0], [12, 0]], "float32")
    for limit, scale in ((6.5, 0.5), (13.5, 1.0)):
        values = step(optimizers.SGD(1.0, global_clipnorm=limit), gradients)
        np.testing.assert_allclose(values, 3 - scale * gradients, rtol=1e-6)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD"])
def test_config_round_trip(name):
    optimizer = getattr(optimizers, name)(
        0.25, global_clipnorm=2.0, use_ema=True, ema_momentum=0.75
    )
    if name == "AdamW":
        optimizer.decay_exclusions = ["gamma"]
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(again) is type(optimizer)
    assert again.get_config() == optimizer.get_config()


def test_exclusions_are_described_in_a_line_each():
    variables = make_variables()
    optimizer = Lamb(
        0.1, weight_decay=1e-5, exclude_from_layer_adaptation=["^dense"]
    )
    assert optimizers.describe_exclusions(optimizer, variables) == (
        "Weight decay 1e-05 on 1 of 4 variables, not on 1 bias, 1 gamma, "
        "1 log_temperature.\n"
        "Layer adaptation on 2 of 4 variables, not on 1 bias, 1 kernel."
    )
    wrapped = keras.optimizers.LossScaleOptimizer(
        optimizers.AdamW(
            0.1, weight_decay=0.5, exclude_from_weight_decay=["gamma"]
        )
    )
    assert optimizers.describe_exclusions(wrapped, variables) == (
        "Weight decay 0.5 on 3 of 4 variables, not on 1 gamma."
    )
    sgd = optimizers.SGD(0.1)
    description = optimizers.describe_exclusions(sgd, variables)
    assert description == "There is no weight decay."
    everything = Lamb(0.1, exclude_from_layer_adaptation=[])
    assert optimizers.describe_exclusions(everything, variables) == (
        "There is no weight decay.\nLayer adaptation on 4 of 4 variables."
    )


@pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="TensorFlow's graphs"
)
@pytest.mark.parametrize("name", ["Lamb", "Adam", "AdamW"])
def test_a_variable_adds_few_operations_to_a_graph(name):
    """Hundreds of variables would delay the first step by seconds."""
    import tensorflow as tf

    def count(number):
        variables = [keras.Variable(np.ones((n + 1, 2))) for n in range(number)]
        optimizer = getattr(optimizers, name)(1e-3)
        optimizer.build(variables)
        step = tf.function(lambda rows: optimizer.apply(rows, variables))
        gradients = [tf.ones_like(variable) for variable in variables]
        graph = step.get_concrete_function(gradients).graph
        return len(graph.get_operations())

    assert (count(25) - count(5)) / 20 < 24
