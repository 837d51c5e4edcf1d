"""Learning rates of single variables, against NumPy."""

import keras
import numpy as np
import pytest
from keras import ops

from align_keras import Lamb
from align_keras import WarmupLinearDecay
from align_keras import optimizers

PATHS = ("dense/kernel", "dense/bias", "top/kernel", "head/log_temperature")
FACTORS = [0.25, 0.5, 1.0, 0.0]
DECAY, STEPS = 0.2, 4
MAKE = {
    "lamb": lambda **kw: Lamb(weight_decay=DECAY, **kw),
    "adamw": lambda **kw: optimizers.AdamW(weight_decay=DECAY, **kw),
    "adam": optimizers.Adam,
    "sgd": lambda **kw: optimizers.SGD(momentum=0.9, **kw),
}


def values(seed):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(3, 2)).astype("float32") for _ in PATHS]


def rate(step):
    return 0.05 * (step / 2 if step < 2 else (9 - step) / 7)


def reference(name, factors):
    """Each variable by itself, at its own rate, in float64."""
    out = []
    for i, factor in enumerate(factors):
        w = values(0)[i].astype("float64")
        m, v = np.zeros_like(w), np.zeros_like(w)
        excluded = PATHS[i].endswith(("bias", "temperature"))
        for t in range(1, STEPS + 1):
            g, lr = values(t)[i], rate(t - 1) * factor
            if name == "sgd":
                m = 0.9 * m - lr * g
                w = w + m
                continue
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            epsilon = 1e-6 if name == "lamb" else 1e-7
            root = np.sqrt(v / (1 - 0.999**t))
            change = m / (1 - 0.9**t) / (root + epsilon)
            if name == "adamw" and not excluded:
                w = w - lr * DECAY * w
            if name == "lamb" and not excluded:
                change = change + DECAY * w
                change *= np.linalg.norm(w) / np.linalg.norm(change)
            w = w - lr * change
        out.append(w)
    return out


def run(name, factors):
    schedule = WarmupLinearDecay(0.05, 2, 9)
    optimizer = MAKE[name](learning_rate=schedule, rate_multipliers=factors)
    variables = []
    for path, value in zip(PATHS, values(0), strict=True):
        variable = keras.Variable(value, name="x")
        variable._path = path
        variables.append(variable)
    optimizer.build(variables)
    for step in range(1, STEPS + 1):
        gradients = [ops.convert_to_tensor(g) for g in values(step)]
        optimizer.apply(gradients, variables)
    return [ops.convert_to_numpy(v) for v in variables]


@pytest.mark.parametrize("name", MAKE)
def test_equals_numpy_with_a_rate_for_each_variable(name):
    got = run(name, FACTORS)
    # Keras adds epsilon to an uncorrected root, which 1e-7 hardly shows.
    for ours, theirs in zip(got, reference(name, FACTORS), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=3e-5, atol=1e-6)
    # A rate of zero moves nothing, not even by decay.
    np.testing.assert_array_equal(got[3], values(0)[3])
    assert all((a != b).all() for a, b in zip(got[:3], values(0), strict=False))


@pytest.mark.parametrize("name", MAKE)
def test_ones_change_no_bit(name):
    for ours, theirs in zip(run(name, [1] * 4), run(name, None), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_config_round_trip():
    for make in MAKE.values():
        optimizer = make(learning_rate=0.5, rate_multipliers=FACTORS)
        config = optimizer.get_config()
        assert config["rate_multipliers"] == FACTORS
        again = type(optimizer).from_config(config)
        assert again.get_config() == config


def test_each_variable_has_one():
    with pytest.raises(ValueError, match="3 numbers, 4 variables"):
        run("lamb", [1, 1, 1])
    with pytest.raises(ValueError, match="Received: -1"):
        optimizers.SGD(0.1, rate_multipliers=[-1])
    with pytest.raises(ValueError, match="Received: nan"):
        Lamb(rate_multipliers=[float("nan")])


def test_the_factors_of_lora_are_neither_decayed_nor_adapted():
    optimizer = Lamb(weight_decay=0.1)
    variables = []
    for path in ("query/lora_kernel_a", "table/lora_embeddings_b", "d/kernel"):
        variable = keras.Variable(np.ones((2, 2), "float32"), name="x")
        variable._path = path
        variables.append(variable)
    optimizer.build(variables)
    excluded = ["query/lora_kernel_a", "table/lora_embeddings_b"]
    assert optimizer.exclusions() == {
        "weight_decay": excluded,
        "layer_adaptation": excluded,
    }
