"""Compile a step for devices that need not be there, and read the result."""

import dataclasses
import re
import time
from typing import Any

import jax

_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# What the compiler says of one buffer that is too large by itself, and of a
# whole program that is.
_SHORTAGES = (
    re.compile(
        r"required for .*?\(([\d.]+)(\w?)\) exceeds .*?\(([\d.]+)(\w?)\)"
    ),
    re.compile(r"Used ([\d.]+)(\w?) of ([\d.]+)(\w?)"),
)


class DoesNotFit(ValueError):
    """A step needs more memory than a device has.

    Attributes:
        needed: int. Bytes that the step needs, as far as the compiler came.
        capacity: int. Bytes that a device has.
    """

    def __init__(self, message: str, needed: int, capacity: int):
        super().__init__(message)
        self.needed = needed
        self.capacity = capacity

    @classmethod
    def by(cls, needed: int, capacity: int) -> "DoesNotFit":
        """Say by how much it does not fit, and what to change."""
        return cls(
            f"The step needs {needed / 2**30:.2f} GiB on each core, "
            f"{(needed - capacity) / 2**30:.2f} GiB more than the "
            f"{capacity / 2**30:.2f} GiB that there are. Lower "
            "`--batch-per-core`, or give `--remat`, `--microbatch N` or "
            "`--shard-state`; `--search` finds the largest batch that "
            "fits.",
            needed,
            capacity,
        )


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler knows of a step, for one device.

    Attributes:
        memory: The statistics of JAX, with fields such as
            `temp_size_in_bytes`.
        flops: float. Floating-point operations.
        bytes: float. Bytes that go to and from the device's memory.
        seconds: float or `None`. The compiler's own estimate of the time,
            where it has one.
        text: string or `None`. The program in HLO, where JAX can read it.
        compile_seconds: float. How long it took.
    """

    memory: Any
    flops: float
    bytes: float
    seconds: float | None
    text: str | None
    compile_seconds: float


def compile_step(lowered: Any) -> Compiled:
    """Compile a lowered step.

    Args:
        lowered: `jax.stages.Lowered`.

    Returns:
        A `Compiled`.

    Raises:
        DoesNotFit: It needs more memory than a device has.
    """
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needs = read_shortage(str(error))
        if needs is None:
            raise
        raise DoesNotFit.by(*needs) from None
    costs = compiled.cost_analysis()
    seconds = costs.get("optimal_seconds", 0)
    return Compiled(
        memory=compiled.memory_analysis(),
        flops=costs["flops"],
        bytes=costs["bytes accessed"],
        # The compiler subtracts a second for what it cannot judge.
        seconds=seconds if seconds > 0 else None,
        text=_text(compiled),
        compile_seconds=time.perf_counter() - start,
    )


def _text(compiled):
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError:
        # A libtpu may write programs that the JAX beside it cannot parse.
        return None


def read_shortage(message: str) -> tuple[int, int] | None:
    """Find out by how much a step does not fit.

    Args:
        message: string. What the compiler said.

    Returns:
        A pair of ints, the bytes that are needed and those that there are;
        `None` where the message is about something else.
    """
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    for pattern in _SHORTAGES:
        if match := pattern.search(message):
            needed, unit, there, other = match.groups()
            return (
                int(float(needed) * _UNITS[unit.upper()]),
                int(float(there) * _UNITS[other.upper()]),
            )
    return None
