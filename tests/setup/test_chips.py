"""The table of chips."""

from __future__ import annotations

import pytest

from mmeureka_jax.setup.chips import CHIPS, GIB, chip_named, chip_of_kind


def test_a_chip_is_found_by_every_name_it_has():
    for chip in CHIPS:
        assert chip_named(chip.name) is chip
        assert chip_named(f"{chip.name}:2x2") is chip
        for kind in chip.device_kinds:
            assert chip_of_kind(kind) is chip
    assert chip_named("v9:2x2") is None
    assert chip_of_kind("cpu") is None


@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)
def test_figures_have_the_units_that_they_claim(chip):
    """A factor of 8 (bits) or 1000 would leave these ranges."""
    assert 15 * GIB < chip.memory_bytes < 200 * GIB
    assert 1e14 < chip.flops < 2e15
    assert 5e11 < chip.memory_bandwidth < 1e13
    assert 1e11 < chip.interconnect_bandwidth < 1e12
    assert 1e9 < chip.network_bandwidth < chip.interconnect_bandwidth
    assert chip.links == 2 * chip.torus_dimensions or not chip.torus_dimensions
    assert all(source for source in chip.sources)
