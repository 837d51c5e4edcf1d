"""Names of topologies, and what libtpu makes of them."""

import importlib

import pytest

pytest.importorskip("jax")

from align_keras.planning import compare_chips
from align_keras.planning.chips import CHIPS
from align_keras.planning.chips import known_topologies
from align_keras.planning.chips import parse_topology
from align_keras.planning.chips import slice_of


def test_topology_names_chip_and_size():
    assert parse_topology("v3:16x32") == (CHIPS["v3"], 512)
    assert parse_topology("v5p:2x2x2") == (CHIPS["v5p"], 8)
    assert all(parse_topology(name) for name in known_topologies())


@pytest.mark.parametrize(
    "name",
    ["v9:2x2", "v3", "v3:2x2x2", "v4:2x2", "v3:0x2", "v3:-2x2", "v5e:32x32"],
)
def test_unknown_topology_lists_the_known(name):
    with pytest.raises(ValueError) as error:
        parse_topology(name)
    assert f"no topology `{name}`" in str(error.value)
    assert all(known in str(error.value) for known in known_topologies())


def test_slice_of_a_number_of_chips():
    assert slice_of("v4", 4) == "v4:2x2x1"
    assert slice_of("v4", 8) == "v4:2x2x2"
    assert slice_of("v5e", 8) == "v5e:2x4"
    assert slice_of("v3", 512) == "v3:16x32"
    assert slice_of("v3", 8) is None
    assert slice_of("v5e", 512) is None


class Store:
    """Plans that are only a batch."""

    def plan(self, model, recipe, topology, batch, *_, **__):
        return {"topology": topology, "batch_per_core": batch}


@pytest.fixture
def compared(monkeypatch):
    """Compare chips without libtpu."""

    def devices(topology):
        chip, chips = parse_topology(topology)
        return range(chip.devices * chips)

    module = importlib.import_module(compare_chips.__module__)
    monkeypatch.setattr(module, "topology_devices", devices)

    def compare(**options):
        rows = compare_chips("any", store=Store(), **options)
        return {
            row["topology"]: (
                row["cores"],
                row["error"] if "error" in row else row["plan"],
            )
            for row in rows
        }

    return compare


def planned(topology, cores, batch):
    return {topology: (cores, {"topology": topology, "batch_per_core": batch})}


def test_every_kind_has_as_many_chips_as_the_topology(compared):
    """Which stays as it is, be it usual or not."""
    assert compared(topology="v4:2x2x2", batch_per_core=32) == {
        "v3": (16, "There is no usual slice of 8 chips."),
        **planned("v4:2x2x2", 8, 32),
        **planned("v5e:2x4", 8, 32),
        **planned("v5p:2x2x2", 8, 32),
        **planned("v6e:2x4", 8, 32),
    }
    unusual = compared(topology="v3:2x4", batch_per_core=32)
    assert unusual["v3:2x4"] == planned("v3:2x4", 16, 32)["v3:2x4"]
    assert unusual["v4:2x2x2"] == planned("v4:2x2x2", 8, 64)["v4:2x2x2"]
    large = compared(topology="v3:16x32")
    assert large["v5e"] == (512, "There is no usual slice of 512 chips.")


def test_topology_that_says_nothing_is_refused(compared):
    found = compared(
        topology="v5e:2x2", batch_per_core=8, topologies=["v3:2x2", "v3:2x2"]
    )
    assert found == planned("v3:2x2", 8, 4)
    with pytest.raises(ValueError, match="topology='v5e:2x2'"):
        compared(topology="v5e:2x2", topologies=["v3:2x2"])
