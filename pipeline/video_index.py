"""Which frames a video holds and when each is shown: read from its packets, without decoding them.

This index is the only source of timestamps and of frame numbers: decoders are asked for the frames that it
names, and what they deliver is checked against it. Frames are numbered in the order of presentation.
"""

from __future__ import annotations

import base64
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from panoptile.pipeline.inputs import InputError, shown
from panoptile.pipeline.magic import video_container
from panoptile.pipeline.video_gate import objections_to_decord
from panoptile.pipeline.video_packets import NO_TIME, Packets, read_packets
from panoptile.pipeline.video_probe import Probe, open_container, probe_first_frame

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class VideoIndex:
    """The frames of one video (or of one directory of images), in presentation order."""

    pts: Int64
    """(N,) presentation time of each frame in ticks of ``time_base``; never decreasing. Packets that the file
    marks as not to be shown (edit lists) are left out."""
    time_base: Fraction
    """Seconds per tick."""
    keys: Int64
    """Increasing frame numbers at which decoding can start; the first is the first decodable frame."""
    width: int
    """As shown: after rotation, in stored pixels (the sample aspect ratio is not applied)."""
    height: int
    rotation: int
    """Degrees, counter-clockwise, by which a decoded frame is turned to be shown: 0, 90, 180 or 270."""
    codec: str
    container: str
    """FFmpeg's name of the demuxer, or "images"."""
    decord_safe: bool
    """Whether decord is known to deliver the right frames of this file."""
    reasons: tuple[str, ...]
    """Why not."""
    size: int
    """Bytes of the file; of all files for images."""
    mtime_ns: int
    key_dts: Int64
    """Decoding time of each key: where some demuxers seek to."""
    stream: int = 0
    """Number of the video stream in the file."""
    pixel_format: str = ""
    sample_aspect_ratio: Fraction = Fraction(1)
    """Recorded, not applied."""
    ordinal: bool = False
    """Frames have no usable times of their own: they are counted from the start, and nothing can be skipped."""
    problems: tuple[str, ...] = ()
    """What is wrong with the file, one sentence each: truncated, frames without time, equal times …"""
    files: tuple[str, ...] = ()
    """Of a directory of images: the names, in order."""

    def __post_init__(self) -> None:
        if self.pts.ndim != 1 or not len(self.pts) or np.any(np.diff(self.pts) < 0):
            raise ValueError("The presentation times of a video must be a non-decreasing, non-empty list.")
        if not len(self.keys) or len(self.keys) != len(self.key_dts):
            raise ValueError(f"Got {len(self.keys)} keys and {len(self.key_dts)} decoding times of them.")

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def times_s(self) -> NDArray[np.float64]:
        """(N,) seconds, float64: ``pts × time_base``, the time that ffprobe prints as ``pts_time``."""
        return self.pts * self.time_base.numerator / self.time_base.denominator

    def time_s(self, frame: int) -> float:
        """Seconds at which a frame is shown: ``pts × time_base``."""
        return float(int(self.pts[frame]) * self.time_base)

    @property
    def duration_s(self) -> float:
        """From the first frame's time to the end of the last, which is taken to last as long as the median."""
        if len(self) == 1:
            return 0.0
        ticks = int(self.pts[-1] - self.pts[0]) + float(np.median(np.diff(self.pts)))
        return float(ticks * self.time_base)

    @property
    def fps(self) -> float:
        """Mean rate of frames; 0 for a single frame."""
        span = int(self.pts[-1] - self.pts[0]) * self.time_base
        return float((len(self) - 1) / span) if span else 0.0

    def key_before(self, frame: int) -> int:
        """The last frame, at or before ``frame``, at which decoding can start (the first of all if there is none)."""
        at = int(np.searchsorted(self.keys, frame, side="right")) - 1
        return int(self.keys[max(at, 0)])

    def to_json(self) -> dict[str, Any]:
        """A JSON object; the times are packed (differences, deflated, base 64): a few bytes a frame at most."""
        return {
            "pts": _packed(self.pts), "keys": _packed(self.keys), "key_dts": _packed(self.key_dts),
            "time_base": str(self.time_base), "width": self.width, "height": self.height,
            "rotation": self.rotation, "codec": self.codec, "container": self.container,
            "decord_safe": self.decord_safe, "reasons": list(self.reasons), "size": self.size,
            "mtime_ns": self.mtime_ns, "stream": self.stream, "pixel_format": self.pixel_format,
            "sample_aspect_ratio": str(self.sample_aspect_ratio), "ordinal": self.ordinal,
            "problems": list(self.problems), "files": list(self.files),
        }  # fmt: skip

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> VideoIndex:
        """The index that ``to_json`` made. Raises ``ValueError``, ``KeyError`` or ``TypeError`` for anything else."""
        fields = dict(stored)
        for name in ("pts", "keys", "key_dts"):
            fields[name] = _unpacked(fields[name])
        for name in ("time_base", "sample_aspect_ratio"):
            fields[name] = Fraction(fields[name])
        for name in ("reasons", "problems", "files"):
            fields[name] = tuple(fields[name])
        return cls(**fields)


