"""Make every strategy in a process that has several devices; print JSON.

Logical devices must be set up before TensorFlow or JAX starts, and a search
for a TPU leaves its marks.
"""

import json
import os
import sys

DEVICES = int(sys.argv[1])
BACKEND = os.environ["KERAS_BACKEND"]
if BACKEND == "jax":
    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={DEVICES}"
    )
else:
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * DEVICES,
    )

import keras

from align_keras.training import make_strategy


def attempt(name, **kwargs):
    try:
        strategy = make_strategy(name, **kwargs)
    except ValueError as error:
        return str(error)
    with strategy.scope():
        return strategy.num_replicas_in_sync


results = {
    name: attempt(name) for name in ("one-device", "auto", "mirrored", "tpu")
}
if BACKEND == "jax":
    attempt("auto")
    attempt("one-device")
    results["left"] = keras.distribution.distribution()
# Nobody listens there; TensorFlow itself would wait without end.
results["dead tpu"] = attempt("tpu", tpu="grpc://127.0.0.1:1")
os.environ["TPU_NAME"] = "grpc://127.0.0.1:1"
results["auto with TPU_NAME"] = attempt("auto")
print(json.dumps(results))
