"""The frames of a planned video to draw over; blank ones where the video is not to be seen any more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from panoptile.pipeline.frame_source import Frame, LostFrame, open_frames
from panoptile.pipeline.video_inputs import LocalVideo
from panoptile.pipeline.video_plan import VideoPlan

_BLANK = (226, 228, 232)


class Frames(Protocol):
    """What pictures are drawn over; ``FrameSource`` is one."""

    def frames(self, start: int, stop: int, step: int = 1) -> Iterator[Frame | LostFrame]:
        """The frames start, start + step, … below stop, each once and in order."""
        ...


@contextmanager
def planned_frames(plan: VideoPlan, *, photograph: bool) -> Iterator[Frames]:
    """The frames of the video; with ``photograph=False`` blank ones, (H, W, 3) uint8, at the same times.

    Raises what ``LocalVideo`` and ``open_frames`` raise.
    """
    if not photograph:
        yield _BlankFrames(plan)
        return
    with LocalVideo(plan.uri) as local:
        source = open_frames(local.path, plan.info.index, plan.info.choice)
        try:
            yield source
        finally:
            source.close()


class _BlankFrames:
    def __init__(self, plan: VideoPlan) -> None:
        self._index = plan.info.index
        self._rgb = np.full((plan.info.height, plan.info.width, 3), _BLANK, np.uint8)

    def frames(self, start: int, stop: int, step: int = 1) -> Iterator[Frame | LostFrame]:
        for number in range(start, stop, step):
            pts = int(self._index.pts[number])
            yield Frame(number, pts, float(pts * self._index.time_base), self._rgb)
