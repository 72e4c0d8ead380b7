"""Footprints in longitude and latitude: true to the raster's pixels, and as RFC 7946 wants them."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from panoptile.pipeline.footprint import Box, around, footprint, lies_on_earth

import rasterio.warp  # isort: skip  (after panoptile has set GDAL's environment)
from rasterio.crs import CRS  # isort: skip
from rasterio.transform import Affine  # isort: skip

LOCAL = 'LOCAL_CS["mine",UNIT["metre",1]]'
DEGREES = CRS.from_epsg(4326)


def geometry_of(crs: CRS, transform: Affine, shape: tuple[int, int]) -> tuple[shapely.Geometry, Box]:
    found = footprint(crs, tuple(transform)[:6], shape)
    assert found is not None
    return shapely.geometry.shape(found.geometry), found.box


def inside(box: Box, lon: float) -> bool:
    west, _, east, _ = box
    return west <= lon <= east if west <= east else lon >= west or lon <= east


def _near_edge(place: float, side: int) -> bool:
    return min(abs(place), abs(place - side)) < 10


@settings(max_examples=60, deadline=None)
@given(
    code=st.sampled_from([32660, 32601, 32633, 3857, 3031, 3413, 4326]),
    x=st.floats(-1, 1),
    y=st.floats(-1, 1),
    pixel=st.sampled_from([0.5, 30.0, 1000.0]),
    turn=st.floats(0, 90),
    width=st.integers(5, 300),
)
def test_every_pixel_lies_in_the_footprint(
    code: int, x: float, y: float, pixel: float, turn: float, width: int
) -> None:
    """Rasters anywhere, turned, over the antimeridian and the poles: pixels inside are in the footprint and its box."""
    crs = CRS.from_epsg(code)
    corner = {4326: (200 * x, 45 * y), 3857: (19.9e6 * x, 5e6 * y), 3031: (3e5 * x, 3e5 * y)}
    place = corner.get(code, (500_000 + 3e5 * x, 4e6 + 3e6 * y) if code != 3413 else (3e5 * x, 3e5 * y))
    pixel = pixel / 111_000 if code == 4326 else pixel
    transform = Affine.translation(*place) * Affine.rotation(turn) * Affine.scale(pixel, -pixel)
    if code in (3031, 3413):  # an edge that nearly touches the pole would need more points
        col, row = ~transform * (0, 0)
        assume(not _near_edge(col, width) and not _near_edge(row, 200))
    geometry, box = geometry_of(crs, transform, (200, width))
    assert geometry.is_valid
    assert -180 <= geometry.bounds[0] <= geometry.bounds[2] <= 180
    assert geometry.bounds[1::2] == box[1::2]
    for part in shapely.get_parts(geometry):
        assert part.exterior.is_ccw
    cols, rows = np.meshgrid(np.linspace(0.02, 0.98, 9) * width, np.linspace(0.02, 0.98, 9) * 200)
    xs, ys = transform * (cols.ravel(), rows.ravel())
    for lon, lat in zip(*rasterio.warp.transform(crs, DEGREES, xs, ys), strict=True):
        lon = (lon + 180) % 360 - 180
        assert inside(box, lon), (lon, box)
        assert geometry.intersects(shapely.Point(lon, lat)), (lon, lat, geometry.wkt)


def test_a_small_raster_has_four_corners() -> None:
    """No more points than it needs, counter-clockwise from its first corner."""
    found = footprint(CRS.from_epsg(32633), (0.5, 0, 500_000, 0, -0.5, 4_000_000), (200, 260))
    assert found is not None
    [ring] = found.geometry["coordinates"]
    assert len(ring) == 5
    assert ring[0] == pytest.approx((15.0, 36.1447), abs=1e-4)


@pytest.mark.parametrize(
    ("crs", "transform", "shape"),
    [
        (CRS.from_epsg(32660), Affine(10, 0, 826_000, 0, -10, 1_107_640), (500, 600)),
        (DEGREES, Affine(5e-5, 0, 179.99, 0, -5e-5, 10), (500, 600)),
        (DEGREES, Affine(5e-5, 0, -180.01, 0, -5e-5, 10), (500, 600)),
    ],
)
def test_cut_at_the_antimeridian(crs: CRS, transform: Affine, shape: tuple[int, int]) -> None:
    """Two polygons that touch ±180, and a box with its west above its east, of projected and of degree rasters."""
    geometry, box = geometry_of(crs, transform, shape)
    assert geometry.geom_type == "MultiPolygon"
    assert len(geometry.geoms) == 2
    assert (geometry.bounds[0], geometry.bounds[2]) == (-180, 180)
    assert box[0] > 179
    assert box[2] < -179
    assert geometry.area < 0.02


def test_degrees_beyond_180_are_turned_back() -> None:
    """350° to 350.6° east is 10° to 9.4° west; a world of 0° to 360° is the world."""
    geometry, box = geometry_of(DEGREES, Affine(1e-3, 0, 350, 0, -1e-3, 10), (500, 600))
    assert box == geometry.bounds
    assert list(box) == [-10, 9.5, -9.4, 10]
    for first, rows in ((0, 720), (-0.125, 721), (-180, 720)):
        world, box = geometry_of(DEGREES, Affine(0.25, 0, first, 0, -0.25, rows / 8), (rows, 1440))
        assert list(box) == [-180, -90, 180, 90]
        assert world.equals(shapely.box(*box))


@pytest.mark.parametrize(("left", "top"), [(0, 50_000), (-50_000, 0), (-25_000, 50_000), (-25_000, 0)])
def test_a_pole_on_the_edge(left: float, top: float) -> None:
    """Where a corner or the middle of an edge is the pole, the footprint is the quarter or the half beside it."""
    crs = CRS.from_epsg(3413)
    geometry, box = geometry_of(crs, Affine(100, 0, left, 0, -100, top), (500, 500))
    assert geometry.is_valid
    assert box[3] == 90
    x, y = left + 25_000, top - 25_000  # the middle
    (lon, beyond), (lat, lat_beyond) = rasterio.warp.transform(crs, DEGREES, [x, -x], [y, -y])
    assert geometry.contains(shapely.Point(lon, lat))
    assert not geometry.intersects(shapely.Point(beyond, lat_beyond))


def test_a_pole_inside_belongs_to_it() -> None:
    """A raster around the South Pole reaches from every longitude down to 90° south."""
    geometry, box = geometry_of(CRS.from_epsg(3031), Affine(100, 0, -30_000, 0, -100, 25_000), (500, 600))
    assert box[:3] == (-180, -90, 180)
    assert box[3] < -89.6
    assert geometry.contains(shapely.Point(17, -89.9))


@pytest.mark.parametrize("crs", [LOCAL, "IAU_2015:30130", "IAU_2015:30100", "EPSG:4978"])
def test_no_place_on_earth(crs: str) -> None:
    """A site's own grid, the Moon, and coordinates from the Earth's centre have no footprint."""
    assert not lies_on_earth(CRS.from_user_input(crs))
    assert footprint(CRS.from_user_input(crs), (1, 0, 0, 0, -1, 0), (5, 5)) is None


def test_off_the_edge_of_the_earth() -> None:
    """The full disc of a geostationary satellite has corners in space: no footprint, no traceback."""
    disc = CRS.from_user_input("+proj=geos +h=35785831 +lon_0=0 +sweep=y")
    assert lies_on_earth(disc)
    assert footprint(disc, (3000, 0, -5.5e6, 0, -3000, 5.5e6), (3712, 3712)) is None


@pytest.mark.parametrize(
    ("boxes", "whole"),
    [
        ([(1, 0, 2, 1), (-3, 4, -2, 5)], (-3, 0, 2, 5)),
        ([(-120, 0, -119, 1), (140, 0, 141, 1)], (-120, 0, 141, 1)),
        ([(170, 0, -170, 1)], (170, 0, -170, 1)),
        ([(9, 0, 10, 1), (170, -1, -170, 1)], (9, -1, -170, 1)),
        ([(-20, 0, 10, 1), (170, 0, -170, 1)], (170, 0, 10, 1)),
        ([(170, 0, -170, 1), (-175, 0, -160, 1), (150, 0, 172, 1)], (150, 0, -160, 1)),
        ([(-180, -90, 180, -89), (170, 0, -170, 1)], (-180, -90, 180, 1)),
    ],
)
def test_a_box_around_boxes(boxes: list[Box], whole: Box) -> None:
    """The shortest way round where one crosses the antimeridian, else from the least to the greatest."""
    assert around(boxes) == whole
