import keras
import numpy as np
import pytest
from keras import ops

from align_keras import Lamb
from align_keras import WarmupLinearDecay

PATHS = ("dense/kernel", "dense/bias", "bn/gamma", "head/log_temperature")


def variables():
    rng = np.random.default_rng(0)
    shapes = ((4, 3), (3,), (3,), ())
    out = []
    for path, shape in zip(PATHS, shapes, strict=True):
        variable = keras.Variable(
            rng.normal(size=shape).astype("float32"), name=path.split("/")[1]
        )
        variable._path = path
        out.append(variable)
    return out


def gradients(step, variables):
    rng = np.random.default_rng(100 + step)
    return [rng.normal(size=v.shape).astype("float32") for v in variables]


def reference(steps, learning_rate, decay, excluded, start):
    """LAMB in NumPy, from algorithm 2 of its paper."""
    values = [v.astype("float64") for v in start]
    m = [np.zeros_like(v) for v in values]
    v2 = [np.zeros_like(v) for v in values]
    for t in range(1, steps + 1):
        rate = learning_rate(t - 1)
        for i, g in enumerate(gradients(t - 1, values)):
            m[i] = 0.9 * m[i] + 0.1 * g
            v2[i] = 0.999 * v2[i] + 0.001 * g**2
            update = (m[i] / (1 - 0.9**t)) / (
                np.sqrt(v2[i] / (1 - 0.999**t)) + 1e-6
            )
            ratio = 1.0
            if not excluded[i]:
                update = update + decay * values[i]
                ratio = np.linalg.norm(values[i]) / np.linalg.norm(update)
            values[i] = values[i] - rate * ratio * update
    return values


def run(optimizer, steps):
    state = variables()
    optimizer.build(state)
    for step in range(steps):
        grads = [ops.convert_to_tensor(g) for g in gradients(step, state)]
        optimizer.apply(grads, state)
    return [ops.convert_to_numpy(v) for v in state]


@pytest.mark.parametrize(
    "exclusions, excluded",
    [(None, (False, True, True, True)), ([], (False,) * 4)],
)
def test_equals_the_numpy_reference_step_for_step(exclusions, excluded):
    start = [ops.convert_to_numpy(v) for v in variables()]
    for steps in (1, 2, 25):
        optimizer = Lamb(
            WarmupLinearDecay(0.05, 5, 40),
            weight_decay=0.1,
            exclude_from_weight_decay=exclusions,
        )

        def rate(t):
            return 0.05 * (t / 5 if t < 5 else (40 - t) / 35)

        expected = reference(steps, rate, 0.1, excluded, start)
        for got, want in zip(run(optimizer, steps), expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)


def test_names_what_is_excluded():
    optimizer = Lamb(0.1, exclude_from_layer_adaptation=["kernel"])
    optimizer.build(variables())
    assert optimizer.exclusions() == {
        "weight_decay": list(PATHS[1:]),
        "layer_adaptation": [PATHS[0]],
    }


def test_zero_weights_and_zero_gradients_stay_finite():
    variable = keras.Variable(np.zeros((3, 2), "float32"), name="kernel")
    optimizer = Lamb(0.1, weight_decay=0.01)
    optimizer.apply([ops.zeros((3, 2))], [variable])
    assert ops.convert_to_numpy(variable).tolist() == [[0, 0]] * 3
    optimizer.apply([ops.ones((3, 2))], [variable])
    values = ops.convert_to_numpy(variable)
    assert np.isfinite(values).all() and (values < 0).all()


