"""Describe the devices of an absent TPU, through libtpu."""

import glob
import os
from typing import Any

from align_keras.io.optional import require
from align_keras.planning.chips import parse_topology

# Environment variables that libtpu expects. Without them, it looks for the
# metadata server of a TPU machine, complains that it is missing, writes logs,
# and refuses a second process by a lock file. The lock matters only on a
# machine that has a TPU.
ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_LOG_DIR": "disabled",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}


def topology_devices(topology: str) -> list[Any]:
    """Return the devices of a topology, to compile for them.

    Args:
        topology: string. See `parse_topology`.

    Returns:
        A list of JAX devices.

    Raises:
        ImportError: libtpu is not installed.
        ValueError: The topology does not exist.
    """
    chip, _ = parse_topology(topology)
    hush_libtpu()
    require("libtpu", extra="plan")
    # A run on this machine may hold the lock, which compiling does not need.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
    import jax
    from jax.experimental import topologies

    options = {"chip_config_name": chip.config} if chip.config else {}
    try:
        description = topologies.get_topology_desc(topology, "tpu", **options)
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"libtpu refuses the topology `{topology}`: {reason}. Usual ones "
            f"are {', '.join(f'{chip.name}:{s}' for s in chip.slices)}."
        ) from None
    return description.devices


def hush_libtpu() -> None:
    """Keep libtpu from looking for a TPU if this machine has none."""
    if glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"):
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
