"""Stitching: which segments of neighbouring tiles are one object, and how the raster's ids are numbered.

Two things are one where their masks agree inside the overlap that both tiles saw (overlap-band IoU), so
the rule is the same for objects of any size. Pure functions: the result depends on the fragments alone,
never on the order in which tiles were segmented. See docs/design/001-seams.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph

from panoptile.pipeline.fragment import NodeColumns, nodata_of
from panoptile.pipeline.segments import SegmentTable


@dataclass(frozen=True, slots=True)
class SeamRule:
    """When two segments of neighbouring tiles are the same object; areas are counted inside the band."""

    same_class_iou: float = 0.5
    any_thing_iou: float = 0.75
    """IoU from which two things of different classes are one."""
    containment: float = 0.8
    """Intersection over the smaller area, for pieces that one tile split and the other did not."""
    containment_pixels: int = 64
    """Smallest intersection for the containment rule."""


@dataclass(frozen=True, slots=True)
class NodeFilter:
    """Which merged segments are published; the others become void."""

    class_ids: frozenset[int] | None = None
    """Published class ids to keep; None keeps all."""
    min_area: int = 0
    """Fewest pixels of a segment."""


def band_edges(
    a: NDArray[np.unsignedinteger],
    b: NDArray[np.unsignedinteger],
    classes_a: NDArray[np.uint16],
    classes_b: NDArray[np.uint16],
    thing_class_ids: frozenset[int],
    rule: SeamRule | None = None,
) -> NDArray[np.int64]:
    """Pairs of things that are one object, seen in one overlap band.

    ``a`` and ``b`` are the two tiles' labels of the same pixels; row ``i`` of ``classes_*`` is the class of
    local id ``i + 1``. Returns (E, 2) rows (i, j), counted from 0.
    """
    rule = rule or SeamRule()
    n_a, n_b = len(classes_a), len(classes_b)
    if n_a == 0 or n_b == 0:
        return np.empty((0, 2), np.int64)
    rows, cols, inter = _contingency(_without_nodata(a), _without_nodata(b), n_a, n_b)
    area_a = np.bincount(_without_nodata(a).ravel(), minlength=n_a + 1)
    area_b = np.bincount(_without_nodata(b).ravel(), minlength=n_b + 1)
    both = (rows > 0) & (cols > 0)
    rows, cols, inter = rows[both], cols[both], inter[both]
    size_a, size_b = area_a[rows], area_b[cols]
    class_a, class_b = classes_a[rows - 1], classes_b[cols - 1]

    iou = inter / (size_a + size_b - inter)
    contained = (inter / np.minimum(size_a, size_b) >= rule.containment) & (inter >= rule.containment_pixels)
    same = class_a == class_b
    things = np.isin(class_a, list(thing_class_ids)) & np.isin(class_b, list(thing_class_ids))
    joined = things & np.where(same, (iou >= rule.same_class_iou) | contained, iou >= rule.any_thing_iou)
    return np.stack([rows[joined] - 1, cols[joined] - 1], axis=1)


def _without_nodata(labels: NDArray[np.unsignedinteger]) -> NDArray[np.int64]:
    clean = labels.astype(np.int64)
    clean[labels == nodata_of(labels.dtype)] = 0
    return clean


def _contingency(
    a: NDArray[np.int64], b: NDArray[np.int64], n_a: int, n_b: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(id in a, id in b, common pixels) of each pair that occurs, ordered by the pair."""
    packed = (a * (n_b + 1) + b).ravel()
    if (n_a + 1) * (n_b + 1) <= 4 * packed.size:  # a dense table is cheaper than sorting the pixels
        counts = np.bincount(packed)
        pairs = np.flatnonzero(counts)
        inter = counts[pairs]
    else:
        pairs, inter = np.unique(packed, return_counts=True)
    rows, cols = np.divmod(pairs, n_b + 1)
    return rows, cols, inter.astype(np.int64)


@dataclass(frozen=True, slots=True)
class Stitched:
    """The outcome of stitching one raster."""

    lut: NDArray[np.uint32]
    """(nodes,) segment id of each tile segment; 0 where it is not published."""
    segments: SegmentTable


