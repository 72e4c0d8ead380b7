"""Connected regions of stuff as segments of their own: lakes, fields, what a semantic network calls one class.

Two passes over the joined labels, block by block: the first numbers the 4-connected regions of every block, joins them
over the borders of blocks and measures them; the second paints. Neither depends on the tiles. What is kept is some 40
bytes a region of a block, and the pixels along the borders of open blocks.

Letters: N segments, C regions of blocks, R regions of the raster.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from panoptile.pipeline.grid import TileGrid
from panoptile.pipeline.polygons import offsets_of, ragged_index
from panoptile.pipeline.raster_info import NODATA_ID
from panoptile.pipeline.segments import LabelReader, SegmentTable, blocks
from panoptile.pipeline.window import Window

BLOCK = 1024
"""Side of the blocks, pixels."""
_CACHED_BLOCKS = 4

Ids = NDArray[np.uint32]


class BlockRegions(NamedTuple):
    """The regions of one block."""

    numbers: NDArray[np.int32]
    """(H, W) number of each pixel's region within the block, from 1; 0 outside."""
    segments: Ids
    """(C,) the stuff segment that each region is a part of."""


def block_regions(labels: Ids, chosen: NDArray[np.bool_]) -> BlockRegions:
    """The 4-connected regions of the ``chosen`` (N + 1,) segments in one block of labels (H, W)."""
    inside = np.where(labels == NODATA_ID, np.uint32(0), labels)
    numbers = np.zeros(labels.shape, np.int32)
    segments: list[int] = []
    present = np.unique(inside)
    for segment in present[chosen[present]].tolist():
        found, count = ndimage.label(inside == segment)
        numbers[found > 0] = found[found > 0] + len(segments)
        segments += [segment] * count
    return BlockRegions(numbers, np.array(segments, np.uint32))


