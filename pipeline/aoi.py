"""Area of interest: polygons of a GeoJSON file, brought to the raster's CRS, as a mask of pixel centres.

The test is made per pixel at coordinates computed from its absolute row and column, not by rasterising in
a window's own coordinates, so that every tiling gets the same mask.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator

import numpy as np
import shapely
from numpy.typing import NDArray

from panoptile.pipeline import gdal_env
from panoptile.pipeline.inputs import InputError, shown
from panoptile.pipeline.raster_file import first_line
from panoptile.pipeline.window import Window

gdal_env.configure()  # before rasterio

# isort: split
import itertools

from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.warp import transform_geom

Transform = tuple[float, float, float, float, float, float]
"""Affine a … f, as in RasterInfo."""

MAX_BYTES = 256 << 20
"""A larger GeoJSON file is refused rather than parsed in memory."""
_POINTS_AT_ONCE = 32
"""Side of the squares in which pixels are tested one by one."""

_EPSG = re.compile(r"(?:urn:ogc:def:crs:)?EPSG:(?:[\d.]*:)?(\d+)", re.IGNORECASE)
_CRS84 = re.compile(r"(?:urn:ogc:def:crs:)?OGC:(?:[\d.]*:)?CRS84", re.IGNORECASE)


class AreaOfInterest:
    """Polygons on the working grid of one raster."""

    def __init__(self, wkb: str, transform: Transform) -> None:
        """``wkb`` is hexadecimal, in the CRS of ``transform`` (a … f of RasterInfo)."""
        self._area = shapely.from_wkb(wkb)
        shapely.prepare(self._area)
        self._transform = transform

    def mask(self, window: Window) -> NDArray[np.bool_]:
        """(H, W), True where the pixel's centre lies in the area or on its border."""
        mask = np.zeros(window.shape, bool)
        self._fill(mask, window, window)
        return mask

    def _fill(self, mask: NDArray[np.bool_], whole: Window, part: Window) -> None:
        """Set the pixels of ``part``: at once where it lies inside or outside, else by quarters."""
        outline = _corners(self._transform, part)
        if not self._area.intersects(outline):
            return
        index = part.slices(whole)
        if self._area.covers(outline):
            mask[index] = True
        elif max(part.shape) <= _POINTS_AT_ONCE:
            rows = np.arange(part.row, part.stop_row)[:, None] + 0.5
            cols = np.arange(part.col, part.stop_col)[None, :] + 0.5
            a, b, c, d, e, f = self._transform
            mask[index] = shapely.intersects_xy(self._area, a * cols + b * rows + c, d * cols + e * rows + f)
        else:
            for quarter in _quarters(part):
                self._fill(mask, whole, quarter)


def read_aoi(
    path: str, *, crs_wkt: str | None, transform: Transform, shape: tuple[int, int]
) -> tuple[str, tuple[str, ...]]:
    """(hexadecimal WKB in the raster's CRS, notes) of the polygons in a GeoJSON file that meet the raster.

    Coordinates are longitude and latitude (EPSG:4326) unless a ``crs`` member names an EPSG code. Only
    vertices are transformed. For a raster without CRS the coordinates are taken as the raster's own (pixels,
    if it has no georeferencing either). Raises InputError for an unreadable file, one without polygons, and
    an area that does not meet the raster.
    """
    name = shown(path)
    document = _load(path)
    geometries = [g for g in _geometries(document) if g is not None]
    notes: tuple[str, ...] = ()
    try:
        if crs_wkt is None:
            notes = ("The raster has no CRS: the area of interest is taken in the raster's own coordinates.",)
        else:
            geometries = [
                transform_geom(_geojson_crs(name, document), CRS.from_wkt(crs_wkt), g) for g in geometries
            ]
        shapes = [shapely.make_valid(shapely.from_geojson(json.dumps(g))) for g in geometries]
    except (RasterioError, shapely.errors.ShapelyError, ValueError, KeyError, TypeError) as e:
        raise InputError(f"{name}: the area of interest cannot be used: {first_line(e)}.") from e
    polygons = [p for s in shapes for p in shapely.get_parts(s) if p.geom_type.endswith("Polygon")]
    if not polygons:
        raise InputError(f"{name} holds no polygon: give the area of interest as GeoJSON polygons.")
    outline = _corners(transform, Window(0, 0, *shape))
    meeting = [p for p in polygons if shapely.intersection(p, outline).area > 0]
    if not meeting:
        raise InputError(f"{name} does not meet the raster: check its CRS and its coordinates' order (x, y).")
    return shapely.to_wkb(shapely.union_all(meeting), hex=True), notes


def _load(path: str) -> dict[str, object]:
    name = shown(path)
    try:
        if os.path.getsize(path) > MAX_BYTES:
            raise InputError(f"{name} is larger than {MAX_BYTES >> 20} MB: simplify the area of interest.")
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
    except OSError as e:
        raise InputError(f"{name} cannot be read: {e.strerror or e}.") from e
    except (ValueError, RecursionError) as e:
        raise InputError(f"{name} is not GeoJSON: give the area of interest as a GeoJSON file.") from e
    if not isinstance(document, dict):
        raise InputError(f"{name} is not GeoJSON: give the area of interest as a GeoJSON file.")
    return document


def _geometries(document: dict[str, object]) -> Iterator[dict[str, object] | None]:
    """Geometries of a FeatureCollection, a Feature, a GeometryCollection or a bare geometry."""
    kind = document.get("type")
    if kind == "Feature":
        geometry = document.get("geometry")
        yield from _geometries(geometry) if isinstance(geometry, dict) else ()
    elif kind in ("FeatureCollection", "GeometryCollection"):
        members = document.get("features" if kind == "FeatureCollection" else "geometries")
        for member in members if isinstance(members, list) else ():
            if isinstance(member, dict):
                yield from _geometries(member)
    elif kind in ("Polygon", "MultiPolygon"):
        yield document


def _geojson_crs(name: str, document: dict[str, object]) -> CRS:
    """Only codes are looked up: GDAL would read a file or a URL given in place of a name."""
    member = document.get("crs")
    if member is None:
        return CRS.from_epsg(4326)
    properties = member.get("properties") if isinstance(member, dict) else None
    text = str(properties.get("name", "")) if isinstance(properties, dict) else ""
    if _CRS84.fullmatch(text):
        return CRS.from_epsg(4326)
    if match := _EPSG.fullmatch(text):
        return CRS.from_epsg(int(match[1]))
    raise InputError(f"{name} names the CRS {text!r}: only EPSG codes are understood, such as EPSG:32633.")


def _corners(transform: Transform, window: Window) -> shapely.Polygon:
    """The outline of a window in the raster's coordinates."""
    a, b, c, d, e, f = transform
    corners = (
        (window.col, window.row),
        (window.stop_col, window.row),
        (window.stop_col, window.stop_row),
        (window.col, window.stop_row),
    )
    return shapely.Polygon([(a * col + b * row + c, d * col + e * row + f) for col, row in corners])


def _quarters(window: Window) -> Iterator[Window]:
    rows = sorted({window.row, window.row + (window.height + 1) // 2, window.stop_row})
    cols = sorted({window.col, window.col + (window.width + 1) // 2, window.stop_col})
    for top, bottom in itertools.pairwise(rows):
        for left, right in itertools.pairwise(cols):
            yield Window.span(top, left, bottom, right)
