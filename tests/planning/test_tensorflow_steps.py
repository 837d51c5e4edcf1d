"""Training steps as XLA sees them on TensorFlow: static, and all its own.

Every size of tower is made of the same layers. By default the smallest is
lowered with its gradients, and a small model in microbatches with the
optimizer, whose operations no tower changes. ALIGN_ALL_TOWERS=1 lowers all
sizes, in some six minutes.
"""

import json
import os

import keras
import pytest

IMAGE_SIZES = ("b1", "b2", "b3", "b4", "b5", "b6", "b7", "l2")
TEXT_SIZES = ("mini", "small", "medium", "base", "large", "tiny")


@pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="It is about TensorFlow"
)
def test_steps_lower_with_static_shapes(run_once):
    steps = ["b0-tiny", "small:microbatch"]
    if os.environ.get("ALIGN_ALL_TOWERS"):
        steps += [
            f"{image}-{TEXT_SIZES[i % len(TEXT_SIZES)]}"
            for i, image in enumerate(IMAGE_SIZES)
        ]
    output = run_once(
        "lower_on_tensorflow.py", *steps, KERAS_BACKEND="tensorflow"
    )
    found = [json.loads(line) for line in output.splitlines()]
    assert [step["towers"] for step in found] == steps
    for step in found:
        # A convolution or product forward takes two backward; what XLA cannot
        # lower, it refuses.
        assert step["products"] > 30, step
        assert step["dynamic"] == step["foreign"] == [], step
