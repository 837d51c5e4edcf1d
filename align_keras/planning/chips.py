"""Published specifications of Google's TPU chips, and their slices."""

import dataclasses
import difflib
import math


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published specifications of one kind of chip.

    Attributes:
        name: string. The prefix of topologies, such as `"v5e"`.
        devices: int. Number of JAX devices on a chip, which this package
            calls cores. The two cores of a v4 or v5p chip work as one.
        peak_flops: float. Peak of a chip in bfloat16, FLOP per second.
        bandwidth: float. Memory bandwidth of a chip, bytes per second.
        interconnect: float. Bytes per second that a chip can send over all
            its links together.
        clock: float. Cycles per second.
        capacity: float. GiB of memory of a core that libtpu leaves to a
            program.
        dimensions: int. Number of axes of the torus.
        most_chips: int. Number of chips in the largest slice.
        slices: tuple of strings. The usual slices in chips, smallest first.
        config: string or `None`. libtpu's name for the arrangement of cores.
            `None` is the default arrangement.
    """

    name: str
    devices: int
    peak_flops: float
    bandwidth: float
    interconnect: float
    clock: float
    capacity: float
    dimensions: int
    most_chips: int
    slices: tuple[str, ...]
    config: str | None = None


_FLAT: tuple[str, ...] = ("2x2", "4x4", "4x8", "8x8", "8x16", "16x16")
_DEEP: tuple[str, ...] = (
    "2x2x1",
    "2x2x2",
    "2x2x4",
    "2x4x4",
    "4x4x4",
    "4x4x8",
    "4x8x8",
)
_DEEP += ("8x8x8", "8x8x16", "8x16x16")
_V3 = (*_FLAT, "16x32")
_LITE = ("1x1", "2x2", "2x4", *_FLAT[1:])

# Peak and memory are from the Cloud TPU documentation. Links: v3 has 4 of
# 70 GB/s and v4 has 6 of 50 GB/s (Jouppi et al., 2023,
# https://arxiv.org/abs/2304.01433, table 4); the others as documented, one
# way. Clock: for v3 and v4 from the same paper; for the others derived from the
# peak and the number of multipliers. Capacity: as reported by libtpu 0.0.52
# when it refuses a program.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v3", 2, 123e12, 900e9, 280e9, 0.94e9, 15.48, 2, 1024, _V3),
        Chip(
            "v4",
            1,
            275e12,
            1.2e12,
            300e9,
            1.05e9,
            30.75,
            3,
            4096,
            _DEEP,
            "megacore",
        ),
        Chip("v5e", 1, 197e12, 819e9, 200e9, 1.5e9, 15.75, 2, 256, _LITE),
        Chip("v5p", 1, 459e12, 2765e9, 600e9, 1.75e9, 95.73, 3, 6144, _DEEP),
        Chip("v6e", 1, 918e12, 1640e9, 400e9, 1.75e9, 31.24, 2, 256, _LITE),
    )
}


def parse_topology(topology: str) -> tuple[Chip, int]:
    """Parse the name of a topology.

    Args:
        topology: string. A kind of chip and the number of chips of the slice
            along each axis, such as `"v3:16x32"` (512 chips with 1024 cores)
            or `"v5p:2x2x1"`.

    Returns:
        A pair of `Chip` and int, the number of chips.

    Raises:
        ValueError: The topology does not exist; the message lists the usual
            ones.
    """
    name, _, shape = str(topology).partition(":")
    chip = CHIPS.get(name)
    sizes = shape.split("x")
    # libtpu aborts the process for a size of 0, and accepts slices that are
    # not available.
    if (
        chip is None
        or len(sizes) != chip.dimensions
        or not all(size.isdecimal() and int(size) for size in sizes)
        or math.prod(map(int, sizes)) > chip.most_chips
    ):
        raise ValueError(_unknown(topology))
    return chip, math.prod(map(int, sizes))


def known_topologies() -> list[str]:
    """List the usual topologies of all chips."""
    return [
        f"{chip.name}:{shape}"
        for chip in CHIPS.values()
        for shape in chip.slices
    ]


def slice_of(chip: str, chips: int) -> str | None:
    """Return the usual slice with a number of chips.

    Args:
        chip: string. A key of `CHIPS`.
        chips: int. The number of chips.

    Returns:
        A string, the topology; `None` if no usual slice has that many chips.
    """
    for shape in CHIPS[chip].slices:
        if math.prod(map(int, shape.split("x"))) == chips:
            return f"{chip}:{shape}"
    return None


def _unknown(topology):
    known = known_topologies()
    nearest = difflib.get_close_matches(str(topology), known, n=1, cutoff=0)
    return (
        f"There is no topology `{topology}`. Did you mean `{nearest[0]}`? "
        f"Known: {', '.join(known)}. Other sizes in chips are possible too."
    )
