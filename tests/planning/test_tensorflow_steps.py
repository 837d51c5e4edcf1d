"""Training steps as XLA sees them on TensorFlow: static, and all its own.

By default the whole step of the smallest towers is lowered, optimizer and
metrics included, and that of a small model at once and in microbatches.
ALIGN_THOROUGH=1 lowers the step of every size, each in a process that gives
its memory back.
"""

import json

import keras
import pytest
from towers import towers

TEXT_SIZES = ("mini", "small", "medium", "base", "large", "tiny")
OTHERS = [
    f"{image}-{TEXT_SIZES[i % len(TEXT_SIZES)]}:whole"
    for i, image in enumerate(towers("b0")[1:])
]

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="It is about TensorFlow"
)


@pytest.fixture
def lower(run_once):
    def lower(*steps):
        output = run_once(
            "lower_on_tensorflow.py", *steps, KERAS_BACKEND="tensorflow"
        )
        found = [json.loads(line) for line in output.splitlines()]
        assert [step["towers"] for step in found] == list(steps)
        return found

    return lower


@pytest.mark.parametrize(
    "steps",
    [
        ["b0-tiny:whole", "small:whole", "small:microbatch"],
        *([step] for step in OTHERS),
    ],
    ids=lambda steps: steps[0],
)
def test_steps_lower_with_static_shapes(steps, lower):
    for step in lower(*steps):
        # A convolution or product forward takes two backward; what XLA cannot
        # lower, it refuses.
        assert step["products"] > 30, step
        assert step["dynamic"] == step["foreign"] == [], step


def test_what_a_tpu_could_not_run_is_found(lower):
    dynamic, foreign = lower("dynamic", "foreign")
    assert "set-dimension-size" in dynamic["dynamic"]
    assert foreign["foreign"] == ["custom-call"]
