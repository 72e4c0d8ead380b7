"""How visible the tiles are in a finished label map: figures of the seams, counted while the labels are published.

A seam is a core line, between the last pixel of one tile's core and the first of the next. Blocks of labels come in the
order of the published grid; kept are the pixels along open block borders, the ids along open seams, and the cut things.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from panoptile.pipeline.grid import TileGrid
from panoptile.pipeline.raster_info import NODATA_ID
from panoptile.pipeline.segments import LabelReader, SegmentTable
from panoptile.pipeline.window import Window

CLEAR = 8
"""Lines more than this many pixels away from any seam are what seams are compared with."""
STRAIGHT = 8
"""Length of an edge along a seam, pixels, from which a thing counts as cut there."""

Ids = NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class SeamQuality:
    """Counts of one raster; they add up over rasters."""

    seam_pairs: int = 0
    """Pairs of neighbouring pixels across a seam, both with input."""
    seam_changes: int = 0
    """Those whose segment ids differ."""
    other_pairs: int = 0
    """Pairs across lines more than ``CLEAR`` px away from any seam."""
    other_changes: int = 0
    things: int = 0
    """Thing segments."""
    cut_things: int = 0
    """Things with a straight edge of ``STRAIGHT`` px or more on a seam that faces a thing of the same class."""

    @property
    def discontinuity(self) -> float | None:
        """How much likelier a change of segment is on a seam than elsewhere: 1 where tiles leave no trace.

        None without seams, or where segments change nowhere else.
        """
        if not (self.seam_pairs and self.other_changes):
            return None
        return (self.seam_changes / self.seam_pairs) / (self.other_changes / self.other_pairs)

    @property
    def cut_share(self) -> float:
        """Cut things per 1,000 things."""
        return 1000 * self.cut_things / self.things if self.things else 0.0

    @property
    def counts(self) -> tuple[int, ...]:
        """The fields in order."""
        return tuple(getattr(self, name) for name in self.__slots__)

    def __add__(self, other: SeamQuality) -> SeamQuality:
        return SeamQuality(*(a + b for a, b in zip(self.counts, other.counts, strict=True)))


@dataclass(frozen=True, slots=True)
class Seams:
    """Lines between the cores of tiles, each named by the first row or column after it, ascending."""

    rows: NDArray[np.int64]
    cols: NDArray[np.int64]

    @classmethod
    def of(cls, grid: TileGrid) -> Seams:
        return cls(
            np.array([grid.tile_at(i, 0).core.row for i in range(1, grid.rows)], np.int64),
            np.array([grid.tile_at(0, i).core.col for i in range(1, grid.cols)], np.int64),
        )


class SeamCounter:
    """Accumulates blocks of labels; each block after its left and its upper neighbour, each pixel once."""

    def __init__(self, seams: Seams, class_ids: NDArray[np.uint16], is_thing: NDArray[np.bool_]) -> None:
        """``class_ids`` (N,) and ``is_thing`` (N,) describe segments 1…N."""
        self._thing_class = np.zeros(len(class_ids) + 1, np.int32)
        self._thing_class[1:] = np.where(is_thing, class_ids, 0)
        self._axes = (_Axis(seams.rows), _Axis(seams.cols))
        self._sums = np.zeros(4, np.int64)
        self._cut: list[Ids] = []

    def add(self, labels: Ids, window: Window) -> None:
        """Count the labels (H, W) of ``window``."""
        for axis, block, start, along in (
            (self._axes[0], labels, window.row, window.col),
            (self._axes[1], labels.T, window.col, window.row),
        ):
            self._sums += axis.count(block, start, along)
            for line, before, after in axis.seams(block, start, along):
                self._follow(axis, line, along, before, after)
            axis.keep_border(block, start, along)

    def result(self) -> SeamQuality:
        """Figures so far."""
        for axis in self._axes:
            for run in axis.open_runs.values():
                self._end(run)
            axis.open_runs.clear()
        cut = len(np.unique(np.concatenate(self._cut))) if self._cut else 0
        seam_pairs, seam_changes, other_pairs, other_changes = (int(n) for n in self._sums)
        things = int(np.count_nonzero(self._thing_class))
        return SeamQuality(seam_pairs, seam_changes, other_pairs, other_changes, things, cut)

    def _follow(self, axis: _Axis, line: int, along: int, before: Ids, after: Ids) -> None:
        """Find straight edges between things of one class along a seam, over the blocks' borders too."""
        change = np.flatnonzero((before[1:] != before[:-1]) | (after[1:] != after[:-1])) + 1
        starts = np.concatenate([[0], change])
        lengths = np.diff(starts, append=len(before))
        ids = np.stack([before[starts], after[starts]], axis=1)
        last = axis.open_runs.pop(line, None)
        if last is not None:
            if last.end == along and last.ids == (int(ids[0, 0]), int(ids[0, 1])):
                lengths[0] += last.length
            else:
                self._end(last)
        whole = slice(0, len(starts) - 1)
        self._cut_at(ids[whole], lengths[whole])
        axis.open_runs[line] = _Run((int(ids[-1, 0]), int(ids[-1, 1])), int(lengths[-1]), along + len(before))

    def _end(self, run: _Run) -> None:
        self._cut_at(np.array([run.ids], np.uint32), np.array([run.length]))

    def _cut_at(self, ids: Ids, lengths: NDArray[np.int64]) -> None:
        long = ids[(lengths >= STRAIGHT) & (ids[:, 0] != ids[:, 1]) & (ids != NODATA_ID).all(axis=1)]
        classes = self._thing_class[long]
        cut = long[(classes[:, 0] == classes[:, 1]) & (classes[:, 0] > 0)]
        if len(cut):
            self._cut.append(np.unique(cut))


