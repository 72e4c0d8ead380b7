"""The tile grid of one raster: windows, cores and overlap bands, from four numbers and nothing else.

Axes are independent: each axis is cut into spans of ``tile`` pixels that step by ``tile - overlap``; the
last span is pulled inwards so that it ends at the raster's edge. A core line lies in the middle of each
overlap, so every pixel is owned by exactly one tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from panoptile.pipeline.window import Window

RIM = 16
"""Pixels next to a tile's border that are least reliable: left out of the overlap band."""


@dataclass(frozen=True, slots=True, order=True)
class Tile:
    """One tile: what the replica sees, and which of it the tile owns."""

    row: int
    """Row in the grid."""
    col: int
    """Column in the grid."""
    window: Window
    """Pixels read, clipped to the raster; smaller than the tile size only where the raster is."""
    core: Window
    """Pixels owned: the cores of all tiles cover the raster exactly once."""


@dataclass(frozen=True, slots=True)
class TileGrid:
    """All tiles of a raster of ``height`` x ``width`` pixels."""

    height: int
    width: int
    tile: int
    """Side of a tile, pixels."""
    overlap: int
    """Pixels that neighbouring tiles share, at most half a tile."""

    def __post_init__(self) -> None:
        if self.height <= 0 or self.width <= 0:
            raise ValueError(f"A raster needs a positive size, got {self.height}x{self.width}.")
        if self.tile < 1:
            raise ValueError(f"A tile needs at least one pixel, got {self.tile}.")
        if not 0 <= self.overlap <= self.tile // 2:
            raise ValueError(
                f"The overlap must lie between 0 and half the tile ({self.tile // 2} px), got {self.overlap} px."
            )

    @property
    def rows(self) -> int:
        return _count(self.height, self.tile, self.overlap)

    @property
    def cols(self) -> int:
        return _count(self.width, self.tile, self.overlap)

    def __len__(self) -> int:
        return self.rows * self.cols

    def tile_at(self, row: int, col: int) -> Tile:
        """The tile in grid row ``row`` and grid column ``col``."""
        if not (0 <= row < self.rows and 0 <= col < self.cols):
            raise IndexError(f"Tile ({row}, {col}) lies outside the grid of {self.rows}x{self.cols} tiles.")
        top, bottom = self._span(self.height, row)
        left, right = self._span(self.width, col)
        core_top, core_bottom = self._core(self.height, row)
        core_left, core_right = self._core(self.width, col)
        return Tile(
            row,
            col,
            Window.span(top, left, bottom, right),
            Window.span(core_top, core_left, core_bottom, core_right),
        )

    def tile_id(self, row: int, col: int) -> int:
        """Row-major number of a tile, from 0."""
        return row * self.cols + col

    def by_id(self, tile_id: int) -> Tile:
        """The tile of a row-major number."""
        return self.tile_at(*divmod(tile_id, self.cols))

    def __iter__(self) -> Iterator[Tile]:
        for tile_id in range(len(self)):
            yield self.by_id(tile_id)

    def tiles_touching(self, window: Window) -> Iterator[tuple[Tile, Window]]:
        """Tiles whose cores meet ``window``, with the common part, in row-major order."""
        for row in self._touching(self.height, window.row, window.stop_row):
            for col in self._touching(self.width, window.col, window.stop_col):
                tile = self.tile_at(row, col)
                common = tile.core.intersect(window)
                if common is not None:
                    yield tile, common

    def neighbours(self, row: int, col: int) -> Iterator[tuple[int, int]]:
        """Grid positions east, south-west, south and south-east: each adjacent pair is named once."""
        for r, c in ((row, col + 1), (row + 1, col - 1), (row + 1, col), (row + 1, col + 1)):
            if r < self.rows and 0 <= c < self.cols:
                yield r, c

    def band(self, a: Tile, b: Tile) -> Window | None:
        """The part of the overlap of two adjacent tiles in which their segments are compared.

        It is the intersection of the two windows, less a rim of min(16, overlap // 4) px on each side that
        is a tile's border; the band's ends (which both tiles' borders share) and the raster's edge keep
        their pixels. None where nothing is left.
        """
        rim = min(RIM, self.overlap // 4)
        common = a.window.intersect(b.window)
        if common is None:
            return None
        trim_rows = rim if a.row != b.row else 0
        trim_cols = rim if a.col != b.col else 0
        row, stop_row = common.row + trim_rows, common.stop_row - trim_rows
        col, stop_col = common.col + trim_cols, common.stop_col - trim_cols
        if stop_row <= row or stop_col <= col:
            return None
        return Window.span(row, col, stop_row, stop_col)

    def _span(self, size: int, index: int) -> tuple[int, int]:
        start = min(index * (self.tile - self.overlap), max(size - self.tile, 0))
        return start, min(start + self.tile, size)

    def _core(self, size: int, index: int) -> tuple[int, int]:
        last = _count(size, self.tile, self.overlap) - 1
        start, stop = self._span(size, index)
        low = 0 if index == 0 else (start + self._span(size, index - 1)[1]) // 2
        high = size if index == last else (self._span(size, index + 1)[0] + stop) // 2
        return low, high

    def _touching(self, size: int, start: int, stop: int) -> range:
        """Grid indices along one axis whose core meets [start, stop)."""
        step = self.tile - self.overlap
        last = _count(size, self.tile, self.overlap) - 1
        first = max(0, min(last, start // step - 1))
        while self._core(size, first)[1] <= start:
            first += 1
        end = first
        while end <= last and self._core(size, end)[0] < stop:
            end += 1
        return range(first, end)


def _count(size: int, tile: int, overlap: int) -> int:
    """Tiles along an axis of ``size`` pixels."""
    return 1 if size <= tile else -(-(size - overlap) // (tile - overlap))
