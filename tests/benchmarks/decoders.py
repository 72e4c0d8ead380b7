"""Frames per second of decord and PyAV: sequential, every 10th, random; as ratios to PyAV within one run.

Run: ``python tests/benchmarks/decoders.py [--size 640x360 1920x1080] [--gop 30 250] [--rounds 3]``. Backends take
turns in each round, and the median of the rounds is given, so that other load weighs on all alike. "decord bounded" is
what panoptile uses; "decord plain" is decord without panoptile's bound on its memory. CPU seconds count all threads.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from panoptile.pipeline.frame_source import Frame, choose_backend, open_frames
from panoptile.pipeline.video_index import VideoIndex, index_video

Reader = Callable[[str, VideoIndex, Sequence[range]], int]


def make_video(path: Path, height: int, width: int, frames: int, gop: int) -> Path:
    """Noise that moves over a smooth ground, B-frames, closed GOPs: about the bits of a real clip."""
    import av

    rng = np.random.default_rng(0)
    ground = np.add.outer(np.arange(height), np.arange(width)) // 8 % 160
    texture = np.clip(ground + rng.normal(0, 12, (height, width)), 16, 235).astype(np.uint8)
    grey = np.full((height // 2, width), 128, np.uint8)
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(
            "libx264", rate=30,
            options={"preset": "superfast", "x264-params": f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes=3"},
        )  # fmt: skip
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for k in range(frames):
            moved = np.roll(texture, (k, 2 * k), axis=(0, 1))
            frame = av.VideoFrame.from_ndarray(np.concatenate([moved, grey]), format="yuv420p")
            frame.pts, frame.time_base = k, Fraction(1, 30)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def by_source(backend: Any) -> Reader:
    """Read with one of panoptile's own sources."""

    def read(path: str, index: VideoIndex, wanted: Sequence[range]) -> int:
        source = open_frames(path, index, backend)
        count = sum(isinstance(f, Frame) for w in wanted for f in source.frames(w.start, w.stop, w.step))
        source.close()
        return count

    return read


def by_plain_decord(path: str, index: VideoIndex, wanted: Sequence[range]) -> int:
    """Read as decord's own documentation shows: one frame after another, nothing bounded."""
    import decord

    reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
    count = 0
    for w in wanted:
        for frame in w:
            reader[frame].asnumpy()
            count += 1
    return count


READERS: dict[str, Reader] = {
    "pyav": by_source("pyav"),
    "decord bounded": by_source("decord"),
    "decord plain": by_plain_decord,
}


def patterns(frames: int) -> dict[str, list[range]]:
    """The three ways to read, as ranges of frames."""
    chosen = np.random.default_rng(1).permutation(frames)[:20]
    return {
        "sequential": [range(frames)],
        "every 10th": [range(0, frames, 10)],
        "random": [range(int(k), int(k) + 1) for k in chosen],
    }


def measure(path: str, rounds: int) -> None:
    """Print a row for each pattern and reader."""
    index = index_video(path)
    choice = choose_backend(path, index)
    print(f"auto chooses {choice.backend}: {choice.reason}")
    print(f"{'':<12}{'':<16}{'frames/s':>10}{'of PyAV':>9}{'frames/CPU-s':>14}{'of PyAV':>9}")
    for pattern, wanted in patterns(len(index)).items():
        wall: dict[str, list[float]] = {name: [] for name in READERS}
        cpu: dict[str, list[float]] = {name: [] for name in READERS}
        for _ in range(rounds):
            for name, read in READERS.items():
                started, burned = time.perf_counter(), time.process_time()
                count = read(path, index, wanted)
                wall[name].append(count / (time.perf_counter() - started))
                cpu[name].append(count / (time.process_time() - burned))
        base_wall, base_cpu = (statistics.median(rates["pyav"]) for rates in (wall, cpu))
        for name in READERS:
            w, c = statistics.median(wall[name]), statistics.median(cpu[name])
            print(
                f"{pattern:<12}{name:<16}{w:>10.1f}{w / base_wall:>8.2f}x{c:>14.1f}{c / base_cpu:>8.2f}x",
                flush=True,
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", nargs="+", default=["640x360", "1920x1080"])
    parser.add_argument("--gop", nargs="+", type=int, default=[30, 250])
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for size in options.size:
        width, height = map(int, size.split("x"))
        for gop in options.gop:
            print(f"\n{size}, H.264, closed GOP of {gop}, {options.frames} frames, one decoding thread")
            with tempfile.TemporaryDirectory() as folder:
                path = make_video(Path(folder) / "video.mp4", height, width, options.frames, gop)
                measure(str(path), options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
