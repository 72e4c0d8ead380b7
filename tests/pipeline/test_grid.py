"""The tile grid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from panoptile.pipeline.grid import TileGrid
from panoptile.pipeline.window import Window


@st.composite
def grids(draw: st.DrawFn) -> TileGrid:
    tile = draw(st.integers(1, 90))
    return TileGrid(
        draw(st.integers(1, 400)), draw(st.integers(1, 400)), tile, draw(st.integers(0, tile // 2))
    )


@given(grids())
def test_every_pixel_is_owned_exactly_once(grid: TileGrid) -> None:
    """The cores of all tiles cover the raster exactly once, and lie inside their windows."""
    owners = np.zeros((grid.height, grid.width), np.int32)
    for tile in grid:
        owners[tile.core.slices(Window(0, 0, grid.height, grid.width))] += 1
        assert tile.core.intersect(tile.window) == tile.core
        assert tile.window.height == min(grid.tile, grid.height)
        assert tile.window.width == min(grid.tile, grid.width)
    assert (owners == 1).all()


@given(grids(), st.data())
def test_tiles_touching_a_window_paint_it_exactly(grid: TileGrid, data: st.DataObject) -> None:
    """Looking tiles up by window finds all owners of its pixels and nothing else."""
    row, col = data.draw(st.integers(0, grid.height - 1)), data.draw(st.integers(0, grid.width - 1))
    window = Window.span(
        row,
        col,
        data.draw(st.integers(row + 1, grid.height)),
        data.draw(st.integers(col + 1, grid.width)),
    )
    painted = np.zeros(window.shape, np.int32)
    for _, common in grid.tiles_touching(window):
        painted[common.slices(window)] += 1
    assert (painted == 1).all()


@given(grids())
def test_core_lines_lie_inside_the_bands(grid: TileGrid) -> None:
    """With 16 px of overlap or more, the pixels on both sides of a core line are in the neighbours' band."""
    for tile in grid:
        for row, col in grid.neighbours(tile.row, tile.col):
            other = grid.tile_at(row, col)
            band = grid.band(tile, other)
            assert band == grid.band(other, tile)
            if grid.overlap < 16:
                continue
            assert band is not None
            if col == tile.col + 1:
                assert band.col <= tile.core.stop_col - 1
                assert tile.core.stop_col < band.stop_col
            if row == tile.row + 1:
                assert band.row <= tile.core.stop_row - 1
                assert tile.core.stop_row < band.stop_row


@pytest.mark.parametrize(("tile", "overlap"), [(512, 257), (512, -1), (0, 0)])
def test_impossible_tilings_are_refused(tile: int, overlap: int) -> None:
    """An overlap above half a tile, a negative one and an empty tile raise a ValueError."""
    with pytest.raises(ValueError, match=r"overlap|tile"):
        TileGrid(1000, 1000, tile, overlap)
