import contextlib
import json
import os
import socket
from pathlib import Path
from typing import Any

import keras

from align_keras.backend.sharded_state import ShardedState
from align_keras.training.processes import join_processes

# The vendor of TPUs on the PCI bus.
GOOGLE = "0x1ae0"
STRATEGIES = ("auto", "one-device", "mirrored", "multi-worker", "tpu")


class _NoStrategy:
    """One device, with the parts of `tf.distribute.Strategy` used here."""

    num_replicas_in_sync = 1
    # The index of this process, and the number of processes in the run.
    worker = 0, 1

    def scope(self):
        return contextlib.nullcontext()


def make_strategy(
    name: str = "auto",
    tpu: str | None = None,
    join: bool = False,
    shard_state: bool = False,
) -> Any:
    """Create the distribution strategy of a training run.

    Args:
        name: string. `"one-device"`; `"mirrored"`, all local devices;
            `"multi-worker"`, the workers in the environment variable
            `TF_CONFIG`; `"tpu"`; or `"auto"`, which chooses by the hardware
            and the environment. On the JAX backend, `"auto"` and `"mirrored"`
            split the batch over all devices; on torch, training uses one
            device.
        tpu: string. Name or address of the TPU for the cluster resolver.
            `None` reads the environment variable `TPU_NAME`.
        join: bool. Whether JAX processes that were started together share the
            work, see `align_keras.training.processes`. Defaults to `False`.
        shard_state: bool. Whether each device holds only a part of the
            weights and the optimizer's state, see
            `align_keras.training.ShardedState`. Needs several devices on the
            JAX backend. Defaults to `False`.

    Returns:
        An object with `scope()` and `num_replicas_in_sync`, such as a
        `tf.distribute.Strategy`. Create the model and its optimizer within
        the scope.

    Raises:
        ValueError: The name is unknown, the hardware is missing, or
            `shard_state` is true and there is only one device.

    Example:

    ```python
    strategy = make_strategy("mirrored")
    with strategy.scope():
        model = AlignDualEncoder.from_preset("align_b3_bert_mini")
    ```
    """
    if name not in STRATEGIES:
        raise ValueError(
            f"`strategy` must be one of {', '.join(STRATEGIES)}. "
            f"Received: strategy={name!r}"
        )
    if tpu is not None and (
        name not in ("auto", "tpu") or keras.config.backend() != "tensorflow"
    ):
        raise ValueError(
            "`tpu` names a TPU for the strategies `auto` and `tpu` of the "
            f"TensorFlow backend. Received: tpu={tpu!r}, strategy={name!r}, "
            f"backend={keras.config.backend()!r}"
        )
    if keras.config.backend() == "jax":
        return _jax_strategy(name, join, shard_state)
    if shard_state:
        raise ValueError(
            "Only the JAX backend can split the state among devices. Set the "
            "environment variable KERAS_BACKEND to `jax`, or leave out "
            "`shard_state`. Received: shard_state=True, "
            f"backend={keras.config.backend()!r}"
        )
    if keras.config.backend() == "torch":
        if name not in ("auto", "one-device"):
            raise ValueError(
                "On the torch backend, models train on one device. Choose "
                "strategy='one-device', or set KERAS_BACKEND to tensorflow or "
                f"jax. Received: strategy={name!r}"
            )
        return _NoStrategy()
    import tensorflow as tf

    if name == "auto":
        name = "tpu" if tpu else _detect(tf)
    if name == "tpu":
        return _tpu_strategy(tf, tpu)
    if name == "multi-worker":
        _require_tf_config()
        return tf.distribute.MultiWorkerMirroredStrategy()
    if name == "mirrored":
        kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
        devices = tf.config.list_logical_devices(kind)
        return tf.distribute.MirroredStrategy([d.name for d in devices])
    return _NoStrategy()


def worker_of(strategy):
    """Return the index of this worker and the number of workers.

    Args:
        strategy: What `make_strategy` returned, or a `tf.distribute.Strategy`.

    Returns:
        A pair of ints, `(0, 1)` unless the strategy has several workers.
    """
    if isinstance(strategy, _NoStrategy):
        return strategy.worker
    import tensorflow as tf

    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 0, 1
    resolver = strategy.cluster_resolver
    cluster = resolver.cluster_spec().as_dict()
    index = resolver.task_id or 0
    if resolver.task_type == "worker":
        # A chief is the first of the workers.
        index += len(cluster.get("chief", []))
    return index, max(1, len(_workers(cluster)))


