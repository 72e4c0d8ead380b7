"""Frames of a video by number: one interface over PyAV, decord and directories of images.

Pixels never travel without their number and time. What cannot be decoded is told of frame by frame, in its
place: a source never repeats a frame to fill a gap, and never moves the frames after it.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from panoptile.pipeline.inputs import InputError, shown
from panoptile.pipeline.video_gate import MOST_DECODINGS, decodings_per_frame
from panoptile.pipeline.video_index import VideoIndex

Backend = Literal["auto", "pyav", "decord"]
BACKENDS: tuple[Backend, ...] = ("auto", "pyav", "decord")


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded frame, as it is to be shown."""

    index: int
    """Its number in presentation order, from 0."""
    pts: int
    """Its time in ticks of the index's time base."""
    time_s: float
    """Its time in seconds, ``pts × time_base``, as ffprobe prints it."""
    rgb: NDArray[np.uint8]
    """(H, W, 3), rotation applied."""
    damaged: bool = False
    """The decoder has met an error in this frame or in one that it is predicted from: pixels may be wrong."""


@dataclass(frozen=True, slots=True)
class LostFrame:
    """A frame that the index names and the decoder does not deliver."""

    index: int
    pts: int
    time_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class Choice:
    """Which decoder reads a file, decided once, when the job is planned."""

    backend: Literal["pyav", "decord", "images"]
    reason: str


class FrameSource(Protocol):
    """Frames of one file. One thread uses it, the one that opened it; it does not travel between processes."""

    index: VideoIndex
    backend: str
    reason: str
    """Why this backend."""

    def frames(self, start: int, stop: int, step: int = 1) -> Iterator[Frame | LostFrame]:
        """The frames start, start + step, … below stop, each one once and in order, lost ones as LostFrame.

        One iteration at a time: to begin another ends the one before. At most a handful of decoded frames exist at a time, however slowly they are taken. Raises ValueError
        for a range outside the video.
        """
        ...

    def close(self) -> None:
        """Free the decoder; calling it again does nothing."""
        ...


def choose_backend(path: str, index: VideoIndex, backend: Backend = "auto") -> Choice:
    """The decoder for a file, and why: decord where the rules of video_gate let it, PyAV elsewhere.

    "decord" for a file that it would get wrong raises InputError; that it would be slow is not held against it then.
    """
    if backend not in BACKENDS:
        raise InputError(f"There is no video backend {backend!r}: use auto, pyav or decord.")
    if index.container == "images":
        return Choice("images", "a directory of images")
    if backend == "pyav":
        return Choice("pyav", "asked for")
    objection = _objection(path, index)
    if backend == "decord":
        if objection:
            raise InputError(f"decord cannot be trusted with {shown(path)}: {objection}; use auto or pyav.")
        return Choice("decord", "asked for")
    if objection:
        return Choice("pyav", objection)
    decodings = decodings_per_frame(len(index), len(index.keys), index.height, index.width)
    if decodings > MOST_DECODINGS:
        return Choice("pyav", f"in bounded memory decord would decode each frame {decodings:.0f} times")
    return Choice("decord", "closed GOP, whole, one time a frame")


def open_frames(path: str, index: VideoIndex, backend: Backend | Choice = "auto") -> FrameSource:
    """A source of the frames of a local file (or directory of images) that ``index`` describes.

    Pass the Choice that was made when the job was planned; "auto" makes it anew. The file must be the one that was
    indexed: raises InputError where its size has changed.
    """
    if index.container != "images" and os.path.getsize(path) != index.size:
        raise InputError(f"{shown(path)} has changed since it was planned: run the same command again.")
    choice = backend if isinstance(backend, Choice) else choose_backend(path, index, backend)
    if choice.backend == "images":
        from panoptile.pipeline.image_sequence import ImageSource

        return ImageSource(path, index, choice.reason)
    if choice.backend == "decord":
        from panoptile.pipeline.video_decode_decord import DecordSource

        return DecordSource(path, index, choice.reason)
    from panoptile.pipeline.video_decode_pyav import PyavSource

    return PyavSource(path, index, choice.reason)


def select_frames(
    index: VideoIndex,
    *,
    fps: float | None = None,
    every: int | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
) -> NDArray[np.int64]:
    """Increasing numbers of the frames that a job processes.

    ``start_s`` and ``end_s`` are seconds from the first frame, the end exclusive. ``every`` takes each n-th frame
    from the start. ``fps`` takes, for each tick k / fps from the start, the last frame shown at or before
    it, each frame once: so a video slower than ``fps`` gives all its frames, once. Raises InputError, for both of
    ``fps`` and ``every``, for values that are not positive, and where nothing is left.
    """
    if fps is not None and every is not None:
        raise InputError("--fps and --every exclude each other: give one of them.")
    if (fps is not None and not 0 < fps < np.inf) or (every is not None and every < 1):
        raise InputError(f"--fps and --every must be positive, got {fps if fps is not None else every}.")
    # From the first frame, in ticks as integers first: a video may start hours into its clock.
    seconds = (index.pts - index.pts[0]) * float(index.time_base)
    half_tick = float(index.time_base) / 2
    inside = np.ones(len(index), bool)
    if start_s is not None:
        inside &= seconds >= start_s - half_tick
    if end_s is not None:
        inside &= seconds < end_s - half_tick
    frames = np.flatnonzero(inside).astype(np.int64)
    if not len(frames):
        raise InputError(
            f"No frame lies between --start {start_s or 0:g} and --end {end_s if end_s is not None else 'the end'} "
            f"(seconds from the first frame): the last frame starts at {seconds[-1]:.3f}."
        )
    if every is not None:
        return frames[::every]
    if fps is None:
        return frames
    shown = seconds[frames] - seconds[frames[0]]
    # Of each frame the first tick k that shows it or a later one: it is taken where the next frame's comes after that. No
    # list of the ticks is made, of which a long gap may hold any number.
    first = np.maximum(np.ceil((shown - half_tick) * fps) - 1, 0)
    for _ in range(2):  # to the exact tick, whatever the product above was rounded to
        first += first / fps + half_tick < shown
    end = np.append(first[1:], np.floor(shown[-1] * fps + 1e-6) + 1)
    taken: NDArray[np.int64] = frames[first < end]
    return taken


def checked_range(index: VideoIndex, start: int, stop: int, step: int) -> range:
    """The frame numbers asked for; ValueError for a range outside the video."""
    if not (0 <= start <= stop <= len(index) and step >= 1):
        raise ValueError(f"Frames {start}:{stop}:{step} do not lie in a video of {len(index)} frames.")
    return range(start, stop, step)


def _objection(path: str, index: VideoIndex) -> str:
    if not index.decord_safe:
        return "; ".join(index.reasons)
    if importlib.util.find_spec("decord") is None:
        return "decord is not installed"
    from panoptile.pipeline.video_decode_decord import disagreement

    return disagreement(path, index)
