"""The joining pass of one raster, out of core: fragments in the store -> segment ids for any window.

Memory follows the number of segments (a few tens of bytes each), never the raster's pixels: strips are read
pair by pair, cores block by block through a small cache.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from panoptile.pipeline.commit import read_commit
from panoptile.pipeline.fragment import (
    FragmentFile,
    NodeColumns,
    Side,
    band_of_side,
    to_global,
)
from panoptile.pipeline.grid import Tile, TileGrid
from panoptile.pipeline.plan import RasterPlan, Unit
from panoptile.pipeline.raster_info import NODATA_ID
from panoptile.pipeline.segments import SegmentTable
from panoptile.pipeline.stitch import NodeFilter, band_edges, merge_nodes
from panoptile.pipeline.store import Store
from panoptile.pipeline.window import Window

_OPEN_FRAGMENTS = 16
_CACHED_CORES = 48


class Fragments:
    """The committed fragments of one raster."""

    def __init__(self, store: Store, plan: RasterPlan) -> None:
        self.plan = plan
        self.grid = plan.grid
        self._store = store
        self.commits = {
            unit: commit for unit in plan.units() if (commit := read_commit(store, unit)) is not None
        }
        self._open: OrderedDict[Unit, FragmentFile] = OrderedDict()

    def file(self, unit: Unit) -> FragmentFile | None:
        """The opened fragment of a unit; None where the unit is not committed."""
        commit = self.commits.get(unit)
        if commit is None:
            return None
        if unit in self._open:
            self._open.move_to_end(unit)
            return self._open[unit]
        while len(self._open) >= _OPEN_FRAGMENTS:
            self._open.popitem(last=False)[1].close()
        opened = FragmentFile(self._store.open(commit.fragment))
        self._open[unit] = opened
        return opened

    def failed_tiles(self) -> set[int]:
        """Tiles that are missing though their unit is committed, and those of units that are not."""
        missing = {tile for commit in self.commits.values() for tile in commit.failed_tiles}
        for unit in self.plan.units():
            if unit not in self.commits:
                missing.update(unit.items)
        return missing

    def damaged(self) -> list[Unit]:
        """Units whose fragment is not what was committed; reads every fragment once."""
        return [
            unit
            for unit, commit in self.commits.items()
            if hashlib.sha256(self._store.read_bytes(commit.fragment)).hexdigest() != commit.sha256
        ]

    def strip(self, tile: Tile, side: Side, band: Window) -> NDArray[np.unsignedinteger] | None:
        """Labels of an overlap band as ``tile`` saw it; None where the tile has no input or is missing."""
        file = self.file(self.plan.unit_of(self.grid.tile_id(tile.row, tile.col)))
        return None if file is None else file.strip(self.grid.tile_id(tile.row, tile.col), side, band.shape)

    def core(self, tile: Tile) -> NDArray[np.unsignedinteger] | None:
        file = self.file(self.plan.unit_of(self.grid.tile_id(tile.row, tile.col)))
        return None if file is None else file.core(self.grid.tile_id(tile.row, tile.col), tile.core.shape)

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()


@dataclass(frozen=True, slots=True)
class Joined:
    """One raster after stitching."""

    segments: SegmentTable
    lut: NDArray[np.uint32]
    """Segment id of each tile segment."""
    offsets: NDArray[np.int64]
    """(tiles + 1,) where each tile's segments start in ``lut``."""
    queries_used: NDArray[np.int32]
    """(tiles,) queries that passed the threshold in each tile; -1 where the tile is missing or empty."""
    tile_segments: NDArray[np.int32]
    """(tiles,) segments that each tile saw."""


