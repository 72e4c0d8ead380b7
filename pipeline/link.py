"""Segments of successive frames become tracks: a pure, deterministic pass over the frames of one video in order.

Nothing here sees a pixel or a network: the same table can be linked again with other options. Memory follows the live
tracks. Things are matched by the embeddings of their queries, by overlap with the frame before, and by class; stuff is
one track per class. The memory of a track follows CTVIS (Ying et al., 2023, section 3.2): a segment that looks less
like the track changes it less.

Letters: T live tracks, N segments of the frame, P segments of the frame before, C channels.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from panoptile.pipeline.frame_segments import FrameSegments
from panoptile.pipeline.link_cost import (
    Candidates,
    assign,
    overlap_iou,
    pair_costs,
    unit_rows,
    with_camera,
)
from panoptile.pipeline.link_options import LinkOptions

_TIME_SLACK = 1e-6
"""Seconds: times are sums of rounded parts, and an age of exactly the limit is within it."""


class Linker(Protocol):
    """Takes frames in order of time; a tracker with weights of its own can be put here."""

    def link(self, frame: FrameSegments) -> NDArray[np.int32]:
        """(N,) id of each segment's track, from 1; ids are never used again for another track."""
        ...

    def skip(self) -> None:
        """A frame is missing here: the next one has nothing before it."""
        ...


