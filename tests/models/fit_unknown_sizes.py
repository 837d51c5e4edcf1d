"""Fit batches of unknown size, with a normalisation that minds padding.

python fit_unknown_sizes.py DEVICES compiled|auto
"""

import sys

sys.path += ["tests", "tests/distributed"]

import cases
import keras
import numpy as np
import tensorflow as tf

from align_keras import AlignDualEncoder


def make_model(compiled):
    keras.utils.set_random_seed(0)
    images = keras.Input((8, 8, 3), name="images")
    features = keras.layers.Conv2D(8, 3, strides=4)(images)
    features = keras.layers.BatchNormalization()(features)
    tokens = keras.Input((None,), dtype="int32", name="token_ids")
    vectors = keras.layers.Embedding(50, 8)(tokens)
    model = AlignDualEncoder(
        keras.Model(images, features),
        keras.Model({"token_ids": tokens}, vectors),
        text_pooling="average",
        initial_temperature=0.1,
    )
    model.compile("sgd", microbatch_size=2, jit_compile=compiled)
    return model


def make_inputs(rows):
    rng = np.random.default_rng(0)
    return {
        "images": rng.uniform(-1, 1, (rows, 8, 8, 3)).astype("float32"),
        "token_ids": rng.integers(5, 50, (rows, 8)).astype("int32"),
        "padding_mask": np.ones((rows, 8), "int32"),
    }


def dataset(rows):
    return tf.data.Dataset.from_tensor_slices(make_inputs(rows)).batch(8)


def generator(rows):
    for start in range(0, rows, 8):
        yield ({k: v[start : start + 8] for k, v in make_inputs(rows).items()},)


def main(devices, compiled):
    fit = {"verbose": 0, "shuffle": False}
    with cases.strategy_scope(devices):
        found = [
            make_model(compiled).fit(data, batch_size=size, **fit).history
            for data, size in (
                (make_inputs(16), 8),
                (dataset(16), None),
                (generator(16), None),
            )
        ]
        for history in found[1:]:
            np.testing.assert_allclose(
                history["loss"], found[0]["loss"], rtol=1e-5
            )
        for data in (dataset(12), generator(12)):
            try:
                make_model(compiled).fit(data, **fit)
            except Exception as error:
                print(error)
            else:
                raise AssertionError("padding was counted")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] == "compiled" or "auto")
