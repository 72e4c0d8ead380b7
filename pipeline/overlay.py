"""A video with its tracks drawn over it: things in a colour of their own that stays with the id, stuff in its class's.

The file is H.264 at the times of the source's frames. One encoder thread and no time in the header: the same result
gives the same bytes with the same build of FFmpeg.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from panoptile.model.classes import ClassTable, spread_color
from panoptile.pipeline.frame_source import Frame
from panoptile.pipeline.label_runs import decoded_labels
from panoptile.pipeline.planned_frames import planned_frames
from panoptile.pipeline.video_plan import VideoPlan
from panoptile.pipeline.video_tables import FrameMasks, read_masks

Pixels = NDArray[np.uint8]

_FILL_THING, _FILL_STUFF = 0.45, 0.25
_QUALITY = "23"
"""x264's constant rate factor: its default, good enough to look at."""

_LONGEST_GAP = 1 << 28
"""Ticks between two frames: MP4 holds 2^31, also of the sum of some gaps by which a frame is decoded early."""
_LEAST_SCALE = 10_000
"""Ticks a second below which FFmpeg's muxer doubles a clock."""

_REPEATABLE = "no-mbtree=1"
"""Its macroblock tree made other bytes of the same frames from run to run where sides are no multiples of 16."""


def write_overlay(
    path: Path, plan: VideoPlan, masks: Path, classes: ClassTable, *, photograph: bool = True
) -> None:
    """Draw ``masks`` (a ``masks.parquet``) over the frames of the plan; lost frames are left out.

    ``photograph=False`` draws them over blank frames, where the video is not to be seen any more.
    """
    height, width = plan.info.height, plan.info.width
    clock, muxing = _clock(plan)
    options = {"fflags": "+bitexact", **muxing}
    with av.open(str(path), "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", rate=Fraction(_rate(plan)).limit_denominator(1000))
        stream.width, stream.height = width + width % 2, height + height % 2  # 4:2:0 needs even sides
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = clock
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"crf": _QUALITY, "preset": "fast", "x264-params": _REPEATABLE}
        first, last = int(plan.pts[0]), -1
        for frame, picture in painted_frames(plan, masks, classes, photograph=photograph):
            even = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            shown = av.VideoFrame.from_ndarray(even, format="rgb24")
            ticks = round((frame.pts - first) * plan.info.index.time_base / clock)
            last = max(ticks, last + 1)  # MP4 has no two frames at one time
            shown.pts, shown.time_base = last, clock
            container.mux(stream.encode(shown))
        container.mux(stream.encode())


def painted_frames(
    plan: VideoPlan, masks: Path, classes: ClassTable, *, photograph: bool = True
) -> Iterator[tuple[Frame, Pixels]]:
    """Each frame of the plan, or a blank one, with its masks drawn over it; frames without masks as they are."""
    published = read_masks(masks)
    current = next(published, None)
    numbers = plan.frames.tolist()
    step = math.gcd(*np.diff(numbers).tolist()) if len(numbers) > 1 else 1
    wanted = set(numbers)
    with planned_frames(plan, photograph=photograph) as source:
        for frame in source.frames(numbers[0], numbers[-1] + 1, step):
            if frame.index not in wanted:
                continue
            while current is not None and current.frame < frame.index:
                current = next(published, None)
            if not isinstance(frame, Frame):
                continue
            if current is not None and current.frame == frame.index:
                yield frame, paint(frame.rgb, current, classes)
            else:
                yield frame, frame.rgb


def paint(rgb: Pixels, masks: FrameMasks, classes: ClassTable) -> Pixels:
    """(H, W, 3): the frame with segments in colour, things outlined and with their ids."""
    index = decoded_labels(masks.texts, masks.shape)
    colors, fill = palette(masks, classes)
    share = fill[index]
    border = _outlines(index) & np.append(False, masks.is_thing)[index]
    share[border] = 0.95
    picture = rgb * (1 - share[..., None]) + colors[index] * share[..., None]
    image = Image.fromarray(np.rint(picture).astype(np.uint8))
    _write_ids(image, index, masks)
    return np.asarray(image)


def palette(masks: FrameMasks, classes: ClassTable) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(colours (n + 1, 3), how strongly each covers (n + 1,)) of void and the masks of a frame."""
    colors = np.zeros((len(masks.track_ids) + 1, 3), np.float32)
    fill = np.zeros(len(colors), np.float32)
    rows = zip(masks.track_ids.tolist(), masks.class_ids.tolist(), masks.is_thing.tolist(), strict=True)
    for i, (track, class_id, is_thing) in enumerate(rows, start=1):
        colors[i] = spread_color(track) if is_thing else classes[class_id - 1].color
        fill[i] = _FILL_THING if is_thing else _FILL_STUFF
    return colors, fill


def _outlines(labels: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """True where the pixel to the right or below has another label."""
    border = np.zeros(labels.shape, np.bool_)
    border[:, :-1] |= labels[:, 1:] != labels[:, :-1]
    border[:-1] |= labels[1:] != labels[:-1]
    return border


def _write_ids(image: Image.Image, index: NDArray[np.uint16], masks: FrameMasks) -> None:
    """The id of each thing that is large enough, in the middle of its pixels."""
    em = max(10, min(index.shape) // 36)
    font, draw = ImageFont.load_default(em), ImageDraw.Draw(image)
    areas = np.bincount(index.ravel(), minlength=len(masks.track_ids) + 1)
    for i in np.flatnonzero(masks.is_thing) + 1:
        if areas[i] < 2 * em * em:
            continue
        rows, cols = np.nonzero(index == i)
        middle = (float(np.median(cols)), float(np.median(rows)))
        text = str(masks.track_ids[i - 1])
        draw.text(middle, text, (255, 255, 255), font, anchor="mm", stroke_width=1, stroke_fill=(0, 0, 0))


def _rate(plan: VideoPlan) -> float:
    """Frames a second of the plan, on the average, but not less than one in 1,000 s; 1 for a single frame."""
    span = float(plan.times_s[-1] - plan.times_s[0])
    return max((len(plan.frames) - 1) / span, 1e-3) if span > 0 else 1.0


def _clock(plan: VideoPlan) -> tuple[Fraction, dict[str, str]]:
    """(seconds a tick, options of the muxer): the source's clock, or the finest that an MP4 with such gaps can hold."""
    base = plan.info.index.time_base
    gap_s = float(max(np.diff(plan.pts), default=0) * base)
    scale = base.denominator
    while scale < _LEAST_SCALE:
        scale *= 2
    if gap_s * scale < _LONGEST_GAP:
        return base, {}
    scale = max(1, min(base.denominator, int(_LONGEST_GAP / gap_s)))
    return Fraction(1, scale), {"video_track_timescale": str(scale)}
