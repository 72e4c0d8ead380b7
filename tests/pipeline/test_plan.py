"""Rasters cut into units: every tile once, enough units to share, no unit too small."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.pipeline.label_arrays import raster_info

from panoptile.pipeline.plan import FEW_UNITS, MOST_TILES, UNITS_WANTED, RasterPlan, unit_tiles


@given(st.integers(1, 10**7))
def test_units_are_neither_few_nor_small(tiles: int) -> None:
    """A power of two up to 32 tiles; from 512 tiles on 64 units or more; never over 128 below 4,096 tiles."""
    size = unit_tiles(tiles)
    units = -(-tiles // size)
    assert size.bit_count() == 1
    assert size <= MOST_TILES
    assert units >= min(tiles, FEW_UNITS // 2)
    assert units >= UNITS_WANTED // 2 or tiles < 512
    assert units <= UNITS_WANTED or size == MOST_TILES


@pytest.mark.parametrize(("height", "width"), [(100, 100), (700, 900), (3000, 2500)])
def test_every_tile_is_in_one_unit(height: int, width: int) -> None:
    """Units follow each other without a gap, and each tile finds its own."""
    plan = RasterPlan(raster_info(height, width), 96, 24)
    units = list(plan.units())
    assert len(units) == plan.unit_count
    assert [tile for unit in units for tile in unit.items] == list(range(plan.item_count))
    assert all(tile in plan.unit_of(tile).items for tile in range(plan.item_count))
    assert {plan.unit_of(tile) for tile in range(plan.item_count)} == set(units)
