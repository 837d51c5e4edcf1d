"""Read the collectives and cycles of a compiled program."""

import collections
import math
import re

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%[\w.\-]+ = (.*?) ([a-z][\w\-]*)\((.*)$"
)
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations)="
    r"\{?(%[\w.\-]+(?:, ?%[\w.\-]+)*)"
)
_CONDITION = re.compile(r"condition=%([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")


class Program:
    """A compiled module, parsed from its HLO text.

    Args:
        text: string. The result of JAX's `compiled.as_text()`.
    """

    def __init__(self, text: str):
        self._entry, self._computations = _parse(text)
        self._times = self._count_times()

    def collectives(self) -> list[dict]:
        """Sum up the collectives of one step.

        Collectives in a loop count once per iteration.

        Returns:
            A list of dicts with `"kind"`; `"count"`, how often it runs; and
            `"bytes"`, the total size of its results on one device. The kind
            with the most bytes comes first.
        """
        counts: collections.Counter = collections.Counter()
        sizes: collections.Counter = collections.Counter()
        for times, shape, operation, _ in self._instructions():
            kind = operation.removesuffix("-start")
            if kind in KINDS:
                counts[kind] += times
                sizes[kind] += times * _bytes(shape, kind, operation != kind)
        return [
            {"kind": kind, "count": counts[kind], "bytes": size}
            for kind, size in sizes.most_common()
        ]

    def cycles(self) -> tuple[int, int]:
        """Sum up the compiler's estimates of the cycles of operations.

        Returns:
            A pair of ints: with every iteration of loops, and with each loop
            counted once. Zeros if the compiler gives no estimates.
        """
        whole = once = 0
        for times, _, _, rest in self._instructions():
            if match := _CYCLES.search(rest):
                whole += times * int(match[1])
                once += int(match[1])
        return whole, once

    def _instructions(self):
        for name, instructions in self._computations.items():
            if self._times[name]:
                for instruction in instructions:
                    yield self._times[name], *instruction

    def _count_times(self):
        """Count how often each computation runs in a step."""
        times: collections.Counter = collections.Counter()

        def visit(name, count):
            times[name] += count
            for _, operation, rest in self._computations.get(name, ()):
                turns = count
                if operation == "while":
                    turns *= self._trips(rest)
                for called in _CALLED.findall(rest):
                    for other in called.replace("%", "").split(","):
                        visit(other.strip(), turns)

        visit(self._entry, 1)
        return times

    def _trips(self, loop):
        """Return the trip count of a loop, from its config or condition."""
        if match := _TRIPS.search(loop):
            return int(match[1])
        condition = self._computations.get(_CONDITION.search(loop)[1], ())
        limits = {
            int(rest.partition(")")[0])
            for shape, operation, rest in condition
            if operation == "constant" and shape.startswith("s32[]")
        }
        return limits.pop() if len(limits) == 1 else 1


def transfer_seconds(
    collectives: list[dict], devices: int, bandwidth: float
) -> float:
    """Compute a lower bound of the time of the collectives.

    Args:
        collectives: list of dicts. The result of `Program.collectives`.
        devices: int. The number of devices that take part.
        bandwidth: float. Bytes per second that a device can send.

    Returns:
        A float, the seconds if each device sends no more than it must.
    """
    share = (devices - 1) / devices
    sent = {
        "all-reduce": 2 * share,
        "all-gather": share,
        # Its result is only one part of what each device has to send.
        "reduce-scatter": devices - 1,
        "all-to-all": share,
        "collective-permute": 1,
    }
    return sum(sent[c["kind"]] * c["bytes"] for c in collectives) / bandwidth


def _parse(text):
    """Split a module into computations of `(shape, operation, rest)`."""
    entry, current, computations = None, None, {}
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = computations.setdefault(match[2], [])
            if match[1]:
                entry = match[2]
        elif current is not None and (match := _INSTRUCTION.match(line)):
            current.append(match.groups())
    return entry, computations


def _bytes(shape, kind, started):
    """Return the size of a result; a start lists its operands first."""
    sizes = [
        math.prod(map(int, dims.split(",") if dims else ())) * _width(dtype)
        for dtype, dims in _ARRAY.findall(shape)
    ]
    if started and kind != "all-reduce":
        # The result of a collective-permute is followed by two counters.
        if kind == "collective-permute":
            return sizes[1]
        sizes = sizes[len(sizes) // 2 :]
    return sum(sizes)


def _width(dtype):
    """Return the bytes of an element, such as 4 for `f32`, 1 for a bool."""
    bits = re.search(r"\d+", dtype)
    return max(1, int(bits[0]) // 8) if bits else 1
