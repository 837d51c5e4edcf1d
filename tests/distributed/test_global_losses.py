from pathlib import Path

import keras
import numpy as np
import pytest
from loss_references import reference

SCRIPT = Path(__file__).with_name("global_losses.py")
DEVICES = {"tensorflow": 5, "jax": 8}
# As in the script.
BIAS, SMOOTHING, TEMPERATURE, TILE = -3.0, 0.1, 0.1, 3


@pytest.mark.multiprocess
def test_replicas_equal_the_equations_on_the_global_batch(run_script, tmp_path):
    """Losses and gradients with and without tiles, and clipped steps."""
    backend = keras.config.backend()
    path = tmp_path / "results.npz"
    run_script(SCRIPT, DEVICES[backend], path, KERAS_BACKEND=backend)
    results = dict(np.load(path))
    for kind, extra in (("contrastive", SMOOTHING), ("sigmoid", BIAS)):
        for masked in (False, True):
            expected = expected_results(results, kind, extra, masked)
            for name in ("image_hit", "text_hit"):
                hits = expected[name].reshape(DEVICES[backend], -1)
                assert hits.any(axis=1).all() and not hits.all(), name
            for tile_size in (None, TILE) if masked else (TILE,):
                for name, value in expected.items():
                    case = f"{kind} {tile_size} {masked} {name}"
                    # 1e-6 of the equations, which are in float64 as well.
                    np.testing.assert_allclose(
                        results[case],
                        value,
                        rtol=1e-6,
                        atol=1e-6 * np.abs(value).max(),
                        err_msg=case,
                    )
    if backend == "tensorflow":
        assert_steps_are_equal(results)


def expected_results(results, kind, extra, masked):
    mask = results["mask"] if masked else np.ones_like(results["mask"])
    weights = results["weights"]
    rows = results["images"], results["texts"]
    count = mask.sum()
    expected = reference(kind, *rows, TEMPERATURE, extra, weights / count, mask)
    expected["mean"] = weights @ expected["loss"] / count
    return expected


def assert_steps_are_equal(results):
    """Kernel, embedding table, and the averages of both, after three steps."""
    for name in ("Lamb", "AdamW", "SGD"):
        for number in range(4):
            many, one = results[f"{name} {number}"]
            np.testing.assert_allclose(many, one, rtol=1e-5, err_msg=name)
