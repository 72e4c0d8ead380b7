"""Where a raster lies on Earth, in longitude and latitude as GeoJSON has them (RFC 7946).

Longitudes stay within ±180: what crosses the antimeridian is cut there, and its box has a west above its east. What lies
around a pole reaches to it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from panoptile.pipeline import gdal_env  # noqa: F401  (GDAL's environment, before rasterio)

import rasterio.warp  # isort: skip  (after gdal_env)
from rasterio._err import CPLE_BaseError, CPLE_NotSupportedError  # isort: skip  (rasterio.warp's; without public names)
from rasterio.crs import CRS  # isort: skip
from rasterio.errors import CRSError  # isort: skip

EDGE_STEPS = 64
"""Pieces of each edge that are brought to longitude and latitude: straight edges become curves."""
STRAIGHT = 1e-4
"""How far a footprint may lie off, as a share of its shorter side: most keep their four corners alone."""
AT_POLE = 1e-9
"""Degrees from it."""
DECIMALS = 7
"""Of a degree: a centimetre."""

Box = tuple[float, float, float, float]
"""West, south, east, north in degrees; west > east where it crosses the antimeridian."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """The outline of a raster on Earth."""

    geometry: dict[str, Any]
    """GeoJSON: a Polygon, or a MultiPolygon that is cut at the antimeridian."""
    box: Box


def lies_on_earth(crs: CRS) -> bool:
    """Whether coordinates of ``crs`` can be brought to longitude and latitude: not a site's own grid, nor the Moon's."""
    if not (crs.is_geographic or crs.is_projected):
        return False
    try:
        rasterio.warp.transform(crs, "EPSG:4326", [0.0], [0.0])
    except (CRSError, CPLE_NotSupportedError):
        return False
    except CPLE_BaseError:  # this point lies outside of the CRS's domain: others need not
        return True
    return True


def footprint(crs: CRS, transform: Sequence[float], shape: tuple[int, int]) -> Footprint | None:
    """The footprint of a raster; None where its CRS does not lie on Earth, or an edge leaves the CRS's domain.

    Args:
        transform: affine a, b, c, d, e, f: x = a*col + b*row + c, y = d*col + e*row + f.
        shape: (height, width), pixels.
    """
    if not lies_on_earth(crs):
        return None
    xs, ys = _edges(transform, shape)
    try:
        lon, lat = np.array(rasterio.warp.transform(crs, "EPSG:4326", xs.tolist(), ys.tolist()))
    except CPLE_BaseError:
        return None
    if not (np.isfinite(lon).all() and np.isfinite(lat).all()):
        return None
    polygon = _unrolled(lon, np.clip(lat, -90, 90))
    west, south, east, north = polygon.bounds
    if east <= 180:
        return Footprint(shapely.geometry.mapping(polygon), (west, south, east, north))
    box = (
        (-180.0, south, 180.0, north)
        if east - west >= 360
        else (west, south, round(east - 360, DECIMALS), north)
    )
    return Footprint(shapely.geometry.mapping(_cut(polygon)), box)


def around(boxes: Sequence[Box]) -> Box:
    """The box of one or more boxes; it crosses the antimeridian only where one of them does."""
    south, north = min(b[1] for b in boxes), max(b[3] for b in boxes)
    spans = sorted((w, e if e >= w else e + 360) for w, _, e, _ in boxes)
    reach = max(e for _, e in spans)
    if reach <= 180:
        return spans[0][0], south, reach, north
    reach -= 360  # where the last one ends, seen from the first
    widest, west, east = 0.0, -180.0, 180.0
    for w, e in spans:
        if w - reach > widest:
            widest, west, east = w - reach, w, reach
        reach = max(reach, e)
    east = east + 360 if east < -180 else east - 360 if east > 180 else east
    return west, south, round(east, DECIMALS), north


def _edges(transform: Sequence[float], shape: tuple[int, int]) -> NDArray[np.float64]:
    """(2, P) x and y along the raster's edge, from its first corner back to it; counter-clockwise if north is up."""
    a, b, c, d, e, f = transform
    height, width = shape
    corners = np.array([(0, 0), (0, height), (width, height), (width, 0), (0, 0)], float)
    steps = np.arange(EDGE_STEPS)[:, None] / EDGE_STEPS
    sides = [start + steps * (end - start) for start, end in itertools.pairwise(corners)]
    cols, rows = np.concatenate([*sides, corners[-1:]]).T
    return np.stack([a * cols + b * rows + c, d * cols + e * rows + f])


def _unrolled(lon: NDArray[np.float64], lat: NDArray[np.float64]) -> shapely.Polygon:
    """The ring as a polygon without jumps, which begins within ±180 and may end beyond; one around a pole reaches it."""
    poles = np.flatnonzero(np.abs(lat[:-1]) > 90 - AT_POLE)
    over_pole = len(poles) == 1
    if over_pole:  # this one point has no longitude of its own: the ring is opened there
        lon, lat = np.roll(lon[:-1], -poles[0])[1:], np.roll(lat[:-1], -poles[0])[1:]
    lon = np.unwrap(lon, period=360)
    ring = np.stack([lon, lat], axis=1)
    if over_pole or abs(lon[-1] - lon[0]) > 180:
        pole = 90.0 if lat.mean() > 0 else -90.0
        ring = np.concatenate([ring, [(lon[-1], pole), (lon[0], pole)]])
    side = np.ptp(ring, axis=0).min()
    ring = shapely.get_coordinates(shapely.simplify(shapely.Polygon(ring), STRAIGHT * side))
    ring = np.round(ring, DECIMALS)
    ring[:, 0] -= 360 * np.floor((ring[:, 0].min() + 180) / 360)
    return shapely.orient_polygons(shapely.Polygon(np.round(ring, DECIMALS)))


def _cut(polygon: shapely.Polygon) -> shapely.Geometry:
    """The polygon cut at 180°, 540°, …, each piece moved within ±180."""
    whole, pieces = shapely.make_valid(polygon), []
    for turn in range(0, int(polygon.bounds[2] + 180) // 360 * 360 + 1, 360):
        piece = shapely.intersection(whole, shapely.box(turn - 180, -90, turn + 180, 90))
        pieces.append(shapely.transform(piece, lambda p, turn=turn: np.round(p - (turn, 0), DECIMALS)))
    parts = shapely.get_parts(shapely.union_all(pieces))
    polygons = [shapely.orient_polygons(p) for p in parts if p.geom_type == "Polygon"]
    return polygons[0] if len(polygons) == 1 else shapely.MultiPolygon(polygons)
