"""Polygons as labels: the three file formats, what is wrong with them, and where they land on the grid."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely
from tests.jobs.training_worlds import EPSG, NAMES, THINGS, outlines, world, write_geoparquet, write_raster

from panoptile.pipeline.inputs import InputError
from panoptile.pipeline.label_report import LabelReport
from panoptile.pipeline.labelled_scene import BACKGROUND, IGNORED
from panoptile.pipeline.polygon_file import read_polygon_file
from panoptile.pipeline.raster_info import RasterInfo
from panoptile.pipeline.raster_source import inspect_raster
from panoptile.pipeline.training_polygons import PolygonChecks, PolygonClasses, PolygonLabels

CLASSES = PolygonClasses(
    {name: i for i, name in enumerate(NAMES)}, frozenset(THINGS), frozenset({"unclear"}), NAMES[0]
)


def some_raster(folder: Path) -> RasterInfo:
    return inspect_raster(str(write_raster(folder / "image.tif", world(0).image)))


def checked(path: Path, raster: RasterInfo, column: str | None = "kind") -> tuple[PolygonLabels, LabelReport]:
    checks = PolygonChecks(read_polygon_file(str(path), class_column=column), CLASSES)
    labels = checks.on_raster(raster, unlabelled="background")
    return labels, checks.finish()


def box(col: float, row: float, width: float, height: float) -> shapely.Polygon:
    """A rectangle of the raster's pixels in map coordinates."""
    return shapely.box(
        350_000 + col / 2, 3_050_000 - (row + height) / 2, 350_000 + (col + width) / 2, 3_050_000 - row / 2
    )


@pytest.mark.parametrize("ending", ["parquet", "geojson", "gpkg"])
def test_outlines_draw_the_world_that_they_were_traced_from(tmp_path: Path, ending: str) -> None:
    """Labels and objects of traced outlines equal the world's pixels, from each format and a window at a time."""
    truth = world(0)
    rows = outlines(truth)
    frame = geopandas.GeoDataFrame(
        {"kind": [k for k, _ in rows]}, geometry=[g for _, g in rows], crs=f"EPSG:{EPSG}"
    )
    path = tmp_path / f"labels.{ending}"
    if ending == "parquet":
        frame.to_parquet(path)
    elif ending == "gpkg":
        frame.to_file(path, driver="GPKG")
    else:
        frame.to_crs(4326).to_file(path, driver="GeoJSON", COORDINATE_PRECISION=12)
    labels, report = checked(path, some_raster(tmp_path))
    assert (report.found, report.used, dict(report.problems)) == (len(rows), len(rows), {})
    for row, col, height, width in ((0, 0, 64, 64), (10, 20, 30, 40)):
        found, ids = labels.read(row, col, height, width)
        part = slice(row, row + height), slice(col, col + width)
        assert np.array_equal(found, truth.labels[part])
        assert np.array_equal(ids > 0, truth.ids[part] > 0)
        pairs = {(a, b) for a, b in zip(ids.ravel().tolist(), truth.ids[part].ravel().tolist(), strict=True)}
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def test_each_defect_is_counted(tmp_path: Path) -> None:
    """Empty, invalid, shapeless, foreign, outlying and overlapping labels are counted by kind with an example."""
    bow_tie = shapely.Polygon(
        [(350_010, 3_049_990), (350_014, 3_049_986), (350_014, 3_049_990), (350_010, 3_049_986)]
    )
    rows: list[tuple[str | None, object]] = [
        ("square", box(2, 2, 10, 10)),
        ("disc", box(4, 4, 4, 4)),
        ("unclear", box(40, 40, 8, 8)),
        ("square", None),
        ("square", shapely.Polygon()),
        ("square", shapely.Point(350_001, 3_049_999)),
        ("square", bow_tie),
        ("square", shapely.Polygon([(350_001, 3_049_999), (350_002, 3_049_998), (350_003, 3_049_997)])),
        ("hexagon", box(20, 20, 4, 4)),
        (None, box(24, 20, 4, 4)),
        ("disc", box(500, 500, 4, 4)),
    ]
    labels, report = checked(write_geoparquet(tmp_path / "labels.parquet", rows), some_raster(tmp_path))
    assert dict(report.problems) == {
        "labels have no geometry": 2,
        "labels are no polygons": 1,
        "labels had an invalid outline and were repaired": 1,
        "labels have an invalid outline without area": 1,
        "labels have an unknown class": 1,
        "labels have no class": 1,
        "labels lie outside of every raster": 1,
        "labels overlap larger ones by more than a tenth (the smaller one counts there)": 1,
    }
    assert (report.found, report.used) == (11, 4)
    assert "feature 9: 'hexagon'" in report.examples["labels have an unknown class"]
    found, ids = labels.read(0, 0, 64, 64)
    assert (found[3, 3], found[5, 5], found[44, 44], found[60, 60]) == (0, 1, IGNORED, BACKGROUND)
    assert ids[3, 3] != ids[5, 5]
    assert ids[44, 44] == ids[60, 60] == 0


