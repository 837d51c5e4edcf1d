"""Embeddings, gradients and a step of a small model, on any backend.

Weights and inputs come from NumPy, so that the numbers of two backends are
those of one model.
"""

import sys
import zlib

import keras
import numpy as np

from align_keras import AlignDualEncoder
from align_keras import BertTextEncoder
from align_keras import ContrastiveLoss
from align_keras import EfficientNetBackbone
from align_keras import Lamb
from align_keras import SigmoidLoss


def build():
    keras.utils.clear_session()
    model = AlignDualEncoder(
        EfficientNetBackbone(0.2, 0.2, dropout=0.0),
        BertTextEncoder(50, 1, 2, 16, 32, dropout=0.0),
        initial_temperature=0.2,
        initial_bias=-2.0,
    )
    for weight in model.weights:
        # A TensorShape without dimensions counts as true.
        if "seed" in weight.path or len(weight.shape) == 0:
            continue
        # The order of weights is the backend's own.
        rng = np.random.default_rng(zlib.crc32(name_of(weight).encode()))
        value = keras.ops.convert_to_numpy(weight)
        noise = rng.normal(0, 0.1, weight.shape) + (value == 1.0)
        weight.assign(np.abs(noise) if "variance" in weight.path else noise)
    return model


def name_of(weight):
    """The path of a weight without the name of the model."""
    return weight.path.removeprefix("align_dual_encoder/")


def inputs(rows=8):
    rng = np.random.default_rng(1)
    mask = (np.arange(8) < rng.integers(2, 9, (rows, 1))).astype("int32")
    return {
        "images": rng.uniform(-1, 1, (rows, 32, 32, 3)).astype("float32"),
        "token_ids": rng.integers(5, 50, (rows, 8)).astype("int32") * mask,
        "padding_mask": mask,
    }


def train(dtype):
    """Train in several ways; returns all that can be compared, by name."""
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    x, results = inputs(), {}
    weights = np.array([1, 0, 1, 1, 0, 2, 1, 1], "float32")
    tiles = {"tile_size": 3, "dtype": dtype}
    for name, loss, options in (
        ("plain", ContrastiveLoss(0.1, dtype=dtype), {}),
        ("tiled", ContrastiveLoss(0.1, **tiles), {"remat": True}),
        ("sigmoid", SigmoidLoss(**tiles), {"microbatch_size": 4}),
    ):
        model = build()
        results.update(
            {f"{name} {k}": v for k, v in model.predict(x, verbose=0).items()}
        )
        # To trace a step takes longer than to run it twice.
        model.compile(
            keras.optimizers.SGD(0.01), loss, run_eagerly=True, **options
        )
        fit = {"batch_size": 8, "shuffle": False, "verbose": 0, "epochs": 2}
        logs = model.fit(x, sample_weight=weights, **fit).history
        for key, values in logs.items():
            results[f"{name} {key}"] = np.array(values)
        logs = model.evaluate(x, verbose=0, return_dict=True)
        results.update({f"{name} val {k}": v for k, v in logs.items()})
        for weight in model.weights:
            if "seed" not in weight.path:
                value = keras.ops.convert_to_numpy(weight)
                results[f"{name} {name_of(weight)}"] = value
    model = build()
    optimizer = Lamb(0.01, weight_decay=0.1)
    model.compile(optimizer, skip_nonfinite=True, run_eagerly=True)
    logs = model.fit(x, batch_size=6, shuffle=False, verbose=0).history
    return {**results, "lamb": np.array(logs["loss"])}


def main(path):
    results = {dtype: train(dtype) for dtype in ("float32", "float64")}
    np.savez(
        path,
        **{
            f"{dtype} {name}": value
            for dtype, found in results.items()
            for name, value in found.items()
        },
    )


if __name__ == "__main__":
    main(sys.argv[1])
