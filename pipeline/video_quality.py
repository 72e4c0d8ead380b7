"""VPQ: panoptic quality of tubes in short windows of a video.

Kim et al., "Video Panoptic Segmentation" (CVPR 2020): the segments of one id in k successive frames are one tube; PQ
over all windows of k frames, per class, averaged over classes, then over k. Frames come one by one, and only the pair
counts of the last few are kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from panoptile.pipeline.contingency import Contingency, Labels, segments_of
from panoptile.pipeline.overlaps import ScoredClass, SegmentLabels, overlaps
from panoptile.pipeline.panoptic_quality import PanopticQuality, PanopticScores

WINDOWS = (1, 2, 4, 6)
"""Frames of a window, as usually reported."""

Describe = Callable[[Labels], SegmentLabels]
"""What segments' labels, which come ascending, mean: the class, crowd and score of each."""


@dataclass(frozen=True, slots=True)
class VideoScores:
    """Panoptic quality for each window length that some video is long enough for."""

    windows: dict[int, PanopticScores]

    @property
    def all(self) -> float:
        """VPQ: the mean over window lengths; 0 without any."""
        return self._mean("all")

    @property
    def things(self) -> float:
        return self._mean("things")

    @property
    def stuff(self) -> float:
        return self._mean("stuff")

    def _mean(self, group: str) -> float:
        values = [getattr(scores, group).pq for scores in self.windows.values()]
        return sum(values) / len(values) if values else 0.0


class VideoPanopticQuality:
    """Accumulates videos, frame by frame."""

    def __init__(self, classes: Sequence[ScoredClass], windows: Sequence[int] = WINDOWS) -> None:
        if not windows or min(windows) < 1:
            raise ValueError(f"Windows have at least one frame, got {list(windows)}.")
        self._quality = {k: PanopticQuality(classes) for k in sorted(set(windows))}
        self._seen = dict.fromkeys(self._quality, 0)
        self._recent: deque[Contingency] = deque(maxlen=max(windows))
        self._describe: tuple[Describe, Describe] | None = None

    def start_video(self, truth: Describe, found: Describe) -> None:
        """Begin another video: no window reaches into the one before."""
        self._recent.clear()
        self._describe = (truth, found)

    def add_frame(self, pairs: Contingency) -> None:
        """Add the next frame: labels are track ids, the same in all frames of the video."""
        if self._describe is None:
            raise ValueError("start_video comes before the first frame.")
        self._recent.append(pairs)
        truth, found = self._describe
        for k, quality in self._quality.items():
            if len(self._recent) >= k:
                tube = Contingency.merged(list(self._recent)[-k:])
                named = truth(segments_of(np.unique(tube.truth))), found(segments_of(np.unique(tube.found)))
                quality.add(overlaps(tube, *named))
                self._seen[k] += 1

    def result(self) -> VideoScores:
        """Figures so far; window lengths that no video reaches are left out."""
        return VideoScores({k: q.result() for k, q in self._quality.items() if self._seen[k]})