def index_video(path: str) -> VideoIndex:
    """Index a local video file: one pass over its packets, and the decoding of its first frame for its geometry.

    Raises InputError, one sentence, for a file that is not a video (see magic.video_container), has no video
    stream, no frame that decodes, or asks for more than the limits of video_probe.Limits.
    """
    container = video_container(path)
    try:
        with open_container(path, container) as opened:
            probe = probe_first_frame(opened, path, container)
        with open_container(path, container) as opened:
            packets = read_packets(opened, probe)
        status = os.stat(path)
    except (av.error.FFmpegError, OSError) as e:
        raise InputError(f"{shown(path)} cannot be read as a video ({container}): {e.strerror}.") from e
    if not packets.shown.any():
        raise InputError(f"{shown(path)} holds no frame to show: copy or download it again.")
    index = _assemble(probe, packets, status)
    reasons = objections_to_decord(path, probe, packets)
    return replace(index, decord_safe=not reasons, reasons=reasons)


def _assemble(probe: Probe, packets: Packets, status: os.stat_result) -> VideoIndex:
    order, times = _presentation(packets, probe)
    keys = np.flatnonzero(packets.key[order] & ~_repeated(times.pts))
    if times.ordinal or not len(keys):
        keys = np.zeros(1, np.int64)
    dts = np.where(packets.dts == NO_TIME, packets.pts, packets.dts)[order]
    turned = probe.rotation in (90, 270)
    return VideoIndex(
        pts=times.pts, time_base=times.time_base, keys=keys.astype(np.int64), key_dts=dts[keys],
        width=probe.height if turned else probe.width, height=probe.width if turned else probe.height,
        rotation=probe.rotation, codec=probe.codec, container=probe.container, decord_safe=False, reasons=(),
        size=status.st_size, mtime_ns=status.st_mtime_ns, stream=probe.stream,
        pixel_format=probe.pixel_format, sample_aspect_ratio=probe.sample_aspect_ratio,
        ordinal=times.ordinal, problems=(*probe.problems, *packets.problems, *times.problems),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Times:
    """Times of the frames in presentation order, and what had to be done to get them."""

    pts: Int64
    time_base: Fraction
    ordinal: bool = False
    problems: tuple[str, ...] = ()


def _presentation(packets: Packets, probe: Probe) -> tuple[Int64, _Times]:
    """(positions of the shown packets in presentation order, their times).

    Frames with equal times keep the order of the file. Where any frame lacks its time, all are counted: their
    times are the decoding times in increasing order, or, without those, multiples of the mean frame duration.
    """
    at = np.flatnonzero(packets.shown)
    pts, dts = packets.pts[at], packets.dts[at]
    # AVI stores no presentation times: where FFmpeg cannot infer them it gives the decoding times, perhaps shifted.
    repeats = probe.container == "avi" and probe.reorders and len(np.unique(pts - dts)) == 1
    if not repeats and not (pts == NO_TIME).any():
        order = np.argsort(pts, kind="stable")
        equal = int((np.diff(pts[order]) == 0).sum())
        problems = (f"{equal} frames have the time of the frame before them",) if equal else ()
        return at[order], _Times(pts[order], probe.time_base, problems=problems)
    missing = len(at) if repeats else int((pts == NO_TIME).sum())
    problem = f"{missing} of {len(at)} frames have no time of their own: they are counted from the start"
    if not (dts == NO_TIME).any() and (np.diff(dts) > 0).all():
        return at, _Times(dts, probe.time_base, ordinal=True, problems=(problem,))
    counted = np.arange(len(at), dtype=np.int64)
    return at, _Times(counted, 1 / probe.frame_rate, ordinal=True, problems=(problem,))


def _repeated(pts: Int64) -> NDArray[np.bool_]:
    """(N,) frames whose time another frame has too: decoding cannot be told to start at one of them."""
    repeated = np.zeros(len(pts), bool)
    equal = np.diff(pts) == 0
    repeated[1:] |= equal
    repeated[:-1] |= equal
    return repeated


def _packed(values: Int64) -> str:
    steps = np.diff(values, prepend=0).astype("<i8")
    return base64.b64encode(zlib.compress(steps.tobytes(), 9)).decode("ascii")


def _unpacked(text: str) -> Int64:
    try:
        steps = np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i8")
    except zlib.error as e:
        raise ValueError(f"The packed times of an index are damaged: {e}.") from e
    return np.cumsum(steps, dtype=np.int64)
