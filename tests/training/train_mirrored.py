"""Train on two replicas of one CPU, in a process of its own; print JSON.

python train_mirrored.py INPUTS WORKDIR
"""

import functools
import json
import sys
from pathlib import Path

import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)

from colors import FIELDS
from colors import tiny_model
from runs import Seen

from align_keras.training import Recipe
from align_keras.training import train

INPUTS, WORKDIR = map(Path, sys.argv[1:])
RECIPE = Recipe(**FIELDS)
KWARGS = {
    "data": str(INPUTS / "packed"),
    "vocabulary": str(INPUTS / "words.txt"),
    "strategy": "mirrored",
    "verbose": False,
}


(WORKDIR / "odd").mkdir()
try:
    train(tiny_model, RECIPE, workdir=WORKDIR / "odd", batch_size=9, **KWARGS)
except ValueError as error:
    report = {"error": str(error)}
report["result"] = train(
    functools.partial(tiny_model, synchronized=True),
    RECIPE,
    workdir=WORKDIR / "even",
    validation_data=KWARGS["data"],
    evaluate=Seen(),
    **KWARGS,
)
print(json.dumps(report))
