"""Linking as MinVIS does it, for comparison: each query of a frame takes the slot of a query of the frame before.

From the paper (Huang et al., "MinVIS: A Minimal Video Instance Segmentation Framework without Video-based Training",
2022, section 3.2): one assignment over all Q queries, kept or not, by the cosine of their embeddings with those of the
last frame alone. No threshold, no births, no deaths; the class of a slot is the mean of its logits over all frames.
The paper has no stuff; here it is one track per class, as in the other linker.

Letters: N segments of the frame, Q queries, C channels, K classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from panoptile.pipeline.frame_segments import FrameSegments
from panoptile.pipeline.link_cost import unit_rows


class MinVisLinker:
    """Ids of things are slots, 1…Q; those of stuff are Q + class id."""

    def __init__(self, thing_class_ids: frozenset[int]) -> None:
        self._things = np.array(sorted(thing_class_ids), np.int64)
        self._slots: NDArray[np.float64] | None = None
        """(Q, C) embedding of each slot in the last frame, length 1."""
        self._logits: NDArray[np.float64] | None = None
        """(Q, K + 1) sums over the frames."""

    def skip(self) -> None:
        """A missing frame changes nothing: the last one that was seen stays the reference."""

    def link(self, frame: FrameSegments) -> NDArray[np.int32]:
        if frame.states is None or frame.queries is None:
            raise ValueError("Linking by minvis needs the states of all queries: segment with --link minvis.")
        units, _ = unit_rows(frame.states.embeddings)
        slot_of_query = self._aligned(units)
        if self._slots is None or self._logits is None:
            self._slots, self._logits = units.copy(), np.zeros(frame.states.logits.shape)
        self._slots[slot_of_query] = units
        self._logits[slot_of_query] += frame.states.logits
        known = frame.queries >= 0
        slots = np.where(known, slot_of_query[np.maximum(frame.queries, 0)] + 1, 0)
        stuff = len(units) + frame.class_ids.astype(np.int64)
        is_thing = np.isin(frame.class_ids, self._things) & known
        return np.where(is_thing, slots, stuff).astype(np.int32)

    def _aligned(self, units: NDArray[np.float64]) -> NDArray[np.int64]:
        """(Q,) slot of each query of the frame."""
        if self._slots is None:
            return np.arange(len(units))
        cost = np.round(1 - self._slots @ units.T, 6)
        slots, queries = linear_sum_assignment(cost)
        slot_of_query = np.empty(len(units), np.int64)
        slot_of_query[queries] = slots
        return slot_of_query

    def class_of(self, track_id: int) -> int | None:
        """Published class id of a track of things: the highest mean logit but for "no object"; None for stuff."""
        if self._logits is None or track_id > len(self._logits):
            return None
        logits = self._logits[track_id - 1, :-1]
        things = self._things[self._things <= len(logits)] - 1
        return int(things[np.argmax(logits[things])]) + 1 if len(things) else None
