"""Frames by PyAV: seek to a key, check where it landed, decode, and match every picture to the index by its time.

Nothing is taken on trust. A seek that lands after the frame wanted is redone one key earlier; a picture that
the index does not name is dropped; a frame of the index without a picture is reported as lost. One packet is read
at a time, so memory does not depend on how fast frames are taken.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from typing import Any

import av
import av.error
import av.logging
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from panoptile.pipeline.frame_source import Frame, LostFrame, checked_range
from panoptile.pipeline.inputs import InputError, shown
from panoptile.pipeline.magic import video_container
from panoptile.pipeline.video_index import VideoIndex
from panoptile.pipeline.video_probe import open_container, video_stream

REORDER = 16
"""Most pictures held while an earlier one is missing: the largest reordering that H.264 and HEVC allow."""
WORTH_A_SEEK = 20
"""A seek must save the decoding of more frames than this: it empties the decoder's pipeline. (Every 10th frame of 640x360
with keys 30 apart: 99 frames per CPU second, against 56 at a value of 4 and 89 at 12.)"""
SEEK_BY_PTS = frozenset({"matroska"})
"""Demuxers whose tables hold presentation times; the others seek by decoding times."""
HARMLESS = ("mmco", "eference", "ref with POC")
"""In messages on references that are gone after a seek: housekeeping; a picture that needs them is lost or late."""

av.logging.set_level(av.logging.ERROR)  # below, errors of the decoders are heard only where they are captured
logging.getLogger("libav").addHandler(logging.NullHandler())
logging.getLogger("libav").propagate = False


@dataclass(slots=True)
class _Picture:
    index: int
    decoded: Any
    """An av.VideoFrame."""
    damaged: bool


class PyavSource:
    """Frames of one local video file; see frame_source.FrameSource."""

    backend = "pyav"

    def __init__(self, path: str, index: VideoIndex, reason: str = "asked for") -> None:
        self.index = index
        self.reason = reason
        self._path = path
        self._stack = ExitStack()
        self._container: Any = None
        self._stream: Any = None
        self._pictures: Iterator[_Picture] = iter(())
        self._next = -1
        """Frame that the running decoding is expected to give next; -1 before the first."""
        self._iteration = 0
        self._errors: dict[int, str] = {}
        """What the decoder said of the packet of a frame."""
        self._reformatter = VideoReformatter()
        if video_container(path) != index.container:
            raise InputError(
                f"{shown(path)} is no longer the {index.container} file that was planned: plan again."
            )
        try:
            self._open()
        except (av.error.FFmpegError, OSError) as e:
            self._stack.close()
            raise InputError(f"{shown(path)} cannot be opened as {index.container}: {e.strerror}.") from e

    def close(self) -> None:
        """Free the decoder."""
        self._pictures = iter(())
        self._stack.close()

    def frames(self, start: int, stop: int, step: int = 1) -> Iterator[Frame | LostFrame]:
        """See FrameSource.frames."""
        wanted = checked_range(self.index, start, stop, step)
        self._iteration += 1
        mine = self._iteration
        held: dict[int, _Picture] = {}
        for frame in wanted:
            if self._iteration != mine:
                raise RuntimeError("Another iteration over the same source has begun: this one cannot go on.")
            if not held:
                self._go_to(frame)
            picture = self._pull(frame, wanted, held)
            yield self._lost(frame) if picture is None else self._shown(picture)

    def _go_to(self, frame: int) -> None:
        """Let the decoding run on if that reaches ``frame`` soonest, else start it at the last key before."""
        key = self.index.key_before(frame)
        if 0 <= self._next <= frame and key <= self._next + WORTH_A_SEEK:
            return
        first = None
        while True:
            pictures = self._decode_from(key)
            first = next(pictures, None)
            if (first is not None and first.index <= frame) or key <= self.index.keys[0]:
                break
            key = self.index.key_before(key - 1)  # the seek landed late, or this key does not decode
        self._next = key
        self._pictures = pictures if first is None else chain([first], pictures)

    def _pull(self, frame: int, wanted: range, held: dict[int, _Picture]) -> _Picture | None:
        """Decode until ``frame`` is there, keeping at most REORDER later ones; None if it does not come."""
        seen_after = 0
        while frame not in held and max(len(held), seen_after) < REORDER:
            picture = next(self._pictures, None)
            if picture is None:
                break
            self._next = max(self._next, picture.index + 1)
            seen_after += picture.index > frame
            if picture.index >= frame and picture.index in wanted:
                held.setdefault(picture.index, picture)
        return held.pop(frame, None)

    def _decode_from(self, key: int) -> Iterator[_Picture]:
        """Pictures in the decoder's order of output, from a key on; those shown before it are left out."""
        index = self.index
        at_start = key <= index.keys[0]
        if at_start:
            self._open()
        else:
            ticks = index.pts[key] if index.container in SEEK_BY_PTS else index.key_dts[_at(index.keys, key)]
            self._container.seek(int(ticks), stream=self._stream, backward=True)
        floor = 0 if at_start else key
        matched: dict[int, int] = {}
        last, spoiled_until = floor - 1, 0
        for pts, decoded in self._decode(None if at_start else int(index.pts[key])):
            number = self._number(pts, matched, isinstance(decoded, str))
            if isinstance(decoded, str):
                # Of a packet without a number it is known only where it stood.
                number = number if number >= 0 else max(last, floor)
                if number >= floor:
                    self._errors[number] = decoded
                    spoiled_until = max(spoiled_until, self._key_after(number))
            elif number >= floor:
                if number > last + 1:  # a frame between is missing: those after it may be predicted from it
                    spoiled_until = max(spoiled_until, self._key_after(last + 1))
                last = number
                yield _Picture(number, decoded, decoded.is_corrupt or number < spoiled_until)

    def _decode(self, latest_key: int | None) -> Iterator[tuple[int | None, Any]]:
        """(time, av.VideoFrame) of each picture, and (time, what is wrong) of each packet with an error.

        Nothing comes where the first key after a seek is shown after ``latest_key``: the seek landed late. The
        pictures after an unseen key that are shown before it would decode too, to garbage.
        """
        try:
            for packet in self._container.demux(self._stream):
                if latest_key is not None and packet.size:
                    if not packet.is_keyframe:
                        continue
                    if packet.pts is None or packet.pts > latest_key:
                        return
                    latest_key = None
                pts = packet.pts
                pictures, complaint = _decoded(packet)
                if complaint:
                    yield pts, complaint
                for picture in pictures:
                    yield picture.pts, picture
        except av.error.FFmpegError as e:
            yield None, f"the file is cut off: {e.strerror}"
            for picture in self._stream.codec_context.decode(None):
                yield picture.pts, picture

    def _open(self) -> None:
        """Open the file, again if it is open: the one way to its start that works with every demuxer."""
        self._stack.close()
        self._container = self._stack.enter_context(open_container(self._path, self.index.container))
        self._stream = video_stream(self._container, self._path, self.index.stream)

    def _number(self, pts: int | None, matched: dict[int, int], failed: bool) -> int:
        """The frame that a picture with this time is; -1 for none. Equal times count up, in decoding order."""
        key = 0 if self.index.ordinal else pts
        if key is None:
            return -1
        nth = matched.get(key, 0)
        if not failed:
            matched[key] = nth + 1
        if self.index.ordinal:
            return nth if nth < len(self.index) else -1
        at = int(np.searchsorted(self.index.pts, key)) + nth
        return at if at < len(self.index) and self.index.pts[at] == key else -1

    def _key_after(self, frame: int) -> int:
        at = int(np.searchsorted(self.index.keys, frame, side="right"))
        return int(self.index.keys[at]) if at < len(self.index.keys) else len(self.index)

    def _shown(self, picture: _Picture) -> Frame | LostFrame:
        number, decoded, index = picture.index, picture.decoded, self.index
        turned = index.rotation in (90, 270)
        expected = (index.height, index.width) if turned else (index.width, index.height)
        if (decoded.width, decoded.height) != expected:
            self._errors[number] = (
                f"its size is {decoded.width}x{decoded.height}, not {expected[0]}x{expected[1]}"
            )
            return self._lost(number)
        rgb = upright(self._to_rgb(decoded), index.rotation)
        return Frame(number, int(index.pts[number]), index.time_s(number), rgb, picture.damaged)

    def _to_rgb(self, decoded: Any) -> NDArray[np.uint8]:
        """(H, W, 3) by the matrix and range that the stream names, the same bytes on every processor."""
        exact = Interpolation.BILINEAR | Interpolation.BITEXACT
        converted: Any = self._reformatter.reformat(decoded, format="rgb24", interpolation=exact, threads=1)
        rgb: NDArray[np.uint8] = converted.to_ndarray()
        return rgb

    def _lost(self, frame: int) -> LostFrame:
        reason = self._errors.get(frame)
        if reason is None:
            early = frame < self.index.keys[0]
            reason = "it is shown before the first key" if early else "its packet gives no picture"
        return LostFrame(frame, int(self.index.pts[frame]), self.index.time_s(frame), reason)


def _decoded(packet: Any) -> tuple[list[Any], str]:
    """(pictures that come out when a packet goes in, what the decoder says of it: empty if nothing).

    A decoder that conceals an error returns a picture and says so in its log alone, in the calling thread, for
    there is but one.
    """
    with av.logging.Capture() as logs:
        try:
            pictures = packet.decode()
        except av.error.FFmpegError as e:
            return [], str(e.strerror)
    complaints = [text for _, _, text in logs if not any(mark in text for mark in HARMLESS)]
    return pictures, complaints[0].strip() if complaints else ""


def upright(rgb: NDArray[np.uint8], rotation: int) -> NDArray[np.uint8]:
    """A decoded picture as it is shown: turned counter-clockwise by ``rotation`` degrees, contiguous."""
    return np.ascontiguousarray(np.rot90(rgb, rotation // 90)) if rotation else rgb


def _at(keys: NDArray[np.int64], key: int) -> int:
    return int(np.searchsorted(keys, key))
