"""How one video is cut in time: which frames a job takes, and the runs of them that workers take. Pure.

A unit starts at a key frame where one is near, so that no worker decodes much that it does not need; a group of
pictures longer than a unit is split, and the frames before the unit are decoded and dropped. Units have no halo:
linking counts overlaps over their borders from what is stored.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from panoptile.pipeline.frame_source import Choice
from panoptile.pipeline.plan import WRITTEN, Unit
from panoptile.pipeline.video_index import VideoIndex

UNIT_FRAMES = 128
"""Frames of a unit, about, in a long video: units have half to twice as many, fewer at the end."""
SHORTEST_UNIT = 32
UNITS_WANTED = 8
"""A short video is cut into about this many units, so that several workers share it, but not below the shortest."""


@dataclass(frozen=True)
class VideoInfo:
    """One video as it was found."""

    uri: str
    key: str
    """Name of its outputs."""
    stem: str
    index: VideoIndex
    choice: Choice
    """Which decoder reads it, and why."""
    etag: str = ""
    """Of an object or of a folder of images, which have no time of their own (see video_inputs.LocalVideo)."""
    written_ns: int = field(default=0, compare=False)
    """When an object, or the newest image of a folder, was written; 0 where that is not known. Told, never compared."""

    @property
    def height(self) -> int:
        return self.index.height

    @property
    def width(self) -> int:
        return self.index.width

    @property
    def size_bytes(self) -> int:
        return self.index.size

    @property
    def mtime_ns(self) -> int:
        return self.index.mtime_ns

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user."""
        return self.index.problems


@dataclass(frozen=True)
class VideoPlan:
    """What a worker needs to know of one video. Items are places in ``frames``."""

    info: VideoInfo
    frames: NDArray[np.int64]
    """(F,) increasing numbers of the frames that are segmented."""
    unit_frames: int
    """Frames that a unit should have."""
    frame_size: int | None = None
    """Shorter side, in pixels, at which the network sees a frame; None: as it is."""

    def __post_init__(self) -> None:
        frames = self.frames
        if frames.ndim != 1 or not len(frames) or np.any(np.diff(frames) <= 0):
            raise ValueError("The frames of a plan must be an increasing, non-empty list.")
        if not 0 <= frames[0] <= frames[-1] < len(self.info.index):
            raise ValueError(f"Frames {frames[0]}…{frames[-1]} do not lie in {len(self.info.index)} frames.")
        if self.unit_frames < 1:
            raise ValueError(f"A unit needs at least one frame, got {self.unit_frames}.")

    @property
    def kind(self) -> Literal["video"]:
        return "video"

    @property
    def key(self) -> str:
        return self.info.key

    @property
    def uri(self) -> str:
        return self.info.uri

    @property
    def item_count(self) -> int:
        return len(self.frames)

    @property
    def pixels(self) -> int:
        """Of all frames."""
        return len(self.frames) * self.info.height * self.info.width

    @cached_property
    def pts(self) -> NDArray[np.int64]:
        """(F,) presentation times in ticks."""
        return self.info.index.pts[self.frames]

    @cached_property
    def times_s(self) -> NDArray[np.float64]:
        """(F,) presentation times in seconds."""
        return self.info.index.times_s[self.frames]

    @cached_property
    def is_key(self) -> NDArray[np.bool_]:
        """(F,) which frames are key frames."""
        return np.isin(self.frames, self.info.index.keys)

    @cached_property
    def _cuts(self) -> NDArray[np.int64]:
        """(units + 1,) first item of each unit, and the number of items."""
        return unit_cuts(self.frames, self.info.index.keys, self.unit_frames)

    @property
    def unit_count(self) -> int:
        return len(self._cuts) - 1

    def units(self) -> Iterator[Unit]:
        """All units, in time."""
        for first, stop in zip(self._cuts[:-1].tolist(), self._cuts[1:].tolist(), strict=True):
            yield Unit(self.key, first, stop - first)

    def to_json(self) -> bytes:
        info: dict[str, Any] = {
            "uri": self.uri,
            "key": self.key,
            "stem": self.info.stem,
            "size_bytes": self.info.size_bytes,
            "mtime_ns": self.info.mtime_ns,
            "etag": self.info.etag,
            "index": self.info.index.to_json(),
            "choice": dataclasses.asdict(self.info.choice),
        }
        if self.info.written_ns:
            info[WRITTEN] = self.info.written_ns
        fields = {
            "kind": self.kind,
            "info": info,
            "frames": _as_runs(self.frames),
            "unit_frames": self.unit_frames,
            "frame_size": self.frame_size,
        }
        return json.dumps(fields, sort_keys=True, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> VideoPlan:
        fields: dict[str, Any] = json.loads(data)
        info = fields["info"]
        return cls(
            VideoInfo(
                info["uri"],
                info["key"],
                info["stem"],
                VideoIndex.from_json(info["index"]),
                Choice(**info["choice"]),
                info["etag"],
                info.get(WRITTEN, 0),
            ),
            _from_runs(fields["frames"]),
            fields["unit_frames"],
            fields["frame_size"],
        )


def default_unit_frames(frames: int) -> int:
    """Frames that a unit of a video of so many should have."""
    return min(UNIT_FRAMES, max(SHORTEST_UNIT, -(-frames // UNITS_WANTED)))


def unit_cuts(frames: NDArray[np.int64], keys: NDArray[np.int64], wanted: int) -> NDArray[np.int64]:
    """(units + 1,) places in ``frames`` where units start, and the end.

    A cut is good where a key frame lies after the frame before and not after the first of the unit. Of the good cuts
    that leave a unit half to twice the ``wanted`` length the one nearest to it is taken (of two the earlier), else the
    wanted length itself. A rest shorter than half a unit joins the last one.
    """
    total = len(frames)
    before = np.append(-1, frames[:-1])
    good = np.flatnonzero(
        np.searchsorted(keys, frames, side="right") > np.searchsorted(keys, before, side="right")
    )
    cuts, start = [0], 0
    shortest, longest = max(1, wanted // 2), 2 * wanted
    while total - start >= wanted + shortest:
        near = good[(good >= start + shortest) & (good <= min(start + longest, total - shortest))]
        start = int(near[np.argmin(np.abs(near - start - wanted))]) if len(near) else start + wanted
        cuts.append(start)
    return np.array([*cuts, total], np.int64)


def _as_runs(frames: NDArray[np.int64]) -> list[list[int]]:
    """[[first, step, count], …]: a few numbers for frames taken at a steady rate."""
    runs: list[list[int]] = []
    at = 0
    while at < len(frames):
        step = int(frames[at + 1] - frames[at]) if at + 1 < len(frames) else 1
        steady = np.flatnonzero(np.diff(frames[at:]) != step)
        count = int(steady[0]) + 1 if len(steady) else len(frames) - at
        runs.append([int(frames[at]), step, count])
        at += count
    return runs


def _from_runs(runs: list[list[int]]) -> NDArray[np.int64]:
    return np.concatenate([first + step * np.arange(count, dtype=np.int64) for first, step, count in runs])
