"""Every way to train, on several devices and on one: the same numbers.

Each number of devices is one process that runs all its cases.
"""

import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("cases.py")
BACKEND = keras.config.backend()

# A case, and the case on one device whose numbers it must give.
TWINS = {
    "tail": "tail",
    "ghost tail": "ghost tail",
    # A microbatch has statistics of its own, like a run of that length.
    "pairs cached": "pairs",
    "frozen cached": "frozen",
    "remat": "blocks",
    "skipped": "skipped",
    "clipped": "clipped",
}
COUNTS = {8: [*TWINS]}
if BACKEND == "tensorflow":
    TWINS |= {
        "steps tail": "tail",
        "cached tail": "ghost tail",
        "bfloat16": "bfloat16",
        # On JAX, these statistics are those of all devices.
        "local": "half batches",
    }
    COUNTS = {
        2: [n for n in TWINS if n not in ("tail", "pairs cached")],
        4: ["steps tail", "cached tail"],
    }
CASES = [(count, name) for count, names in COUNTS.items() for name in names]

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each number of devices found out, when first asked for."""
    folder, found = tmp_path_factory.mktemp("cases"), {}

    def of(devices, run_script):
        if devices not in found:
            names = COUNTS.get(devices) or {TWINS[name] for _, name in CASES}
            path = folder / f"{devices}.npz"
            found[devices] = {}  # One that fails is not tried again.
            run_script(
                SCRIPT,
                devices,
                path,
                *names,
                timeout=1800,
                KERAS_BACKEND=BACKEND,
            )
            found[devices] = dict(np.load(path))
        return found[devices]

    return of


def select(results, case):
    """Results of one case; seeds are compared elsewhere."""
    start = f"{case}: "
    return {
        name.removeprefix(start): value
        for name, value in results.items()
        if name.startswith(start) and "seed" not in name
    }


# On JAX, Keras computes in float32 at times whatever is asked for.
TOLERANCE = {"tensorflow": 1e-6, "jax": 1e-5}[BACKEND]
# Eight bits of mantissa, and replicas round at other places than one device.
BFLOAT16 = 2e-2


def assert_equal(many, one, rtol=TOLERANCE):
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


@pytest.mark.parametrize("devices, case", CASES)
def test_equals_one_device(devices, case, results, run_script):
    """Losses, metrics, weights, statistics and moments after an epoch."""
    many = select(results(devices, run_script), case)
    one = select(results(1, run_script), TWINS[case])
    if case != "bfloat16":
        assert_equal(many, one)
        return
    # A momentum is a sum of few gradients, each rounded to eight bits.
    momenta = {name for name in one if name.endswith("momentum")}
    assert momenta
    assert_equal(many, {n: one[n] for n in one.keys() - momenta}, BFLOAT16)
    for name in momenta:
        assert_close(name, many[name], one[name], 1e-1)


def test_each_case_makes_a_difference(results, run_script):
    """None gives the numbers of another, so that equality proves something."""
    one = results(1, run_script)
    kernel = "weight image_projection/kernel"
    kernels = {
        name.split(":")[0]: value
        for name, value in one.items()
        if name.endswith(f": {kernel}")
    }
    for name, value in kernels.items():
        for other in set(kernels) - {name}:
            assert np.abs(kernels[other] - value).max() > 1e-4, (name, other)


def test_a_step_that_is_not_finite_is_skipped_and_counted(results, run_script):
    """Two of three steps remain, and the loss of neither is lost."""
    one = select(results(1, run_script), "skipped")
    assert one["history nonfinite_steps"] == 1.0
    assert one["weight sgd/iteration"] == 2
    assert all(np.isfinite(value).all() for value in one.values())


def test_nothing_is_dropped_from_a_smaller_last_batch(results, run_script):
    for devices in COUNTS:
        found = select(results(devices, run_script), "tail")
        if found:
            assert len(found["predicted image_embeddings"]) == 2 * 32 + 9


@pytest.mark.skipif(
    BACKEND != "jax", reason="processes of `keras.distribution`"
)
def test_two_processes_equal_one_device(results, run_script, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, str(SCRIPT)]
    paths = [tmp_path / f"{process}.npz" for process in range(2)]
    processes = [
        subprocess.Popen(
            [*command, f"{process}/2/{address}", str(path), "clipped"],
            stderr=subprocess.PIPE,
            text=True,
        )
        for process, path in enumerate(paths)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
    one = select(results(1, run_script), "clipped")
    for path in paths:
        assert_equal(select(dict(np.load(path)), "clipped"), one)
