"""One process of a run of `train` on JAX, with some devices of the host.

    python jax_processes.py FOLDER NAME DEVICES

The environment names the other processes. One process alone reads what two
would have read, one after the other, as the numbers of a run depend on it.
"""

import json
import os
import signal
import sys
from pathlib import Path

FOLDER, NAME, DEVICES = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
os.environ["KERAS_BACKEND"] = "jax"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"
NUMBER = os.environ.get(
    "KERAS_DISTRIBUTION_PROCESS_ID", os.environ.get("SLURM_PROCID")
)

import keras
import tensorflow as tf
from colors import FIELDS
from colors import tiny_model
from shortcuts import decode_plainly

from align_keras.data import load_dataset
from align_keras.evaluation import measure_retrieval
from align_keras.training import Recipe
from align_keras.training import train
from align_keras.training import train_model

decode_plainly()


def make_dataset(records, preprocessor, recipe, step, strategy, workers):
    """The batches of two processes as one."""
    parts = [
        load_dataset(
            records,
            preprocessor,
            recipe.batch_size // 2,
            seed=recipe.seed,
            start_step=step,
            shard_index=index,
            shard_count=2,
        )
        for index in range(2)
    ]

    def join(*halves):
        return tf.nest.map_structure(lambda *x: tf.concat(x, 0), *halves)

    return tf.data.Dataset.zip(*parts).map(join)


def evaluate(model, data):
    """Measure; the second process alone is asked to stop at step 4, or dies."""
    found = measure_retrieval(model, data, progress=False, samples=0)
    step = int(keras.ops.convert_to_numpy(model.optimizer.iterations))
    if step == 4 and NAME == f"killed {NUMBER}":
        os.kill(os.getpid(), signal.SIGKILL)
    if step == 4 and NAME == f"wrong {NUMBER}":
        raise ValueError("This is wrong.")
    if step == 4 and NUMBER == "1":
        signal.raise_signal(signal.SIGTERM)
    return found


def main():
    if NUMBER is None:
        train_model.make_dataset = make_dataset
    workdir = os.environ.get("WORKDIR") or FOLDER / NAME
    result = train(
        lambda size: tiny_model(size, dropout=0.1),
        Recipe(
            **{
                **FIELDS,
                "steps": 10,
                "checkpoint_every": 4,
                "optimizer": "sgd" if "sgd" in NAME else "adam",
            }
        ),
        data=str(FOLDER / "packed"),
        validation_data=str(FOLDER / "packed"),
        workdir=workdir,
        evaluate=evaluate,
        diagnostics=False,
        shard_state="in parts" in NAME,
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