def test_labels_in_another_crs_are_brought_over(tmp_path: Path) -> None:
    """Polygons in degrees land on the same pixels as in the raster's own CRS."""
    raster = some_raster(tmp_path)
    frame = geopandas.GeoDataFrame({"kind": ["square"]}, geometry=[box(10, 20, 16, 12)], crs=f"EPSG:{EPSG}")
    frame.to_crs(4326).to_parquet(tmp_path / "degrees.parquet")
    labels, _ = checked(tmp_path / "degrees.parquet", raster)
    found, _ = labels.read(0, 0, 64, 64)
    assert np.array_equal(np.argwhere(found == 0).min(axis=0), [20, 10])
    assert int((found == 0).sum()) == 16 * 12


def test_labels_with_a_wrong_crs_lie_outside(tmp_path: Path) -> None:
    """Metres that are declared as degrees end as 'outside of every raster', not as a traceback."""
    rows: list[tuple[str | None, object]] = [("square", box(10, 20, 16, 12))]
    path = write_geoparquet(tmp_path / "wrong.parquet", rows, epsg=4326)
    _, report = checked(path, some_raster(tmp_path))
    assert report.used == 0
    assert report.problems["labels lie outside of every raster"] == 1


def test_files_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    """No file, no such column, a broken file and a foreign format end in one sentence each."""
    raster_path = write_raster(tmp_path / "image.tif", world(0).image)
    path = write_geoparquet(tmp_path / "labels.parquet", [("square", box(0, 0, 4, 4))])
    (tmp_path / "broken.geojson").write_text('{"type": "FeatureCollection"')
    (tmp_path / "broken.gpkg").write_bytes(b"SQLite format 3\0" + bytes(100))
    (tmp_path / "labels.shp").write_bytes(b"")
    for name, column, words in (
        ("missing.parquet", None, "no label file"),
        (path.name, "sort", "no column 'sort': name one of its columns .*kind"),
        ("broken.geojson", None, "no GeoJSON"),
        ("broken.gpkg", None, "no GeoPackage"),
        ("labels.shp", None, "convert this file to GeoParquet"),
    ):
        with pytest.raises(InputError, match=words):
            read_polygon_file(str(tmp_path / name), class_column=column)
    assert raster_path.exists()


def test_a_file_without_a_crs_says_so(tmp_path: Path) -> None:
    """A GeoParquet with a null CRS has none; GeoJSON without one is longitude and latitude."""
    path = write_geoparquet(tmp_path / "labels.parquet", [("square", box(0, 0, 4, 4))])
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    geo = json.loads(table.schema.metadata[b"geo"])
    geo["columns"]["geometry"]["crs"] = None
    pq.write_table(table.replace_schema_metadata({b"geo": json.dumps(geo).encode()}), path)
    assert read_polygon_file(str(path), class_column="kind").crs is None
    (tmp_path / "labels.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    crs = read_polygon_file(str(tmp_path / "labels.geojson"), class_column=None).crs
    assert crs is not None
    assert crs.to_epsg() == 4326
