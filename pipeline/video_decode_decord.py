"""Frames by decord, for the files that the gate lets through; see video_gate for what decord does to the others.

decord decodes ahead without bound as long as its reader rests, so its queues are emptied (by a seek to the
start) after each chunk of frames. It pads a short file with its last frame: one such frame is made an error, of a kind of
its own.
A chunk in which its decoder met an error is decoded by PyAV instead, which tells what is damaged; on clean
chunks the two give the same bytes, so which of them read a chunk is not seen in the result.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panoptile.pipeline.decord_log import errors
from panoptile.pipeline.frame_source import Frame, LostFrame, checked_range
from panoptile.pipeline.inputs import InputError, shown
from panoptile.pipeline.magic import video_container
from panoptile.pipeline.video_decode_pyav import PyavSource
from panoptile.pipeline.video_gate import chunk_frames
from panoptile.pipeline.video_index import VideoIndex

_log = logging.getLogger(__name__)

_NO_PADDING = 1e-9
"""Share of a video's frames that decord may pad: less than one of them. 1 would let one frame pass, 0 all."""


class DecordSource:
    """Frames of one local video file; see frame_source.FrameSource."""

    backend = "decord"

    def __init__(self, path: str, index: VideoIndex, reason: str = "asked for") -> None:
        self.index = index
        self.reason = reason
        self._path = path
        self._reader: Any = None
        self._pyav: PyavSource | None = None
        if video_container(path) != index.container:
            raise InputError(
                f"{shown(path)} is no longer the {index.container} file that was planned: plan again."
            )
        if not errors.watch():
            raise InputError(
                f"{shown(path)} cannot be read by decord: its decoder cannot be watched; use pyav."
            )

    def close(self) -> None:
        """Free the decoder and its queues."""
        self._reader = None
        if self._pyav is not None:
            self._pyav.close()

    def frames(self, start: int, stop: int, step: int = 1) -> Iterator[Frame | LostFrame]:
        """See FrameSource.frames."""
        for chunk in self._chunks(checked_range(self.index, start, stop, step)):
            pictures = self._batch(chunk)
            if pictures is None:
                yield from self._by_pyav().frames(chunk[0], chunk[-1] + 1, chunk.step)
                continue
            for frame, rgb in zip(chunk, pictures, strict=True):
                yield Frame(frame, int(self.index.pts[frame]), self.index.time_s(frame), rgb)

    def _chunks(self, wanted: range) -> Iterator[range]:
        """Runs of at most CHUNK frames that end before a key where one is near: nothing is then decoded twice."""
        most = chunk_frames(self.index.height, self.index.width)
        at = 0
        while at < len(wanted):
            chunk = wanted[at : at + most]
            key = self.index.key_before(chunk[-1])
            if key > chunk[0] and at + most < len(wanted):
                chunk = range(chunk.start, key, wanted.step)
            yield chunk
            at += len(chunk)

    def _batch(self, frames: range) -> NDArray[np.uint8] | None:
        """(F, H, W, 3) pictures; None where the decoder met an error, now or in what it has decoded ahead."""
        from decord import DECORDError, DECORDLimitReachedError

        before = errors.count
        try:
            if self._reader is None:
                self._reader = open_reader(self._path)
                if len(self._reader) != len(self.index):
                    raise InputError(f"{shown(self._path)} has changed since it was planned: plan again.")
            pictures: NDArray[np.uint8] = self._reader.get_batch(list(frames)).asnumpy()
            self._reader.seek(0)  # empties the queues
        except (DECORDError, DECORDLimitReachedError) as e:  # its reader is of no more use after that
            _log.info("%s: decord failed at frames %s: %s", shown(self._path), frames, _first_line(e))
            self._reader = None
            return None
        return pictures if errors.count == before else None

    def _by_pyav(self) -> PyavSource:
        if self._pyav is None:
            self._pyav = PyavSource(self._path, self.index, "decord met an error")
        return self._pyav


def open_reader(path: str) -> Any:
    """A decord reader of one thread that refuses to pad."""
    import decord

    return decord.VideoReader(os.path.abspath(path), ctx=decord.cpu(0), num_threads=1, fault_tol=_NO_PADDING)


def disagreement(path: str, index: VideoIndex) -> str:
    """Why decord's own view of a file differs from the index; empty where it does not. Needs decord."""
    if importlib.util.find_spec("decord") is None:
        return "decord is not installed"
    from decord import DECORDError, DECORDLimitReachedError

    if not errors.watch():
        return "decord's decoder cannot be watched for errors"
    try:
        reader = open_reader(path)
        count, shape = len(reader), reader[0].shape
    except (DECORDError, DECORDLimitReachedError, RuntimeError) as e:
        return f"decord cannot open it ({_first_line(e)})"
    if count != len(index):
        return f"decord counts {count} frames, not {len(index)}"
    if shape != (index.height, index.width, 3):
        return f"decord shows {shape[1]}x{shape[0]} pixels, not {index.width}x{index.height}"
    return ""


def _first_line(error: Exception) -> str:
    """What failed, without the file and line of decord's source before it."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    return line[max(line.rfind("] "), line.rfind("Check failed")) :].removeprefix("] ")[:120]
