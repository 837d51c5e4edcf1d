"""Connect JAX processes that were started to share a run.

They find one another through the environment variables
`KERAS_DISTRIBUTION_JOB_ADDRESSES`, `KERAS_DISTRIBUTION_NUM_PROCESSES` and
`KERAS_DISTRIBUTION_PROCESS_ID`, as in `keras.distribution.initialize`, or
through an environment that JAX detects itself: a TPU slice of several hosts,
Slurm or Open MPI.
"""

import logging
import os

logger = logging.getLogger("align_keras")

# Variables in which Slurm and Open MPI store the number of processes.
COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
OURS = "KERAS_DISTRIBUTION_"
# Seconds without a heartbeat until JAX reports a process as lost.
SILENCE = 20


def join_processes(has_tpu=False):
    """Connect to the other processes, if this one is one of several.

    Call it before JAX computes anything. It does nothing if
    `jax.distributed.initialize` has been called already.

    Args:
        has_tpu: bool. Whether TPUs are attached; the hosts of a TPU slice can
            find one another. Defaults to `False`.

    Raises:
        ValueError: The environment describes the processes incompletely, or
            they did not answer.
    """
    import jax

    given = {
        name.removeprefix(OURS): value
        for name, value in os.environ.items()
        if name.startswith(OURS) and value
    }
    if jax.distributed.is_initialized():
        return
    if given:
        arguments = _read(given)
    elif any(int(os.environ.get(name) or 1) > 1 for name in COUNTS):
        arguments = {}
    elif has_tpu:
        try:
            jax.distributed.initialize(heartbeat_timeout_seconds=SILENCE)
        except (OSError, RuntimeError, ValueError) as error:
            # A single host may have no other host to connect to. The hosts of
            # a slice still find one another, through their chips.
            logger.info("No other TPU hosts were found: %s", error)
        return
    else:
        return
    try:
        jax.distributed.initialize(
            heartbeat_timeout_seconds=SILENCE, **arguments
        )
    except (ValueError, RuntimeError) as error:
        raise ValueError(_refusal(error)) from None


def _read(given):
    """Read the variables of `keras.distribution.initialize` and check them."""
    addresses = [a for a in given.get("JOB_ADDRESSES", "").split(",") if a]
    count, number = given.get("NUM_PROCESSES"), given.get("PROCESS_ID")
    if count is None and len(addresses) > 1:
        count = len(addresses)
    for name, value in (
        ("JOB_ADDRESSES", addresses or None),
        ("NUM_PROCESSES", count),
        ("PROCESS_ID", number),
    ):
        if value is None:
            raise ValueError(
                f"{OURS}{name} is missing; given: "
                f"{', '.join(OURS + other for other in sorted(given))}. Set "
                "all three: the address of process 0 as host:port, the number "
                "of processes, and the number of this one from 0."
            )
    try:
        count, number = int(count), int(number)
    except ValueError:
        raise ValueError(
            f"{OURS}NUM_PROCESSES and {OURS}PROCESS_ID must be whole numbers. "
            f"Received: {count!r} and {number!r}"
        ) from None
    if not 0 <= number < count or len(addresses) not in (1, count):
        raise ValueError(
            f"{OURS}PROCESS_ID must be from 0 to {OURS}NUM_PROCESSES - 1, and "
            "there must be one address, or one for each process. Received: "
            f"process {number} of {count}, {len(addresses)} addresses"
        )
    return {
        "coordinator_address": addresses[0],
        "num_processes": count,
        "process_id": number,
    }


def _refusal(error):
    reason = str(error).strip().partition("\n")[0]
    return (
        "The processes of JAX that were to share this run did not find one "
        f"another: {reason}. Start all of them, each with its own "
        f"{OURS}PROCESS_ID, and see that process 0 can be reached."
    )
