"""COCO run-length codes straight from outlines: no mask is ever drawn, so a huge box costs nothing.

COCO counts alternating runs of 0 and 1 down the columns of a mask. Every horizontal edge of an outline switches the
mask's value at its row in each column that it spans, so the sorted switches are the ends of the runs. A switch below
a column's last row is at the same place as one on the next column's first row, and the two cancel: parity does it.
The string form packs a count, as difference to the count two before (from the fourth on), into 5-bit groups from
ASCII 48 on, the lowest first, bit 6 meaning "more follow" (pycocotools' ``rleToString``).
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from panoptile.pipeline.polygons import Outlines, offsets_of, ragged_index

MAX_PIXELS = 2**32 - 1
"""Largest box that COCO's unsigned 32-bit counts can hold; larger ones get no code."""


def encode_runs(outlines: Outlines, boxes: NDArray[np.int32]) -> pa.StringArray:
    """COCO ``counts`` of each part over its own box; null where the box has more than ``MAX_PIXELS``.

    Args:
        outlines: ``P`` parts.
        boxes: (P, 4) their ``outlines.boxes()``. The codes' sizes are (box height, box width).
    """
    heights = (boxes[:, 3] - boxes[:, 1]).astype(np.int64)
    pixels = heights * (boxes[:, 2] - boxes[:, 0])
    coded = pixels <= MAX_PIXELS
    part, place = _switches(outlines, boxes, heights, coded)
    counts, per_part = _runs(part, place, pixels, coded)
    text, lengths = packed_text(counts, offsets_of(per_part))
    nothing_null = None if coded.all() else pa.array(coded).buffers()[1]
    buffers = [nothing_null, pa.py_buffer(offsets_of(lengths).astype(np.int32)), pa.py_buffer(text)]
    return pa.StringArray.from_buffers(len(outlines), buffers[1], buffers[2], buffers[0])


def _switches(
    outlines: Outlines, boxes: NDArray[np.int32], heights: NDArray[np.int64], coded: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Part and place, both (n,), of every change of value in column-major order; a pair at one place is no change."""
    part = np.repeat(np.arange(len(outlines)), np.diff(outlines.part_edge_offsets))
    ends = outlines.end_cols()
    starts, rows = outlines.starts_xy[:, 0], outlines.starts_xy[:, 1]
    use = coded[part]
    part, ends, starts, rows = part[use], ends[use], starts[use], rows[use]
    spans = np.abs(ends - starts).astype(np.int64)
    cols = ragged_index(np.minimum(starts, ends).astype(np.int64) - boxes[part, 0], spans)
    place = cols * np.repeat(heights[part], spans) + np.repeat(rows - boxes[part, 1], spans)
    keys = (np.repeat(part, spans) << 33) | place
    keys.sort()
    twice = np.flatnonzero(keys[1:] == keys[:-1])
    single = np.ones(len(keys), bool)
    single[twice] = single[twice + 1] = False
    keys = keys[single]
    return keys >> 33, keys & ((1 << 33) - 1)


def _runs(
    part: NDArray[np.int64], place: NDArray[np.int64], pixels: NDArray[np.int64], coded: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All run lengths, part after part, and how many each part has (P,)."""
    switches = np.bincount(part, minlength=len(pixels))
    last = np.cumsum(switches) - 1
    # a mask that ends in zeros has one more run, up to its last pixel
    open_end = np.zeros(len(pixels), bool)
    open_end[coded] = place[last[coded]] < pixels[coded]
    stops = np.insert(place, (last + 1)[open_end], pixels[open_end])
    per_part = switches + open_end
    counts = np.diff(stops, prepend=0)
    first = (np.cumsum(per_part) - per_part)[coded]
    counts[first] = stops[first]
    return counts, per_part


def packed_text(
    counts: NDArray[np.int64], offsets: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The bytes of all strings, and the length of each part's (P,)."""
    per_part = np.diff(offsets)
    rank = np.arange(len(counts)) - np.repeat(offsets[:-1], per_part)
    values = counts.copy()
    values[2:] -= np.where(rank[2:] > 2, counts[:-2], 0)
    groups = np.zeros((len(values), 7), np.uint8)  # 33 signed bits fit into seven groups of five
    used = np.zeros((len(values), 7), bool)
    rest, going = values, np.ones(len(values), bool)
    for i in range(7):
        low = rest & 31
        rest = rest >> 5
        more = going & (rest != np.where(low & 16, -1, 0))
        groups[:, i] = low + 48 + 32 * more
        used[:, i] = going
        going = more
        if not going.any():
            break
    lengths = np.bincount(
        np.repeat(np.arange(len(per_part)), per_part), weights=used.sum(1), minlength=len(per_part)
    )
    return groups[used], lengths.astype(np.int64)
