"""Segments as signed corners: the form in which pieces of one segment are united without any geometry.

A set of pixels is known by the mixed difference of its indicator at each grid vertex: +1 or -1 at a corner of its
outline, +2 or -2 where two of its pixels touch only diagonally, 0 elsewhere ("vertex representation": Esperança and
Samet, "Vertex representations and their applications in computer graphics", The Visual Computer 14, 1998). The
difference is linear, so the corners of disjoint pieces simply add up: cuts of a block grid cancel to nothing, exactly,
and the outline of a whole does not depend on how it was cut.

A corner is one unsigned 64-bit code, ``row << 32 | col << 1 | negative``, of a vertex of the pixel grid (vertex (0, 0)
is the outer corner of pixel (0, 0)); codes therefore sort in scan order. A weight of ±2 is the same code twice.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from panoptile.pipeline.raster_info import NODATA_ID
from panoptile.pipeline.window import Window

Codes = NDArray[np.uint64]
"""(n,) corner codes."""

MAX_SIDE = 2**31 - 2
"""Longest raster side, pixels, that a corner code can hold."""
MAX_BLOCK_SIDE = 16_384
"""Longest side of one block of labels, pixels, that ``block_corners`` takes."""

_ROW, _COL, _ONE = np.uint64(32), np.uint64(1), np.uint64(1)
_COL_MASK = np.uint64(0x7FFF_FFFF)


def encode(rows: NDArray[np.uint64], cols: NDArray[np.uint64], negative: NDArray[np.uint64]) -> Codes:
    """Codes of vertices (n,), (n,) with signs (n,) of 0 (positive) or 1 (negative)."""
    return (rows << _ROW) | (cols << _COL) | negative


def decode(codes: Codes) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows, columns and signs (0 positive, 1 negative) of ``codes``, each (n,)."""
    rows = (codes >> _ROW).astype(np.int64)
    cols = ((codes >> _COL) & _COL_MASK).astype(np.int64)
    return rows, cols, (codes & _ONE).astype(np.int64)


def pixel_counts(labels: NDArray[np.uint32]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Ascending ids of the segments in ``labels`` (H, W) and their pixels; void and nodata are left out.

    Counted over runs of equal pixels, which is several times faster than sorting all of them.
    """
    flat = labels.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(starts, append=flat.size)
    runs = (flat[starts].astype(np.uint64) << np.uint64(32)) | lengths.astype(np.uint64)
    runs.sort()
    ids = (runs >> np.uint64(32)).astype(np.uint32)
    first = np.concatenate([[0], np.flatnonzero(ids[1:] != ids[:-1]) + 1])
    counts = np.add.reduceat((runs & np.uint64(0xFFFF_FFFF)).astype(np.int64), first)
    ids = ids[first]
    segment = (ids != 0) & (ids != NODATA_ID)
    return ids[segment], counts[segment]


def block_corners(labels: NDArray[np.uint32], window: Window) -> tuple[NDArray[np.uint32], Codes]:
    """Corners of all segments of one block, as if nothing lay outside it.

    Args:
        labels: (H, W) segment ids of ``window``; 0 and ``NODATA_ID`` belong to no segment.
        window: where the block lies, so that codes are of the whole raster's vertices.

    Returns:
        Ids (n,) ascending and codes (n,), ascending within an id.
    """
    if labels.shape != window.shape or max(labels.shape) > MAX_BLOCK_SIDE:
        raise ValueError(
            f"Expected labels of {window.shape}, at most {MAX_BLOCK_SIDE} a side: {labels.shape = }."
        )
    padded = np.zeros((window.height + 2, window.width + 2), np.uint32)
    np.copyto(padded[1:-1, 1:-1], labels, where=labels != NODATA_ID)
    vertices = np.flatnonzero(_is_corner(padded))
    rows, cols = np.divmod(vertices, window.width + 1)
    keys = _corner_keys(padded, rows, cols)
    keys.sort()
    low = np.uint64(16)  # bits of a row or column inside the block
    mask = np.uint64(0x7FFF)
    ids = (keys >> np.uint64(32)).astype(np.uint32)
    row = ((keys >> low) & np.uint64(0xFFFF)) + np.uint64(window.row)
    col = ((keys >> _COL) & mask) + np.uint64(window.col)
    return ids, encode(row, col, keys & _ONE)


def _is_corner(padded: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """(H + 1, W + 1): True at vertices whose four pixels are not split by one straight line, or not at all."""
    along_row = padded[:, 1:] == padded[:, :-1]
    along_col = padded[1:] == padded[:-1]
    straight: NDArray[np.bool_] = along_row[1:] & along_row[:-1]
    straight |= along_col[:, 1:] & along_col[:, :-1]
    return np.logical_not(straight, out=straight)


def _corner_keys(
    padded: NDArray[np.uint32], rows: NDArray[np.int64], cols: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """Unsorted keys ``id << 32 | row << 16 | col << 1 | negative`` of the corners at vertices (rows, cols).

    The pixels around a vertex are a b over c d; a and d count +1 for their segment, b and c -1. Equal neighbours
    cancel; of three equal pixels one is left, with the sign of the two that lie diagonally.
    """
    a, b = padded[rows, cols], padded[rows, cols + 1]
    c, d = padded[rows + 1, cols], padded[rows + 1, cols + 1]
    ab, ac, bd, cd = a == b, a == c, b == d, c == d
    keep_a = ~(ab | ac) | (ab & bd) | (ac & cd)
    keep_b = ~(ab | bd) | (ab & ac) | (bd & cd)
    keep = ((a, keep_a, 0), (b, keep_b, 1), (c, ~(ac | cd), 1), (d, ~(bd | cd), 0))
    place = (rows.astype(np.uint64) << np.uint64(16)) | (cols.astype(np.uint64) << _COL)
    found = []
    for ids, kept, negative in keep:
        kept = kept & (ids != 0)
        found.append((ids[kept].astype(np.uint64) << np.uint64(32)) | place[kept] | np.uint64(negative))
    return np.concatenate(found)
