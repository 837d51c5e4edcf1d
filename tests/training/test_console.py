"""What a run says of its time."""

import datetime
import os
import subprocess
import sys

import keras
import pytest

from align_keras.io.memory import peak_memory
from align_keras.io.messages import messages_shown
from align_keras.training.callbacks import TrainingLog
from align_keras.training.callbacks import clock
from align_keras.training.recipes import load_recipe


@pytest.mark.parametrize(
    "seconds", [0, 0.4, 59.6, 60, 3599, 3600, 3661.2, 86_399, 360_000]
)
def test_a_clock_shows_hours(seconds):
    whole = round(seconds)
    shown = [int(part) for part in clock(seconds).split(":")]
    assert len(shown) == (3 if whole >= 3600 else 2)
    assert sum(n * 60**i for i, n in enumerate(reversed(shown))) == whole
    assert str(datetime.timedelta(seconds=whole % 86_400)).endswith(
        clock(seconds)[-5:]
    )


def metrics(speed):
    ways = ("image_to_text", "text_to_image")
    recall = {f"{way}_recall_at_1": 0.25 for way in ways}
    return {
        "loss": 2.0,
        "temperature": 0.1,
        "images_per_second": speed,
        **recall,
    }


class NoCheckpoints:
    def state(self):
        return {"step": 0}


def test_the_end_is_foretold_once_and_not_from_compiling(tmp_path, capsys):
    recipe = load_recipe("small", steps=1000, batch_size=8)
    log = TrainingLog(tmp_path, recipe, NoCheckpoints(), guard=None)
    with messages_shown():
        log.step = 1
        log._print(metrics(0.1))
        assert "left" not in capsys.readouterr().out
        log._timed_step = 1
        for log.step in (20, 40):
            log._print(metrics(1.0))
    said = capsys.readouterr().out
    # 980 steps of 8 images, one image each second.
    assert said.count("The run will end in 2:10:40") == 1
    assert "2:08:00 left" in said


def test_the_peak_of_memory_is_in_bytes():
    found = peak_memory()
    with open("/proc/self/status") as file:
        held = {line.split()[0]: line.split()[1:] for line in file}
    assert found == pytest.approx(1024 * int(held["VmHWM:"][0]), rel=0.05)


COMPILE = """
import tensorflow as tf
import align_keras.backend.tensorflow
tf.function(lambda x: x * 2, jit_compile=True)(tf.ones(3))
"""


@pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="TensorFlow's own words"
)
def test_xla_says_nothing_where_nothing_is_asked_for():
    said = subprocess.run(
        [sys.executable, "-c", COMPILE],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert said.returncode == 0
    assert "XLA" not in said.stderr
    assert "absl" not in said.stderr
