from pathlib import Path

import keras
import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("global_batch.py")


@pytest.mark.multiprocess
@pytest.mark.skipif(
    keras.config.backend() != "jax",
    reason="test_cases.py compares to 1e-6 on TensorFlow",
)
def test_replicas_equal_one_device_on_the_global_batch(run_script, tmp_path):
    """Loss, every gradient, and the weights after two steps of `fit`."""
    results = []
    for devices in (1, 8):
        path = tmp_path / f"{devices}.npz"
        run_script(SCRIPT, devices, path, KERAS_BACKEND="jax")
        results.append(dict(np.load(path)))
    one, many = results
    assert one.keys() == many.keys()
    assert one["loss"] == pytest.approx(many["loss"], rel=1e-6)
    gradients = [name for name in one if name.startswith("gradient")]
    assert "gradient contrastive_head/log_temperature" in gradients
    # A bias before a normalisation has no gradient but rounding errors.
    scale = max(np.linalg.norm(one[name]) for name in gradients)
    for name in gradients:
        difference = np.linalg.norm(one[name] - many[name])
        norm = np.linalg.norm(one[name])
        assert difference <= 1e-6 * max(norm, 1e-2 * scale), name
    assert one["encoded"].shape == many["encoded"].shape == (11, 24)
    np.testing.assert_allclose(one["encoded"], many["encoded"], atol=1e-5)
    for name in one:
        if name.startswith("history"):
            np.testing.assert_allclose(one[name], many[name], rtol=1e-5)
        if name.startswith("weight"):
            np.testing.assert_allclose(
                one[name], many[name], rtol=1e-5, atol=1e-6, err_msg=name
            )
