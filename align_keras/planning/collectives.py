"""What the devices exchange in a step, read from a compiled program."""

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
_SIZES = {"pred": 8, "bf16": 16}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%[\w.\-]+ = (.*?) ([a-z][\w\-]*)\((.*)$"
)
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations)="
    r"\{?(%[\w.\-]+(?:, ?%[\w.\-]+)*)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")


def read_collectives(program):
    """Sum up the collectives of one step.

    Those within a loop count as often as it turns, where the compiler knows
    that.

    Args:
        program: string. The text of a compiled module, in HLO.

    Returns:
        A list of dicts with `"kind"`; `"count"`, how often it runs; and
        `"bytes"`, the size of the results on one device, all together. The
        kind with the most bytes comes first.
    """
    entry, computations = _parse(program)
    times = _times(entry, computations)
    counts, sizes = collections.Counter(), collections.Counter()
    for name, instructions in computations.items():
        for shape, operation, _ in instructions:
            kind = operation.removesuffix("-start")
            if kind not in KINDS or not times[name]:
                continue
            counts[kind] += times[name]
            started = operation != kind
            sizes[kind] += times[name] * _bytes(shape, kind, started)
    return [
        {"kind": kind, "count": counts[kind], "bytes": size}
        for kind, size in sizes.most_common()
    ]


def transfer_seconds(collectives, devices, bandwidth):
    """Bound the time of the collectives from below.

    Args:
        collectives: list of dicts. What `read_collectives` returned.
        devices: int. The number that take part.
        bandwidth: float. Bytes per second that a device can send.

    Returns:
        float. Seconds, if each device sends no more than it must.
    """
    share = (devices - 1) / devices
    sent = {
        "all-reduce": 2 * share,
        "all-gather": share,
        # Its result is one part of what each device has to send on.
        "reduce-scatter": devices - 1,
        "all-to-all": share,
        "collective-permute": 1,
    }
    return sum(sent[c["kind"]] * c["bytes"] for c in collectives) / bandwidth


def _parse(program):
    """Split a module into computations of `(shape, operation, rest)`."""
    entry, current, computations = None, None, {}
    for line in program.splitlines():
        if match := _COMPUTATION.match(line):
            current = computations.setdefault(match[2], [])
            if match[1]:
                entry = match[2]
        elif current is not None and (match := _INSTRUCTION.match(line)):
            current.append(match.groups())
    return entry, computations


def _times(entry, computations):
    """Count how often each computation runs in a step."""
    times = collections.Counter()

    def visit(name, count):
        times[name] += count
        for _, operation, rest in computations.get(name, ()):
            trips = _TRIPS.search(rest) if operation == "while" else None
            turns = count * int(trips[1]) if trips else count
            for called in _CALLED.findall(rest):
                for other in called.replace("%", "").split(","):
                    visit(other.strip(), turns)

    visit(entry, 1)
    return times


def _bytes(shape, kind, started):
    """Size of a result; a start has its operands in front of it."""
    sizes = [
        math.prod(map(int, dims.split(",") if dims else ())) * _width(dtype)
        for dtype, dims in _ARRAY.findall(shape)
    ]
    if started and kind != "all-reduce":
        # Of a collective-permute, two counters stand behind.
        if kind == "collective-permute":
            return sizes[1]
        sizes = sizes[len(sizes) // 2 :]
    return sum(sizes)


def _width(dtype):
    """Bytes of an element, such as 4 of `f32`."""
    if dtype in _SIZES:
        return _SIZES[dtype] // 8
    bits = re.search(r"\d+", dtype)
    return max(1, int(bits[0]) // 8) if bits else 0
