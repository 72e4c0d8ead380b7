"""The picture of a result: the photograph, classes in colour, objects outlined, and a legend that counts them.

The photograph is averaged down block by block and labels are taken from their overviews, so memory is that of the
picture, whatever the raster's size.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from panoptile.model.classes import ClassTable, SegmentClass
from panoptile.pipeline import gdal_env  # noqa: F401  (GDAL's environment, before rasterio)
from panoptile.pipeline.mosaic import open_source
from panoptile.pipeline.raster_info import NODATA_ID, RasterInfo
from panoptile.pipeline.window import Window

import rasterio  # isort: skip  (after gdal_env)
from rasterio.errors import NotGeoreferencedWarning  # isort: skip

Pixels = NDArray[np.uint8]

_READ_SIDE = 1024
"""Side of the windows of the photograph that are averaged at once, pixels, roughly."""
MIN_SIDE = 480
"""Smallest picture, pixels: less leaves no room for the legend."""
_SMALL = 640
"""Pictures with a shorter longest side are enlarged, in whole steps."""
_BLANK = (226, 228, 232)
_PAPER, _INK, _FAINT = (250, 250, 251), (28, 32, 38), (110, 117, 128)
_FILL_THING, _FILL_STUFF = 0.38, 0.30


class PhotoTile(Protocol):
    """Pixels of a window and where they have input."""

    @property
    def pixels(self) -> Pixels:
        """(C, H, W)"""
        ...

    @property
    def valid(self) -> NDArray[np.bool_]:
        """(H, W)"""
        ...


class Photograph(Protocol):
    """What the preview is drawn over; ``RasterSource`` is one."""

    def read(self, window: Window) -> PhotoTile:
        """The pixels of ``window``, as the network sees them."""
        ...


class NoPhotograph:
    """Stands for a photograph that is not to be seen any more: the labels are drawn over nothing."""

    def read(self, window: Window) -> PhotoTile:
        """Raises ``FileNotFoundError``."""
        raise FileNotFoundError(f"There is no photograph, so {window} of it cannot be read.")


def write_preview(
    path: Path,
    info: RasterInfo,
    segments_tif: Path,
    classes_tif: Path,
    classes: ClassTable,
    *,
    max_side: int = 2048,
    photo: Photograph | None = None,
) -> None:
    """Draw a PNG of at most ``max_side`` pixels a side, legend included.

    Args:
        segments_tif: the published segment raster.
        classes_tif: the published class raster; the legend's counts come from its tag ``CLASSES``.
        max_side: at least ``MIN_SIDE``: less leaves no room for the legend.
        photo: what to draw over, or NoPhotograph; None: the input itself.
    """
    if max_side < MIN_SIDE:
        raise ValueError(f"A preview needs at least {MIN_SIDE} px a side, got {max_side}.")
    segment_counts = _segment_counts(classes_tif)
    panel = _Panel(info, classes, segment_counts, max_side)
    height, width = _picture_shape(info, max_side, panel.width)
    labels = _decimated(segments_tif, height, width)
    class_ids = _decimated(classes_tif, height, width)
    with nullcontext(photo) if photo is not None else open_source(info) as source:
        picture = _averaged(source, info, height, width)
    picture[labels == NODATA_ID] = _BLANK
    shares = np.bincount(class_ids[labels != NODATA_ID], minlength=len(classes) + 1)
    times = max(1, min(_SMALL // max(height, width), (max_side - panel.width) // width))
    picture, labels, class_ids = (_enlarged(a, times) for a in (picture, labels, class_ids))
    _paint(picture, labels, class_ids, classes)
    panel.beside(picture, shares / max(1, int(shares.sum())), max_side).save(path, "PNG")


def _picture_shape(info: RasterInfo, max_side: int, panel_width: int) -> tuple[int, int]:
    """(height, width) of the raster's picture that leaves room for the panel at its right."""
    shrink = max(1.0, info.height / max_side, info.width / (max_side - panel_width))
    return max(1, int(info.height / shrink)), max(1, int(info.width / shrink))


def _segment_counts(classes_tif: Path) -> dict[int, int]:
    with _opened(classes_tif) as dataset:
        return {row["class_id"]: row["segments"] for row in json.loads(dataset.tags()["CLASSES"])}


