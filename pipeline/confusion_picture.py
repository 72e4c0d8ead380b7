"""The confusion of classes as a picture: a row for each class of the truth, shares of its pixels across."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from panoptile.pipeline.semantic_iou import SemanticScores

MAX_CLASSES = 60
"""The picture shows the classes with most pixels; more could not be read."""
_CELL, _MARGIN, _LEGEND = 46, 12, 30
_PAPER, _INK, _FAINT, _FULL = (250, 250, 251), (28, 32, 38), (110, 117, 128), (23, 92, 158)


def write_confusion(path: Path, scores: SemanticScores) -> None:
    """Draw the matrix as a PNG: truth down, found across, each row in per cent of its pixels."""
    keep = _largest(scores.confusion)
    matrix = scores.confusion[np.ix_(keep, keep)]
    names = [*(c.name for c in scores.classes), "none"]
    rows = [names[i] if i < len(names) - 1 else "no scored class" for i in keep]
    cols = [names[i] if i < len(names) - 1 else "nothing claimed" for i in keep]
    font = ImageFont.load_default(size=13)
    wide = int(max(font.getlength(n) for n in (*rows, *cols))) + 2 * _MARGIN
    left, top = wide, wide
    side = _CELL * len(keep)
    note, small = (
        "rows: ground truth, columns: result, per cent of the row's pixels",
        ImageFont.load_default(size=12),
    )
    width = max(left + side, int(_MARGIN + small.getlength(note))) + _MARGIN
    picture = Image.new("RGB", (width, top + side + _LEGEND), _PAPER)
    draw = ImageDraw.Draw(picture)
    _names_across(picture, cols, left, top, font)
    totals = matrix.sum(axis=1)
    for i, name in enumerate(rows):
        y = top + i * _CELL
        draw.text((left - _MARGIN, y + _CELL // 2), name, _INK, font, "rm")
        for j in range(len(keep)):
            share = matrix[i, j] / totals[i] if totals[i] else 0.0
            _cell(draw, left + j * _CELL, y, share, font, empty=not totals[i])
    draw.text((_MARGIN, top + side + _LEGEND // 2), note, _FAINT, small, "lm")
    picture.save(path, "PNG")


def _largest(confusion: np.ndarray) -> np.ndarray:
    """Rows to show, ascending: those with pixels on either side, at most ``MAX_CLASSES`` of the largest, and the last."""
    pixels = confusion.sum(axis=0) + confusion.sum(axis=1)
    classes = np.flatnonzero(pixels[:-1])
    largest = classes[np.argsort(-pixels[classes], kind="stable")[:MAX_CLASSES]]
    return np.append(np.sort(largest), len(pixels) - 1)


def _names_across(
    picture: Image.Image,
    names: list[str],
    left: int,
    top: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    for i, name in enumerate(names):
        strip = Image.new("RGB", (top, _CELL), _PAPER)
        ImageDraw.Draw(strip).text((_MARGIN, _CELL // 2), name, _INK, font, "lm")
        picture.paste(strip.rotate(90, expand=True), (left + i * _CELL, 0))


def _cell(
    draw: ImageDraw.ImageDraw,
    x: int,
    y: int,
    share: float,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    *,
    empty: bool,
) -> None:
    color = tuple(round(p + (f - p) * share) for p, f in zip(_PAPER, _FULL, strict=True))
    draw.rectangle((x, y, x + _CELL - 2, y + _CELL - 2), color)
    if empty or share == 0:
        return
    text = f"{100 * share:.0f}" if share >= 0.01 else "<1"
    draw.text((x + _CELL // 2, y + _CELL // 2), text, _PAPER if share > 0.5 else _INK, font, "mm")
