"""Loss and gradients of one global batch on JAX, on any number of devices.

    python global_batch.py DEVICES OUTPUT.npz

`cases.py` compares what training makes of them, in every way to train.
"""

import os
import sys

DEVICES, OUTPUT = int(sys.argv[1]), sys.argv[2]
os.environ["JAX_ENABLE_X64"] = "true"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"

import jax
import keras
import numpy as np

from align_keras import AlignDualEncoder
from align_keras import ContrastiveLoss
from align_keras import backend

BATCH = 16
# Rounding in float32 would hide what 1e-6 is to show.
keras.config.set_floatx("float64")


def make_inputs():
    rng = np.random.default_rng(0)
    return {
        "images": rng.uniform(-1, 1, (BATCH, 32, 32, 3)),
        "token_ids": rng.integers(5, 50, (BATCH, 8)).astype("int32"),
        "padding_mask": np.ones((BATCH, 8), "int32"),
    }


def image_encoder(normalized):
    # Partitioning a deep network takes the compiler minutes.
    images = keras.Input((32, 32, 3))
    features = keras.layers.Conv2D(8, 3, strides=4, use_bias=False)(images)
    if normalized:
        features = keras.layers.BatchNormalization()(features)
    return keras.Model(images, keras.layers.ReLU()(features))


def text_encoder():
    # Attention on JAX computes its logits in float32 whatever is asked for.
    token_ids = keras.Input((None,), dtype="int32", name="token_ids")
    vectors = keras.layers.Embedding(50, 16)(token_ids)
    return keras.Model(
        {"token_ids": token_ids}, keras.layers.Dense(16, "tanh")(vectors)
    )


def make_model(normalized=True):
    keras.utils.set_random_seed(0)
    model = AlignDualEncoder(
        image_encoder(normalized),
        text_encoder(),
        embedding_dim=24,
        text_pooling="first",
        initial_temperature=0.1,
    )
    model.compile(
        keras.optimizers.SGD(0.1),
        ContrastiveLoss(0.1, dtype="float64"),
        jit_compile=False,
    )
    # The same weights whatever the strategy drew.
    rng = np.random.default_rng(1)
    model.set_weights(
        [
            (w * rng.uniform(0.5, 1.5, w.shape)) + 0.01 * (w.ndim == 1)
            for w in model.get_weights()
        ]
    )
    return model


def gradients_of(inputs):
    devices = keras.distribution.list_devices()
    assert len(devices) == DEVICES, devices
    distribution = keras.distribution.DataParallel(devices=devices)
    keras.distribution.set_distribution(distribution)
    # On JAX, Keras computes in float32 at times in spite of `floatx`, and a
    # normalisation subtracts numbers that are nearly equal.
    model = make_model(normalized=False)

    def loss(trainable, inputs):
        outputs, state = model.stateless_call(
            trainable,
            [v.value for v in model.non_trainable_variables],
            inputs,
            training=True,
        )
        value, _ = model.stateless_compute_loss(
            trainable,
            state,
            [v.value for v in model.metrics_variables],
            x=inputs,
            y_pred=outputs,
        )
        return value

    sharding = jax.sharding.NamedSharding(
        jax.sharding.Mesh(jax.devices(), ("batch",)),
        jax.sharding.PartitionSpec("batch"),
    )
    inputs = jax.device_put(inputs, sharding)
    trainable = [v.value for v in model.trainable_variables]
    value, gradients = jax.jit(jax.value_and_grad(loss))(trainable, inputs)
    results = {"loss": np.asarray(value)}
    for variable, gradient in zip(
        model.trainable_variables, gradients, strict=True
    ):
        results[f"gradient {variable.path}"] = np.asarray(gradient)
    return results, make_model()


def main():
    inputs = make_inputs()
    results, model = gradients_of(inputs)
    # And through `fit`, as a user trains.
    history = model.fit(inputs, batch_size=BATCH, epochs=2, verbose=0).history
    for name, values in history.items():
        results[f"history {name}"] = np.array(values)
    for variable in model.variables:
        if "seed" not in variable.path:
            value = keras.ops.convert_to_numpy(variable)
            results[f"weight {variable.path}"] = value
    # Rows that the devices cannot share out evenly.
    encode = backend.compile_inference(model, model.encode_image)
    results["encoded"] = np.asarray(encode(inputs["images"][:11]))
    np.savez(OUTPUT, **results)


if __name__ == "__main__":
    main()
