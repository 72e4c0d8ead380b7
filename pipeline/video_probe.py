"""Opening a video that may be hostile or broken, and its geometry from the first frame that decodes.

Where a display matrix stands is told to us only with a decoded frame, so one frame is decoded. The demuxer is
forced, only the ``file`` protocol is allowed, and sizes are capped before a picture is allocated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import av.error
import numpy as np

from panoptile.pipeline.inputs import InputError, shown

PROBE_PACKETS = 200
"""So many packets may fail before a video counts as undecodable."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a video may ask of a machine before it is taken for a bomb."""

    pixels: int = 1 << 27
    """Of a frame: 16,384 × 8,192."""
    side: int = 1 << 15
    streams: int = 64
    packets: int = 1 << 24
    """About six days at 30 frames a second; the index takes some 30 bytes of each while it is made."""


LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Probe:
    """What the container and its first decoded frame tell of a video stream."""

    container: str
    """FFmpeg's name of the demuxer."""
    stream: int
    """Its number among all streams."""
    video_streams: int
    codec: str
    """FFmpeg's name of the format: h264, hevc, av1 …, whichever decoder reads it."""
    width: int
    """As decoded, before rotation."""
    height: int
    rotation: int
    """Counter-clockwise degrees, a multiple of 90."""
    mirrored: bool
    interlaced: bool
    reorders: bool
    """Frames are decoded in another order than they are shown."""
    pixel_format: str
    time_base: Fraction
    frame_rate: Fraction
    sample_aspect_ratio: Fraction
    declared_end_s: float | None
    """When the last frame ends, as the container states; None where it does not."""
    problems: tuple[str, ...]


@contextmanager
def open_container(path: str, container: str) -> Iterator[Any]:
    """An av container of a local file, read by the demuxer named and no other; raises av.error.FFmpegError."""
    # The path as a URL of the file protocol, or a name such as "pipe:0" or "concat:a|b" would be one of another.
    with av.open(
        f"file:{path}", format=container, options={"protocol_whitelist": "file"}, metadata_errors="replace"
    ) as opened:
        yield opened


def video_stream(opened: Any, path: str, number: int | None = None) -> Any:
    """The stream of that number, or the one that FFmpeg holds for the best; InputError without one."""
    if len(opened.streams) > LIMITS.streams:
        raise InputError(
            f"{shown(path)} declares {len(opened.streams)} streams, more than the limit of {LIMITS.streams}."
        )
    if number is None:
        stream = opened.streams.best("video")
    else:
        stream = next((s for s in opened.streams.video if s.index == number), None)
    if stream is None:
        raise InputError(f"{shown(path)} holds no video stream: give a file with pictures.")
    if stream.codec_context is None:
        raise InputError(f"{shown(path)} holds a video stream of a kind that no decoder here knows.")
    _check_size(path, stream.width, stream.height)
    stream.codec_context.options = {"max_pixels": str(LIMITS.pixels)}
    stream.codec_context.thread_count = 1
    return stream


def probe_first_frame(opened: Any, path: str, container: str) -> Probe:
    """Decode up to the first frame and describe it; InputError where none of the first packets decodes."""
    stream = video_stream(opened, path)
    frame = _first_frame(opened, stream)
    if frame is None:
        raise InputError(
            f"{shown(path)} ({stream.codec_context.codec.canonical_name}) has no frame that decodes: "
            "copy or download it again."
        )
    _check_size(path, frame.width, frame.height)
    rotation, mirrored, problem = display_turn(frame)
    aspect = stream.sample_aspect_ratio
    return Probe(
        container=container,
        stream=stream.index,
        video_streams=len(opened.streams.video),
        codec=stream.codec_context.codec.canonical_name,
        width=frame.width,
        height=frame.height,
        rotation=rotation,
        mirrored=mirrored,
        interlaced=bool(frame.interlaced_frame or stream.codec_context.field_order > 1),
        reorders=bool(stream.codec_context.has_b_frames),
        pixel_format=frame.format.name,
        time_base=Fraction(stream.time_base),
        frame_rate=Fraction(stream.average_rate or stream.guessed_rate or 25),
        sample_aspect_ratio=Fraction(aspect) if aspect else Fraction(1),
        declared_end_s=_declared_end(stream, container),
        problems=(problem,) if problem else (),
    )


def display_turn(frame: Any) -> tuple[int, bool, str]:
    """(degrees counter-clockwise, whether it is also mirrored, a sentence if it is neither) of the display matrix.

    The matrix is nine integers, rows (a b u) (c d v) (x y w); a picture is turned by atan2(b, a) clockwise, and
    mirrored where ad - bc < 0. Only quarter turns are applied; another angle would leave corners without pixels.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 0, False, ""
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), np.int32).astype(np.float64)
    mirrored = a * d - b * c < 0
    if mirrored:
        return 0, True, "its display matrix mirrors the picture: not applied"
    angle = -np.degrees(np.arctan2(b, a))
    quarter = round(angle / 90)
    if abs(angle - 90 * quarter) > 1:
        return 0, False, f"its display matrix turns the picture by {angle:.0f} degrees: not applied"
    return quarter % 4 * 90, False, ""


def _declared_end(stream: Any, container: str) -> float | None:
    if container == "mov" and stream.duration:
        return float((stream.duration + (stream.start_time or 0)) * stream.time_base)
    # Written into Matroska by most muxers; the file's own duration may be that of its sound.
    hours, minutes, seconds = ([*stream.metadata.get("DURATION", "").split(":"), "", ""])[:3]
    try:
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None


def _first_frame(opened: Any, stream: Any) -> Any:
    for count, packet in enumerate(opened.demux(stream)):
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            frames = []  # what the index pass will meet again, and record
        if frames:
            return frames[0]
        if count >= PROBE_PACKETS:
            break
    return None


def _check_size(path: str, width: int, height: int) -> None:
    if width > LIMITS.side or height > LIMITS.side or width * height > LIMITS.pixels:
        raise InputError(
            f"{shown(path)} declares frames of {width}x{height} pixels, more than the limit of {LIMITS.pixels:,}."
        )
