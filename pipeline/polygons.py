"""Outlines of segments on the pixel grid, traced from their corners, and the polygons that they become.

All is exact: rings are integers until the raster's affine is applied, once. Pixels belong together where they share
a side (4-connected); a ring never passes a vertex twice, because it is split there, so polygons are valid by
construction. Nothing here knows of blocks.

Letters: ``P`` parts (rows of the table), ``R`` rings, ``E`` horizontal edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import shapely
from numpy.typing import NDArray

from panoptile.pipeline.corners import Codes, decode

Affine = tuple[float, float, float, float, float, float]
"""a, b, c, d, e, f: x = a*col + b*row + c, y = d*col + e*row + f."""

Ints = NDArray[np.int64]
_Number = TypeVar("_Number", np.int64, np.float64)


@dataclass(frozen=True, slots=True)
class Outlines:
    """Boundaries of ``P`` parts; a part is all of a thing, or the share of a stuff segment in one block.

    A ring is stored as the starts (col, row) of its horizontal edges in order of travel: edge ``i`` runs along its row
    to the column where edge ``i + 1`` starts. The interior lies below edges that run to the right. A part's rings are
    its shells in scan order, each followed by its holes.
    """

    ids: NDArray[np.uint32]
    """(P,) segment ids."""
    ring_offsets: Ints
    """(P + 1,) where each part's rings start."""
    is_hole: NDArray[np.bool_]
    """(R,)"""
    edge_offsets: Ints
    """(R + 1,) where each ring's edges start."""
    starts_xy: NDArray[np.int32]
    """(E, 2) column and row of the vertex where each edge starts."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def part_edge_offsets(self) -> Ints:
        """(P + 1,) where each part's edges start."""
        return self.edge_offsets[self.ring_offsets]

    def end_cols(self) -> NDArray[np.int32]:
        """(E,) the column where each edge ends."""
        ends = np.empty(len(self.starts_xy), np.int32)
        ends[:-1] = self.starts_xy[1:, 0]
        ends[self.edge_offsets[1:] - 1] = self.starts_xy[self.edge_offsets[:-1], 0]
        return ends

    def areas(self) -> Ints:
        """(P,) pixels, by Green's theorem over the horizontal edges."""
        runs = (self.end_cols() - self.starts_xy[:, 0]).astype(np.int64)
        return -sum_ragged(runs * self.starts_xy[:, 1], self.part_edge_offsets)

    def boxes(self) -> NDArray[np.int32]:
        """(P, 4) bounding vertices: first column and row, last column and row (which own no pixel)."""
        if len(self) == 0:
            return np.empty((0, 4), np.int32)
        first = self.part_edge_offsets[:-1]
        lows = np.minimum.reduceat(self.starts_xy, first, axis=0)
        highs = np.maximum.reduceat(self.starts_xy, first, axis=0)
        # every column of an outline starts one edge and ends another, so the starts alone span the box
        return np.concatenate([lows, highs], axis=1)


def sum_ragged(values: NDArray[_Number], offsets: Ints) -> NDArray[_Number]:
    """Sums of the slices ``values[offsets[i] : offsets[i + 1]]``, none of which may be empty."""
    sums: NDArray[_Number] = np.add.reduceat(values, offsets[:-1]) if len(offsets) > 1 else values[:0]
    return sums


def ragged_index(starts: Ints, lengths: Ints) -> Ints:
    """All of ``starts[0] … starts[0] + lengths[0] - 1``, then the same for the next, in one array."""
    offsets = np.cumsum(lengths) - lengths
    return np.repeat(starts - offsets, lengths) + np.arange(int(lengths.sum()))


