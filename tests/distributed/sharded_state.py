"""Train on eight devices with the state whole on each, and in parts.

python sharded_state.py OUTPUT.json
"""

import json
import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import keras
import numpy as np

from align_keras import AlignDualEncoder
from align_keras import backend
from align_keras.optimizers import Lamb
from align_keras.training import ShardedState
from align_keras.training.ema import averaged_weights


def make_model(distribution, microbatch_size=None):
    # Both runs have layers of the same names.
    keras.utils.clear_session(free_memory=False)
    keras.distribution.set_distribution(distribution)
    keras.utils.set_random_seed(0)
    # No bias stands before a normalisation or among the keys of attention: its
    # gradient would be rounding alone, of which LAMB makes full steps.
    images = keras.Input((32, 32, 3))
    features = keras.layers.Conv2D(16, 8, strides=8, use_bias=False)(images)
    features = keras.layers.BatchNormalization()(features)
    token_ids = keras.Input((None,), dtype="int32", name="token_ids")
    vectors = keras.layers.Embedding(48, 16)(token_ids)
    vectors = keras.layers.Dropout(0.1)(vectors)
    vectors = keras.layers.Dense(16, "tanh")(vectors)
    model = AlignDualEncoder(
        keras.Model(images, keras.layers.ReLU()(features)),
        keras.Model({"token_ids": token_ids}, vectors),
        embedding_dim=24,
        text_pooling="first",
    )
    model.compile(
        Lamb(0.01, use_ema=True, ema_momentum=0.9),
        microbatch_size=microbatch_size,
    )
    return model


def make_inputs():
    rng = np.random.default_rng(0)
    return {
        "images": rng.uniform(-1, 1, (48, 32, 32, 3)).astype("float32"),
        "token_ids": rng.integers(5, 48, (48, 8)).astype("int32"),
        "padding_mask": np.ones((48, 8), "int32"),
    }


def run(distribution, inputs, folder):
    """Return all that a run leaves, and how much of it a device holds."""
    model = make_model(distribution)
    fit = {"batch_size": 16, "verbose": 0, "shuffle": False}
    history = model.fit(inputs, **fit).history
    # A state in parts is saved whole, and loaded into parts.
    path = f"{folder}/{type(distribution).__name__}.weights.h5"
    model.save_weights(path)
    model = make_model(distribution, microbatch_size=1)
    model.optimizer.build(model.trainable_variables)
    model.load_weights(path)
    more = model.fit(inputs, **fit).history
    results = {"first loss": history["loss"], "last loss": more["loss"]}
    for kind in ("weights", "optimizer"):
        variables = getattr(model, kind)
        for variable in getattr(variables, "variables", variables):
            if "seed" not in variable.path:
                name = f"{kind} {variable.path}"
                results[name] = keras.ops.convert_to_numpy(variable)
    with averaged_weights(model):
        encode = backend.compile_inference(model, model.encode_image)
        results["encoded"] = encode(inputs["images"][:11])
        results["evaluated"] = model.evaluate(inputs, verbose=0)
    parts = {
        variable.path: [
            list(variable.shape),
            list(variable.value.sharding.shard_shape(variable.shape)),
        ]
        for variable in [*model.weights, *model.optimizer.variables]
    }
    results = {name: np.asarray(v).tolist() for name, v in results.items()}
    return results, parts


def main(output):
    inputs = make_inputs()
    kinds = keras.distribution.DataParallel, ShardedState
    found = [run(kind(), inputs, os.path.dirname(output)) for kind in kinds]
    with open(output, "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
