"""From blocks of labels to whole outlines: pieces wait as corners until their segment's last pixel has come.

A thing is done when as many pixels have passed as its area says, wherever they lay; a stuff segment is cut into parts
at the borders of fixed 4,096-px blocks (but for connected regions of a moderate size, which are treated as things). What waits is the corners of the objects that are open, never pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from panoptile.pipeline.corners import Codes, block_corners, pixel_counts
from panoptile.pipeline.polygons import Outlines, trace
from panoptile.pipeline.segments import SegmentTable
from panoptile.pipeline.window import Window

STUFF_BLOCK = 4096
"""Side of the blocks, pixels, that part stuff segments."""


class Vectorizer:
    """Feed it all blocks of a raster, stuff block by stuff block; every batch that it returns is final."""

    def __init__(self, segments: SegmentTable, is_thing: NDArray[np.bool_]) -> None:
        """``is_thing`` (N,) says of each segment whether it is to be whole, as things are."""
        self._is_thing = is_thing
        self._remaining = segments.areas.copy()
        self._next_part = np.zeros(len(segments), np.int32)
        self._open_things: dict[int, list[Codes]] = {}
        self._open_stuff: dict[int, list[Codes]] = {}

    def add(self, labels: NDArray[np.uint32], window: Window) -> tuple[Outlines, NDArray[np.int32]]:
        """Take one block of labels (H, W). Returns the things that it completes and their parts (all 0)."""
        ids, counts = pixel_counts(labels)
        self._count_down(ids, counts, window)
        corner_ids, codes = block_corners(labels, window)
        starts = np.searchsorted(corner_ids, ids)
        stops = np.append(starts[1:], len(codes))
        thing, done = self._is_thing[ids - 1], self._remaining[ids - 1] == 0
        waiting = np.isin(ids, np.fromiter(self._open_things, np.uint32, len(self._open_things)))
        now = thing & done & ~waiting
        pieces = [codes[np.repeat(now, stops - starts)]]
        whole = [ids[now]]
        lengths = [(stops - starts)[now]]
        for i in np.flatnonzero(~now):
            piece = codes[starts[i] : stops[i]].copy()  # a view would keep the whole block's corners
            waits = self._open_things if thing[i] else self._open_stuff
            waits.setdefault(int(ids[i]), []).append(piece)
            if thing[i] and done[i]:
                parts = self._open_things.pop(int(ids[i]))
                pieces += parts
                whole.append(ids[i : i + 1])
                lengths.append(np.array([sum(map(len, parts))]))
        return _traced(np.concatenate(whole), np.concatenate(lengths), pieces)

    def end_stuff_block(self) -> tuple[Outlines, NDArray[np.int32]]:
        """Close the stuff segments' parts of the blocks since the last call. Returns them and their numbers (P,)."""
        ids = np.sort(np.fromiter(self._open_stuff, np.uint32, len(self._open_stuff)))
        pieces = [piece for i in ids.tolist() for piece in self._open_stuff[i]]
        lengths = np.array([sum(map(len, self._open_stuff[i])) for i in ids.tolist()], np.int64)
        self._open_stuff.clear()
        outlines, _ = _traced(ids, lengths, pieces)
        parts = self._next_part[ids - 1]
        self._next_part[ids - 1] += 1
        return outlines, parts

    def finish(self) -> None:
        """Check that every segment had all its pixels; raises ``ValueError`` naming the first that had not."""
        missing = np.flatnonzero(self._remaining)
        if len(missing):
            raise ValueError(
                f"Labels and segment table differ: segment {missing[0] + 1} lacks "
                f"{self._remaining[missing[0]]} of its pixels ({len(missing)} such segments)."
            )

    def _count_down(self, ids: NDArray[np.uint32], counts: NDArray[np.int64], window: Window) -> None:
        if len(ids) and ids[-1] > len(self._remaining):
            raise ValueError(f"{window} holds segment {ids[-1]}, the table ends at {len(self._remaining)}.")
        self._remaining[ids - 1] -= counts
        over = ids[self._remaining[ids - 1] < 0]
        if len(over):
            raise ValueError(f"{window} holds more pixels of segment {over[0]} than the table says.")


def _traced(
    ids: NDArray[np.uint32], lengths: NDArray[np.int64], pieces: list[Codes]
) -> tuple[Outlines, NDArray[np.int32]]:
    codes = np.concatenate(pieces) if pieces else np.empty(0, np.uint64)
    return trace(ids, np.repeat(np.arange(len(ids)), lengths), codes), np.zeros(len(ids), np.int32)
