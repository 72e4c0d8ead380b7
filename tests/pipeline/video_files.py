"""Videos for tests, made with PyAV's encoders: each frame carries its number in its pixels.

The number stands in blocks of black and white, then again inverted, so a wrong frame is recognised after any
compression, and a garbled one is told from a wrong one.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("SVT_LOG", "0")

import av  # after the variable that silences its AV1 encoder

FRAMES = 90
HEIGHT, WIDTH = 96, 160
RATE = 25
BITS, BLOCK = 10, 16

X264 = "keyint=20:min-keyint=20:scenecut=0:bframes=3:b-adapt=0:threads=1:lookahead-threads=1:sync-lookahead=0"
X265 = "keyint=20:min-keyint=20:scenecut=0:bframes=3:b-adapt=0:log-level=none:pools=none:frame-threads=1"


def _open(path: str, mode: str = "r", **options: Any) -> Any:
    """av.open, whose result has a different type for each kind of stream."""
    return av.open(path, mode, **options)  # type: ignore[call-overload]


def picture(number: int, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """(H, W, 3) of frame ``number``: its bits, their inverse, and a coloured bar that moves."""
    rgb = np.full((height, width, 3), 96, np.uint8)
    for bit in range(BITS):
        value = 235 if number >> bit & 1 else 20
        rgb[:24, bit * BLOCK : (bit + 1) * BLOCK] = value
        rgb[24:48, bit * BLOCK : (bit + 1) * BLOCK] = 255 - value
    left = 3 * number % width
    rgb[56:88, left : left + 24] = (220, 40, 60)
    return rgb


def number_in(rgb: NDArray[np.uint8]) -> int:
    """The number of the frame that a picture shows; -1 for one that is garbled."""
    number = 0
    for bit in range(BITS):
        columns = slice(bit * BLOCK + 4, (bit + 1) * BLOCK - 4)
        plain, inverse = float(rgb[6:18, columns].mean()), float(rgb[30:42, columns].mean())
        if abs(plain - inverse) < 80:
            return -1
        number |= int(plain > inverse) << bit
    return number


def write_video(
    path: Path,
    codec: str = "libx264",
    *,
    numbers: Iterable[int] = range(FRAMES),
    times: Iterable[int] | None = None,
    time_base: Fraction = Fraction(1, RATE),
    options: dict[str, str] | None = None,
    pixel_format: str = "yuv420p",
    muxer: str | None = None,
    muxer_options: dict[str, str] | None = None,
    rotation: int = 0,
    audio: bool = False,
    b_frames: int | None = None,
    gop: int | None = None,
    size: tuple[int, int] = (HEIGHT, WIDTH),
) -> Path:
    """Encode the pictures of ``numbers``, shown at ``times`` (ticks of ``time_base``; 0, 1, 2 … by default)."""
    numbers = list(numbers)
    with _open(str(path), "w", format=muxer, options=muxer_options or {}) as out:
        stream: Any = out.add_stream(codec, rate=RATE, options=default_options(codec) | (options or {}))
        stream.height, stream.width, stream.pix_fmt = *size, pixel_format
        stream.codec_context.time_base = time_base
        stream.codec_context.thread_count = 1
        if gop is not None:
            stream.codec_context.gop_size = gop
        if b_frames is not None:
            stream.codec_context.max_b_frames = b_frames
        if rotation:
            stream.set_display_rotation(rotation)
        sound = _silence(out) if audio else None
        for number, time in zip(numbers, range(len(numbers)) if times is None else times, strict=True):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24").reformat(
                format=pixel_format
            )
            frame.pts, frame.time_base = time, time_base
            out.mux(stream.encode(frame))
            if sound:
                sound(time)
        out.mux(stream.encode())
        if sound:
            sound(None)
    return path


def default_options(codec: str) -> dict[str, str]:
    """Short GOPs without scene cuts, encoded by one thread."""
    return {
        "libx264": {"x264-params": X264, "preset": "ultrafast"},
        "libx265": {"x265-params": X265, "preset": "ultrafast"},
        "libsvtav1": {"preset": "8", "svtav1-params": "lp=1:keyint=20"},
        "libvpx-vp9": {
            "cpu-used": "8",
            "deadline": "realtime",
            "g": "20",
            "auto-alt-ref": "1",
            "lag-in-frames": "8",
        },
    }.get(codec, {})


def _silence(out: Any) -> Callable[[int | None], None]:
    """A function that writes as much silent sound as one video frame lasts; None ends the stream."""
    stream = out.add_stream("aac", rate=16000, layout="mono")

    def write(time: int | None) -> None:
        if time is None:
            out.mux(stream.encode())
            return
        samples = 16000 // RATE
        frame = av.AudioFrame.from_ndarray(np.zeros((1, samples), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, time * samples, Fraction(1, 16000)
        out.mux(stream.encode(frame))

    return write


def remux(source: Path, target: Path, *, shift: int = 0, muxer_options: dict[str, str] | None = None) -> Path:
    """Copy the packets of the first video stream, ``shift`` frames earlier: the muxer writes an edit list for it."""
    with _open(str(source)) as old, _open(str(target), "w", options=muxer_options or {}) as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        for packet in old.demux(stream):
            if packet.dts is None:
                continue
            ticks = round(shift / RATE / packet.time_base)
            packet.pts, packet.dts, packet.stream = packet.pts - ticks, packet.dts - ticks, copy
            new.mux(packet)
    return target


def cut(source: Path, target: Path, share: float) -> Path:
    """The first ``share`` of a file's bytes."""
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target


def damage(source: Path, target: Path, packets: Iterable[int], how: str) -> Path:
    """A copy with some packets (numbers in file order) broken: "zero", "length", "noise" or "slice"."""
    data = bytearray(source.read_bytes())
    with _open(str(source)) as old:
        places = [(p.pos, p.size) for p in old.demux(video=0) if p.size]
    rng = np.random.default_rng(7)
    for packet in packets:
        at, size = places[packet]
        if how == "zero":
            data[at : at + size] = bytes(size)
        elif how == "length":
            data[at : at + 4] = struct.pack(">I", 0x00FFFFFF)
        elif how == "noise":
            body = rng.integers(0, 256, max(size - 12, 1), dtype=np.uint8).tobytes()
            data[at + size - len(body) : at + size] = body
        else:  # the slice header
            data[at + 5 : at + 9] = b"\xff" * 4
    target.write_bytes(data)
    return target


def reference_frames(path: Path) -> list[tuple[int, int, NDArray[np.uint8]]]:
    """(pts, degrees of rotation, RGB before it) of each frame: a plain decoding from the start to the end."""
    frames: list[tuple[int, int, NDArray[np.uint8]]] = []
    with _open(str(path)) as file:
        stream = file.streams.best("video")
        try:
            for packet in file.demux(stream):
                try:
                    decoded = packet.decode()
                except av.error.InvalidDataError:
                    continue
                frames += [(f.pts, int(f.rotation), f.to_ndarray(format="rgb24")) for f in decoded]
        except av.error.FFmpegError:
            frames += [
                (f.pts, int(f.rotation), f.to_ndarray(format="rgb24"))
                for f in stream.codec_context.decode(None)
            ]
    return sorted(frames, key=lambda frame: frame[0])