def hosts_of(strategy):
    """Return the number of hosts that read data for this process.

    One process drives all hosts of a TPU slice; each host reads its own part
    of the data.
    """
    extended = getattr(strategy, "extended", None)
    return getattr(extended, "num_hosts", 1)


def has_tpu(root="/"):
    """Return whether TPU chips are attached to this machine.

    TPUs up to v4 are `/dev/accel*`. Later ones are `/dev/vfio/*`, like any
    device passed through to a virtual machine, so the vendor on the PCI bus
    must be Google.
    """
    root = Path(root)
    if any(root.glob("dev/accel[0-9]*")):
        return True
    vendors = root.glob("sys/bus/pci/devices/*/vendor")
    return any(root.glob("dev/vfio/[0-9]*")) and any(
        vendor.read_text().strip() == GOOGLE for vendor in vendors
    )


def _detect(tf):
    if os.environ.get("TPU_NAME") or has_tpu():
        return "tpu"
    if len(_workers(_tf_config().get("cluster", {}))) > 1:
        return "multi-worker"
    if len(tf.config.list_logical_devices("GPU")) > 1:
        return "mirrored"
    return "one-device"


def _tf_config():
    try:
        return json.loads(os.environ.get("TF_CONFIG") or "{}")
    except json.JSONDecodeError as error:
        raise ValueError(
            f"The environment variable TF_CONFIG is not valid JSON: {error}"
        ) from None


def _workers(cluster):
    return [*cluster.get("chief", []), *cluster.get("worker", [])]


def _require_tf_config():
    config = _tf_config()
    if "cluster" not in config or "task" not in config:
        raise ValueError(
            "The strategy `multi-worker` needs the environment variable "
            "TF_CONFIG with the entries `cluster` and `task` on every worker."
        )
    kind = config["task"].get("type")
    if kind not in ("chief", "worker"):
        raise ValueError(
            "Only tasks of the types `worker` and `chief` train with the "
            "strategy `multi-worker`. Received: TF_CONFIG with a task of the "
            f"type {kind!r}"
        )


def _tpu_strategy(tf, tpu):
    tpu = tpu or os.environ.get("TPU_NAME") or ("local" if has_tpu() else None)
    try:
        if tpu is None:
            raise ValueError("there is no TPU here")
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu)
        _knock(resolver.master())
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (
        ImportError,
        OSError,
        RuntimeError,
        ValueError,
        tf.errors.OpError,
    ) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            "The strategy `tpu` found no TPU: run on a TPU VM, or name the "
            "TPU in the environment variable TPU_NAME. "
            f"Received: TPU_NAME={tpu!r}, which failed with: {reason}"
        ) from None
    return tf.distribute.TPUStrategy(resolver)


def _knock(address):
    """Raise `OSError` unless the TPU answers; TensorFlow waits forever."""
    if address.startswith("grpc://"):
        host, _, port = address.removeprefix("grpc://").rpartition(":")
        socket.create_connection((host, int(port)), timeout=20).close()


def _jax_strategy(name, join, shard_state):
    if name in ("multi-worker", "tpu"):
        raise ValueError(
            f"The strategy `{name}` belongs to the TensorFlow backend. On JAX "
            "use `auto`, which takes all devices of all processes."
        )
    if join:
        join_processes(has_tpu())
    import jax

    strategy = _NoStrategy()
    count = jax.process_count()
    if count > 1 and (not join or name == "one-device"):
        raise ValueError(
            "Several JAX processes can share only a run of `train`, with the "
            "strategy `auto` or `mirrored`; everything else runs in one "
            f"process. Received: strategy={name!r}, {count} processes"
        )
    strategy.worker = jax.process_index(), count
    devices = keras.distribution.list_devices()
    several = name != "one-device" and len(devices) > 1
    if shard_state and not several:
        raise ValueError(
            "A run on one device has no other to share the state with: leave "
            f"out `shard_state`. Received: strategy={name!r}, {len(devices)} "
            "devices"
        )
    # Where an earlier run has set one, it would stay.
    keras.distribution.set_distribution(None)
    if several:
        # The program sees the global batch, which must divide evenly.
        strategy.num_replicas_in_sync = len(devices)
        kind = ShardedState if shard_state else keras.distribution.DataParallel
        keras.distribution.set_distribution(
            kind(
                devices=devices,
                # Each process reads its own rows.
                auto_shard_dataset=count == 1,
            )
        )
    return strategy
