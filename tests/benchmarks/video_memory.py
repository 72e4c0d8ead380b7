"""Memory of decoding with a slow consumer: 1080p, 2,000 frames, growth of the resident set, for each backend.

Run: ``python tests/benchmarks/video_memory.py [frames [wait_ms]]``. Exits 1 where growth passes 200 MB.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil

LIMIT_MB = 200
HEIGHT, WIDTH = 1080, 1920
GOP = 50


def make_video(path: Path, frames: int, height: int = HEIGHT, width: int = WIDTH) -> Path:
    """A closed-GOP H.264 file, which both backends may read; flat pictures, so it is made fast."""
    import av

    rgb = np.full((height, width, 3), 90, np.uint8)
    rgb[::64] = 200
    picture: Any = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuv420p")
    plane = np.asarray(picture.to_ndarray()).copy()
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(
            "libx264",
            rate=25,
            options={"preset": "ultrafast", "x264-params": f"keyint={GOP}:scenecut=0:bframes=2:threads=1"},
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for k in range(frames):
            plane[(8 * k) % height, :] = 16 + k % 200
            frame = av.VideoFrame.from_ndarray(plane, format="yuv420p")
            frame.pts, frame.time_base = k, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def growth_mb(path: str, backend: str, frames: int, wait_s: float) -> tuple[float, float]:
    """(largest growth of the resident set in MB, frames a second) while a consumer waits ``wait_s`` on each frame.

    To be called in a fresh process. The growth counts from before the file is opened, with the libraries loaded.
    """
    from panoptile.pipeline.frame_source import Frame, open_frames
    from panoptile.pipeline.video_index import index_video

    process = psutil.Process()
    warm = Path(path).with_name("warm.mp4")
    for part, end in ((warm, 4), (Path(path), frames)):
        index = index_video(str(part))
        if part is warm:
            source = open_frames(str(part), index, backend)  # type: ignore[arg-type]
            list(source.frames(0, end))
            source.close()
            before = process.memory_info().rss
            continue
        with _Peak(process) as peak:
            source = open_frames(str(part), index, backend)  # type: ignore[arg-type]
            started = time.perf_counter()
            given = 0
            for frame in source.frames(0, end):
                assert isinstance(frame, Frame)
                given += 1
                time.sleep(wait_s)
            assert given == end
            seconds = time.perf_counter() - started
            source.close()
    return (peak.largest - before) / 1e6, frames / seconds


class _Peak:
    """The largest resident set while the block runs, looked at every 20 ms."""

    def __init__(self, process: psutil.Process) -> None:
        self.largest = 0
        self._process = process
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.largest = max(self.largest, self._process.memory_info().rss)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def measure(
    folder: Path, frames: int, wait_s: float, height: int = HEIGHT, width: int = WIDTH
) -> dict[str, tuple[float, float]]:
    """(growth in MB, frames a second) of each backend, each in a process of its own."""
    path = make_video(folder / "video.mp4", frames, height, width)
    make_video(folder / "warm.mp4", 4, height, width)
    found = {}
    for backend in ("pyav", "decord"):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found[backend] = pool.apply(growth_mb, (str(path), backend, frames, wait_s))
    return found


def main(frames: int = 2000, wait_ms: float = 20) -> int:
    """Print the figures; 1 where one is above the limit."""
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), frames, wait_ms / 1000)
    for backend, (growth, rate) in found.items():
        print(
            f"{backend:<7} {WIDTH}x{HEIGHT}, {frames} frames, consumer waits {wait_ms:g} ms on each: "
            f"resident set grew by {growth:.0f} MB (limit {LIMIT_MB}), {rate:.1f} frames/s"
        )
    return int(any(growth > LIMIT_MB for growth, _ in found.values()))


if __name__ == "__main__":
    sys.exit(main(*(int(a) for a in sys.argv[1:])))