def join(fragments: Fragments, thing_class_ids: frozenset[int], keep: NodeFilter) -> Joined:
    """Stitch the committed fragments of one raster."""
    grid = fragments.grid
    counts = np.zeros(len(grid), np.int32)
    queries = np.full(len(grid), -1, np.int32)
    parts: list[NodeColumns] = []
    for unit in fragments.plan.units():
        file = fragments.file(unit)
        if file is None:
            continue
        parts.append(file.nodes())
        counts[file.tile_ids] = file.node_counts()
        filled = file.tiles["itemsize"].to_numpy() > 0
        queries[np.array(file.tile_ids)[filled]] = file.tiles["queries_used"].to_numpy()[filled]
    nodes = NodeColumns.concatenate(parts)
    del parts
    offsets = np.zeros(len(grid) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    node_tiles = np.repeat(np.arange(len(grid), dtype=np.int32), counts)
    edges = seam_edges(fragments, nodes.class_ids, offsets, thing_class_ids)
    stitched = merge_nodes(nodes, node_tiles, edges, thing_class_ids, keep)
    return Joined(stitched.segments, stitched.lut, offsets, queries, counts)


def seam_edges(
    fragments: Fragments,
    class_ids: NDArray[np.uint16],
    offsets: NDArray[np.int64],
    thing_class_ids: frozenset[int],
) -> Iterator[NDArray[np.int32]]:
    """Edges between the nodes of all pairs of neighbouring tiles, pair by pair."""
    grid = fragments.grid
    for tile in grid:
        a = grid.tile_id(tile.row, tile.col)
        if offsets[a + 1] == offsets[a]:
            continue
        for row, col in grid.neighbours(tile.row, tile.col):
            b = grid.tile_id(row, col)
            other = grid.tile_at(row, col)
            band = grid.band(tile, other)
            if band is None or offsets[b + 1] == offsets[b]:
                continue
            seen_a = view_of_band(fragments, tile, row - tile.row, col - tile.col, band)
            seen_b = view_of_band(fragments, other, tile.row - row, tile.col - col, band)
            if seen_a is None or seen_b is None:
                continue
            pairs = band_edges(
                seen_a,
                seen_b,
                class_ids[offsets[a] : offsets[a + 1]],
                class_ids[offsets[b] : offsets[b + 1]],
                thing_class_ids,
            )
            if len(pairs):
                yield (pairs + offsets[[a, b]]).astype(np.int32)


def view_of_band(
    fragments: Fragments, tile: Tile, d_row: int, d_col: int, band: Window
) -> NDArray[np.unsignedinteger] | None:
    """How ``tile`` labelled the band that it shares with its neighbour in direction (d_row, d_col).

    The band of a diagonal pair lies inside the strip towards the row neighbour, so no strip of its own is
    stored.
    """
    side: Side = "south" if d_row > 0 else "north" if d_row < 0 else "east" if d_col > 0 else "west"
    whole = band_of_side(fragments.grid, tile, d_row, 0 if d_row else d_col)
    if whole is None:
        return None
    strip = fragments.strip(tile, side, whole)
    return None if strip is None else strip[band.slices(whole)]


class JoinedLabels:
    """Reads segment ids of any window: paints each tile's core with the raster's ids."""

    def __init__(self, fragments: Fragments, joined: Joined) -> None:
        self._fragments, self._joined = fragments, joined
        self._grid: TileGrid = fragments.grid
        self._cores: OrderedDict[int, NDArray[np.unsignedinteger] | None] = OrderedDict()

    def read(self, window: Window) -> NDArray[np.uint32]:
        """(h, w) segment ids: 0 void, ``NODATA_ID`` without input or where the tile is missing."""
        painted = np.full(window.shape, NODATA_ID, np.uint32)
        offsets, lut = self._joined.offsets, self._joined.lut
        for tile, common in self._grid.tiles_touching(window):
            core = self._core(tile)
            if core is not None:
                number = self._grid.tile_id(tile.row, tile.col)
                ids = lut[offsets[number] : offsets[number + 1]]
                painted[common.slices(window)] = to_global(core[common.slices(tile.core)], ids)
        return painted

    def _core(self, tile: Tile) -> NDArray[np.unsignedinteger] | None:
        number = self._grid.tile_id(tile.row, tile.col)
        if number in self._cores:
            self._cores.move_to_end(number)
        else:
            while len(self._cores) >= _CACHED_CORES:
                self._cores.popitem(last=False)
            self._cores[number] = self._fragments.core(tile)
        return self._cores[number]
