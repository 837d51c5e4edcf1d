"""How long a checkpoint stops training, by the size of the state.

    python benchmarks/checkpoints.py

In the background, training only waits for a copy of the state, which a thread
then writes. In the foreground, training waits until the state is written and
hashed. The model is a stack of dense layers with Adam's moments.
"""

import os
import statistics
import tempfile
import time

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import tables

MEGABYTES = (10, 100, 1000)
WIDTH = 1024


def make(megabytes):
    """Make a compiled model whose state has about the given size."""
    import keras
    import numpy as np

    # A weight and two moments of four bytes.
    layers = max(1, round(megabytes * 1e6 / (12 * WIDTH**2)))
    model = keras.Sequential([keras.Input((WIDTH,))])
    for _ in range(layers):
        model.add(keras.layers.Dense(WIDTH, use_bias=False))
    model.compile(keras.optimizers.Adam(1e-4), "mse")
    model.optimizer.build(model.trainable_variables)
    rows = np.ones((8, WIDTH), "float32")
    return model, lambda: model.train_on_batch(rows, rows)


def timed(function):
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def measure(megabytes, rounds):
    """Measure each kind in turns; return medians in seconds by name."""
    from align_keras.training.checkpoints import Checkpoints

    model, step = make(megabytes)
    step()
    found = {"step": [], "foreground": [], "background": [], "beside": []}
    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as saved:
        number = 0
        for _ in range(rounds):
            found["step"] += [timed(step) for _ in range(5)]
            number += 1
            stall = timed(lambda n=number: saved.save(model, n))
            found["foreground"].append(stall + timed(saved.wait))
            number += 1
            found["background"].append(
                timed(lambda n=number: saved.save(model, n))
            )
            while saved.state()["step"] < number:
                found["beside"].append(timed(step))
            saved.wait()
    return {name: statistics.median(times) for name, times in found.items()}


def main():
    args = tables.parser(__doc__).parse_args()
    text = (
        "| state | step | stopped in the foreground | in the background "
        "| ratio | a step meanwhile |\n|---|---:|---:|---:|---:|---:|\n"
    )
    for megabytes in MEGABYTES:
        found = measure(megabytes, args.rounds)
        ratio = found["foreground"] / found["background"]
        text += (
            f"| {megabytes:,} MB | {1e3 * found['step']:.0f} ms | "
            f"{1e3 * found['foreground']:.0f} ms | "
            f"{1e3 * found['background']:.0f} ms | {ratio:.1f} | "
            f"{1e3 * found['beside']:.0f} ms |\n"
        )
    tables.publish(args, "Medians:", text, "checkpoints")


if __name__ == "__main__":
    main()