def offsets_of(lengths: Ints) -> Ints:
    """(N + 1,) running sum of lengths (N,) that starts with 0."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def trace(ids: NDArray[np.uint32], part_of: Ints, codes: Codes) -> Outlines:
    """Outlines of parts from their corners.

    Args:
        ids: (P,) segment ids of the parts.
        part_of: (n,) the part, 0…P-1, of each corner; in any order, each part at least once.
        codes: (n,) corners, those of several disjoint pieces of one part side by side.
    """
    if len(ids) == 0:
        none = np.zeros(1, np.int64)
        return Outlines(ids, none, np.empty(0, bool), none, np.empty((0, 2), np.int32))
    part, row, col, negative = _united(part_of, *decode(codes))
    starts, nexts, twin = _linked(part, row, col, negative)
    leaders = _cycle_leaders(nexts)
    same = leaders[twin >> 1] == leaders[(twin - 1) >> 1]
    if (
        same.any()
    ):  # a ring meets itself: exchange the two visits' vertical edges, which makes two rings of it
        starts, nexts, _ = _linked(part, row, col, negative, split=twin[same])
        leaders = _cycle_leaders(nexts)
    is_leader = leaders == np.arange(len(leaders))
    ring_leaders = np.flatnonzero(is_leader)
    ring_of = (np.cumsum(is_leader) - 1)[leaders]
    lengths = np.bincount(ring_of)
    is_hole = negative[2 * ring_leaders] == 1  # the topmost edge of a hole has the interior above
    offsets = offsets_of(lengths)
    xy = np.empty((len(nexts), 2), np.int32)
    place = offsets[ring_of] + _rank_in_cycle(nexts, leaders, lengths[ring_of])
    xy[place, 0], xy[place, 1] = col[starts], row[starts]
    ring_part = part[2 * ring_leaders]
    per_part = np.bincount(ring_part, minlength=len(ids))
    outlines = Outlines(ids, offsets_of(per_part), is_hole, offsets, xy)
    return _holes_after_shells(outlines, ring_part)


def _united(part: Ints, row: Ints, col: Ints, negative: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    """Corners sorted by (part, row, col), weights at one vertex added up; a weight of ±2 is two equal entries."""
    keys, col_bits, row_bits = _packed(part, row, col)
    keys = (keys << 1) | negative
    keys.sort()
    place = keys >> 1
    first = np.flatnonzero(np.concatenate([[True], place[1:] != place[:-1]]))
    weights = np.add.reduceat(1 - 2 * (keys & 1), first)
    times = np.abs(weights)
    place, negative = np.repeat(place[first], times), np.repeat((weights < 0).astype(np.int64), times)
    col_out = (place & ((1 << col_bits) - 1)) + int(col.min())
    row_out = ((place >> col_bits) & ((1 << row_bits) - 1)) + int(row.min())
    return place >> (col_bits + row_bits), row_out, col_out, negative


def _packed(part: Ints, major: Ints, minor: Ints) -> tuple[Ints, int, int]:
    """Keys (n,) that sort by (part, major, minor), leaving one bit free, and the bits of minor and major."""
    minor_bits = int(minor.max() - minor.min()).bit_length()
    major_bits = int(major.max() - major.min()).bit_length()
    if int(part.max()).bit_length() + major_bits + minor_bits > 62:
        raise ValueError(
            f"Too many parts ({int(part.max()) + 1}) over 2^{major_bits} x 2^{minor_bits} px to trace at once."
        )
    keys = (((part << major_bits) | (major - major.min())) << minor_bits) | (minor - minor.min())
    return keys, minor_bits, major_bits


def _linked(
    part: Ints, row: Ints, col: Ints, negative: Ints, *, split: Ints | None = None
) -> tuple[Ints, Ints, Ints]:
    """Join sorted corners to edges, and edges to rings with the interior on the right.

    Along a row, corners pair up to horizontal edges as they come (2e, 2e + 1); along a column, to vertical ones. Where
    two pixels of a part touch diagonally, each of the two equal entries belongs to one of them, so rings stay with
    their pixel: that is 4-connectivity.

    Returns:
        The corner where each horizontal edge starts (E,), the edge after each (E,), and the second entries of the
        equal pairs; those in ``split`` take their twin's vertical edge.
    """
    twin = np.flatnonzero((part[1:] == part[:-1]) & (row[1:] == row[:-1]) & (col[1:] == col[:-1])) + 1
    below = np.zeros(len(part), np.int64)
    below[twin] = 1 - negative[twin]
    below[twin - 1] = negative[twin]
    keys, _, _ = _packed(part, col, row)
    order = np.argsort((keys << 1) | below)
    mate = np.empty(len(order), np.int64)
    mate[order[0::2]], mate[order[1::2]] = order[1::2], order[0::2]
    if split is not None:
        exchange = np.arange(len(order))
        exchange[split], exchange[split - 1] = split - 1, split
        mate = exchange[mate[exchange]]
    firsts = np.arange(0, len(order), 2)
    starts = firsts + negative[0::2]
    ends = firsts + 1 - negative[0::2]
    return starts, mate[ends] >> 1, twin


def _cycle_leaders(nexts: Ints) -> Ints:
    """(E,) the least edge of each edge's ring, by pointer doubling (Wyllie 1979): log2 of the longest ring rounds."""
    leaders, jump = np.minimum(np.arange(len(nexts)), nexts), nexts[nexts]
    while True:
        lower = np.minimum(leaders, leaders[jump])
        if np.array_equal(lower, leaders):
            return leaders
        leaders, jump = lower, jump[jump]


def _rank_in_cycle(nexts: Ints, leaders: Ints, lengths: Ints) -> Ints:
    """(E,) steps from the leader to each edge; ``lengths`` (E,) are those of the edges' rings."""
    lead = np.flatnonzero(leaders == np.arange(len(leaders)))
    jump, to_leader = nexts.copy(), np.ones(len(nexts), np.int64)
    jump[lead], to_leader[lead] = lead, 0
    while not np.array_equal(jump, leaders):
        to_leader += to_leader[jump]
        jump = jump[jump]
    return (lengths - to_leader) % lengths


