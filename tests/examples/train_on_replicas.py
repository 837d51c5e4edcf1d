"""Run the TPU example on two replicas of one CPU; print JSON.

    python train_on_replicas.py EXAMPLE FOLDER

It runs to the end, and once more from the checkpoint in its middle.
"""

import json
import runpy
import shutil
import sys
from pathlib import Path

import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)

import numpy as np
from colors import FIELDS
from shortcuts import decode_plainly

from align_keras.training import Recipe

decode_plainly()
example = runpy.run_path(sys.argv[1])
folder = Path(sys.argv[2])
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
recipe = Recipe(
    **{
        **FIELDS,
        "optimizer": "lamb",
        "steps": 4,
        "warmup_steps": 1,
        "checkpoint_every": 2,
        "precision": "mixed_bfloat16",
    }
)


def train(name):
    return example["main"](
        strategy,
        str(folder / "packed" / "*.tfrecord"),
        str(folder / "words.txt"),
        str(folder / name),
        str(folder / f"{name}_model"),
        str(folder / "preset"),
        recipe,
    )


whole = train("whole")
(folder / "parts").mkdir()
for path in (folder / "whole").glob("ckpt-1.*"):
    shutil.copy(path, folder / "parts")
(folder / "parts" / "checkpoint").write_text('model_checkpoint_path: "ckpt-1"')
parts = train("parts")

differences = {
    ours.path: float(np.abs(np.subtract(ours, theirs)).max())
    for ours, theirs in zip(whole.weights, parts.weights, strict=True)
}
report = {
    "replicas": strategy.num_replicas_in_sync,
    "iterations": [
        int(model.optimizer.iterations.numpy()) for model in (whole, parts)
    ],
    "epochs": [model.history.epoch for model in (whole, parts)],
    "differences": differences,
}
print(json.dumps(report))
