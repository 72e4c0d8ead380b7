"""Sheets of one CRS and one pixel grid as one raster: own index, no VRT, so no file names another.

Where sheets overlap, the first in the order of their names shows; where none lies, there is no input. Windows read
from a mosaic equal the same windows of the sheets merged into one file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from types import TracebackType
from typing import Any, Self

import numpy as np

from panoptile.pipeline.aoi import AreaOfInterest, read_aoi
from panoptile.pipeline.inputs import InputError, sanitised, shown
from panoptile.pipeline.raster_file import Limits
from panoptile.pipeline.raster_info import RasterInfo, Sheet
from panoptile.pipeline.raster_source import RasterSource, RasterTile, inspect_raster, sampled_range
from panoptile.pipeline.scaling import parse_scale
from panoptile.pipeline.window import Window

OPEN_SHEETS = 16
"""Sheets that one source keeps open."""
GRID_TOLERANCE = 0.01
"""Pixels by which a sheet may miss the common grid."""
SCALE_SHEETS = 32
"""Most sheets that a scale is taken from, evenly spread."""


def inspect_mosaic(
    uris: Sequence[str],
    *,
    bands: Sequence[int] | None = None,
    scale: str = "auto",
    gsd: float | None = None,
    nodata: float | None = None,
    aoi: str | None = None,
    channels: int = 3,
    limits: Limits | None = None,
) -> RasterInfo:
    """The raster that all sheets make together. Arguments as for ``inspect_raster``, over all sheets alike.

    Raises InputError, in one sentence, for sheets that do not share CRS, pixel size, grid, type or bands.
    """
    if gsd is not None:
        raise InputError(
            "--gsd does not go with --mosaic: sheets are joined on their own grid. Leave one of them out."
        )
    rule = parse_scale(scale)
    infos = [
        inspect_raster(uri, bands=bands, scale="0,255", nodata=nodata, channels=channels, limits=limits)
        for uri in sorted(uris)
    ]
    first = infos[0]
    for info in infos[1:]:
        _check_same(first, info)
    places = [_offset(first, info) for info in infos]
    row0, col0 = min(r for r, _ in places), min(c for _, c in places)
    height = max(r + i.height for (r, _), i in zip(places, infos, strict=True)) - row0
    width = max(c + i.width for (_, c), i in zip(places, infos, strict=True)) - col0
    most = (limits or Limits()).pixels
    if height * width > most:
        raise InputError(
            f"The mosaic of {len(infos)} sheets spans {width:,}x{height:,} pixels, more than {most:,}: are all sheets "
            "meant? If so, raise --max-pixels."
        )
    transform = _moved(first.transform, row0, col0)
    chosen, notes = _scale(infos, rule)
    wkb: str | None = None
    aoi_notes: tuple[str, ...] = ()
    if aoi is not None:
        wkb, aoi_notes = read_aoi(aoi, crs_wkt=first.crs_wkt, transform=transform, shape=(height, width))
    sheets = tuple(
        Sheet(r - row0, c - col0, dataclasses.replace(i, scale=chosen))
        for (r, c), i in zip(places, infos, strict=True)
    )
    digest = hashlib.sha256("\n".join(i.uri for i in infos).encode("utf-8", "surrogateescape")).hexdigest()
    stem = sanitised(f"mosaic-{first.stem}")
    return dataclasses.replace(
        first,
        uri=f"mosaic of {len(infos)} sheets from {first.uri}",
        key=f"{stem}-{digest[:10]}",
        stem=stem,
        height=height,
        width=width,
        native_height=height,
        native_width=width,
        transform=transform,
        scale=chosen,
        size_bytes=sum(i.size_bytes for i in infos),
        mtime_ns=max(i.mtime_ns for i in infos),
        written_ns=max(i.written_ns for i in infos),
        etag=hashlib.sha256("\n".join(f"{i.size_bytes} {i.etag}" for i in infos).encode()).hexdigest()[:32],
        aoi_wkb=wkb,
        notes=(*_sheet_notes(infos), *notes, *aoi_notes),
        sheets=sheets,
    )


class MosaicSource:
    """Windows of a mosaic. Any number of threads may read."""

    def __init__(self, info: RasterInfo) -> None:
        self.info = info
        self._aoi = None if info.aoi_wkb is None else AreaOfInterest(info.aoi_wkb, info.transform)
        self._lock = Lock()
        self._open: OrderedDict[int, RasterSource] = OrderedDict()
        self._used: dict[int, int] = {}
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all sheets; nobody may be reading."""
        with self._lock:
            self._closed = True
            for source in self._open.values():
                source.close()
            self._open.clear()

    def read(self, window: Window) -> RasterTile:
        """Pixels and validity of a window; see ``RasterSource.read``."""
        if window.intersect(Window(0, 0, self.info.height, self.info.width)) != window:
            raise ValueError(
                f"{window} lies outside the mosaic of {self.info.height}x{self.info.width} pixels."
            )
        pixels = np.zeros((len(self.info.bands), *window.shape), np.uint8)
        valid = np.zeros(window.shape, bool)
        for number, sheet in enumerate(self.info.sheets):
            shared = Window(sheet.row, sheet.col, sheet.info.height, sheet.info.width).intersect(window)
            if shared is None:
                continue
            place = shared.slices(window)
            free = ~valid[place]
            if not free.any():
                continue
            read = self._read_sheet(
                number, Window(shared.row - sheet.row, shared.col - sheet.col, shared.height, shared.width)
            )
            new = free & read.valid
            np.copyto(pixels[(slice(None), *place)], read.pixels, where=new)
            valid[place] |= new
        if self._aoi is not None:
            valid = valid & self._aoi.mask(window)
        return RasterTile(pixels, valid)

    def _read_sheet(self, number: int, window: Window) -> RasterTile:
        source = self._borrow(number)
        try:
            return source.read(window)
        finally:
            self._give_back(number)

    def _borrow(self, number: int) -> RasterSource:
        """The sheet's source; sheets that nobody reads are closed, the longest unused first."""
        with self._lock:
            if self._closed:
                raise ValueError(f"The source of {shown(self.info.uri)} is closed.")
            source = self._open.pop(number, None) or RasterSource(self.info.sheets[number].info)
            self._open[number] = source
            self._used[number] = self._used.get(number, 0) + 1
            idle = [n for n in self._open if not self._used.get(n)]
            for other in idle[: max(0, len(self._open) - OPEN_SHEETS)]:
                self._open.pop(other).close()
            return source

    def _give_back(self, number: int) -> None:
        with self._lock:
            self._used[number] -= 1


