"""Square metres of pixel outlines on the ground: on the ellipsoid, and on the map where it is true to 1 %.

Areas in degrees are meaningless and geodesic libraries are no run-time dependency, so the ellipsoidal area of a column
of pixels between two parallels is taken in closed form (Snyder, "Map Projections: A Working Manual", USGS PP 1395,
1987, eq. 3-12, the authalic function q) and summed over the outline's horizontal edges, which is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panoptile.pipeline import gdal_env  # noqa: F401  (GDAL's environment, before rasterio)
from panoptile.pipeline.areal_scale import ArealScale, geographic_base
from panoptile.pipeline.polygons import Affine, Outlines, sum_ragged
from panoptile.pipeline.raster_info import RasterInfo

from rasterio.crs import CRS  # isort: skip  (after gdal_env)
from rasterio.errors import CRSError  # isort: skip

Areas = NDArray[np.float64]
AreaRule = Callable[[Outlines], Areas]
"""Square metres (P,) of each part of an ``Outlines``."""

NOTABLE = 0.01
"""How far from 1 the areal scale of a map must be, somewhere in a raster, for its areas to be taken from the ellipsoid.

Below are UTM in its zones, national grids and equal-area maps: their areas are those that a GIS measures on the map."""
_LATTICE = 5
"""Points along each side of a raster at which the scale is looked at."""
_PARALLEL = 1e-10
"""Radians by which latitudes along a row, and steps of longitude, may differ where rows count as parallels."""


def area_rule(info: RasterInfo) -> AreaRule | None:
    """How to measure parts on the ground; None where that is unknown (no CRS, no georeference, local engineering CRS).

    Projected CRS: pixels times the pixel's area on the map, in the CRS's unit, where the map's areal scale is within
    1 % all over the raster; else on the ellipsoid: exact where rows are parallels (Mercator and other cylindrical maps,
    not turned), elsewhere the area on the map over the scale at the middle of the part's box. Geographic CRS: exact on
    the ellipsoid where rows are parallels; on a rotated raster, pixels times the ellipsoidal size of a pixel at the
    middle of the part's box.
    """
    if info.crs_wkt is None or not info.georeferenced:
        return None
    crs, transform = CRS.from_wkt(info.crs_wkt), info.transform
    a, b, _, d, e, _ = transform
    if crs.is_projected:
        square_metres = abs(a * e - b * d) * float(crs.linear_units_factor[1]) ** 2
        scale = _notable_scale(info)
        if scale is None:
            return lambda outlines: outlines.areas().astype(np.float64) * square_metres
        column = _column_radians(scale, info)
        if column is None:
            return lambda outlines: _at_map_scale(outlines, transform, scale, square_metres)
        return lambda outlines: _between_rows(outlines, transform, scale, column)
    ellipsoid = _ellipsoid(crs.to_dict(projjson=True)) if crs.is_geographic else None
    if ellipsoid is None:
        return None
    radius, eccentricity = ellipsoid
    radians = float(crs.units_factor[1])
    if b == 0 and d == 0:
        return lambda outlines: _between_parallels(outlines, transform, radians, radius, eccentricity)
    return lambda outlines: _at_box_middle(outlines, transform, radians, radius, eccentricity)


def pixel_area_m2(info: RasterInfo) -> float | None:
    """Square metres of the pixel in the middle of a raster; None where that is unknown."""
    rule = area_rule(info)
    if rule is None:
        return None
    row, col = info.height // 2, info.width // 2
    pixel = Outlines(
        np.array([1], np.uint32),
        np.array([0, 1]),
        np.array([False]),
        np.array([0, 2]),
        np.array([[col, row], [col + 1, row + 1]], np.int32),
    )
    return float(rule(pixel)[0])


def has_notable_scale(info: RasterInfo) -> bool:
    """Whether areas are taken from the ellipsoid although the CRS is projected: see ``NOTABLE``."""
    if info.crs_wkt is None or not info.georeferenced or not CRS.from_wkt(info.crs_wkt).is_projected:
        return False
    return _notable_scale(info) is not None


def _notable_scale(info: RasterInfo) -> ArealScale | None:
    """The areal scale of a raster's projection; None where it is near 1 all over the raster, or not known."""
    scale = _areal_scale(str(info.crs_wkt))
    if scale is None:
        return None
    off = np.abs(scale.at(*_lattice(info)) - 1)
    return scale if (off > NOTABLE).any() else None


@lru_cache(maxsize=64)  # the rasters of a job share a few
def _areal_scale(crs_wkt: str) -> ArealScale | None:
    crs = CRS.from_wkt(crs_wkt)
    tree = crs.to_dict(projjson=True)
    try:
        geographic, ellipsoid = geographic_base(tree), _ellipsoid(tree)
    except CRSError:  # a base that GDAL does not read
        return None
    if geographic is None or ellipsoid is None:
        return None
    return ArealScale(crs, geographic, *ellipsoid)


def _lattice(info: RasterInfo) -> tuple[Areas, Areas]:
    """Map coordinates (x, y) of points all over a raster, its corners among them, row by row."""
    a, b, c, d, e, f = info.transform
    rows, cols = np.meshgrid(
        np.linspace(0, info.height, _LATTICE), np.linspace(0, info.width, _LATTICE), indexing="ij"
    )
    return (a * cols + b * rows + c).ravel(), (d * cols + e * rows + f).ravel()