@dataclass(frozen=True, slots=True, eq=False)
class SplitLabels:
    """Reads the labels of a raster whose stuff was split."""

    labels: LabelReader
    shape: tuple[int, int]
    chosen: NDArray[np.bool_]
    """(N + 1,) which segments were split."""
    renamed: Ids
    """(N + 1,) new id of each segment that was not split; 0 for the others."""
    first: dict[tuple[int, int], int]
    """Regions before each block, by its first row and column."""
    names: Ids
    """(C,) new id of each region of a block; 0 where it is not published."""
    _cache: OrderedDict[tuple[int, int], Ids] = field(default_factory=OrderedDict)

    def read(self, window: Window) -> Ids:
        """Segment ids of ``window``: 0 void, ``NODATA_ID`` where there is no input."""
        painted = np.zeros(window.shape, np.uint32)
        height, width = self.shape
        for row in range(window.row // BLOCK * BLOCK, window.stop_row, BLOCK):
            for col in range(window.col // BLOCK * BLOCK, window.stop_col, BLOCK):
                block = Window.span(row, col, min(row + BLOCK, height), min(col + BLOCK, width))
                common = Window.span(
                    max(row, window.row), max(col, window.col),
                    min(block.stop_row, window.stop_row), min(block.stop_col, window.stop_col),
                )  # fmt: skip
                painted[common.slices(window)] = self._block(block)[common.slices(block)]
        return painted

    def _block(self, block: Window) -> Ids:
        place = block.row, block.col
        if place not in self._cache:
            while len(self._cache) >= _CACHED_BLOCKS:
                self._cache.popitem(last=False)
            self._cache[place] = self._painted(block)
        return self._cache[place]

    def _painted(self, block: Window) -> Ids:
        labels = self.labels.read(block)
        regions = block_regions(labels, self.chosen)
        unseen = labels == NODATA_ID
        painted: Ids = self.renamed[np.where(unseen, np.uint32(0), labels)]
        inside = regions.numbers > 0
        painted[inside] = self.names[self.first[block.row, block.col] + regions.numbers[inside] - 1]
        painted[unseen] = NODATA_ID
        return painted


def split_regions(
    labels: LabelReader,
    segments: SegmentTable,
    grid: TileGrid,
    class_ids: frozenset[int],
    min_area: int = 0,
) -> tuple[SplitLabels, SegmentTable]:
    """Make each connected region of the stuff classes ``class_ids`` a segment of its own.

    A region has the class and the score of the segment that it was a part of; ``merged_from`` counts the tiles that
    own pixels of it. Regions below ``min_area`` pixels become void. Ids are again the rank of a segment's first pixel
    in scan order.
    """
    chosen = np.zeros(len(segments) + 1, np.bool_)
    chosen[1:] = np.isin(segments.class_ids, list(class_ids))
    measured = _Measured(grid, chosen)
    for window in blocks(grid.height, grid.width, BLOCK):
        measured.add(labels, window)
    regions = measured.joined()
    table, renamed, names = _numbered(segments, chosen, measured.first_pixels, regions, min_area)
    split = SplitLabels(
        labels, (grid.height, grid.width), chosen, renamed, measured.first, names[regions.of_block_region]
    )
    return split, table


@dataclass(frozen=True, slots=True)
class Regions:
    """The regions of a raster, joined over the borders of blocks."""

    of_block_region: NDArray[np.int32]
    """(C,) the region that each region of a block is a part of."""
    segments: Ids
    """(R,) the stuff segment that each was a part of."""
    areas: NDArray[np.int64]
    first_pixels: NDArray[np.int64]
    """(R,) flat index in the raster."""
    at_edge: NDArray[np.bool_]
    tiles: NDArray[np.int64]
    """(T, 2) rows (region, tile) of every tile that owns pixels of a region, ascending."""


class _Measured:
    """The first pass."""

    def __init__(self, grid: TileGrid, chosen: NDArray[np.bool_]) -> None:
        self.first: dict[tuple[int, int], int] = {}
        self.first_pixels = np.full(len(chosen), np.iinfo(np.int64).max)
        """(N + 1,) of every segment, split or not."""
        self._grid, self._chosen = grid, chosen
        self._count = 0
        self._parts: dict[str, list[NDArray[np.generic]]] = {
            name: [] for name in ("segments", "areas", "first_pixels", "at_edge", "edges", "tiles")
        }
        self._above = np.zeros((2, grid.width), np.int64)
        """Segment and number (from 1; 0: none) of the regions along the last row of the blocks above."""
        self._left = np.zeros((2, 0), np.int64)

    def add(self, labels: LabelReader, window: Window) -> None:
        """Measure one block; blocks come row by row."""
        padded = _with_rim(window, self._grid)
        seen = labels.read(padded)
        own = seen[window.slices(padded)]
        regions = block_regions(own, self._chosen)
        self.first[window.row, window.col] = self._count
        self._note_first_pixels(own, window)
        n = len(regions.segments)
        inside = regions.numbers > 0
        at = regions.numbers[inside] - 1
        pixels = _flat_indices(window, self._grid.width)[inside]
        firsts = np.full(n, np.iinfo(np.int64).max)
        np.minimum.at(firsts, at, pixels)
        edge = np.zeros(n, np.bool_)
        edge[regions.numbers[inside & _borders(seen, padded, window, self._grid)] - 1] = True
        self._keep("segments", regions.segments)
        self._keep("areas", np.bincount(at, minlength=n).astype(np.int64))
        self._keep("first_pixels", firsts)
        self._keep("at_edge", edge)
        self._join(regions, window)
        self._note_tiles(regions, window)
        self._count += n

    def joined(self) -> Regions:
        """All blocks as one."""
        part = {name: np.concatenate(arrays) for name, arrays in self._parts.items()}
        count, of = _components(part["edges"], self._count)
        segments = np.zeros(count, np.uint32)
        segments[of] = part["segments"]
        areas, first = np.zeros(count, np.int64), np.full(count, np.iinfo(np.int64).max)
        np.add.at(areas, of, part["areas"])
        np.minimum.at(first, of, part["first_pixels"])
        edge = np.zeros(count, np.bool_)
        edge[of[part["at_edge"]]] = True
        owners = part["tiles"].astype(np.int64)
        owners[:, 0] = of[owners[:, 0]]
        return Regions(of, segments, areas, first, edge, np.unique(owners, axis=0))

    def _keep(self, name: str, values: NDArray[np.generic]) -> None:
        self._parts[name].append(values)

    def _note_first_pixels(self, own: Ids, window: Window) -> None:
        ids, at = np.unique(own, return_index=True)
        seen = ids != NODATA_ID
        rows, cols = np.divmod(at[seen], window.width)
        pixels = (window.row + rows) * self._grid.width + window.col + cols
        self.first_pixels[ids[seen]] = np.minimum(self.first_pixels[ids[seen]], pixels)

    def _join(self, regions: BlockRegions, window: Window) -> None:
        """Edges to the blocks above and to the left, along which equal segments touch."""
        names = np.concatenate([[0], regions.segments.astype(np.int64)])
        whole = np.where(regions.numbers > 0, regions.numbers + self._count, 0)

        def line(rows: slice | int, cols: slice | int) -> NDArray[np.int64]:
            return np.stack([names[regions.numbers[rows, cols]], whole[rows, cols]]).astype(np.int64)

        span = slice(window.col, window.stop_col)
        pairs = [_touching(self._above[:, span], line(0, slice(None)))]
        if window.col:
            pairs.append(_touching(self._left, line(slice(None), 0)))
        self._keep("edges", np.unique(np.concatenate(pairs), axis=0))
        self._above[:, span] = line(-1, slice(None))
        self._left = line(slice(None), -1)

    def _note_tiles(self, regions: BlockRegions, window: Window) -> None:
        found = [np.zeros((0, 2), np.int64)]
        for tile, common in self._grid.tiles_touching(window):
            here = np.unique(regions.numbers[common.slices(window)]).astype(np.int64)
            owned = here[here > 0] - 1 + self._count
            number = self._grid.tile_id(tile.row, tile.col)
            found.append(np.stack([owned, np.full(len(owned), number)], axis=1))
        self._keep("tiles", np.concatenate(found))


def _components(edges: NDArray[np.generic], n: int) -> tuple[int, NDArray[np.int32]]:
    """How many components ``n`` nodes have along the edges (E, 2), and the component of each."""
    if n == 0:
        return 0, np.zeros(0, np.int32)
    graph = sparse.coo_array((np.ones(len(edges), np.bool_), (edges[:, 0], edges[:, 1])), shape=(n, n))
    count, of = csgraph.connected_components(graph, directed=False)
    return count, of.astype(np.int32)


def _touching(before: NDArray[np.int64], now: NDArray[np.int64]) -> NDArray[np.int64]:
    """(E, 2) pairs of regions, from 0, that touch across a border: ``before`` and ``now`` are (2, L) segments and
    numbers of the pixels on its two sides."""
    same = (before[0] == now[0]) & (before[1] > 0) & (now[1] > 0)
    return np.stack([before[1][same] - 1, now[1][same] - 1], axis=1)


def _with_rim(window: Window, grid: TileGrid) -> Window:
    """``window`` and the pixels around it that the raster has."""
    return Window.span(
        max(0, window.row - 1),
        max(0, window.col - 1),
        min(grid.height, window.stop_row + 1),
        min(grid.width, window.stop_col + 1),
    )


def _flat_indices(window: Window, width: int) -> NDArray[np.int64]:
    rows = np.arange(window.row, window.stop_row, dtype=np.int64)
    cols = np.arange(window.col, window.stop_col, dtype=np.int64)
    return rows[:, None] * width + cols[None]


def _borders(seen: Ids, padded: Window, window: Window, grid: TileGrid) -> NDArray[np.bool_]:
    """(H, W) pixels of ``window`` on the raster's edge or beside a pixel without input."""
    unseen = ndimage.binary_dilation(seen == NODATA_ID)[window.slices(padded)]
    if window.row == 0:
        unseen[0] = True
    if window.col == 0:
        unseen[:, 0] = True
    if window.stop_row == grid.height:
        unseen[-1] = True
    if window.stop_col == grid.width:
        unseen[:, -1] = True
    found: NDArray[np.bool_] = unseen
    return found


def _numbered(
    segments: SegmentTable,
    chosen: NDArray[np.bool_],
    first_pixels: NDArray[np.int64],
    regions: Regions,
    min_area: int,
) -> tuple[SegmentTable, Ids, Ids]:
    """(new table, new id of each old segment (N + 1,), new id of each region (R,))."""
    kept = np.flatnonzero(~chosen[1:]) + 1
    wanted = np.flatnonzero(regions.areas >= max(1, min_area))
    order = np.argsort(np.concatenate([first_pixels[kept], regions.first_pixels[wanted]]), kind="stable")
    ranks = np.empty(len(order), np.uint32)
    ranks[order] = np.arange(1, len(order) + 1, dtype=np.uint32)
    renamed, names = np.zeros(len(chosen), np.uint32), np.zeros(len(regions.areas), np.uint32)
    renamed[kept], names[wanted] = ranks[: len(kept)], ranks[len(kept) :]
    old, new = kept - 1, regions.segments[wanted].astype(np.int64) - 1
    tiles_of = np.bincount(regions.tiles[:, 0], minlength=len(regions.areas))

    def column(a: NDArray[np.generic], b: NDArray[np.generic]) -> NDArray[np.generic]:
        return np.concatenate([a, b])[order].astype(a.dtype)

    offsets, tile_ids = _tiles(segments, old, regions, wanted, tiles_of, order)
    table = SegmentTable(
        column(segments.class_ids[old], segments.class_ids[new]),  # type: ignore[arg-type]
        column(segments.scores[old], segments.scores[new]),  # type: ignore[arg-type]
        column(segments.areas[old], regions.areas[wanted]),  # type: ignore[arg-type]
        column(segments.at_edge[old], regions.at_edge[wanted]),  # type: ignore[arg-type]
        column(segments.merged_from[old], tiles_of[wanted]),  # type: ignore[arg-type]
        offsets,
        tile_ids,
        segments.suspects,
    )
    return table, renamed, names


def _tiles(
    segments: SegmentTable,
    old: NDArray[np.int64],
    regions: Regions,
    wanted: NDArray[np.int64],
    tiles_of: NDArray[np.int64],
    order: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Tiles of each new segment, in compressed rows."""
    counts = np.concatenate([np.diff(segments.tile_offsets)[old], tiles_of[wanted]])
    starts = np.concatenate(
        [segments.tile_offsets[old], len(segments.tile_ids) + (np.cumsum(tiles_of) - tiles_of)[wanted]]
    )
    source = np.concatenate([segments.tile_ids, regions.tiles[:, 1].astype(np.int32)])
    counts, starts = counts[order], starts[order]
    return offsets_of(counts), source[ragged_index(starts, counts)].astype(np.int32)
