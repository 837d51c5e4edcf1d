"""The torch backend gives the numbers of the one that the tests run on."""

import keras
import numpy as np
import pytest


@pytest.mark.skipif(
    keras.config.backend() == "torch", reason="compares with another backend"
)
def test_torch_embeds_and_trains_alike(tmp_path, run_script):
    pytest.importorskip("torch")
    found = {}
    for backend in (keras.config.backend(), "torch"):
        path = tmp_path / f"{backend}.npz"
        run_script(
            "tests/models/torch_reference.py", path, KERAS_BACKEND=backend
        )
        found[backend] = dict(np.load(path))
    ours, torch = found.values()
    assert sorted(ours) == sorted(torch)
    for name, value in ours.items():
        scale = max(np.abs(value).max(), 1e-3)
        np.testing.assert_allclose(
            torch[name], value, rtol=1e-5, atol=1e-5 * scale, err_msg=name
        )