def merge_nodes(
    nodes: NodeColumns,
    node_tiles: NDArray[np.int32],
    edges: Iterable[NDArray[np.int32]],
    thing_class_ids: frozenset[int],
    keep: NodeFilter | None = None,
) -> Stitched:
    """Union the nodes along the edges and number the result.

    ``node_tiles`` (nodes,) is each node's tile, ascending; ``edges`` are (E, 2) arrays of node numbers.
    Stuff needs no edges: all nodes of a stuff class are one segment. A segment's id is the rank of its
    first owned pixel in scan order, so ids do not depend on tile order, workers or retries.
    """
    component, n_components = _components(nodes, list(edges), thing_class_ids)
    suspects = _suspects(component, node_tiles, np.isin(nodes.class_ids, list(thing_class_ids)))

    owned = np.flatnonzero(nodes.areas > 0).astype(np.int32)
    of = component[owned]
    areas = np.bincount(of, weights=nodes.areas[owned], minlength=n_components).astype(np.int64)
    class_ids = _vote(of, nodes.class_ids[owned], nodes.areas[owned], n_components)
    kept = areas > 0
    if keep is not None:
        kept &= areas >= keep.min_area
        if keep.class_ids is not None:
            kept &= np.isin(class_ids, list(keep.class_ids))

    first = np.full(n_components, np.iinfo(np.int64).max)
    np.minimum.at(first, of, nodes.first_pixels[owned])
    order = np.flatnonzero(kept)
    order = order[np.argsort(first[order], kind="stable")]
    del first
    ids = np.zeros(n_components, np.uint32)
    ids[order] = np.arange(1, len(order) + 1, dtype=np.uint32)

    weighted = np.bincount(
        of, weights=nodes.scores[owned].astype(np.float64) * nodes.areas[owned], minlength=n_components
    )
    edge = np.zeros(n_components, np.bool_)
    edge[of[nodes.at_edge[owned]]] = True
    counts = np.bincount(of, minlength=n_components)
    tile_offsets, tile_ids = _tiles_of(ids[of], node_tiles[owned], len(order))
    table = SegmentTable(
        class_ids[order],
        (weighted[order] / areas[order]).astype(np.float32),
        areas[order],
        edge[order],
        counts[order].astype(np.int32),
        tile_offsets,
        tile_ids,
        suspects,
    )
    return Stitched(ids[component], table)


def _components(
    nodes: NodeColumns, edges: list[NDArray[np.int32]], thing_class_ids: frozenset[int]
) -> tuple[NDArray[np.int32], int]:
    """Component number of each node: things along the edges, stuff by class."""
    n = len(nodes)
    pairs = np.concatenate([np.empty((0, 2), np.int32), *edges])
    graph = sparse.coo_array((np.ones(len(pairs), np.bool_), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    count, component = csgraph.connected_components(graph, directed=False)
    component = component.astype(np.int32, copy=False)
    stuff = ~np.isin(nodes.class_ids, list(thing_class_ids))
    component[stuff] = count + nodes.class_ids[stuff].astype(np.int32)
    highest = int(component.max(initial=-1))
    return component, highest + 1


def _suspects(component: NDArray[np.int32], node_tiles: NDArray[np.int32], things: NDArray[np.bool_]) -> int:
    """How many components hold two things of one tile."""
    of, tiles = component[things], node_tiles[things]
    order = np.lexsort((tiles, of))
    of, tiles = of[order], tiles[order]
    twice = (of[1:] == of[:-1]) & (tiles[1:] == tiles[:-1])
    return len(np.unique(of[1:][twice]))


def _vote(
    of: NDArray[np.int32], class_ids: NDArray[np.uint16], areas: NDArray[np.int32], n_components: int
) -> NDArray[np.uint16]:
    """Class of each component by area; ties go to the lower id."""
    winner = np.zeros(n_components, np.uint16)
    order = np.lexsort((class_ids, of))
    of, class_ids, areas = of[order], class_ids[order], areas[order]
    if len(of) == 0:
        return winner
    starts = np.flatnonzero(np.r_[True, (of[1:] != of[:-1]) | (class_ids[1:] != class_ids[:-1])])
    sums = np.add.reduceat(areas.astype(np.int64), starts)
    of, class_ids = of[starts], class_ids[starts]
    order = np.lexsort((class_ids, -sums, of))  # best first within a component
    of, class_ids = of[order], class_ids[order]
    best = np.r_[True, of[1:] != of[:-1]]
    winner[of[best]] = class_ids[best]
    return winner


def _tiles_of(
    ids: NDArray[np.uint32], tiles: NDArray[np.int32], n_segments: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Tiles that own pixels of each segment, in compressed rows."""
    published = ids > 0
    ids, tiles = ids[published], tiles[published]
    order = np.lexsort((tiles, ids))
    ids, tiles = ids[order], tiles[order]
    new = (
        np.r_[True, (ids[1:] != ids[:-1]) | (tiles[1:] != tiles[:-1])] if len(ids) else np.empty(0, np.bool_)
    )
    ids, tiles = ids[new], tiles[new]
    offsets = np.zeros(n_segments + 1, np.int64)
    np.cumsum(np.bincount(ids, minlength=n_segments + 1)[1:], out=offsets[1:])
    return offsets, tiles