@dataclass(frozen=True, slots=True)
class _Run:
    """Pixels along a seam with the same two ids on its sides, up to a block's border."""

    ids: tuple[int, int]
    length: int
    end: int


class _Axis:
    """One direction: seams are lines of constant row here; the other direction sees transposed blocks."""

    def __init__(self, seams: NDArray[np.int64]) -> None:
        self._seams = seams
        self._borders: dict[tuple[int, int], Ids] = {}
        self.open_runs: dict[int, _Run] = {}

    def count(self, block: Ids, start: int, along: int) -> NDArray[np.int64]:
        """(4,) seam pairs and changes, other pairs and changes, of lines at or below the block's first row."""
        if len(self._seams) == 0:
            return np.zeros(4, np.int64)
        changes, pairs = _line_counts(block[:-1], block[1:])
        lines = np.arange(start + 1, start + len(block))
        border = self._borders.get((start, along))
        if border is not None:
            first = _line_counts(border[None], block[:1])
            changes, pairs = np.concatenate([first[0], changes]), np.concatenate([first[1], pairs])
            lines = np.concatenate([[start], lines])
        at = np.searchsorted(self._seams, lines)
        padded = np.concatenate([[-CLEAR * 4], self._seams, [np.iinfo(np.int64).max]])
        distance = np.minimum(lines - padded[at], padded[at + 1] - lines)
        on, clear = distance == 0, distance > CLEAR
        return np.array(
            [pairs[on].sum(), changes[on].sum(), pairs[clear].sum(), changes[clear].sum()], np.int64
        )

    def seams(self, block: Ids, start: int, along: int) -> list[tuple[int, Ids, Ids]]:
        """(line, ids before it, ids after it) of the seams inside the block or at its first row."""
        found = []
        first, last = np.searchsorted(self._seams, [start, start + len(block)])
        for line in self._seams[first:last].tolist():
            before = self._borders[start, along] if line == start else block[line - start - 1]
            found.append((line, before, block[line - start]))
        return found

    def keep_border(self, block: Ids, start: int, along: int) -> None:
        """Remember the last row for the block below; the row that this block was compared with is done."""
        self._borders.pop((start, along), None)
        if len(self._seams):
            self._borders[start + len(block), along] = block[-1].copy()


def _line_counts(before: Ids, after: Ids) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(lines,) pairs with different ids, and pairs with input, between rows of two blocks."""
    change = before != after
    unseen_before, unseen_after = before == NODATA_ID, after == NODATA_ID
    pairs = np.full(len(before), before.shape[1], np.int64)
    if unseen_before.any() or unseen_after.any():
        seen = ~(unseen_before | unseen_after)
        change &= seen
        pairs = np.count_nonzero(seen, axis=1).astype(np.int64)
    return np.count_nonzero(change, axis=1).astype(np.int64), pairs


class WatchedLabels:
    """A reader of labels that counts the seams of what passes through it: publishing reads each block once."""

    def __init__(
        self, labels: LabelReader, grid: TileGrid, segments: SegmentTable, things: frozenset[int]
    ) -> None:
        is_thing = np.isin(segments.class_ids, list(things))
        self._labels = labels
        self._counter = SeamCounter(Seams.of(grid), segments.class_ids, is_thing)

    def read(self, window: Window) -> Ids:
        labels = self._labels.read(window)
        self._counter.add(labels, window)
        return labels

    def quality(self) -> SeamQuality:
        """Figures of all that was read."""
        return self._counter.result()