def open_source(info: RasterInfo) -> RasterSource | MosaicSource:
    """The source of a raster, of one file or of many."""
    return MosaicSource(info) if info.sheets else RasterSource(info)


# --- one grid ------------------------------------------------------------------------------------------


def _check_same(first: RasterInfo, other: RasterInfo) -> None:
    """What all sheets must share, named with both values."""
    if not first.georeferenced or not other.georeferenced:
        lost = other if first.georeferenced else first
        raise InputError(
            f"{shown(lost.uri)} is not georeferenced: a mosaic needs to know where its sheets lie."
        )
    pairs: list[tuple[str, Any, Any, str]] = [
        ("the CRS", first.crs_wkt, other.crs_wkt, "bring them to one grid first (gdalwarp -tap)"),
        ("the type", first.dtype, other.dtype, "write them in one type first (gdal_translate -ot)"),
        ("the bands", first.bands, other.bands, "name bands that all have with --bands"),
        ("the pixel size", _linear(first), _linear(other), "bring them to one grid first (gdalwarp -tap)"),
    ]
    for what, a, b, remedy in pairs:
        same = _close(a, b) if what == "the pixel size" else a == b
        if not same:
            values = "" if what == "the CRS" else f" ({b} instead of {a})"
            raise InputError(
                f"{shown(other.uri)} does not share {what} of {shown(first.uri)}{values}: {remedy}, or run without "
                "--mosaic."
            )


def _linear(info: RasterInfo) -> tuple[float, float, float, float]:
    a, b, _, d, e, _ = info.transform
    return a, b, d, e


def _close(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    scale = max(map(abs, a))
    return all(abs(x - y) <= 1e-9 * scale for x, y in zip(a, b, strict=True))


def _offset(first: RasterInfo, other: RasterInfo) -> tuple[int, int]:
    """(rows, columns) from the first sheet's corner to the other's, whole pixels."""
    a, b, d, e = _linear(first)
    dx, dy = other.transform[2] - first.transform[2], other.transform[5] - first.transform[5]
    determinant = a * e - b * d
    col, row = (e * dx - b * dy) / determinant, (a * dy - d * dx) / determinant
    off = max(abs(col - round(col)), abs(row - round(row)))
    if off > GRID_TOLERANCE:
        raise InputError(
            f"{shown(other.uri)} lies {off:.2f} px off the pixel grid of {shown(first.uri)}: bring them to one grid first "
            "(gdalwarp -tap), or run without --mosaic."
        )
    return round(row), round(col)


def _moved(
    transform: tuple[float, float, float, float, float, float], row: int, col: int
) -> tuple[float, float, float, float, float, float]:
    a, b, c, d, e, f = transform
    return a, b, c + a * col + b * row, d, e, f + d * col + e * row


def _scale(infos: Sequence[RasterInfo], rule: Any) -> tuple[tuple[float, float] | None, list[str]]:
    """One scale for all sheets: objects on a seam must not change their colour."""
    if rule.kind == "range":
        return (rule.low, rule.high), []
    if rule.kind == "auto" and infos[0].dtype == "uint8":
        return None, []
    step = max(1, math.ceil(len(infos) / SCALE_SHEETS))
    chosen = infos[::step]
    found = sampled_range(chosen, rule)
    if found is None:
        return (0.0, 1.0), ["No input was found to take the scaling from: give it with --scale LOW,HIGH."]
    return found, [
        f"Values {found[0]:g} to {found[1]:g}, taken from {len(chosen)} sheets, are mapped to 0-255 in all of them."
    ]


def _sheet_notes(infos: Sequence[RasterInfo]) -> list[str]:
    """Each sheet's own notes, once where many say the same."""
    counted: dict[str, int] = {}
    for info in infos:
        for note in info.notes:
            counted[note] = counted.get(note, 0) + 1
    return [note if n == 1 else f"{note} ({n} sheets)" for note, n in counted.items()]
