"""One pass over the packets of a video stream, without decoding: times, keys, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av.error
import numpy as np
from av.stream import Discard
from numpy.typing import NDArray

from panoptile.pipeline.inputs import InputError
from panoptile.pipeline.video_nal import NalCheck
from panoptile.pipeline.video_probe import LIMITS, Probe

NO_TIME = np.iinfo(np.int64).min
"""FFmpeg's own mark for a packet without a time."""


@dataclass(frozen=True, slots=True)
class Packets:
    """The packets of one stream in the order of decoding, which is that of the file. P packets."""

    pts: NDArray[np.int64]
    """(P,) ticks; NO_TIME where the file gives none."""
    dts: NDArray[np.int64]
    key: NDArray[np.bool_]
    discard: NDArray[np.bool_]
    """The container says: decode, but do not show (before the start of an edit list)."""
    hidden: NDArray[np.bool_]
    """Makes no picture of its own (VP8's alternate reference)."""
    parameters_change: bool
    """A packet brings coding parameters of its own that differ from those seen before it."""
    malformed: int
    """Packets whose inner lengths do not add up."""
    problems: tuple[str, ...]

    @property
    def shown(self) -> NDArray[np.bool_]:
        """(P,) the packets that stand for a frame of the video."""
        return ~(self.discard | self.hidden)


def read_packets(opened: Any, probe: Probe) -> Packets:
    """Read all packets of the probed stream; what ends the file early is a problem, not an error."""
    stream = opened.streams[probe.stream]
    for other in opened.streams:
        if other.index != stream.index:
            other.discard = Discard.all
    nal = NalCheck.of(probe.codec, stream.codec_context.extradata)
    rows: list[tuple[int, int, bool, bool, bool]] = []
    problems: list[str] = []
    end = NO_TIME
    try:
        for packet in _packets(opened, stream):
            nal.see(packet)
            rows.append(_row(packet, probe.codec))
            end = max(end, rows[-1][0] + (packet.duration or 0))
            if len(rows) > LIMITS.packets:
                raise InputError(f"The video holds more than the limit of {LIMITS.packets:,} frames: cut it.")
    except av.error.FFmpegError as e:
        problems.append(f"cut off after {len(rows)} frames: {e.strerror}")
    problems += [] if problems else _ends_early(float(end * probe.time_base), probe)
    if nal.malformed:
        problems.append(f"{nal.malformed} of {len(rows)} packets are damaged")
    columns = list(zip(*rows, strict=True)) if rows else [()] * 5
    return Packets(
        np.array(columns[0], np.int64), np.array(columns[1], np.int64), np.array(columns[2], bool),
        np.array(columns[3], bool), np.array(columns[4], bool), nal.parameters_change, nal.malformed,
        tuple(problems),
    )  # fmt: skip


def _ends_early(end_s: float, probe: Probe) -> list[str]:
    """A sentence where the pictures end more than two frames before the time that the file declares."""
    declared = probe.declared_end_s
    if declared is None or end_s >= declared - max(0.1, float(2 / probe.frame_rate)):
        return []
    return [f"cut off: its pictures end at {end_s:.3f} s of the {declared:.3f} s that it declares"]


def _packets(opened: Any, stream: Any) -> Iterator[Any]:
    for packet in opened.demux(stream):
        if packet.size:  # the empty one at the end only flushes a decoder
            yield packet


def _row(packet: Any, codec: str) -> tuple[int, int, bool, bool, bool]:
    pts = NO_TIME if packet.pts is None else packet.pts
    dts = NO_TIME if packet.dts is None else packet.dts
    # RFC 6386, 9.1: bit 4 of a VP8 frame's first byte is show_frame.
    hidden = codec == "vp8" and not bytes(packet)[0] & 0x10
    return pts, dts, packet.is_keyframe, packet.is_discard, hidden