def _column_radians(scale: ArealScale, info: RasterInfo) -> float | None:
    """Longitude that a column spans, the same all over the raster, where rows are parallels; else None."""
    _, b, _, d, _, _ = info.transform
    if b != 0 or d != 0:
        return None
    longitudes, sines = (found.reshape(_LATTICE, _LATTICE) for found in scale.on_sphere(*_lattice(info)))
    steps = (np.diff(longitudes, axis=1) + np.pi) % (2 * np.pi) - np.pi  # a quarter of the globe at most
    uneven = max(np.ptp(steps), np.max(np.ptp(sines, axis=1)))
    if not uneven < _PARALLEL:  # or NaN: the raster reaches beyond the map
        return None
    return float(np.abs(steps).mean()) * (_LATTICE - 1) / info.width


def _ellipsoid(crs: Any) -> tuple[float, float] | None:
    """Semi-major axis in metres and first eccentricity of the first ellipsoid in a PROJJSON tree."""
    if isinstance(crs, dict):
        if "ellipsoid" in crs:
            return _axis_and_eccentricity(crs["ellipsoid"])
        crs = list(crs.values())
    if isinstance(crs, list):
        for part in crs:
            found = _ellipsoid(part)
            if found is not None:
                return found
    return None


def _axis_and_eccentricity(ellipsoid: dict[str, Any]) -> tuple[float, float]:
    if "radius" in ellipsoid:
        return _metres(ellipsoid["radius"]), 0.0
    axis = _metres(ellipsoid["semi_major_axis"])
    if "semi_minor_axis" in ellipsoid:
        flattening = 1 - _metres(ellipsoid["semi_minor_axis"]) / axis
    else:
        inverse = float(ellipsoid["inverse_flattening"])
        flattening = 1 / inverse if inverse else 0.0
    return axis, math.sqrt(flattening * (2 - flattening))


def _metres(length: float | dict[str, Any]) -> float:
    """A PROJJSON length: a number of metres, or a value with its unit."""
    if not isinstance(length, dict):
        return float(length)
    unit = length["unit"]
    return float(length["value"]) * (float(unit["conversion_factor"]) if isinstance(unit, dict) else 1.0)


def _between_parallels(
    outlines: Outlines, transform: Affine, radians: float, radius: float, eccentricity: float
) -> Areas:
    """Exact areas on a raster whose rows are parallels.

    Each edge counts the column from the part's first row down to it; differences of q are formed from those of the
    latitudes, so that small parts keep all their digits.
    """
    a, _, _, _, e, f = transform
    offsets = outlines.part_edge_offsets
    rows = outlines.starts_xy[:, 1]
    top = np.repeat(outlines.boxes()[:, 1], np.diff(offsets))
    top_latitude = (e * top + f) * radians
    step = e * (rows - top) * radians
    s1 = np.sin(top_latitude)
    rise = 2 * np.cos(top_latitude + step / 2) * np.sin(step / 2)  # sin(latitude) - s1
    s2, ee = s1 + rise, eccentricity**2
    q = rise * (1 + ee * s1 * s2) / ((1 - ee * s1**2) * (1 - ee * s2**2))
    if eccentricity > 0:
        q = q + np.arctanh(eccentricity * rise / (1 - ee * s1 * s2)) / eccentricity
    else:
        q = 2 * rise
    runs = outlines.end_cols() - outlines.starts_xy[:, 0]
    column = radius**2 * (1 - ee) / 2 * abs(a * radians)
    sums: Areas = np.abs(sum_ragged(runs * q, offsets)) * column
    return sums


def _at_box_middle(
    outlines: Outlines, transform: Affine, radians: float, radius: float, eccentricity: float
) -> Areas:
    """Areas on a rotated raster: the meridian's and the parallel's radius at the middle of each part's box."""
    a, b, _, d, e, f = transform
    boxes = outlines.boxes().astype(np.float64)
    latitude = (d * (boxes[:, 0] + boxes[:, 2]) / 2 + e * (boxes[:, 1] + boxes[:, 3]) / 2 + f) * radians
    ee = eccentricity**2
    density = radius**2 * (1 - ee) * np.cos(latitude) / (1 - ee * np.sin(latitude) ** 2) ** 2
    areas: Areas = outlines.areas() * density * abs(a * e - b * d) * radians**2
    return areas


def _between_rows(outlines: Outlines, transform: Affine, scale: ArealScale, column: float) -> Areas:
    """Exact areas on a map whose rows are parallels: on the authalic sphere, a strip's height is that of its sines."""
    _, _, c, _, e, f = transform
    offsets = outlines.part_edge_offsets
    rows, place = np.unique(outlines.starts_xy[:, 1], return_inverse=True)
    northings = e * rows.astype(np.float64) + f
    sines = scale.on_sphere(np.full(len(rows), c), northings)[1][place]
    rises = sines - np.repeat(sines[offsets[:-1]], np.diff(offsets))  # small numbers keep their digits
    runs = outlines.end_cols() - outlines.starts_xy[:, 0]
    areas: Areas = np.abs(sum_ragged(runs * rises, offsets)) * column * scale.sphere_radius**2
    return areas


def _at_map_scale(outlines: Outlines, transform: Affine, scale: ArealScale, square_metres: float) -> Areas:
    """Areas on the map over the scale at the middle of each part's box; as on the map where that is off the Earth."""
    a, b, c, d, e, f = transform
    boxes = outlines.boxes()
    cols, rows = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    found = scale.at(a * cols + b * rows + c, d * cols + e * rows + f)
    areas: Areas = outlines.areas() * square_metres / np.where(np.isnan(found), 1.0, found)
    return areas
