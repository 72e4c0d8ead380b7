"""Areas on the ground against pyproj's geodesics."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.transform import Affine
from tests.pipeline.label_arrays import raster_info, voronoi
from tests.pipeline.test_polygons import outlines_of

from panoptile.pipeline.ground_area import area_rule, has_notable_scale, pixel_area_m2
from panoptile.pipeline.polygons import Outlines
from panoptile.pipeline.raster_info import RasterInfo

SHAPE = (12, 15)
Transform = tuple[float, float, float, float, float, float]


def labels_of(info: RasterInfo) -> NDArray[np.uint32]:
    return np.random.default_rng(3).integers(0, 4, (info.height, info.width)).astype(np.uint32)


def areas_of(info: RasterInfo, outlines: Outlines) -> NDArray[np.float64]:
    rule = area_rule(info)
    assert rule is not None
    return rule(outlines)


def geodesic_areas(info: RasterInfo, labels: NDArray[np.uint32], ids: NDArray[np.uint32]) -> list[float]:
    """Square metres on the ellipsoid of the pixels of each id, their sides followed in 200 steps."""
    pyproj = pytest.importorskip("pyproj")
    crs = pyproj.CRS.from_wkt(info.crs_wkt)
    to_geographic = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True).transform
    degrees = np.degrees(crs.geodetic_crs.axis_info[0].unit_conversion_factor)  # or grads
    affine, geod = Affine(*info.transform), crs.get_geod()
    along, still = np.linspace(0, 1, 200, endpoint=False), np.zeros(200)
    square = np.array(
        [[*along, *(still + 1), *(1 - along), *still], [*still, *along, *(still + 1), *(1 - along)]]
    )

    def cell(row: int, col: int) -> float:
        x, y = affine @ (square[0] + col, square[1] + row)
        longitudes, latitudes = to_geographic(x, y)
        return abs(float(geod.polygon_area_perimeter(longitudes * degrees, latitudes * degrees)[0]))

    return [sum(cell(row, col) for row, col in np.argwhere(labels == i)) for i in ids]


@pytest.mark.parametrize(("pixel", "latitude"), [(1e-2, 60.0), (1e-5, -33.0), (1e-3, 0.01), (1e-2, 89.95)])
def test_geographic_areas_are_geodesic(pixel: float, latitude: float) -> None:
    """Square metres in EPSG:4326 agree with pyproj's geodesic area to eight digits, from the equator to the pole."""
    info = raster_info(*SHAPE, epsg=4326, transform=(pixel, 0.0, 85.0, 0.0, -pixel, latitude))
    labels = labels_of(info)
    outlines = outlines_of(labels)
    np.testing.assert_allclose(
        areas_of(info, outlines), geodesic_areas(info, labels, outlines.ids), rtol=1e-8
    )


def test_rotated_geographic_areas_are_close() -> None:
    """On a slightly rotated geographic raster, areas differ from the unrotated ones by no more than the rotation."""
    outlines = outlines_of(voronoi(0, 60, 60, 20))
    straight, rotated = (
        raster_info(60, 60, epsg=4326, transform=(1e-5, turn, 8.0, turn, -1e-5, 47.0))
        for turn in (0.0, 1e-12)
    )
    np.testing.assert_allclose(areas_of(rotated, outlines), areas_of(straight, outlines), rtol=1e-5)


PARALLELS: dict[str, tuple[int, Transform]] = {
    "web map at 58° north": (3857, (10.0, 0.0, 1.2e6, 0.0, -10.0, 7.97e6)),
    "web map, centimetres": (3857, (0.05, 0.0, 1.2e6, 0.0, -0.05, 7.97e6)),
    "web map, south-up": (3857, (10.0, 0.0, 1.2e6, 0.0, 10.0, -7.97e6)),
    "web map, a continent": (3857, (2e5, 0.0, -1e6, 0.0, -2e5, 7.97e6)),
    "web map over the 180th meridian": (3857, (1000.0, 0.0, 20_030_000.0, 0.0, -1000.0, 7.97e6)),
    "World Mercator": (3395, (100.0, 0.0, 1.2e6, 0.0, -100.0, 7.97e6)),
    "Equidistant Cylindrical": (4087, (100.0, 0.0, 1.2e6, 0.0, -100.0, 6e6)),
}
OTHERS: dict[str, tuple[int, Transform]] = {
    "web map, turned": (3857, (8.0, 6.0, 1.2e6, 6.0, -8.0, 7.97e6)),
    "polar stereographic at 55° north": (3995, (100.0, 0.0, 1e5, 0.0, -100.0, -3.9e6)),
    "a conic far from its parallels": (3978, (100.0, 0.0, 1e5, 0.0, -100.0, 3.7e6)),
    "UTM, six zones away": (32633, (100.0, 0.0, 2.2e6, 0.0, -100.0, 5e6)),
    "a conic in grads from Paris": (27572, (100.0, 0.0, 6e5, 0.0, -100.0, 3.3e6)),
}


