"""Train on two replicas of one CPU, in a process of its own; print JSON.

python train_mirrored.py INPUTS WORKDIR
"""

import json
import sys
from pathlib import Path

import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)

import numpy as np
from colors import FIELDS
from colors import tiny_model

from align_keras.data import iterate_records
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


def evaluate(model, data):
    examples = list(iterate_records(data))
    images = np.asarray(model.encode_image([e["image"] for e in examples]))
    texts = np.asarray(model.encode_text([e["captions"][0] for e in examples]))
    hits = (images @ texts.T).argmax(axis=1) == np.arange(len(examples))
    return {"mean_recall": hits.mean()}


(WORKDIR / "odd").mkdir()
try:
    train(tiny_model, RECIPE, workdir=WORKDIR / "odd", batch_size=9, **KWARGS)
except ValueError as error:
    report = {"error": str(error)}
report["result"] = train(
    tiny_model,
    RECIPE,
    workdir=WORKDIR / "even",
    validation_data=KWARGS["data"],
    evaluate=evaluate,
    **KWARGS,
)
print(json.dumps(report))
