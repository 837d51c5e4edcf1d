"""Train small models in every way, on any number of devices.

    python cases.py DEVICES OUTPUT.npz CASE ...
    python cases.py PROCESS/PROCESSES/ADDRESS OUTPUT.npz CASE ...

All cases of a number of devices share a process, for starting one is what
takes time. `CASES` says what they are.
"""

import contextlib
import dataclasses
import os
import sys

BACKEND = os.environ.get("KERAS_BACKEND", "tensorflow")
if BACKEND == "jax":
    os.environ["JAX_ENABLE_X64"] = "true"

import keras
import numpy as np

from align_keras import AlignDualEncoder
from align_keras import Alignment
from align_keras import BertTextEncoder
from align_keras import ContrastiveLoss
from align_keras import ModalityGap
from align_keras import PairRecall
from align_keras import SigmoidLoss
from align_keras import Uniformity
from align_keras import optimizers
from align_keras.models.mbconv_block import MBConvBlock
from align_keras.models.mbconv_block import batch_normalization
from align_keras.optimizers import SGD

BATCH = 32


@dataclasses.dataclass
class Case:
    """One way to train; see `run` for what is kept of it."""

    batch_norm: str = "synchronized"
    # Number of examples that share statistics where that is "ghost".
    run: int = 4
    rows: int = 2 * BATCH
    optimizer: dict = dataclasses.field(default_factory=dict)
    compile: dict = dataclasses.field(default_factory=dict)
    dropout: float = 0.0
    frozen: bool = False
    # Index of a row whose image is not a number.
    broken: int | None = None
    dtype: str = "float64"
    evaluated: bool = False
    # Whether the towers have blocks that can be computed anew.
    blocks: bool = False
    sigmoid: bool = False
    # Whether each variable has a learning rate of its own, and decays.
    rates: bool = False
    # "AdamW" or "Lamb" in the place of SGD.
    adaptive: str | None = None
    tile_size: int | None = None

    def make_loss(self):
        if self.sigmoid:
            return SigmoidLoss(
                tile_size=self.tile_size, dtype=keras.config.floatx()
            )
        return ContrastiveLoss(
            0.1, tile_size=self.tile_size, dtype=keras.config.floatx()
        )


