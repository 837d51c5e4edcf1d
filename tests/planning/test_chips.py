"""Names of topologies, and what libtpu makes of them."""

import pytest

pytest.importorskip("jax")

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
    assert slice_of("v3", 5) == "v3:4x4"
    assert slice_of("v5e", 10_000) == "v5e:16x16"