def test_numbers_changed_after_a_step_count():
    numbers = {"beta_1": 0.5, "beta_2": 0.75, "epsilon": 0.25}
    changed = Lamb(0.1, weight_decay=0.1)
    fresh = Lamb(0.1, weight_decay=0.3, **numbers)
    state = variables()
    grads = [ops.convert_to_tensor(g) for g in gradients(0, state)]
    changed.apply(grads, state)
    for field, value in {**numbers, "decay_rate": 0.3}.items():
        setattr(changed, field, value)
    again = variables()
    fresh.build(again)
    fresh.iterations.assign(changed.iterations)
    mine = changed.variables[2:] + state
    for variable, value in zip(fresh.variables[2:] + again, mine, strict=True):
        variable.assign(value)
    before = [ops.convert_to_numpy(v) for v in state]
    for optimizer, values in ((changed, state), (fresh, again)):
        optimizer.apply(grads, values)
    for got, expected, old in zip(state, again, before, strict=True):
        got = ops.convert_to_numpy(got)
        assert np.abs(got - old).min() > 1e-3
        expected = ops.convert_to_numpy(expected)
        np.testing.assert_array_equal(got, expected)


def test_config_round_trip():
    optimizer = Lamb(
        WarmupLinearDecay(0.5, 2, 9),
        beta_1=0.8,
        beta_2=0.95,
        epsilon=1e-5,
        weight_decay=0.3,
        exclude_from_weight_decay=["gamma"],
        exclude_from_layer_adaptation=["beta"],
        global_clipnorm=2.0,
    )
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert again.get_config() == optimizer.get_config()
    assert run(again, 3)[0] == pytest.approx(run(optimizer, 3)[0])


def test_dense_embedding_gradient_equals_a_sparse_one():
    if keras.config.backend() != "tensorflow":
        pytest.skip("Only TensorFlow has sparse gradients")
    import tensorflow as tf

    start = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
    rows = np.array([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]], "float32")
    sparse = tf.IndexedSlices(rows, [2, 4, 2], dense_shape=(6, 3))
    results = []
    for gradient in (sparse, tf.convert_to_tensor(sparse)):
        variable = keras.Variable(start, name="embeddings")
        Lamb(0.1, weight_decay=0.1).apply([gradient], [variable])
        results.append(ops.convert_to_numpy(variable))
    np.testing.assert_array_equal(*results)
    assert not np.allclose(results[0][2], start[2])


SAME_PROBLEM = """
import sys
import numpy as np
import tf_keras
import tensorflow as tf
from official.modeling.optimization.lamb import LAMB

weights = np.load(sys.argv[1])
optimizer = LAMB(
    learning_rate=0.02,
    weight_decay_rate=0.1,
    exclude_from_weight_decay=["bias", "gamma"],
)
variables = [
    tf.Variable(weights[name], name=name) for name in ("kernel", "bias")
]
trace = {}
for step in range(10):
    grads = [tf.constant(weights[f"{v.name[:-2]}_{step}"]) for v in variables]
    optimizer.apply_gradients(zip(grads, variables))
    for v in variables:
        trace[f"{v.name[:-2]}_{step}"] = v.numpy()
np.savez(sys.argv[2], **trace)
"""


def test_equals_the_model_gardens_lamb_step_for_step(tmp_path, run_script):
    pytest.importorskip(
        "official", reason="The extra `tf-models` is not installed"
    )
    rng = np.random.default_rng(3)
    shapes = {"kernel": (5, 4), "bias": (4,)}
    problem = {
        n: rng.normal(size=s).astype("float32") for n, s in shapes.items()
    }
    for step in range(10):
        for name, shape in shapes.items():
            problem[f"{name}_{step}"] = rng.normal(size=shape).astype("float32")
    np.savez(tmp_path / "problem.npz", **problem)
    script = tmp_path / "reference.py"
    script.write_text(SAME_PROBLEM)
    run_script(script, tmp_path / "problem.npz", tmp_path / "trace.npz")
    trace = np.load(tmp_path / "trace.npz")

    state = [keras.Variable(problem[name], name=name) for name in shapes]
    optimizer = Lamb(0.02, weight_decay=0.1)
    for step in range(10):
        optimizer.apply(
            [ops.convert_to_tensor(problem[f"{n}_{step}"]) for n in shapes],
            state,
        )
        for name, variable in zip(shapes, state, strict=True):
            np.testing.assert_allclose(
                ops.convert_to_numpy(variable),
                trace[f"{name}_{step}"],
                rtol=1e-5,
                atol=1e-6,
                err_msg=f"{name} after step {step}",
            )
