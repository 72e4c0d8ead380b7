"""How much larger a map shows the ground than it is, in every projected CRS, from PROJ's inverse alone.

A place of the map becomes a point on the authalic sphere, which shows the ellipsoid's areas as they are (Snyder, "Map
Projections: A Working Manual", USGS PP 1395, 1987, p. 16). The scale follows from how far two short steps on the map
lead there; in space, not in degrees, so that neither a pole nor the 180th meridian is special.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panoptile.pipeline import gdal_env  # noqa: F401  (GDAL's environment, before rasterio)

from rasterio._err import CPLE_BaseError  # isort: skip  (what rasterio.warp.transform raises; it has no public name)
from rasterio.crs import CRS  # isort: skip  (after gdal_env)
from rasterio.warp import transform  # isort: skip

Floats = NDArray[np.float64]

STEP_METRES = 1000.0
"""From a point to its neighbours: the sphere's curvature changes 1e-8 over it, PROJ's own error 1e-6."""


@dataclass(frozen=True, slots=True)
class ArealScale:
    """A projected CRS and the ellipsoid under it."""

    projected: CRS
    geographic: CRS
    """What it is a projection of, on the same datum."""
    axis: float
    """Semi-major axis of the ellipsoid, metres."""
    eccentricity: float

    @property
    def metres(self) -> float:
        """Of the map's unit."""
        return float(self.projected.linear_units_factor[1])

    def at(self, x: Floats, y: Floats) -> Floats:
        """(N,) map area over ground area at points (N,) of the map; NaN where the map shows no place on Earth."""
        step = STEP_METRES / self.metres
        xs = np.concatenate([x - step, x + step, x, x])
        ys = np.concatenate([y, y, y - step, y + step])
        longitudes, sines = self.on_sphere(xs, ys)
        cosines = np.sqrt((1 - sines) * (1 + sines))
        places = np.stack([cosines * np.cos(longitudes), cosines * np.sin(longitudes), sines], axis=-1)
        west, east, south, north = places.reshape(4, -1, 3)
        ground = np.linalg.norm(np.cross(east - west, north - south), axis=1) * self.sphere_radius**2
        with np.errstate(divide="ignore"):
            scale: Floats = (2 * STEP_METRES) ** 2 / ground
        return scale

    def on_sphere(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """(N,) longitudes in radians and (N,) sines of the latitude on the authalic sphere; NaN for no place on Earth."""
        longitudes, latitudes = self._inverse(x, y)
        radians = float(self.geographic.units_factor[1])
        sines = _authalic(np.sin(latitudes * radians), self.eccentricity) / self._at_pole
        return longitudes * radians, np.clip(sines, -1, 1)

    @property
    def sphere_radius(self) -> float:
        """Of the sphere that has the ellipsoid's area, metres."""
        return self.axis * math.sqrt(self._at_pole / 2)

    @property
    def _at_pole(self) -> float:
        return float(_authalic(np.ones(1), self.eccentricity)[0])

    def _inverse(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        try:
            found = np.array(transform(self.projected, self.geographic, x, y)[:2])
        except CPLE_BaseError:  # one point beyond the projection's domain is enough
            if len(x) == 1:
                return np.full(1, np.nan), np.full(1, np.nan)
            half = len(x) // 2
            parts = self._inverse(x[:half], y[:half]), self._inverse(x[half:], y[half:])
            return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
        found[:, ~np.isfinite(found).all(axis=0)] = np.nan
        return found[0], found[1]


def geographic_base(projjson: Any) -> CRS | None:
    """What a CRS, as a PROJJSON tree, is a projection of; None where that is not known."""
    if not isinstance(projjson, Mapping):
        return None
    for name in ("base_crs", "source_crs"):
        if name in projjson:
            base = projjson[name]
            if base.get("type") in ("GeographicCRS", "GeodeticCRS"):
                return CRS.from_dict(base)
            return geographic_base(base)
    return geographic_base(next(iter(projjson.get("components", ())), None))


def _authalic(sines: Floats, eccentricity: float) -> Floats:
    """Snyder's q (eq. 3-12) of sines of geodetic latitudes, twice the sine on a sphere."""
    if eccentricity == 0:
        return 2 * sines
    turned = eccentricity * sines
    q: Floats = (1 - eccentricity**2) * (sines / (1 - turned**2) + np.arctanh(turned) / eccentricity)
    return q
