"""Results of the cases of cases.py, on several devices and on one."""

import keras
import numpy as np

BACKEND = keras.config.backend()

# A case, and the case on one device whose numbers it must give.
TWINS = {
    "tail": "tail",
    "steps tail": "tail",
    "ghost tail": "ghost tail",
    # A microbatch has statistics of its own, like a run of that length.
    "pairs cached": "pairs",
    "frozen cached": "frozen",
    "sigmoid cached": "sigmoid",
    "skipped": "skipped",
    "rates": "rates",
    "AdamW": "AdamW",
    "Lamb": "Lamb",
    "combined": "blocks at once",
    "bfloat16": "bfloat16",
}
if BACKEND == "tensorflow":
    # On JAX, these statistics are those of all devices.
    TWINS |= {"local": "half batches", "cached tail": "ghost tail"}
# Cases of two workers of TensorFlow, and of two processes of JAX.
OF_WORKERS = [
    "steps tail",
    "cached tail",
    "combined",
    "bfloat16",
]
OF_PROCESSES = [
    "tail",
    "combined",
    "sigmoid cached",
    "bfloat16",
]

# On JAX, Keras computes in float32 at times whatever is asked for.
TOLERANCE = {"tensorflow": 1e-6, "jax": 1e-5}[BACKEND]
# Eight bits of mantissa, and replicas round at other places than one device.
BFLOAT16, BFLOAT16_MOMENTUM = 2e-2, 1e-1


def select(results, case):
    """Results of one case; seeds are compared elsewhere."""
    start = f"{case}: "
    return {
        name.removeprefix(start): results[name]
        for name in results
        if name.startswith(start) and "seed" not in name
    }


def assert_equal(many, one, rtol=TOLERANCE):
    """Compare what one device found with what several found."""
    assert set(one) <= set(many)
    assert any(name.endswith("moving_variance") for name in one)
    for name, expected in one.items():
        assert_close(name, many[name], expected, rtol)


def assert_close(name, value, expected, rtol):
    np.testing.assert_allclose(
        value,
        expected,
        rtol=rtol,
        # Of a weight, relative to its greatest value.
        atol=rtol * max(np.abs(expected).max(), 1e-3),
        err_msg=name,
    )


def assert_equal_to_twin(case, many, one):
    """Compare a case on several devices with its twin on one.

    Args:
        case: string.
        many, one: dicts of arrays. Results of all cases on several devices,
            and on one.
    """
    many, one = select(many, case), select(one, TWINS[case])
    if case != "bfloat16":
        assert_equal(many, one)
        return
    # A momentum is a sum of few gradients, each rounded to eight bits.
    momenta = {name for name in one if name.endswith("momentum")}
    assert momenta
    assert_equal(many, {n: one[n] for n in one.keys() - momenta}, BFLOAT16)
    for name in momenta:
        assert_close(name, many[name], one[name], BFLOAT16_MOMENTUM)
