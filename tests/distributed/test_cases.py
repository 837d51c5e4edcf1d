"""Every way to train, on several devices and on one: the same numbers.

Each number of devices is one process that runs all its cases.
"""

from pathlib import Path

import keras
import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("cases.py")
BACKEND = keras.config.backend()

# A case, and the case on one device whose numbers it must give.
TWINS = {
    "plain": "plain",
    "tail": "tail",
    "steps tail": "tail",
    "ghost tail": "ghost tail",
    # A microbatch has statistics of its own, like a run of that length.
    "pairs cached": "pairs",
    "frozen cached": "frozen",
    "remat": "blocks",
    "skipped": "skipped",
}
if BACKEND == "tensorflow":
    TWINS |= {
        "bfloat16": "bfloat16",
        # On JAX, these statistics are those of all devices.
        "local": "runs as long as a replica's batch",
        "cached tail": "ghost tail",
        "remat cached": "ghost blocks",
        "clipped": "clipped",
    }
    COUNTS = {2: list(TWINS), 4: ["plain", "steps tail", "cached tail"]}
else:
    COUNTS = {8: list(TWINS)}
PAIRS = [(count, name) for count, names in COUNTS.items() for name in names]
# What is special about a case shows on one device already.
ALONE = [n for n, twin in TWINS.items() if n not in (twin, "local")]

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each number of devices found out, when first asked for."""
    folder, found = tmp_path_factory.mktemp("cases"), {}

    def of(devices, run_script):
        if devices not in found:
            names = COUNTS.get(devices) or {*TWINS.values(), *ALONE}
            path = folder / f"{devices}.npz"
            run_script(SCRIPT, devices, path, *names, KERAS_BACKEND=BACKEND)
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


@pytest.mark.parametrize("devices, case", [(1, n) for n in ALONE] + PAIRS)
def test_equals_one_device(devices, case, results, run_script):
    """Losses, metrics, weights, statistics and moments after an epoch."""
    many = select(results(devices, run_script), case)
    one = select(results(1, run_script), TWINS[case])
    rtol = 1e-2 if case == "bfloat16" else 1e-6
    assert set(one) <= set(many)
    assert any(name.endswith("moving_variance") for name in one)
    for name, expected in one.items():
        np.testing.assert_allclose(
            many[name],
            expected,
            rtol=rtol,
            # Of a weight, relative to its greatest value.
            atol=rtol * max(np.abs(expected).max(), 1e-3),
            err_msg=name,
        )


def test_the_reference_is_none_of_the_easy_ones(results, run_script):
    """Each option makes a difference, so that its twin proves something."""
    one = results(1, run_script)
    plain = select(one, "plain")
    kernel = "weight image_projection/kernel"
    for other in set(TWINS.values()) - {"plain", "blocks", "ghost blocks"}:
        difference = np.abs(select(one, other)[kernel] - plain[kernel]).max()
        assert difference > 1e-4, other


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
