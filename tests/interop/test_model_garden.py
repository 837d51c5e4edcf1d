"""Towers of the TensorFlow Model Garden, against their own outputs."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compare_model_garden.py")


@pytest.mark.skipif(
    importlib.util.find_spec("official") is None,
    reason="The extra `tf-models` is not installed",
)
def test_model_garden(tmp_path, run_script):
    output = run_script(SCRIPT, tmp_path).stdout
    found = json.loads(output.splitlines()[-1])
    for error in ("more layers", "other width"):
        message = found.pop(error)
        assert "does not fit the network" in message, message
    assert len(found) == 6
    for name, (difference, scale) in found.items():
        assert scale > 0.1, name
        assert difference < 1e-5 * max(scale, 1), name