TAIL = 2 * BATCH + 9
# How many devices draw masks of dropout.
DEVICES = 8 if BACKEND == "jax" else 2
CLIPPED = {"global_clipnorm": 0.1, "use_ema": True, "ema_momentum": 0.5}
MANY = {
    "batch_norm": "ghost",
    "rows": 3 * BATCH,
    "broken": BATCH + 3,
    "optimizer": CLIPPED,
    "compile": {"skip_nonfinite": True},
}
CASES = {
    "plain": Case(),
    "tail": Case(rows=TAIL, evaluated=True),
    "steps tail": Case(
        rows=TAIL, compile={"steps_per_execution": 2}, evaluated=True
    ),
    "bfloat16": Case(dtype="mixed_bfloat16"),
    # Statistics of a replica are those of a run that is as long.
    "local": Case("local"),
    "half batches": Case("ghost", run=BATCH // 2),
    "ghost tail": Case("ghost", rows=2 * BATCH + 8),
    "cached tail": Case(
        "local",
        rows=2 * BATCH + 8,
        compile={"microbatch_size": 4, "steps_per_execution": 2},
    ),
    "pairs": Case("ghost", run=2),
    "pairs cached": Case("ghost", run=2, compile={"microbatch_size": 2}),
    "rates": Case(rates=True, compile={"gradient_norms": True}),
    "AdamW": Case("ghost", blocks=True, adaptive="AdamW"),
    "Lamb": Case("ghost", blocks=True, adaptive="Lamb", optimizer=CLIPPED),
    "skipped": Case(
        rows=3 * BATCH, broken=BATCH + 3, compile={"skip_nonfinite": True}
    ),
    "frozen": Case(frozen=True),
    "frozen cached": Case(frozen=True, compile={"microbatch_size": 4}),
    "sigmoid": Case("ghost", run=2, sigmoid=True),
    "sigmoid cached": Case(
        "ghost",
        run=2,
        sigmoid=True,
        tile_size=5,
        compile={"microbatch_size": 2},
    ),
    # Many things at once, for where each of them would take long.
    "blocks at once": Case(**MANY, blocks=True),
    "combined": Case(
        **MANY | {"compile": MANY["compile"] | {"remat": True}},
        blocks=True,
        tile_size=5,
    ),
    # These give the numbers of one another on as many devices only.
    "dropout": Case("ghost", blocks=True, dropout=0.5),
    "dropout remat": Case(
        "ghost", blocks=True, dropout=0.5, compile={"remat": True}
    ),
    "dropout cached": Case(
        "ghost",
        blocks=True,
        dropout=0.5,
        compile={"microbatch_size": BATCH // DEVICES},
    ),
}


def make_inputs(rows, broken=None):
    rng = np.random.default_rng(0)
    # The texts of one replica are shorter than those of another.
    lengths = np.where(np.arange(rows) % BATCH < BATCH // 2, 5, 20)
    inputs = {
        "images": rng.uniform(-1, 1, (rows, 16, 16, 3)),
        "token_ids": rng.integers(5, 50, (rows, 20)).astype("int32"),
        "padding_mask": (np.arange(20) < lengths[:, None]).astype("int32"),
    }
    if broken is not None:
        inputs["images"][broken] = np.nan
    return inputs


def batches_of(inputs):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(inputs).batch(BATCH)


def image_encoder(case):
    images = keras.Input((16, 16, 3))
    # Names of our own: Keras counts those of a process.
    x = keras.layers.Conv2D(6, 3, strides=4, use_bias=False, name="stem")(
        images
    )
    kind = case.batch_norm, case.run
    x = batch_normalization(*kind, case.dtype, "bn")(x)
    x = keras.layers.ReLU()(x)
    if case.blocks:
        x = MBConvBlock(
            6,
            6,
            3,
            1,
            2,
            residual=True,
            dropout=case.dropout,
            batch_norm=case.batch_norm,
            virtual_batch_size=case.run,
            name="block",
        )(x)
    return keras.Model(images, x)


def text_encoder(case):
    if case.blocks:
        return BertTextEncoder(50, 1, 2, 16, 32, dropout=case.dropout)
    token_ids = keras.Input((None,), dtype="int32", name="token_ids")
    vectors = keras.layers.Embedding(50, 16, name="tokens")(token_ids)
    return keras.Model({"token_ids": token_ids}, vectors)


def make_model(case):
    keras.utils.set_random_seed(0)
    model = AlignDualEncoder(
        image_encoder(case),
        text_encoder(case),
        embedding_dim=12,
        text_pooling="first",
        initial_temperature=0.1,
        initial_bias=-3.0 if case.sigmoid else None,
    )
    # The same weights whatever the strategy drew.
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if "seed" not in weight.path:
            value = keras.ops.convert_to_numpy(weight)
            noise = rng.uniform(0.5, 1.5, value.shape)
            weight.assign(value * noise + 0.01 * (value.ndim == 1))
    model.image_encoder.trainable = not case.frozen
    optimizer = keras.optimizers.SGD(
        0.1, momentum=0.9, name="sgd", **case.optimizer
    )
    if case.adaptive:
        optimizer = getattr(optimizers, case.adaptive)(
            1e-3, weight_decay=0.1, name="adaptive", **case.optimizer
        )
    if case.rates:
        count = len(model.trainable_variables)
        optimizer = SGD(
            0.1,
            momentum=0.9,
            weight_decay=0.1,
            name="sgd",
            rate_multipliers=np.linspace(0, 1, count),
        )
    model.compile(
        optimizer,
        case.make_loss(),
        # Rows that only fill up a smaller last batch must not count.
        metrics=make_metrics() if case.rows % BATCH else None,
        jit_compile=BACKEND == "jax",
        **case.compile,
    )
    return model


def make_metrics():
    return [
        PairRecall(3),
        PairRecall(3, "text_to_image"),
        Alignment(),
        Uniformity("image"),
        Uniformity("text"),
        ModalityGap(),
    ]


def run(case, process=0, processes=1):
    """Train for an epoch, evaluate, predict; all that can be compared."""
    # Rounding in float32 would hide what is to be shown.
    wide = case.dtype == "float64"
    keras.config.set_floatx("float64" if wide else "float32")
    keras.config.set_dtype_policy(case.dtype)
    model = make_model(case)
    inputs = make_inputs(case.rows, case.broken)
    size = BATCH // processes
    shared = processes > 1 and case.rows % BATCH > 0
    if processes > 1:
        keras.distribution.distribution().auto_shard_dataset = shared
    if shared:  # All have the whole of it, with a smaller last batch.
        inputs, size = batches_of(inputs), None
    elif processes > 1:  # Each has its part of every batch.
        inputs = {
            name: np.concatenate(
                np.split(rows, case.rows // size)[process::processes]
            )
            for name, rows in inputs.items()
        }
    history = model.fit(
        inputs, batch_size=size, shuffle=False, verbose=0
    ).history
    results = {f"history {k}": np.array(v) for k, v in history.items()}
    for variable in model.variables + model.optimizer.variables:
        value = keras.ops.convert_to_numpy(variable)
        results[f"weight {variable.path}"] = value
    if not case.evaluated:
        return results
    inputs = make_inputs(case.rows)
    metrics = model.evaluate(
        batches_of(inputs) if shared else inputs,
        batch_size=None if shared else BATCH,
        verbose=0,
        return_dict=True,
    )
    results |= {f"evaluated {k}": v for k, v in metrics.items()}
    if shared:  # Nobody has all rows to return.
        return results
    outputs = model.predict(inputs, batch_size=BATCH, verbose=0)
    results |= {f"predicted {k}": v for k, v in outputs.items()}
    return results


def connect(address, process, processes):
    """Join the processes of JAX, of two devices each."""
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    keras.distribution.initialize(address, processes, process)
    return keras.distribution.DataParallel(auto_shard_dataset=False).scope()


def strategy_scope(devices):
    if BACKEND == "jax":
        os.environ["XLA_FLAGS"] = (
            f"--xla_force_host_platform_device_count={devices}"
        )
        names = keras.distribution.list_devices()
        assert len(names) == devices, names
        return keras.distribution.DataParallel(devices=names).scope()
    if devices == 1:
        return contextlib.nullcontext()
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * devices
    )
    names = [d.name for d in tf.config.list_logical_devices("CPU")]
    return tf.distribute.MirroredStrategy(names).scope()


def run_all(names, *part):
    """Run cases within the current scope; returns all results by name."""
    return {
        f"{name}: {key}": value
        for name in names
        for key, value in run(CASES[name], *part).items()
    }


def main(devices, output, *names):
    if "/" not in devices:
        with strategy_scope(int(devices)):
            np.savez(output, **run_all(names))
        return
    process, processes, address = devices.split("/")
    part = int(process), int(processes)
    with connect(address, *part):
        results = run_all(names, *part)
    np.savez(output, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
