"""Times of collectives against the formulas, worked out by hand for each network."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from mmeureka_jax.planning.hlo import Collective
from mmeureka_jax.planning.links import HOP_SECONDS, Network
from mmeureka_jax.setup.chips import chip_named

V = 2**30


def network(chip: str, topology: tuple[int, ...], mesh: dict[str, int], slices: int = 1) -> Network:
    """Chips of slices in the order of their coordinates, the last one fastest."""
    found = chip_named(chip)
    assert found is not None
    places = itertools.product(range(slices), *(range(size) for size in topology))
    devices = [
        SimpleNamespace(id=number, slice_index=where, coords=tuple(coordinates))
        for number, (where, *coordinates) in enumerate(places)
    ]
    grid = np.array(devices, object).reshape(tuple(mesh.values()))
    return Network(found, SimpleNamespace(axis_names=tuple(mesh), devices=grid))  # type: ignore[arg-type]


def seconds(where: Network, kind: str, *axes: str) -> float:
    group = int(np.prod([where.devices.shape[where.axes.index(axis)] for axis in axes]))
    return where.seconds(Collective(kind, axes, group, V, 1, ""))


@pytest.mark.parametrize(
    ("chip", "topology", "axes", "incoming", "hops"),
    [
        ("v5e", (4, 4), ("tensor",), 50e9, 3),  # a line: dimensions close from 16 chips on
        ("v5e", (4, 4), ("fsdp", "tensor"), 100e9, 6),  # a grid
        ("v5e", (16, 16), ("fsdp",), 100e9, 8),  # a ring has two ways into each chip
        ("v5p", (4, 4), ("tensor",), 200e9, 2),
        ("v5p", (4, 4), ("fsdp", "tensor"), 400e9, 4),
    ],
)
def test_gathers_within_a_slice(chip, topology, axes, incoming, hops):
    rows, columns = topology
    where = network(chip, topology, {"fsdp": rows, "tensor": columns})
    members = {"tensor": columns, "fsdp": rows}
    count = int(np.prod([members[axis] for axis in axes]))
    expected = V * (count - 1) / count / incoming
    assert seconds(where, "all-gather", *axes) == pytest.approx(expected + hops * HOP_SECONDS)
    assert seconds(where, "reduce-scatter", *axes) == seconds(where, "all-gather", *axes)
    assert seconds(where, "all-reduce", *axes) == pytest.approx(2 * seconds(where, "all-gather", *axes))


def test_groups_with_gaps_share_links():
    where = network("v5e", (16,), {"fsdp": 4, "tensor": 4})  # members of `fsdp` are 4 places apart
    assert seconds(where, "all-gather", "fsdp") == pytest.approx(V * 0.75 / (50e9 / 4) + 12 * HOP_SECONDS)


def test_switches_of_hosts_and_the_network_between_them():
    one = network("h100", (8,), {"fsdp": 8})
    assert seconds(one, "all-gather", "fsdp") == pytest.approx(V * 7 / 8 / 450e9 + HOP_SECONDS)
    assert seconds(one, "all-to-all", "fsdp") == pytest.approx(V * 7 / 8 / 450e9 + HOP_SECONDS)
    two = network("h100", (16,), {"fsdp": 16})
    across = V / 2 / (8 * 50e9)  # the half of the other host, over the ports of all eight
    assert seconds(two, "all-gather", "fsdp") == pytest.approx(V * 7 / 8 / 450e9 + across + 2 * HOP_SECONDS)


def test_slices_reduce_over_the_data_center_network():
    where = network("v5e", (4, 4), {"data": 2, "fsdp": 4, "tensor": 4}, slices=2)
    expected = 2 * V * 0.5 / 3.125e9
    assert seconds(where, "all-reduce", "data") == pytest.approx(expected, rel=1e-4)
    assert seconds(where, "all-reduce", "fsdp") == pytest.approx(2 * V * 0.75 / 50e9, rel=1e-3)


def test_exchanges_on_rings_and_lines():
    ring = network("v5p", (4, 4), {"fsdp": 4, "tensor": 4})
    # A chip sends 3/4 of its array, on average over one hop, half of it each way: as much as the formula's quarter.
    assert seconds(ring, "all-to-all", "tensor") == pytest.approx(V * 4 / 4 / 200e9 + 2 * HOP_SECONDS)
    assert seconds(ring, "collective-permute", "tensor") == pytest.approx(V / 200e9 + HOP_SECONDS)


def test_groups_along_no_axis_are_a_line():
    where = network("v5e", (4, 4), {"fsdp": 4, "tensor": 4})
    odd = Collective("all-gather", (), 3, V, 5, "")
    assert where.total_seconds([odd]) == pytest.approx(5 * (V * 2 / 3 / 50e9 + 2 * HOP_SECONDS))
