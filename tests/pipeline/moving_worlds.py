"""Videos whose truth is known: boxes and discs that move, hide, appear and vanish before two kinds of ground."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from panoptile.model.classes import ClassTable

TABLE = ClassTable.from_names(["box", "disc", "grass", "sky"], {0, 1})
GRASS_ID, SKY_ID = 901, 902


@dataclass(frozen=True)
class MovingWorld:
    """Truth of one video."""

    labels: NDArray[np.int32]
    """(F, H, W) ids that stay with an object; 0 void."""
    classes: NDArray[np.uint8]
    """(F, H, W) published class ids of ``TABLE``; 0 void."""
    fps: int

    @property
    def rgb(self) -> NDArray[np.uint8]:
        """(F, H, W, 3) colours that follow the ids."""
        ids = self.labels.astype(np.int64)
        return np.stack([(ids * k) % 199 + 30 for k in (37, 71, 113)], axis=-1).astype(np.uint8)


def make_world(
    seed: int,
    frames: int = 40,
    height: int = 48,
    width: int = 64,
    *,
    objects: int = 6,
    fps: int = 10,
    hide_s: float = 0.0,
) -> MovingWorld:
    """A random world; each object is hidden once for up to ``hide_s`` seconds, and some come and go."""
    rng = np.random.default_rng(seed)
    labels = np.empty((frames, height, width), np.int32)
    classes = np.empty((frames, height, width), np.uint8)
    for t in range(frames):
        horizon = height // 3 + int(3 * np.sin(t / 7))
        labels[t, :horizon], classes[t, :horizon] = SKY_ID, 4
        labels[t, horizon:], classes[t, horizon:] = GRASS_ID, 3
        labels[t, :2, :5], classes[t, :2, :5] = 0, 0
    rows, cols = np.mgrid[:height, :width]
    for object_id in range(1, objects + 1):
        kind = int(rng.integers(2))
        size, start, stop = int(rng.integers(5, 11)), 0, frames
        if rng.random() < 0.5:
            start = int(rng.integers(0, frames // 2))
            stop = int(rng.integers(start + 3, frames + 1))
        hidden = int(rng.integers(0, round(hide_s * fps) + 1)) if hide_s else 0
        hide_from = int(rng.integers(start + 1, max(start + 2, stop - hidden - 1)))
        y, x = rng.uniform(0, height), rng.uniform(0, width)
        vy, vx = rng.uniform(-1.2, 1.2, 2)
        for t in range(start, stop):
            if hide_from <= t < hide_from + hidden:
                continue
            cy, cx = (y + vy * t) % height, (x + vx * t) % width
            if kind:
                inside = (rows - cy) ** 2 + (cols - cx) ** 2 <= (size / 2) ** 2
            else:
                inside = (abs(rows - cy) <= size / 2) & (abs(cols - cx) <= size / 2)
            labels[t][inside], classes[t][inside] = object_id, kind + 1
    return MovingWorld(labels, classes, fps)


def write_video(world: MovingWorld, path: Path, *, gop: int = 12) -> None:
    """The world as an H.264 file with a key frame at least every ``gop`` frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=world.fps)
        height, width = world.labels.shape[1:]
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.gop_size = gop
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, world.fps)
        stream.codec_context.options = {"preset": "ultrafast", "x264-params": "open-gop=0"}
        for i, rgb in enumerate(world.rgb):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, world.fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def expected_ids(world: MovingWorld, numbers: NDArray[np.int64], max_age_s: float) -> NDArray[np.int32]:
    """(len(numbers), H, W) true ids in the frames ``numbers``; an object unseen for longer comes back as another."""
    labels = world.labels[numbers].copy()
    times = numbers / world.fps
    for object_id in np.unique(labels[(labels > 0) & (labels < GRASS_ID)]).tolist():
        seen = np.flatnonzero((labels == object_id).any(axis=(1, 2)))
        gaps = np.diff(times[seen]) > max_age_s + 1e-6
        for k, start in enumerate(seen[1:][gaps], start=1):
            later = labels[start:]
            later[np.isin(later, (object_id, object_id + 1000 * (k - 1)))] = object_id + 1000 * k
    return labels


def same_partition(
    truth: NDArray[np.integer], found: NDArray[np.integer]
) -> tuple[dict[int, int], list[str]]:
    """(true id -> found id, complaints) of two (F, H, W) arrays that should differ in their numbers alone."""
    pairs = np.unique(np.stack([truth.ravel(), found.ravel()]), axis=1).T.tolist()
    mapping: dict[int, int] = {}
    back: dict[int, int] = {}
    complaints = []
    for a, b in pairs:
        if mapping.setdefault(a, b) != b:
            complaints.append(f"object {a} has the tracks {mapping[a]} and {b}")
        if back.setdefault(b, a) != a:
            complaints.append(f"track {b} holds the objects {back[b]} and {a}")
    return mapping, complaints
