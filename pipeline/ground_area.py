"""Square metres of pixel outlines: planar in projected CRSs, on the ellipsoid in geographic ones.

Areas in degrees are meaningless and geodesic libraries are no run-time dependency, so the ellipsoidal area of a column
of pixels between two parallels is taken in closed form (Snyder, "Map Projections: A Working Manual", USGS PP 1395,
1987, eq. 3-12, the authalic function q) and summed over the outline's horizontal edges, which is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panoptile.pipeline import gdal_env  # noqa: F401  (GDAL's environment, before rasterio)
from panoptile.pipeline.polygons import Affine, Outlines, sum_ragged
from panoptile.pipeline.raster_info import RasterInfo

from rasterio.crs import CRS  # isort: skip  (after gdal_env)

Areas = NDArray[np.float64]
AreaRule = Callable[[Outlines], Areas]
"""Square metres (P,) of each part of an ``Outlines``."""


def area_rule(crs_wkt: str | None, transform: Affine, *, georeferenced: bool) -> AreaRule | None:
    """How to measure parts on the ground; None where that is unknown (no CRS, no georeference, local engineering CRS).

    Projected CRS: pixels times the pixel's area on the map in the CRS's unit, no correction of the projection's
    scale. Geographic CRS: exact on the ellipsoid where rows are parallels; on a rotated raster, pixels times the
    ellipsoidal size of a pixel at the middle of the part's box.
    """
    if crs_wkt is None or not georeferenced:
        return None
    crs = CRS.from_wkt(crs_wkt)
    a, b, _, d, e, _ = transform
    if crs.is_projected:
        square_metres = abs(a * e - b * d) * float(crs.linear_units_factor[1]) ** 2
        return lambda outlines: outlines.areas().astype(np.float64) * square_metres
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
    rule = area_rule(info.crs_wkt, info.transform, georeferenced=info.georeferenced)
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
