"""One worker of a strategy with several, or one process with all the data.

    python multi_worker.py WORKDIR INDEX PORT PORT ...

Trains on fixed arrays through `fit`, then through `train` on packed records;
without ports, on the same global batches alone.
"""

import json
import os
import sys

WORKDIR, INDEX, PORTS = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
if PORTS:
    workers = [f"localhost:{port}" for port in PORTS]
    task = {"type": "worker", "index": INDEX}
    os.environ["TF_CONFIG"] = json.dumps(
        {"cluster": {"worker": workers}, "task": task}
    )

import keras
import numpy as np
import tensorflow as tf

from align_keras import AlignDualEncoder
from align_keras import BertTextEncoder
from align_keras import Lamb
from align_keras.training import Recipe
from align_keras.training import make_strategy
from align_keras.training import train

BATCH = 8


def make_model(vocabulary_size=50):
    keras.utils.set_random_seed(0)
    images = keras.Input((32, 32, 3))
    features = keras.layers.Conv2D(8, 3, strides=4, use_bias=False)(images)
    features = keras.layers.BatchNormalization(synchronized=True)(features)
    return AlignDualEncoder(
        keras.Model(images, keras.layers.ReLU()(features)),
        BertTextEncoder(vocabulary_size, 1, 2, 16, 32, dropout=0.0),
        embedding_dim=24,
    )


def fit_arrays(strategy):
    rng = np.random.default_rng(0)
    rows = tf.data.Dataset.from_tensor_slices(
        {
            "images": rng.uniform(-1, 1, (BATCH, 32, 32, 3)).astype("float32"),
            "token_ids": rng.integers(5, 50, (BATCH, 8)).astype("int32"),
            "padding_mask": np.ones((BATCH, 8), "int32"),
        }
    ).repeat()
    with strategy.scope():
        model = make_model()
        model.compile(Lamb(0.01), jit_compile=False)
    dataset = rows.batch(BATCH, drop_remainder=True)
    if PORTS:

        def of_worker(context):
            size = context.get_per_replica_batch_size(BATCH)
            part = context.num_input_pipelines, context.input_pipeline_id
            return rows.shard(*part).batch(size, drop_remainder=True)

        dataset = strategy.distribute_datasets_from_function(of_worker)
    history = model.fit(
        dataset, steps_per_epoch=2, epochs=2, shuffle=False, verbose=0
    ).history
    results = {f"history {k}": np.array(v) for k, v in history.items()}
    for variable in model.variables:
        if "seed" not in variable.path:
            value = keras.ops.convert_to_numpy(variable)
            results[f"weight {variable.path}"] = value
    np.savez(os.path.join(WORKDIR, f"fit-{INDEX}-of-{len(PORTS)}"), **results)


def main():
    strategy = make_strategy("multi-worker" if PORTS else "one-device")
    fit_arrays(strategy)
    if PORTS:
        result = train(
            make_model,
            Recipe(
                steps=4,
                batch_size=BATCH,
                learning_rate=0.01,
                warmup_steps=1,
                image_size=32,
                resize_size=36,
                checkpoint_every=2,
            ),
            data=os.path.join(WORKDIR, "packed"),
            workdir=os.path.join(WORKDIR, "run"),
            strategy=strategy,
        )
        print(json.dumps(result))


if __name__ == "__main__":
    main()
