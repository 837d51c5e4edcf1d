"""Losses, gradients and clipped steps of one global batch on many devices.

    python global_losses.py DEVICES OUTPUT.npz

One process each, since the collectives of a strategy outlive it. Writes what
each device found, in the order of the batch.
"""

import os
import sys

DEVICES, OUTPUT = int(sys.argv[1]), sys.argv[2]
BACKEND = os.environ.get("KERAS_BACKEND", "tensorflow")
if BACKEND == "jax":
    os.environ["JAX_ENABLE_X64"] = "true"
    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={DEVICES}"
    )

import keras
import numpy as np

from align_keras import ContrastiveLoss
from align_keras import SigmoidLoss
from align_keras.losses import exchange

# Of five replicas, two, two and one then send their rows at a time.
exchange.MOST_ROUNDS = 3
# What the devices send in a round is divisible by the tiles nowhere.
BATCH, TILE = 5 * DEVICES, 3
BIAS, SMOOTHING, TEMPERATURE = -3.0, 0.1, 0.1


def make_inputs():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2, BATCH, 6))
    # Most pairs match, so that what scores best lies with every device.
    rows[1] = rows[0] + 0.4 * rows[1]
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    mask = np.ones(BATCH, bool)
    mask[[2, BATCH - 1]] = False
    return {
        "images": rows[0],
        "texts": rows[1],
        "weights": rng.uniform(-1, 2, BATCH),
        "mask": mask,
    }


def losses():
    for tile_size in (None, TILE):
        yield (
            f"contrastive {tile_size}",
            ContrastiveLoss(SMOOTHING, tile_size=tile_size, dtype="float64"),
        )
        yield (
            f"sigmoid {tile_size}",
            SigmoidLoss(tile_size=tile_size, dtype="float64"),
        )


def masks(loss):
    """Whether to leave rows out: both ways where it takes more code."""
    return (True,) if loss.tile_size is None else (False, True)


def weighted(loss, batch, masked, images, texts, temperature, bias):
    mask = batch["mask"] if masked else None
    bias = {"bias": bias} if hasattr(loss, "takes_bias") else {}
    scores = loss.score(images, texts, temperature, mask, **bias)
    return loss.reduce(scores[0], batch["weights"], mask), scores


def tensorflow_results(inputs):
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * DEVICES
    )
    strategy = tf.distribute.MirroredStrategy(
        [d.name for d in tf.config.list_logical_devices("CPU")]
    )
    dataset = tf.data.Dataset.from_tensor_slices(inputs).batch(BATCH)
    batch = next(iter(strategy.experimental_distribute_dataset(dataset)))

    def step(loss, masked, batch):
        scalars = [tf.constant(x, "float64") for x in (TEMPERATURE, BIAS)]
        sources = [batch["images"], batch["texts"], *scalars]
        with tf.GradientTape() as tape:
            tape.watch(sources)
            value, scores = weighted(loss, batch, masked, *sources)
        gradients = tape.gradient(value, sources, unconnected_gradients="zero")
        return [value, *gradients[2:]], [*scores, *gradients[:2]]

    results = {}
    for name, loss in losses():
        for masked in masks(loss):
            totals, rows = strategy.run(
                tf.function(step, autograph=False), args=(loss, masked, batch)
            )
            values = [
                strategy.reduce("SUM", total, axis=None) for total in totals
            ] + [
                tf.concat(strategy.experimental_local_results(part), 0)
                for part in rows
            ]
            results[name, masked] = values
    results["optimizers"] = optimizer_results(tf, strategy)
    return results


def optimizer_results(tf, strategy):
    """Variables after clipped steps, on replicas and on one device."""
    from align_keras import optimizers

    rng = np.random.default_rng(1)
    start = {
        "kernel": rng.normal(size=(4, 3)),
        "table": rng.normal(size=(5, 3)),
    }
    parts = rng.normal(size=(3, DEVICES, 4, 3))
    # A token may come twice in a batch and on several devices.
    tokens = rng.integers(0, 3, (3, DEVICES, 4))
    vectors = rng.normal(size=(3, DEVICES, 4, 3))

    def make(name):
        optimizer = getattr(optimizers, name)(
            0.1, global_clipnorm=0.5, use_ema=True, ema_momentum=0.6
        )
        variables = [
            keras.Variable(value, name=key, dtype="float32")
            for key, value in start.items()
        ]
        optimizer.build(variables)
        return optimizer, variables

    def gradients(step, replica):
        sparse = tf.IndexedSlices(
            tf.constant(vectors, "float32")[step, replica],
            tf.constant(tokens)[step, replica],
            dense_shape=tf.constant((5, 3)),
        )
        return [tf.constant(parts, "float32")[step, replica], sparse]

    def total(step):
        table = np.zeros((5, 3))
        np.add.at(table, tokens[step].ravel(), vectors[step].reshape(-1, 3))
        return [
            tf.constant(parts[step].sum(axis=0), "float32"),
            tf.constant(table, "float32"),
        ]

    results = {}
    for name in ("Lamb", "AdamW", "SGD"):
        with strategy.scope():
            optimizer, variables = make(name)

        @tf.function(autograph=False)
        def run(step, optimizer=optimizer, variables=variables):
            replica = tf.distribute.get_replica_context()
            replica = replica.replica_id_in_sync_group
            optimizer.apply(gradients(step, replica), variables)

        alone, of_one = make(name)
        for step in range(3):
            strategy.run(run, args=(tf.constant(step),))
            alone.apply(total(step), of_one)
        results[name] = [
            [v.numpy() for v in (*values, *averages)]
            for values, averages in (
                (variables, optimizer._model_variables_moving_average),
                (of_one, alone._model_variables_moving_average),
            )
        ]
    return results


def jax_results(inputs):
    import jax

    devices = keras.distribution.list_devices()
    assert len(devices) == DEVICES, devices
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(devices=devices)
    )
    mesh = jax.sharding.Mesh(jax.devices(), ("batch",))
    split = jax.sharding.NamedSharding(
        mesh, jax.sharding.PartitionSpec("batch")
    )
    batch = jax.device_put(inputs, split)
    results = {}
    for name, loss in losses():
        for masked in masks(loss):

            def value(*sources, loss=loss, masked=masked):
                return weighted(loss, batch, masked, *sources)

            step = jax.jit(
                jax.value_and_grad(value, (0, 1, 2, 3), has_aux=True)
            )
            (total, scores), slopes = step(
                batch["images"], batch["texts"], TEMPERATURE, BIAS
            )
            values = [total, *slopes[2:], *scores, *slopes[:2]]
            results[name, masked] = values
    return results


NAMES = (
    *("mean", "temperature", "bias"),
    *("loss", "image_hit", "text_hit", "images", "texts"),
)


def main():
    inputs = make_inputs()
    results = {"tensorflow": tensorflow_results, "jax": jax_results}[BACKEND]
    results = results(inputs)
    arrays = dict(inputs)
    for name, (many, one) in results.pop("optimizers", {}).items():
        for number, pair in enumerate(zip(many, one, strict=True)):
            arrays[f"{name} {number}"] = np.array(pair)
    for (name, masked), values in results.items():
        for key, value in zip(NAMES, values, strict=True):
            arrays[f"{name} {masked} {key}"] = np.asarray(value)
    np.savez(OUTPUT, **arrays)


if __name__ == "__main__":
    main()
