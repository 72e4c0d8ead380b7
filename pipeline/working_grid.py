"""The pixel grid that a run works on: the file's own, or one with the pixel size that ``--gsd`` asks for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from panoptile.pipeline import gdal_env
from panoptile.pipeline.inputs import InputError

gdal_env.configure()  # before rasterio

# isort: split
from rasterio.crs import CRS

MAX_RATIO = 1024.0
"""Source pixels per output pixel, along an axis, at most: beyond, one output pixel costs a whole tile of input."""

SAME = 1e-6
"""Relative difference below which a pixel size counts as the file's own."""

Transform = tuple[float, float, float, float, float, float]
"""Affine a … f, as in RasterInfo."""


@dataclass(frozen=True, slots=True)
class WorkingGrid:
    """Size and place of the working grid."""

    height: int
    width: int
    transform: Transform
    resampled: bool


def working_grid(
    *, height: int, width: int, transform: Transform, crs_wkt: str | None, gsd: float | None
) -> WorkingGrid:
    """The grid of a raster (native size and transform) for a pixel size of ``gsd`` metres; None: the native one.

    The upper left corner stays and pixels get exactly the size asked for, so the last row and column may
    reach over the edge, or end before it, by up to half a pixel. Without CRS, ``gsd`` is in the transform's
    units; in a geographic CRS a metre is measured at the raster's centre. Raises InputError without
    georeferencing.
    """
    native = WorkingGrid(height, width, transform, False)
    if gsd is None:
        return native
    a, b, c, d, e, f = transform
    if transform == (1.0, 0.0, 0.0, 0.0, 1.0, 0.0):
        raise InputError(
            "--gsd needs to know the pixel size, but the raster is not georeferenced: leave --gsd out."
        )
    centre_y = d * width / 2 + e * height / 2 + f
    unit_x, unit_y = _metres_per_unit(crs_wkt, centre_y)
    col_ratio = gsd / math.hypot(a * unit_x, d * unit_y)
    row_ratio = gsd / math.hypot(b * unit_x, e * unit_y)
    if max(abs(col_ratio - 1), abs(row_ratio - 1)) < SAME:
        return native
    if not (min(col_ratio, row_ratio) >= 1 / MAX_RATIO and max(col_ratio, row_ratio) <= MAX_RATIO):
        raise InputError(
            f"--gsd {gsd:g} differs from the raster's pixel size by more than {MAX_RATIO:g} times."
        )
    return WorkingGrid(
        max(1, round(height / row_ratio)),
        max(1, round(width / col_ratio)),
        (a * col_ratio, b * row_ratio, c, d * col_ratio, e * row_ratio, f),
        True,
    )


def ratios(native: Transform, working: Transform) -> tuple[float, float]:
    """(rows, columns) of the native grid per working pixel."""
    return (
        math.hypot(working[1], working[4]) / math.hypot(native[1], native[4]),
        math.hypot(working[0], working[3]) / math.hypot(native[0], native[3]),
    )


def _metres_per_unit(crs_wkt: str | None, y: float) -> tuple[float, float]:
    """Metres per CRS unit along x and y; at latitude ``y`` in a geographic CRS, by the usual series for WGS 84."""
    if crs_wkt is None:
        return 1.0, 1.0
    crs = CRS.from_wkt(crs_wkt)
    if crs.is_geographic:
        latitude = math.radians(y * math.degrees(crs.units_factor[1]))
        along_parallel = 111412.84 * math.cos(latitude) - 93.5 * math.cos(3 * latitude)
        along_meridian = 111132.92 - 559.82 * math.cos(2 * latitude) + 1.175 * math.cos(4 * latitude)
        degrees = math.degrees(crs.units_factor[1])
        return max(along_parallel, 1.0) * degrees, along_meridian * degrees
    if crs.is_projected:
        metres = float(crs.linear_units_factor[1])
        return metres, metres
    return 1.0, 1.0
