"""Measure the devices of this machine."""

import functools
import os
import time
from typing import Any

import jax
import jax.numpy as jnp

# Large enough to make the overhead of starting an operation negligible.
_SIDE = 2048
_ELEMENTS = 2**26


def local_capacity(device: Any) -> int:
    """Return the bytes of memory that a local device has."""
    statistics = device.memory_stats() or {}
    if "bytes_limit" in statistics:
        return statistics["bytes_limit"]
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return total // len(jax.local_devices())


@functools.cache
def measure_device(dtype: str) -> tuple[float, float]:
    """Measure the peak of a local device.

    Args:
        dtype: string. The dtype of computations, such as `"bfloat16"`.

    Returns:
        A pair of floats: FLOP per second of a matrix product, and bytes per
        second between the device and its memory.
    """
    matrix = jnp.ones((_SIDE, _SIDE), dtype)
    vector = jnp.ones(_ELEMENTS, "float32")
    product = _seconds(jax.jit(jnp.matmul), matrix, matrix)
    sum_of_two = _seconds(jax.jit(jnp.add), vector, vector)
    return 2 * _SIDE**3 / product, 3 * vector.nbytes / sum_of_two


def _seconds(function, *arguments, repeats=5):
    """Return the time of the fastest of several calls after a first one."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return min(times)