def _holes_after_shells(outlines: Outlines, ring_part: Ints) -> Outlines:
    """Order each part's rings: a shell, its holes, the next shell. Rings come in scan order of their first edge."""
    is_hole = outlines.is_hole
    shells = np.bincount(ring_part[~is_hole], minlength=len(outlines))
    owner = np.arange(len(is_hole))
    owner[is_hole] = outlines.ring_offsets[ring_part[is_hole]]  # a part's first ring is a shell
    unsure = shells[ring_part] > 1
    if (unsure & is_hole).any():
        holes = np.flatnonzero(unsure & is_hole)
        owner[holes] = _shells_around(outlines, ring_part, np.flatnonzero(unsure & ~is_hole), holes)
    order = np.lexsort((np.arange(len(owner)), is_hole, owner))
    if np.array_equal(order, np.arange(len(order))):
        return outlines
    lengths = np.diff(outlines.edge_offsets)[order]
    edges = ragged_index(outlines.edge_offsets[:-1][order], lengths)
    return Outlines(
        outlines.ids, outlines.ring_offsets, is_hole[order], offsets_of(lengths), outlines.starts_xy[edges]
    )


def _shells_around(outlines: Outlines, ring_part: Ints, shells: Ints, holes: Ints) -> Ints:
    """The shell of each hole: the smallest of its part around a pixel of the part just above the hole's top edge."""
    coords, offsets = _ring_coords(outlines)
    rings = np.repeat(np.arange(len(shells)), np.diff(offsets)[shells])
    points = coords[ragged_index(offsets[:-1][shells], np.diff(offsets)[shells])]
    polygons = shapely.polygons(shapely.linearrings(points, indices=rings))
    first = outlines.edge_offsets[:-1][holes]
    left = np.minimum(outlines.starts_xy[first, 0], outlines.end_cols()[first])
    above = shapely.points(left + 0.5, outlines.starts_xy[first, 1] - 0.5)
    shell, hole = shapely.STRtree(above).query(polygons, predicate="contains")
    same = ring_part[shells[shell]] == ring_part[holes[hole]]
    shell, hole = shell[same], hole[same]
    order = np.lexsort((shapely.area(polygons)[shell], hole))
    found, nearest = np.unique(hole[order], return_index=True)
    if len(found) != len(holes):
        raise AssertionError(f"{len(holes) - len(found)} holes lie in no shell of their part.")
    owners: Ints = shells[shell[order[nearest]]]
    return owners


def _ring_coords(outlines: Outlines) -> tuple[NDArray[np.float64], Ints]:
    """Closed rings in pixel coordinates (col, row), (2E + R, 2), and where each starts, (R + 1,)."""
    lengths = 2 * np.diff(outlines.edge_offsets) + 1
    offsets = offsets_of(lengths)
    coords = np.empty((int(offsets[-1]), 2))
    at = 2 * np.arange(len(outlines.starts_xy)) + np.repeat(
        np.arange(len(lengths)), np.diff(outlines.edge_offsets)
    )
    coords[at] = outlines.starts_xy
    coords[at + 1, 0], coords[at + 1, 1] = outlines.end_cols(), outlines.starts_xy[:, 1]
    coords[offsets[1:] - 1] = coords[offsets[:-1]]
    return coords, offsets


def to_geometries(outlines: Outlines, transform: Affine) -> NDArray[np.object_]:
    """(P,) shapely Polygons, MultiPolygons where a part has several shells; shells run counter-clockwise.

    Every vertex is ``transform`` of its integer pixel coordinates; nothing else is rounded.
    """
    if len(outlines) == 0:
        return np.empty(0, object)
    a, b, c, d, e, f = transform
    pixels, offsets = _ring_coords(outlines)
    if a * e - b * d < 0:  # the map's y grows upwards: the same travel is clockwise there
        lengths = np.diff(offsets)
        pixels = pixels[np.repeat(offsets[:-1] + offsets[1:] - 1, lengths) - np.arange(len(pixels))]
    coords = np.empty_like(pixels)
    coords[:, 0] = a * pixels[:, 0] + b * pixels[:, 1] + c
    coords[:, 1] = d * pixels[:, 0] + e * pixels[:, 1] + f
    shells = np.flatnonzero(~outlines.is_hole)
    shell_offsets = np.append(shells, len(outlines.is_hole))
    polygons = shapely.from_ragged_array(shapely.GeometryType.POLYGON, coords, (offsets, shell_offsets))
    of_part = np.searchsorted(shells, outlines.ring_offsets)
    geometries: NDArray[np.object_] = polygons[of_part[:-1]]
    several = np.diff(of_part) > 1
    if several.any():
        lengths = np.diff(of_part)[several]
        members = ragged_index(of_part[:-1][several], lengths)
        geometries[several] = shapely.multipolygons(
            polygons[members], indices=np.repeat(np.arange(len(lengths)), lengths)
        )
    return geometries
