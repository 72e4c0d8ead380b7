"""The contact sheet of a video: a dozen frames with their tracks drawn over them, and what was found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from panoptile.model.classes import ClassTable
from panoptile.pipeline.frame_source import Frame
from panoptile.pipeline.overlay import paint
from panoptile.pipeline.parquet_read import read_columns
from panoptile.pipeline.planned_frames import planned_frames
from panoptile.pipeline.video_plan import VideoPlan
from panoptile.pipeline.video_tables import FrameMasks, read_masks

COLUMNS, ROWS = 4, 3
MIN_SIDE = 480
"""Smallest longer side of a sheet, pixels."""
_PAPER, _INK, _FAINT = (250, 250, 251), (28, 32, 38), (110, 117, 128)
_MARGIN = 12
_SMALL = 280
"""Narrower frames are enlarged to this width, or their captions had no room."""


def write_contact_sheet(
    path: Path,
    plan: VideoPlan,
    masks: Path,
    tracks: Path,
    classes: ClassTable,
    *,
    max_side: int = 2048,
    photograph: bool = True,
) -> None:
    """Draw a PNG of at most ``max_side`` pixels a side from published tables and the video itself.

    ``photograph=False`` draws the masks over blank frames, where the video is not to be seen any more.
    """
    if max_side < MIN_SIDE:
        raise ValueError(f"A preview needs at least {MIN_SIDE} px a side, got {max_side}.")
    chosen = _evenly(plan.frames, COLUMNS * ROWS)
    by_frame = {m.frame: m for m in read_masks(masks, set(chosen))}
    columns = min(COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    cell_wh = _cell(plan, columns, rows, max_side)
    em = max(11, cell_wh[0] // 30)
    head, foot = round(3.6 * em), round(1.9 * em)
    width = columns * (cell_wh[0] + _MARGIN) + _MARGIN
    height = head + rows * (cell_wh[1] + foot) + _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _write_head(draw, plan, tracks, em, width)
    font = ImageFont.load_default(em)
    for i, (number, picture) in enumerate(_pictures(plan, chosen, by_frame, classes, photograph)):
        x = _MARGIN + (i % columns) * (cell_wh[0] + _MARGIN)
        y = head + (i // columns) * (cell_wh[1] + foot)
        if picture is not None:
            sheet.paste(Image.fromarray(picture).resize(cell_wh, Image.Resampling.LANCZOS), (x, y))
        at = plan.times_s[np.searchsorted(plan.frames, number)] - plan.times_s[0]
        draw.text((x, y + cell_wh[1] + em // 4), _caption(number, at, by_frame.get(number)), _INK, font)
    sheet.save(path, "PNG")


def _cell(plan: VideoPlan, columns: int, rows: int, max_side: int) -> tuple[int, int]:
    """(width, height) of one frame's picture: as large as the sheet allows; only small frames are enlarged."""
    width, height = plan.info.width, plan.info.height
    room_x = (max_side - _MARGIN) / columns - _MARGIN
    room_y = (max_side - 80) / rows - 40
    scale = min(max(1.0, _SMALL / width), room_x / width, room_y / height)
    return max(1, int(width * scale)), max(1, int(height * scale))


def _evenly(frames: NDArray[np.int64], count: int) -> list[int]:
    """At most ``count`` of the frames, from the first to the last."""
    places = np.unique(np.linspace(0, len(frames) - 1, count).round().astype(np.int64))
    chosen: list[int] = frames[places].tolist()
    return chosen


def _pictures(
    plan: VideoPlan, numbers: list[int], masks: dict[int, FrameMasks], classes: ClassTable, photograph: bool
) -> list[tuple[int, NDArray[np.uint8] | None]]:
    """(frame number, picture) of each frame; None for one that cannot be decoded."""
    found: list[tuple[int, NDArray[np.uint8] | None]] = []
    with planned_frames(plan, photograph=photograph) as source:
        for number in numbers:
            picture = None
            for frame in source.frames(number, number + 1):
                if isinstance(frame, Frame):
                    picture = paint(frame.rgb, masks[number], classes) if number in masks else frame.rgb
            found.append((number, picture))
    return found


def _write_head(draw: ImageDraw.ImageDraw, plan: VideoPlan, tracks: Path, em: int, width: int) -> None:
    table = read_columns(tracks, ["class_name", "is_thing"])
    names, things = table["class_name"].to_pylist(), table["is_thing"].to_pylist()
    counts: dict[str, int] = {}
    for name, is_thing in zip(names, things, strict=True):
        if is_thing:
            counts[name] = counts.get(name, 0) + 1
    title, text = ImageFont.load_default(1.25 * em), ImageFont.load_default(em)
    draw.text((_MARGIN, _MARGIN // 2), plan.info.stem, _INK, title)
    seconds = float(plan.times_s[-1] - plan.times_s[0])
    parts = [
        f"{plan.info.width} x {plan.info.height} px",
        f"{len(plan.frames):,} frames over {seconds:.1f} s",
    ]
    parts += [f"{n:,} x {name}" for name, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    line = "   ".join(parts)
    while text.getlength(line) > width - 2 * _MARGIN and len(parts) > 2:
        parts.pop()
        line = "   ".join([*parts, "..."])
    draw.text((_MARGIN, _MARGIN // 2 + round(1.7 * em)), line, _FAINT, text)


def _caption(number: int, seconds: float, masks: FrameMasks | None) -> str:
    if masks is None:
        return f"frame {number}  {seconds:.2f} s  not segmented"
    things = int(np.count_nonzero(masks.is_thing))
    return f"frame {number}  {seconds:.2f} s  {things} object{'' if things == 1 else 's'}"
