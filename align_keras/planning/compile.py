"""Compile a step for devices that may be absent, and read the result."""

import dataclasses
import re
import time
from typing import Any

import jax

_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# The compiler's messages for a single buffer that is too large, and for a whole
# program that is.
_SHORTAGES = (
    re.compile(
        r"required for .*?\(([\d.]+)(\w?)\) exceeds .*?\(([\d.]+)(\w?)\)"
    ),
    re.compile(r"Used ([\d.]+)(\w?) of ([\d.]+)(\w?)"),
)


class DoesNotFit(ValueError):
    """A step needs more memory than a device has.

    Attributes:
        needed: int. Bytes that the step needs, as far as the compiler could
            tell before it gave up.
        capacity: int. Bytes of memory of a device.
    """

    def __init__(self, message: str, needed: int, capacity: int):
        super().__init__(message)
        self.needed = needed
        self.capacity = capacity

    @classmethod
    def by(cls, needed: int, capacity: int) -> "DoesNotFit":
        """Create the error with the missing memory and advice."""
        return cls(
            f"The step needs {needed / 2**30:.2f} GiB on each core, "
            f"{(needed - capacity) / 2**30:.2f} GiB more than the "
            f"{capacity / 2**30:.2f} GiB available. Lower "
            "`--batch-per-core`, or use `--remat`, `--microbatch N` or "
            "`--shard-state`; `--search` finds the largest batch that "
            "fits.",
            needed,
            capacity,
        )


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The compiler's analysis of a step, for one device.

    Attributes:
        memory: JAX's memory statistics, with fields such as
            `temp_size_in_bytes`.
        flops: float. Floating-point operations.
        bytes: float. Bytes read from and written to the device's memory.
        seconds: float or `None`. The compiler's own estimate of the time.
            `None` if it has none.
        text: string or `None`. The program in HLO. `None` if JAX cannot read
            it.
        compile_seconds: float. How long compiling took.
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
        DoesNotFit: The step needs more memory than a device has.
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
        # The compiler subtracts a second for operations it cannot estimate.
        seconds=seconds if seconds > 0 else None,
        text=_text(compiled),
        compile_seconds=time.perf_counter() - start,
    )


def _text(compiled):
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError:
        # libtpu may write programs that the installed JAX cannot parse.
        return None


def read_shortage(message: str) -> tuple[int, int] | None:
    """Read the needed and the available memory from an error message.

    Args:
        message: string. The compiler's message.

    Returns:
        A pair of ints, the bytes that are needed and those that are
        available; `None` if the message is about something else.
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
