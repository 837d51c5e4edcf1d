"""Every way to train, on several devices and on one: the same numbers.

Each number of devices is one process that runs all its cases.
"""

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from comparison import BACKEND
from comparison import OF_PROCESSES
from comparison import TWINS
from comparison import assert_equal
from comparison import assert_equal_to_twin
from comparison import select

SCRIPT = Path(__file__).with_name("cases.py")

# Masks of dropout depend on the number of devices: a case, and the one on as
# many devices that draws the same.
SAME = {"dropout remat": "dropout", "dropout cached": "dropout"}
if BACKEND == "jax":
    COUNTS = {8: [*TWINS]}
else:
    # What is left out for two, these contain.
    of_four = ["steps tail", "combined", "sigmoid cached"]
    left_out = ("tail", "pairs cached", *of_four[1:])
    COUNTS = {2: [n for n in TWINS if n not in left_out], 4: of_four}
MOST = max(COUNTS, key=lambda count: len(COUNTS[count]))
CASES = [(count, name) for count, names in COUNTS.items() for name in names]

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each number of devices found out, when first asked for."""
    folder, found = tmp_path_factory.mktemp("cases"), {}

    def of(devices, run_script):
        if devices not in found:
            names = COUNTS.get(devices) or {TWINS[name] for _, name in CASES}
            if devices == MOST:
                names = [*names, "dropout", *SAME]
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


@pytest.mark.parametrize("devices, case", CASES)
def test_equals_one_device(devices, case, results, run_script):
    """Losses, metrics, weights, statistics and moments after an epoch."""
    many = results(devices, run_script)
    assert_equal_to_twin(case, many, results(1, run_script))


@pytest.mark.parametrize("case", SAME)
def test_dropout_is_drawn_again(case, results, run_script):
    """Several devices draw the same masks in a second forward pass."""
    found = results(MOST, run_script)
    assert_equal(select(found, case), select(found, SAME[case]))


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
        found = select(results(devices, run_script), "steps tail")
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
            [*command, f"{process}/2/{address}", str(path), *OF_PROCESSES],
            stderr=subprocess.PIPE,
            text=True,
        )
        for process, path in enumerate(paths)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
    # Nobody has all rows to predict of.
    one = {
        name: value
        for name, value in results(1, run_script).items()
        if ": predicted" not in name
    }
    for path in paths:
        found = dict(np.load(path))
        for case in OF_PROCESSES:
            assert_equal_to_twin(case, found, one)
