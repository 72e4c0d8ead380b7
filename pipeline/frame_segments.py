"""What linking knows of one frame: a small table of its segments and how they overlap the frame before.

Letters: N segments of the frame, P segments of the frame before, C channels of an embedding, Q queries, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from panoptile.model.panoptic_map import QueryStates
from panoptile.pipeline.camera_motion import grey_view

HISTOGRAM_BINS = 64
"""Bins of a frame's colour histogram: four levels each of red, green and blue."""


@dataclass(frozen=True, slots=True)
class FrameSegments:
    """The segments of one frame, in the order of their first pixels."""

    time_s: float
    class_ids: NDArray[np.uint16]
    """(N,) published class ids."""
    scores: NDArray[np.float32]
    """(N,)"""
    areas: NDArray[np.int64]
    """(N,) pixels."""
    embeddings: NDArray[np.float16]
    """(N, C); C is 0, or a row all zeros, where a replica has none."""
    overlap: NDArray[np.int64] | None
    """(P, N) pixels that a segment of the frame before shares with one of this; None where nothing is before it."""
    histogram: NDArray[np.float32] | None = None
    """(``HISTOGRAM_BINS``,) shares of the frame's colours; None where unknown."""
    states: QueryStates | None = None
    """All queries of the frame, where they were stored."""
    queries: NDArray[np.int32] | None = None
    """(N,) the query behind each segment; -1 where none is known."""
    moved_iou: NDArray[np.float32] | None = None
    """(P, N) intersection over union over what both frames see, the frame before moved as the whole picture has; None
    where the picture stands still."""

    def __post_init__(self) -> None:
        n = len(self.class_ids)
        if not (len(self.scores) == len(self.areas) == len(self.embeddings) == n):
            raise ValueError(
                f"One score, area and embedding per segment: {n} classes, {self.scores.shape=} "
                f"{self.areas.shape=} {self.embeddings.shape=}."
            )
        for overlap in (self.overlap, self.moved_iou):
            if overlap is not None and overlap.shape[1] != n:
                raise ValueError(f"Overlaps must have one column per segment: {n}, got {overlap.shape=}.")

    def __len__(self) -> int:
        return len(self.class_ids)


@dataclass(frozen=True, slots=True, eq=False)
class FrameLook:
    """What linking keeps of a frame's pixels."""

    histogram: NDArray[np.float32]
    """(``HISTOGRAM_BINS``,) shares of its colours."""
    view: NDArray[np.uint8]
    """(h, w) a small grey picture of it."""

    @classmethod
    def of(cls, frame_HWC: NDArray[np.uint8]) -> FrameLook:
        """The look of a frame (H, W, 3)."""
        return cls(color_histogram(frame_HWC), grey_view(frame_HWC))


def color_histogram(frame_HWC: NDArray[np.uint8], step: int = 4) -> NDArray[np.float32]:
    """(``HISTOGRAM_BINS``,) shares of colours over every ``step``-th pixel of a frame (H, W, 3), uint8."""
    thumb = frame_HWC[::step, ::step] >> 6
    bins = (thumb[..., 0] << 4) | (thumb[..., 1] << 2) | thumb[..., 2]
    counts = np.bincount(bins.ravel(), minlength=HISTOGRAM_BINS)
    shares: NDArray[np.float32] = (counts / max(1, counts.sum())).astype(np.float32)
    return shares
