"""A video as the worker sees it: frames in, in order; masks, embeddings and overlaps in time out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from panoptile.model.panoptic_map import PanopticMap
from panoptile.pipeline.frame_feed import FrameFeed
from panoptile.pipeline.frame_segments import FrameLook
from panoptile.pipeline.frame_source import LostFrame
from panoptile.pipeline.plan import Unit
from panoptile.pipeline.replica import Frame
from panoptile.pipeline.unit_input import InputContext, ItemRead, PackedItem
from panoptile.pipeline.video_fragment import PackedFrame, Seen, encode_frames, lost_frame, pack_frame
from panoptile.pipeline.video_inputs import LocalVideo
from panoptile.pipeline.video_plan import VideoPlan

_NOTHING = np.zeros((1, 1), np.bool_)


class VideoInput:
    """One video, opened; each attempt at a unit decodes on its own."""

    def __init__(self, plan: bytes, context: InputContext) -> None:
        self._plan = VideoPlan.from_json(plan)
        self._context = context
        if context.channels != 3:
            raise ValueError(f"A video has 3 channels, the network wants {context.channels}.")
        self._local = LocalVideo(self._plan.uri)
        if self._local.etag != self._plan.info.etag:
            self._local.close()
            raise ValueError(
                f"{self._plan.uri} has changed since it was planned: run the same command again."
            )

    def begin(self, unit: Unit, items: Sequence[int]) -> VideoItems:
        return VideoItems(self._plan, self._local.path, items, self._context)

    def close(self) -> None:
        self._local.close()


class VideoItems:
    """One attempt at some frames of a unit."""

    readers = 1

    def __init__(self, plan: VideoPlan, path: str, items: Sequence[int], context: InputContext) -> None:
        self._plan, self._context = plan, context
        self._shape = plan.info.height, plan.info.width
        self._feed = FrameFeed(path, plan.info, plan.frames[list(items)].tolist())
        self._lock = threading.Lock()
        self._about: dict[int, tuple[FrameLook | None, str]] = {}
        """Look and what is wrong, of frames that were read and not yet encoded."""
        self._before: tuple[int, Seen] | None = None

    def read(self, item: int) -> ItemRead:
        """The frame as the network wants it, (3, h, w); a frame that is lost has no input."""
        number = int(self._plan.frames[item])
        place = Frame(number, float(self._plan.times_s[item]))
        frame = self._feed.take(number)
        if isinstance(frame, LostFrame):
            self._tell(item, None, frame.reason)
            return ItemRead(place, np.zeros((3, 1, 1), np.uint8), _NOTHING)
        if frame.rgb.shape[:2] != self._shape:
            raise ValueError(f"Frame {number} has {frame.rgb.shape[:2]} pixels, the video {self._shape}.")
        why = "an error in it or in a frame that it is predicted from" if frame.damaged else ""
        self._tell(item, FrameLook.of(frame.rgb), why)
        pixels = resized(frame.rgb, self._plan.frame_size)
        return ItemRead(place, np.ascontiguousarray(pixels.transpose(2, 0, 1)), None)

    def encoding(self, item: int, read: ItemRead, panoptic: PanopticMap) -> Callable[[], PackedItem]:
        before = None
        if self._before is not None and self._before[0] == item - 1:
            before = self._before[1]
        look, reason = self._told(item)
        if look is None:
            raise ValueError(f"Frame {read.place} was encoded but never read.")
        seen = Seen(panoptic, look)
        self._before = item, seen
        classes, shape = self._context.classes, self._shape
        return lambda: pack_frame(item, seen, before, shape, classes, reason)

    def empty(self, item: int, read: ItemRead) -> PackedItem:
        return lost_frame(item, self._told(item)[1])

    def fragment(self, packed: Sequence[PackedItem]) -> bytes:
        return encode_frames(cast("Sequence[PackedFrame]", packed), self._shape)

    def close(self) -> None:
        self._feed.close()

    def _tell(self, item: int, look: FrameLook | None, reason: str) -> None:
        with self._lock:
            self._about[item] = look, reason

    def _told(self, item: int) -> tuple[FrameLook | None, str]:
        with self._lock:
            return self._about.pop(item, (None, ""))


def resized(frame_HWC: NDArray[np.uint8], shorter_side: int | None) -> NDArray[np.uint8]:
    """The frame with its shorter side at so many pixels (bilinear, ratio kept); never enlarged."""
    height, width = frame_HWC.shape[:2]
    if shorter_side is None or min(height, width) <= shorter_side:
        return frame_HWC
    scale = shorter_side / min(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(frame_HWC).resize(size, Image.Resampling.BILINEAR))
