"""The torch backend gives the numbers of TensorFlow's."""

import keras
import numpy as np
import pytest

from align_keras.serving import export_saved_model
from align_keras.training.strategies import make_strategy


@pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="compares with TensorFlow"
)
def test_torch_embeds_and_trains_alike(tmp_path, run_script):
    pytest.importorskip("torch")
    found = {}
    for backend in ("tensorflow", "torch"):
        path = tmp_path / f"{backend}.npz"
        run_script(
            "tests/models/torch_reference.py",
            path,
            KERAS_BACKEND=backend,
            JAX_ENABLE_X64="true",
        )
        found[backend] = dict(np.load(path))
    ours, torch = found.values()
    assert sorted(ours) == sorted(torch)
    for name, value in ours.items():
        # Sums in another order grow on their way back through normalisations
        # of 4 rows: TensorFlow's weights and JAX's differ as much. With more
        # digits they all but vanish, up to those that Keras' normalisation of
        # layers has in any case: no operation computes something else.
        is_weight = name.startswith("float32") and "/" in name
        tolerance = 3e-4 if is_weight else 1e-5
        scale = max(np.abs(value).max(), 1e-3)
        np.testing.assert_allclose(
            torch[name],
            value,
            rtol=tolerance,
            atol=tolerance * scale,
            err_msg=name,
        )


def test_what_needs_another_backend_says_so(tiny_model, monkeypatch, tmp_path):
    model = tiny_model()
    monkeypatch.setattr(type(model), "preprocessor", object())
    monkeypatch.setattr(keras.config, "backend", lambda: "torch")
    with pytest.raises(ValueError, match="KERAS_BACKEND.*backend='torch'"):
        export_saved_model(model, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    for name in ("mirrored", "multi-worker", "tpu"):
        with pytest.raises(ValueError, match=f"one device.*'{name}'"):
            make_strategy(name)
    assert make_strategy("auto").num_replicas_in_sync == 1