def _opened(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a picture needs no place
        return rasterio.open(path, driver="GTiff")


def _decimated(path: Path, height: int, width: int) -> NDArray[np.unsignedinteger]:
    """Band 1 at (height, width), nearest neighbour, from the overviews."""
    with _opened(path) as dataset:
        values: NDArray[np.unsignedinteger] = dataset.read(1, out_shape=(height, width))
        return values


def _averaged(photo: Photograph, info: RasterInfo, height: int, width: int) -> Pixels:
    """(height, width, 3) means of the photograph's valid pixels; cells without any are blank.

    So are windows that cannot be read: the run has recorded their tiles as failed, and the rest is worth seeing.
    """
    rows = np.arange(height + 1) * info.height // height
    cols = np.arange(width + 1) * info.width // width
    picture = np.full((height, width, 3), _BLANK, np.uint8)
    for top, bottom in _runs_of_cells(rows):
        for left, right in _runs_of_cells(cols):
            window = Window.span(int(rows[top]), int(cols[left]), int(rows[bottom]), int(cols[right]))
            try:
                tile = photo.read(window)
            except OSError:
                continue
            row_bins, col_bins = rows[top:bottom] - rows[top], cols[left:right] - cols[left]
            seen = _binned(tile.valid.astype(np.uint32), row_bins, col_bins)
            for channel, band in enumerate(_as_rgb(tile.pixels)):
                sums = _binned(np.where(tile.valid, band, 0).astype(np.uint32), row_bins, col_bins)
                mean = np.where(seen > 0, sums / np.maximum(seen, 1), _BLANK[channel])
                picture[top:bottom, left:right, channel] = np.rint(mean)
    return picture


def _runs_of_cells(edges: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of cells that span about ``_READ_SIDE`` source pixels each."""
    cells = len(edges) - 1
    step = max(1, _READ_SIDE * cells // int(edges[-1]))
    for start in range(0, cells, step):
        yield start, min(start + step, cells)


def _binned(
    values: NDArray[np.uint32], rows: NDArray[np.int64], cols: NDArray[np.int64]
) -> NDArray[np.uint32]:
    """Sums of ``values`` (H, W) over the cells that start at ``rows`` and ``cols``."""
    sums: NDArray[np.uint32] = np.add.reduceat(np.add.reduceat(values, rows, axis=0), cols, axis=1)
    return sums


def _as_rgb(pixels: Pixels) -> Pixels:
    """(3, H, W): the first three bands, or the first one thrice."""
    return pixels[:3] if len(pixels) >= 3 else np.broadcast_to(pixels[0], (3, *pixels.shape[1:]))


def _enlarged(values: NDArray[Any], times: int) -> NDArray[Any]:
    return values.repeat(times, axis=0).repeat(times, axis=1) if times > 1 else values


def _paint(
    picture: Pixels,
    labels: NDArray[np.unsignedinteger],
    class_ids: NDArray[np.unsignedinteger],
    classes: ClassTable,
) -> None:
    """Lay class colours over ``picture`` (H, W, 3) in place, and outline things in full colour."""
    colors = np.zeros((len(classes) + 1, 3), np.float32)
    fill = np.zeros((len(classes) + 1, 1), np.float32)
    for c in classes:
        colors[c.class_id] = c.color
        fill[c.class_id] = _FILL_THING if c.is_thing else _FILL_STUFF
    thing = np.array([False, *(c.is_thing for c in classes)])
    for top in range(0, len(picture), 128):  # strips: floating point of the whole picture would be the peak
        rows = slice(top, min(top + 128, len(picture)))
        seen = labels[rows] != NODATA_ID
        ids = np.where(seen, class_ids[rows], 0)
        outlined = thing[ids] & _inner_border(labels, rows)
        share = np.where(outlined[..., None], np.float32(0.95), fill[ids])
        picture[rows] = np.rint(picture[rows] * (1 - share) + colors[ids] * share).astype(np.uint8)


def _inner_border(labels: NDArray[np.unsignedinteger], rows: slice) -> NDArray[np.bool_]:
    """True where a pixel of ``rows`` has another label above, below, left or right of it."""
    around = labels[max(0, rows.start - 1) : rows.stop + 1]
    across, down = around[:, 1:] != around[:, :-1], around[1:] != around[:-1]
    border = np.zeros(around.shape, bool)
    border[:, 1:] |= across
    border[:, :-1] |= across
    border[1:] |= down
    border[:-1] |= down
    skip = min(1, rows.start)
    return border[skip : skip + rows.stop - rows.start]


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of the legend."""

    segment_class: SegmentClass
    text: str
    figure: str


class _Panel:
    """The legend at the right of the picture: what was found, most frequent first."""

    def __init__(
        self, info: RasterInfo, classes: ClassTable, segment_counts: dict[int, int], max_side: int
    ) -> None:
        self._info, self._counts = info, segment_counts
        self._found = [c for c in classes if segment_counts.get(c.class_id, 0) > 0]
        side = min(max_side, max(info.height, info.width, _SMALL))
        self._em = round(min(22, max(13, side / 95)))
        self._title, self._text = ImageFont.load_default(self._em * 1.25), ImageFont.load_default(self._em)
        self._margin, self._row, self._swatch = (
            round(self._em * 1.4),
            round(self._em * 1.85),
            round(self._em * 1.1),
        )
        names = [self._text.getlength(c.name) for c in self._found]
        room = self._swatch + max(names, default=0) + 6 * self._em
        widest = max(16 * self._em, room, self._title.getlength(info.stem))
        self.width = round(min(24 * self._em, max_side / 2, widest + 2 * self._margin))

    def beside(self, picture: Pixels, shares: NDArray[np.float64], max_side: int) -> Image.Image:
        """The whole sheet: ``picture`` (H, W, 3) and the legend; ``shares`` are of seen pixels by class id."""
        height, width = picture.shape[:2]
        lines = self._lines(shares)
        head = round(6.2 * self._em)
        needed = 2 * self._margin + head + self._row * len(lines)
        sheet = Image.new("RGB", (width + self.width, min(max_side, max(height, needed))), _PAPER)
        sheet.paste(Image.fromarray(picture), (0, 0))
        draw = ImageDraw.Draw(sheet)
        left, right, y = width + self._margin, sheet.width - self._margin, self._margin
        draw.text((left, y), self._short(self._info.stem, self._title, right - left), _INK, self._title)
        size = f"{self._info.width:,} x {self._info.height:,} px"  # the font has no multiplication sign
        draw.text((left, y + 2 * self._em), size, _FAINT, self._text)
        things = sum(self._counts[c.class_id] for c in self._found if c.is_thing)
        found = f"{things:,} object{'' if things == 1 else 's'}"
        draw.text((left, y + 3.5 * self._em), found, _FAINT, self._text)
        y += head
        fitting = (sheet.height - self._margin - y) // self._row
        shown = lines if len(lines) <= fitting else lines[: max(0, fitting - 1)]
        for line in shown:
            self._draw_line(draw, line, left, right, y)
            y += self._row
        if len(shown) < len(lines):
            draw.text((left, y), f"and {len(lines) - len(shown)} more classes", _FAINT, self._text)
        return sheet

    def _lines(self, shares: NDArray[np.float64]) -> list[_Line]:
        """Things with their number, then stuff with its share of the seen pixels."""
        things = sorted((c for c in self._found if c.is_thing), key=lambda c: -self._counts[c.class_id])
        stuff = sorted((c for c in self._found if not c.is_thing), key=lambda c: -shares[c.class_id])
        return [_Line(c, c.name, f"{self._counts[c.class_id]:,}") for c in things] + [
            _Line(c, c.name, f"{100 * shares[c.class_id]:.1f} %") for c in stuff
        ]

    def _draw_line(self, draw: ImageDraw.ImageDraw, line: _Line, left: int, right: int, y: int) -> None:
        color = line.segment_class.color
        pale = tuple(round(0.45 * v + 0.55 * 255) for v in color)
        inside = color if not line.segment_class.is_thing else pale  # things: outlined, as in the picture
        box = (left, y + 1, left + self._swatch, y + 1 + self._swatch)
        draw.rounded_rectangle(box, 3, fill=inside, outline=color, width=2)
        figure_width = round(self._text.getlength(line.figure))
        draw.text((right - figure_width, y), line.figure, _INK, self._text)
        start = left + self._swatch + round(0.6 * self._em)
        name = self._short(line.text, self._text, right - figure_width - self._em - start)
        draw.text((start, y), name, _INK, self._text)

    @staticmethod
    def _short(text: str, font: Any, room: float) -> str:
        """``text``, its end cut off where it is longer than ``room`` pixels."""
        if font.getlength(text) <= room:
            return text
        while text and font.getlength(text + "...") > room:
            text = text[:-1]
        return text + "..."