@pytest.mark.parametrize("name", [*PARALLELS, *OTHERS])
def test_areas_on_maps_of_notable_scale_are_geodesic(name: str) -> None:
    """Where the map shows the ground larger or smaller, areas agree with pyproj's geodesic ones: to seven digits where
    rows are parallels, as long as PROJ's own digits last, elsewhere as the scale changes over a part's box."""
    epsg, transform = (PARALLELS | OTHERS)[name]
    info = raster_info(*SHAPE, epsg=epsg, transform=transform)
    assert has_notable_scale(info)
    labels = labels_of(info)
    outlines = outlines_of(labels)
    np.testing.assert_allclose(
        areas_of(info, outlines),
        geodesic_areas(info, labels, outlines.ids),
        rtol=1e-7 if name in PARALLELS else 1e-4,
    )


def test_a_web_map_is_too_large_by_its_scale() -> None:
    """At 58° north a pixel of 10 m on the map has 28 square metres, not 100."""
    area = pixel_area_m2(raster_info(*SHAPE, epsg=3857, transform=PARALLELS["web map at 58° north"][1]))
    assert area == pytest.approx(100 / 3.55, rel=0.01)


def test_the_pole_is_no_special_place() -> None:
    """Four pixels that meet in the pole of a polar map have one area, that of their place's scale."""
    info = raster_info(2, 2, epsg=3031, transform=(1e5, 0.0, -1e5, 0.0, -1e5, 1e5))
    areas = areas_of(info, outlines_of(np.array([[1, 2], [3, 4]], np.uint32)))
    np.testing.assert_allclose(areas, 1e10 / 0.97276901289**2, rtol=1e-3)


@pytest.mark.parametrize(
    ("epsg", "transform"),
    [
        (32645, (0.5, 0.0, 300_000.0, 0.0, -0.5, 3_000_000.0)),
        (3035, (10.0, 0.0, 3_900_000.0, 0.0, -10.0, 3_000_000.0)),
        (2154, (0.2, 0.0, 650_000.0, 0.0, -0.2, 6_860_000.0)),
        (27700, (0.25, 0.1, 400_000.0, 0.1, -0.25, 300_000.0)),
        (3857, (10.0, 0.0, 1.2e6, 0.0, -10.0, 1e5)),
    ],
    ids=["UTM", "equal area", "Lambert-93", "British grid, turned", "web map on the equator"],
)
def test_areas_on_true_maps_are_those_of_the_map(epsg: int, transform: Transform) -> None:
    """Within 1 % of the ground, areas stay what a GIS measures on the map, bit by bit."""
    info = raster_info(*SHAPE, epsg=epsg, transform=transform)
    assert not has_notable_scale(info)
    outlines = outlines_of(labels_of(info))
    a, b, _, d, e, _ = transform
    assert np.array_equal(areas_of(info, outlines), outlines.areas() * abs(a * e - b * d))


def test_a_raster_that_reaches_beyond_the_earth_has_areas() -> None:
    """The corners of a picture from a geostationary satellite show no ground: all areas are finite, the middle true."""
    geostationary = CRS.from_proj4("+proj=geos +h=35785831 +lon_0=0 +sweep=y +ellps=WGS84")
    info = dataclasses.replace(
        raster_info(9, 9, transform=(1.3e6, 0.0, -5.85e6, 0.0, -1.3e6, 5.85e6)),
        crs_wkt=geostationary.to_wkt(),
    )
    areas = areas_of(info, outlines_of(np.arange(1, 82, dtype=np.uint32).reshape(9, 9)))
    assert np.isfinite(areas).all()
    assert areas[40] == pytest.approx(1.3e6**2, rel=0.02)
    assert areas[37] > 1.1 * areas[40]  # towards the limb a pixel holds more ground


def test_projected_areas_follow_the_unit() -> None:
    """US survey feet become metres; a raster without CRS, or that lies nowhere, has no ground area."""
    outlines = outlines_of(np.ones((2, 3), np.uint32))
    info = raster_info(2, 3, epsg=2263, transform=(2.0, 0.0, 1e6, 0.0, -2.0, 2e5))
    np.testing.assert_allclose(areas_of(info, outlines), [6 * 4 * (1200 / 3937) ** 2], rtol=1e-12)
    assert area_rule(dataclasses.replace(info, crs_wkt=None)) is None
    assert area_rule(dataclasses.replace(info, georeferenced=False)) is None
    assert area_rule(dataclasses.replace(info, crs_wkt='LOCAL_CS["site",UNIT["metre",1]]')) is None
