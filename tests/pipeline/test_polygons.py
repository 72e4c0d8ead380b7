"""Outlines against GDAL's rasteriser and GEOS's validity."""

from __future__ import annotations

import time

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.features import rasterize
from tests.pipeline.label_arrays import NORTH_UP, label_rasters, voronoi

from panoptile.pipeline.corners import block_corners, decode, encode, pixel_counts
from panoptile.pipeline.polygons import Outlines, to_geometries, trace
from panoptile.pipeline.raster_info import NODATA_ID
from panoptile.pipeline.segments import blocks
from panoptile.pipeline.window import Window

PIXELS = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def outlines_of(labels: NDArray[np.uint32], side: int = 64, *, seed: int | None = None) -> Outlines:
    """All segments' outlines from blocks of ``side``, in scan order or shuffled."""
    windows = list(blocks(labels.shape[0], labels.shape[1], side))
    if seed is not None:
        np.random.default_rng(seed).shuffle(windows)
    pieces = [block_corners(labels[w.slices(Window(0, 0, *labels.shape))], w) for w in windows]
    ids, part_of = np.unique(np.concatenate([i for i, _ in pieces]), return_inverse=True)
    return trace(ids, part_of, np.concatenate([codes for _, codes in pieces]))


def equal(a: Outlines, b: Outlines) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in Outlines.__slots__)


@given(label_rasters())
def test_polygons_are_the_raster(labels: NDArray[np.uint32]) -> None:
    """Rasterising the polygons gives the labels back exactly; they are valid, and areas and boxes are exact."""
    outlines = outlines_of(labels)
    geometries = to_geometries(outlines, PIXELS)
    ids, counts = pixel_counts(labels)
    assert np.array_equal(outlines.ids, ids)
    assert np.array_equal(outlines.areas(), counts)
    assert shapely.is_valid(geometries).all()
    assert np.array_equal(shapely.area(geometries), counts)
    assert np.array_equal(shapely.bounds(geometries).reshape(-1, 4), outlines.boxes())
    if len(ids):
        drawn = rasterize(zip(geometries, ids.tolist(), strict=True), labels.shape, dtype="uint32")
        assert np.array_equal(drawn, np.where(labels == NODATA_ID, 0, labels))


@given(label_rasters(), st.integers(1, 20), st.integers(0, 9))
def test_outlines_do_not_depend_on_blocks(labels: NDArray[np.uint32], side: int, seed: int) -> None:
    """Every block side and every order of blocks gives the same rings, vertex by vertex."""
    assert equal(outlines_of(labels), outlines_of(labels, side, seed=seed))


@given(label_rasters(), st.sampled_from([PIXELS, NORTH_UP, (0.3, 0.1, 5.0, 0.2, -0.4, 7.0)]))
def test_rings_run_as_geoparquet_says(labels: NDArray[np.uint32], transform: tuple[float, ...]) -> None:
    """Shells run counter-clockwise and holes clockwise, on maps with y up, with y down, and rotated."""
    geometries = to_geometries(outlines_of(labels), transform)  # type: ignore[arg-type]
    for polygon in shapely.get_parts(geometries):
        assert shapely.is_ccw(polygon.exterior)
        assert not any(shapely.is_ccw(ring) for ring in polygon.interiors)
    assert shapely.is_valid(geometries).all()


@given(label_rasters())
def test_no_vertex_is_needless(labels: NDArray[np.uint32]) -> None:
    """Every vertex is a right-angled turn: no collinear point is left where blocks met."""
    for polygon in shapely.get_parts(to_geometries(outlines_of(labels, 7), PIXELS)):
        for ring in (polygon.exterior, *polygon.interiors):
            steps = np.diff(shapely.get_coordinates(ring), axis=0)
            turns = np.cross(np.pad(steps, ((0, 0), (0, 1))), np.pad(np.roll(steps, -1, 0), ((0, 0), (0, 1))))
            assert (turns[:, 2] != 0).all()


def test_pixels_that_touch_at_a_corner_are_apart() -> None:
    """Diagonal pixels are two polygons; a ring around a pixel that meets itself at a corner is one with a hole."""
    diagonal = np.eye(2, dtype=np.uint32)
    assert shapely.get_num_geometries(to_geometries(outlines_of(diagonal), PIXELS)).tolist() == [2]
    pinched = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], np.uint32)
    (polygon,) = to_geometries(outlines_of(pinched), PIXELS)
    assert polygon.geom_type == "Polygon"
    assert len(polygon.interiors) == 1
    assert polygon.is_valid
    assert polygon.area == 7


def test_islands_in_holes_of_one_segment_keep_their_shells() -> None:
    """Nested frames of one id are one polygon a frame, each with its own hole."""
    labels = np.zeros((13, 13), np.uint32)
    for inset in (0, 2, 4):
        labels[inset : 13 - inset, inset : 13 - inset] = 1
        labels[inset + 1 : 12 - inset, inset + 1 : 12 - inset] = 0
    (frames,) = to_geometries(outlines_of(labels, 5), PIXELS)
    assert frames.is_valid
    assert [len(p.interiors) for p in frames.geoms] == [1, 1, 1]
    assert frames.area == (labels == 1).sum()


def test_corner_codes_hold_the_longest_raster() -> None:
    """Codes of vertices two thousand million pixels from the origin decode to themselves."""
    places = np.array([0, 1, 2**31 - 1], np.uint64)
    codes = encode(places, places[::-1].copy(), np.array([0, 1, 1], np.uint64))
    rows, cols, negative = decode(codes)
    assert rows.tolist() == [0, 1, 2**31 - 1]
    assert cols.tolist() == [2**31 - 1, 1, 0]
    assert negative.tolist() == [0, 1, 1]


def test_labels_of_another_shape_are_refused() -> None:
    """A block whose array is not its window's shape is an error that names both."""
    with pytest.raises(ValueError, match=r"\(2, 3\).*labels.shape"):
        block_corners(np.zeros((2, 2), np.uint32), Window(0, 0, 2, 3))


def test_a_dense_block_takes_well_under_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    """1,024 x 1,024 px with 2,500 segments: corners, outlines and WKB; the rate is printed."""
    labels = voronoi(1, 1024, 1024, 2500)
    started = time.perf_counter()
    outlines = outlines_of(labels, 1024)
    shapely.to_wkb(to_geometries(outlines, NORTH_UP))
    seconds = time.perf_counter() - started
    with capsys.disabled():
        print(f"\npolygonise: {len(outlines)} segments in {seconds:.3f} s = {len(outlines) / seconds:,.0f}/s")
    assert seconds < 1