class TrackLinker:
    """The linker of this project; see the module."""

    def __init__(self, thing_class_ids: frozenset[int], options: LinkOptions | None = None) -> None:
        self._options = options or LinkOptions()
        self._is_thing = np.zeros(1 << 16, np.bool_)
        self._is_thing[list(thing_class_ids)] = True
        self._stuff: dict[int, int] = {}
        self._next_id = 1
        self._histogram: NDArray[np.float32] | None = None
        # one entry per live track of things
        self._ids = np.zeros(0, np.int32)
        self._memory: NDArray[np.float64] | None = None
        self._class_ids = np.zeros(0, np.uint16)
        self._last_seen = np.zeros(0)
        self._areas = np.zeros(0, np.int64)
        self._segments = np.zeros(0, np.int64)
        """Index of the track's segment in the frame before; -1 where it was not seen there."""

    @property
    def live(self) -> int:
        """Tracks that a segment may still join."""
        return len(self._ids)

    def skip(self) -> None:
        self._segments[:] = -1
        self._histogram = None

    def link(self, frame: FrameSegments) -> NDArray[np.int32]:
        self._forget(frame.time_s)
        things = np.flatnonzero(self._is_thing[frame.class_ids])
        units, has = unit_rows(frame.embeddings[things])
        costs = pair_costs(self._candidates(frame, things, units, has), self._options)
        chosen = assign(costs, self._options.match_threshold)
        ids = self._ids_of(frame, things, chosen)
        self._continue(frame, things, units, chosen)
        self._begin(frame, things, units, chosen, ids)
        self._histogram = frame.histogram
        return ids

    def _forget(self, now: float) -> None:
        """Drop the tracks that have been unseen for longer than the age limit."""
        kept = now - self._last_seen <= self._options.max_age + _TIME_SLACK
        self._keep(kept)

    def _keep(self, kept: NDArray[np.bool_]) -> None:
        self._ids, self._class_ids = self._ids[kept], self._class_ids[kept]
        self._last_seen, self._areas = self._last_seen[kept], self._areas[kept]
        self._segments = self._segments[kept]
        self._memory = None if self._memory is None else self._memory[kept]

    def _candidates(
        self,
        frame: FrameSegments,
        things: NDArray[np.int64],
        units: NDArray[np.float64],
        has: NDArray[np.bool_],
    ) -> Candidates:
        shape = (len(self._ids), len(things))
        cosine, iou = np.full(shape, np.nan), np.full(shape, np.nan)
        memory = self._memory if self._memory is not None else np.zeros((0, units.shape[1]))
        if memory.shape[1] == units.shape[1] and units.shape[1]:
            known = np.any(memory, axis=1, keepdims=True) & has[None]
            cosine = np.where(known, memory @ units.T, np.nan)
        if frame.overlap is not None and not self._is_cut(frame):
            seen = self._segments >= 0
            rows = self._segments[seen]
            common = frame.overlap[rows][:, things]
            iou[seen] = overlap_iou(common, self._areas[seen], frame.areas[things])
            if self._options.camera_motion and frame.moved_iou is not None:
                iou[seen] = with_camera(frame.moved_iou[rows][:, things], iou[seen], self._options.min_iou)
        same_class = self._class_ids[:, None] == frame.class_ids[things][None]
        return Candidates(cosine, iou, same_class)

    def _is_cut(self, frame: FrameSegments) -> bool:
        if self._histogram is None or frame.histogram is None:
            return False
        change = 0.5 * float(np.abs(self._histogram.astype(np.float64) - frame.histogram).sum())
        return change > self._options.scene_cut

    def _ids_of(
        self, frame: FrameSegments, things: NDArray[np.int64], chosen: NDArray[np.int64]
    ) -> NDArray[np.int32]:
        """Ids of all segments; new ones are given in the segments' order, things and stuff alike."""
        ids = np.zeros(len(frame), np.int32)
        old = chosen >= 0
        ids[things[old]] = self._ids[chosen[old]]
        for i in np.flatnonzero(ids == 0):
            class_id = int(frame.class_ids[i])
            if self._is_thing[class_id]:
                ids[i] = self._new_id()
            else:
                if class_id not in self._stuff:
                    self._stuff[class_id] = self._new_id()
                ids[i] = self._stuff[class_id]
        return ids

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    def _continue(
        self,
        frame: FrameSegments,
        things: NDArray[np.int64],
        units: NDArray[np.float64],
        chosen: NDArray[np.int64],
    ) -> None:
        """Bring the tracks that were found up to date."""
        self._segments[:] = -1
        found = np.flatnonzero(chosen >= 0)
        tracks, segments = chosen[found], things[found]
        self._segments[tracks] = segments
        self._areas[tracks] = frame.areas[segments]
        self._last_seen[tracks] = frame.time_s
        self._class_ids[tracks] = frame.class_ids[segments]
        if self._memory is None or self._memory.shape[1] != units.shape[1]:
            return
        sure = frame.scores[segments] >= self._options.birth_score
        tracks, seen = tracks[sure], units[found[sure]]
        old = self._memory[tracks]
        likeness = np.clip((old * seen).sum(axis=1), 0.0, 1.0)[:, None]
        likeness[~old.any(axis=1)] = 1.0  # nothing remembered yet
        mixed, has = unit_rows((1 - likeness) * old + likeness * seen)
        self._memory[tracks] = np.where(has[:, None], mixed, old)

    def _begin(
        self,
        frame: FrameSegments,
        things: NDArray[np.int64],
        units: NDArray[np.float64],
        chosen: NDArray[np.int64],
        ids: NDArray[np.int32],
    ) -> None:
        """Take in the new tracks of segments that are sure enough."""
        new = np.flatnonzero((chosen < 0) & (frame.scores[things] >= self._options.birth_score))
        if not len(new):
            return
        segments, fresh, memory = things[new], units[new], self._memory
        if memory is None or not memory.shape[1]:
            memory = np.zeros((len(self._ids), fresh.shape[1]))
        if not fresh.shape[1]:  # no embeddings in this unit: such a track has nothing to remember
            fresh = np.zeros((len(new), memory.shape[1]))
        self._memory = np.concatenate([memory, fresh])
        self._ids = np.concatenate([self._ids, ids[segments]])
        self._class_ids = np.concatenate([self._class_ids, frame.class_ids[segments]])
        self._last_seen = np.concatenate([self._last_seen, np.full(len(new), frame.time_s)])
        self._areas = np.concatenate([self._areas, frame.areas[segments]])
        self._segments = np.concatenate([self._segments, segments])
