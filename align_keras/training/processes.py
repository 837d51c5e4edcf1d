"""Processes of JAX that were started to share a run.

They find one another by `KERAS_DISTRIBUTION_JOB_ADDRESSES`,
`KERAS_DISTRIBUTION_NUM_PROCESSES` and `KERAS_DISTRIBUTION_PROCESS_ID`, as
`keras.distribution.initialize` reads them; or by what JAX detects itself: a
TPU slice of several hosts, Slurm, Open MPI.
"""

import logging
import os

logger = logging.getLogger("align_keras")

# What Slurm and Open MPI tell each process of how many they started.
COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
OURS = "KERAS_DISTRIBUTION_"
# Seconds until the others are told that a process no longer answers.
SILENCE = 20


def join_processes(has_tpu=False):
    """Join the other processes, where this one was started as one of several.

    Call it before JAX computes anything. Processes that have joined already,
    by `jax.distributed.initialize`, stay as they are.

    Args:
        has_tpu: bool. Whether TPUs are attached, whose hosts know of one
            another. Defaults to `False`.

    Raises:
        ValueError: The environment names the others in part only, or they did
            not answer.
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
            # A host of its own may have nobody to ask. Those of a slice still
            # know of one another, by their chips.
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
    """Read what `keras.distribution.initialize` reads, with a clear error."""
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
                f"{OURS}{name} is missing beside "
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
