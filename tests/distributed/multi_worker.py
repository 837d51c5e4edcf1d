"""One worker of a strategy with several, or one process with all the data.

    python multi_worker.py WORKDIR INDEX PORT PORT ...

Runs cases of cases.py, then trains through `train` on packed records, in one
go and with a stop; without ports, the cases that these must equal.
"""

import json
import os
import signal
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

WORKDIR, INDEX, PORTS = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
if PORTS:
    workers = [f"localhost:{port}" for port in PORTS]
    task = {"type": "worker", "index": INDEX}
    os.environ["TF_CONFIG"] = json.dumps(
        {"cluster": {"worker": workers}, "task": task}
    )

import keras
import numpy as np
from cases import run_all
from comparison import OF_WORKERS
from comparison import TWINS
from shortcuts import decode_plainly

from align_keras import AlignDualEncoder
from align_keras import BertTextEncoder
from align_keras.training import Recipe
from align_keras.training import make_strategy
from align_keras.training import train

BATCH = 8
decode_plainly()


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


def main():
    strategy = make_strategy("multi-worker" if PORTS else "one-device")
    names = OF_WORKERS if PORTS else {TWINS[case] for case in OF_WORKERS}
    path = os.path.join(WORKDIR, f"cases-{INDEX}-of-{len(PORTS)}")
    with strategy.scope():
        np.savez(path, **run_all(names))
    if PORTS:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")
        whole = run(strategy, "whole", evaluate)
        try:
            run(strategy, "run", evaluate_and_stop)
        except SystemExit as stop:
            assert stop.code == 75
        else:
            raise AssertionError("SIGTERM has not stopped the run")
        result = run(strategy, "run", evaluate)
        apart, damaged = run_apart(strategy)
        found = {"whole": whole, "stopped": result}
        found |= {"apart": apart, "damaged": damaged}
        print(json.dumps(found))


def run_apart(strategy):
    """Each worker has a disk of its own; the first one's is damaged later."""
    disk = os.path.join(f"disk-{INDEX}", "apart")
    try:
        run(strategy, disk, stop_after_four)
    except InterruptedError:
        pass
    found = [run(strategy, disk, evaluate)]
    for path in Path(WORKDIR, disk).glob("checkpoints/*.h5"):
        path.write_bytes(b"damaged")
    try:
        run(strategy, disk, evaluate)
    except ValueError as error:
        found.append(str(error))
    return found


def run(strategy, name, evaluate):
    """Train for six steps, with an evaluation after two and four."""
    return train(
        make_model,
        Recipe(
            steps=6,
            batch_size=BATCH,
            learning_rate=0.01,
            warmup_steps=1,
            image_size=32,
            resize_size=36,
            checkpoint_every=2,
        ),
        data=os.path.join(WORKDIR, "packed"),
        validation_data=os.path.join(WORKDIR, "packed"),
        evaluate=evaluate,
        workdir=os.path.join(WORKDIR, name),
        strategy=strategy,
    )


def evaluate(model, data):
    step = keras.ops.convert_to_numpy(model.optimizer.iterations)
    return {"mean_recall": float(step)}


def evaluate_and_stop(model, data):
    """The second worker alone is asked to stop."""
    if INDEX == 1:
        signal.raise_signal(signal.SIGTERM)
    return evaluate(model, data)


def stop_after_four(model, data):
    """All workers stop at once, when the checkpoint of step 4 is saved."""
    found = evaluate(model, data)
    if found["mean_recall"] == 4:
        raise InterruptedError
    return found


if __name__ == "__main__":
    main()
