"""Decodes the frames of one unit in a thread of its own, a few frames ahead of whoever takes them.

A decoder belongs to the thread that opened it, and a worker's reads may come from any: so it gets one that lives as
long as the unit. However slow the network is, only ``AHEAD`` decoded frames wait.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Sequence

import numpy as np

from panoptile.pipeline.frame_source import Frame, LostFrame, open_frames
from panoptile.pipeline.video_plan import VideoInfo

AHEAD = 4
"""Decoded frames that wait at most."""
PATIENCE = 300.0
"""Seconds without a frame after which a decoder is taken for hung."""


class FrameFeed:
    """The frames ``numbers`` (increasing) of a video, in order."""

    def __init__(self, path: str, info: VideoInfo, numbers: Sequence[int]) -> None:
        self._path, self._info = path, info
        self._numbers = list(numbers)
        self._queue: queue.Queue[Frame | LostFrame | Exception] = queue.Queue(AHEAD)
        self._stop = threading.Event()
        self._failed: Exception | None = None
        self._thread = threading.Thread(target=self._decode, name=f"decode-{info.key}", daemon=True)
        self._thread.start()

    def take(self, number: int) -> Frame | LostFrame:
        """The frame ``number``, the next or a later one. Raises ``OSError`` or ``ValueError``."""
        while True:
            if self._failed is not None:
                raise OSError(str(self._failed)) from self._failed
            found = self._next()
            if isinstance(found, Exception):
                self._failed = found
            elif found.index == number:
                return found
            elif found.index > number:
                raise ValueError(
                    f"Frame {number} was asked for after frame {found.index} had been delivered."
                )

    def close(self) -> None:
        """Stop decoding."""
        self._stop.set()
        self._thread.join(timeout=10)

    def _next(self) -> Frame | LostFrame | Exception:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                return self._queue.get(timeout=1.0)
            except queue.Empty:
                if not self._thread.is_alive() and self._queue.empty():
                    return OSError(
                        f"The decoder of {self._info.uri} ended before the frames that were asked for."
                    )
        return OSError(f"The decoder of {self._info.uri} has delivered nothing for {PATIENCE:.0f} s.")

    def _decode(self) -> None:
        try:
            source = open_frames(self._path, self._info.index, self._info.choice)
            try:
                wanted = set(self._numbers)
                start, stop, step = _span(self._numbers)
                for frame in source.frames(start, stop, step):
                    if frame.index in wanted and not self._put(frame):
                        return
            finally:
                source.close()
        except Exception as e:  # noqa: BLE001  (a decoder's error, whatever it is, belongs to whoever waits for its frames)
            self._put(e)

    def _put(self, value: Frame | LostFrame | Exception) -> bool:
        """Hand over one value; False where nobody wants any more."""
        while not self._stop.is_set():
            try:
                self._queue.put(value, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False


def _span(numbers: Sequence[int]) -> tuple[int, int, int]:
    """The smallest (start, stop, step) that holds all of the increasing ``numbers``."""
    step = math.gcd(*np.diff(numbers).tolist()) if len(numbers) > 1 else 1
    return numbers[0], numbers[-1] + 1, step
