"""Strategies by name, and one clear sentence where there is no hardware."""

import json
from pathlib import Path

import keras
import pytest

from align_keras.training import make_strategy
from align_keras.training.strategies import worker_of

SCRIPT = Path(__file__).with_name("make_strategies.py")

tensorflow_only = pytest.mark.skipif(
    keras.config.backend() != "tensorflow",
    reason="the strategies of TensorFlow",
)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in ("TF_CONFIG", "TPU_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def made():
    """What each strategy is where there are several CPU devices."""
    done = {}

    def make(run_script, backend, devices):
        if backend not in done:
            result = run_script(
                SCRIPT, devices, timeout=120, KERAS_BACKEND=backend
            )
            done[backend] = json.loads(result.stdout.splitlines()[-1])
        return done[backend]

    return make


def refusal(*args):
    with pytest.raises(ValueError) as caught:
        make_strategy(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_unknown_name_lists_the_known_ones():
    message = refusal("mirrord")
    assert "strategy='mirrord'" in message
    for name in ("auto", "one-device", "mirrored", "multi-worker", "tpu"):
        assert name in message


def test_one_device_is_one_replica():
    strategy = make_strategy("one-device")
    assert strategy.num_replicas_in_sync == 1
    assert worker_of(strategy) == (0, 1)
    with strategy.scope():
        assert keras.Variable(3.0).numpy() == 3.0


@tensorflow_only
def test_multi_worker_needs_a_cluster(monkeypatch):
    assert "needs the environment variable TF_CONFIG" in refusal("multi-worker")
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["a:1", "b:1"]}}')
    assert "`task`" in refusal("multi-worker")
    for name in ("multi-worker", "auto"):
        monkeypatch.setenv("TF_CONFIG", "{cluster")
        assert "TF_CONFIG is not valid JSON" in refusal(name)


@tensorflow_only
def test_auto_takes_a_cluster_of_one_for_one_device(monkeypatch):
    config = {"cluster": {"worker": ["localhost:1"]}, "task": {"index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    assert make_strategy().num_replicas_in_sync == 1


@pytest.mark.multiprocess
def test_mirrored_takes_all_devices_of_one_kind(made, run_script):
    replicas = made(run_script, "tensorflow", 2)
    assert replicas["mirrored"] == 2
    assert replicas["one-device"] == 1
    # Cores of one CPU are not devices to spread over, unless asked.
    assert replicas["auto"] == 1


@pytest.mark.multiprocess
def test_no_tpu_is_one_sentence_and_no_hanging(made, run_script):
    said = made(run_script, "tensorflow", 2)
    for name in ("tpu", "dead tpu", "auto with TPU_NAME"):
        assert said[name].startswith("The strategy `tpu` found no TPU")
        assert "TPU_NAME" in said[name] and "\n" not in said[name]
    assert "grpc://127.0.0.1:1" in said["dead tpu"]


@pytest.mark.multiprocess
def test_jax_spreads_over_all_devices(made, run_script):
    said = made(run_script, "jax", 4)
    assert said["one-device"] == 1
    assert said["auto"] == said["mirrored"] == 4
    assert "belongs to the TensorFlow backend" in said["tpu"]
