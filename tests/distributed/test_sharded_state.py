import json
import math
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from align_keras.training import ShardedState
from align_keras.training import make_strategy

SCRIPT = Path(__file__).with_name("sharded_state.py")
on_jax = pytest.mark.skipif(
    keras.config.backend() != "jax", reason="devices of JAX"
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What is left of a run whose state is whole, and of one in parts."""

    output = tmp_path_factory.mktemp("runs") / "runs.json"
    subprocess.run([sys.executable, str(SCRIPT), str(output)], check=True)
    return json.loads(output.read_text())


@on_jax
@pytest.mark.multiprocess
def test_a_state_in_parts_gives_the_numbers_of_a_whole_one(runs):
    """Losses, weights, moments, averages and embeddings, LAMB and dropout."""
    (whole, _), (parts, _) = runs
    assert whole.keys() == parts.keys() and len(whole) > 20
    assert whole["first loss"] != whole["last loss"]
    for name, value in whole.items():
        np.testing.assert_allclose(
            parts[name], value, rtol=1e-5, atol=1e-5, err_msg=name
        )


@on_jax
@pytest.mark.multiprocess
def test_each_device_holds_an_eighth(runs):
    """Of each matrix and kernel, and of its moments and its average."""
    (_, whole), (_, parts) = runs
    assert all(shape == part for shape, part in whole.values())
    split = 0
    for path, (shape, part) in parts.items():
        can = len(shape) > 1 and any(size % 8 == 0 for size in shape)
        assert math.prod(part) * (8 if can else 1) == math.prod(shape), path
        split += can
    # Weights, two moments and an average of each.
    assert split == 4 * 5


def test_what_cannot_be_shared_is_refused():
    words = "Set the environment variable KERAS_BACKEND"
    if keras.config.backend() == "jax":
        words = "A run on one device has no other"
    else:
        with pytest.raises(ValueError, match=words):
            ShardedState()
    with pytest.raises(ValueError, match=words):
        make_strategy("one-device", shard_state=True)
