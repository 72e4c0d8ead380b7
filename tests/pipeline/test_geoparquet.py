"""The table of segments against its validator and the readers that people use."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from rasterio.crs import CRS
from tests.pipeline.label_arrays import (
    CLASSES,
    GROUND,
    NORTH_UP,
    dense,
    publish,
    raster_info,
    segment_table,
    voronoi,
)

from panoptile.pipeline import geoparquet
from panoptile.pipeline.geoparquet import public_uri
from panoptile.pipeline.raster_info import NODATA_ID
from panoptile.pipeline.spool import hilbert_keys


def parquet(labels: np.ndarray, folder: Path, **about: object) -> Path:
    """The table of a dense label raster; ``about`` goes to ``raster_info``."""
    path = publish(labels, folder, raster_info(*labels.shape, **about)).segments_parquet  # type: ignore[arg-type]
    assert path is not None
    return path


def check(path: Path) -> str:
    """geoparquet-validator's verdict; fails where a rule fails."""
    tool = Path(sys.executable).with_name("geoparquet-validator")
    if not tool.exists():
        pytest.skip("geoparquet-validator is not installed")
    done = subprocess.run([tool, "check", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "FAIL" not in done.stdout, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def town() -> np.ndarray:
    return voronoi(8, 700, 900, 400)


def test_the_table_is_valid_geoparquet(town: np.ndarray, tmp_path: Path) -> None:
    """Core, covering and distribution rules hold for a projected raster with stuff in several parts."""
    report = check(parquet(town, tmp_path))
    assert "core: " in report
    assert "covering: 6 pass, 0 fail" in report


@pytest.mark.parametrize(
    "about",
    [
        {"epsg": None},
        {"epsg": None, "georeferenced": False},
        {"epsg": 4326, "transform": (1e-5, 0.0, 85.0, 0.0, -1e-5, 27.0)},
        {"transform": (0.3, 0.1, 5.0, 0.2, -0.4, 7.0)},
    ],
    ids=["no CRS", "not georeferenced", "geographic", "rotated"],
)
def test_every_place_is_valid(about: dict[str, object], tmp_path: Path) -> None:
    """Files of rasters without CRS, without place, in degrees and rotated pass too; ground areas are null or not."""
    path = parquet(voronoi(9, 80, 90, 30), tmp_path, **about)
    check(path)
    crs = json.loads(pq.read_schema(path).metadata[b"geo"])["columns"]["geometry"]["crs"]
    epsg = about.get("epsg", 32645)
    assert (crs is None) == (epsg is None)
    if epsg is not None:
        assert CRS.from_user_input(crs).to_epsg() == epsg
    assert pq.read_table(path)["area_m2"].null_count == (30 if epsg is None else 0)


def test_a_raster_without_segments_gives_an_empty_table(tmp_path: Path) -> None:
    """Void alone, or no input at all: a valid file with all columns and no row."""
    for number, value in enumerate((0, NODATA_ID)):
        path = parquet(np.full((40, 50), value, np.uint32), tmp_path / str(number))
        check(path)
        table = pq.read_table(path)
        assert table.num_rows == 0
        assert "geometry" in table.column_names


def test_columns_are_those_of_the_segments(town: np.ndarray, tmp_path: Path) -> None:
    """Attributes come from the segment table, boxes and areas from the pixels, types as documented."""
    path = parquet(town, tmp_path, uri="s3://key:secret@bucket/town.tif?X-Amz-Signature=abc")
    schema = pq.ParquetFile(path).schema_arrow
    assert [f"{f.name} {f.type}" for f in schema] == [
        "segment_id uint32", "part int32", "class_id uint16", "class_name string", "is_thing bool", "score float",
        "area_px int64", "area_m2 double", "bbox_px list<element: int32>",
        "rle struct<size: list<element: int32>, counts: string>", "rle_offset list<element: int64>",
        "tile_ids list<element: int32>", "at_edge bool", "merged_from int32", "source_uri string",
        "geometry binary", "bbox struct<xmin: double not null, ymin: double not null, xmax: double not null, ymax: double not null>",
    ]  # fmt: skip
    table = segment_table(town)
    for row in pq.read_table(path).to_pylist():
        i = row["segment_id"] - 1
        assert row["class_id"] == table.class_ids[i]
        assert row["class_name"] == CLASSES[row["class_id"] - 1].name
        assert row["is_thing"] == (row["class_id"] != GROUND)
        assert row["score"] == table.scores[i]
        assert row["at_edge"] == table.at_edge[i]
        assert row["merged_from"] == table.merged_from[i]
        assert row["tile_ids"] == table.tile_ids[table.tile_offsets[i] : table.tile_offsets[i + 1]].tolist()
        assert row["source_uri"] == "s3://bucket/town.tif"
        ys, xs = np.nonzero(town == i + 1)
        box = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
        assert row["bbox_px"] == box
        assert row["rle_offset"] == box[:2]
        assert row["rle"]["size"] == box[:1:-1]
        assert row["area_px"] == table.areas[i] == len(ys)
        assert row["area_m2"] == len(ys) * 0.25
        bounds = shapely.from_wkb(row["geometry"]).bounds
        assert (*row["bbox"].values(),) == bounds


def test_geopandas_reads_it_whole_and_by_box(town: np.ndarray, tmp_path: Path) -> None:
    """geopandas gives geometries in the raster's CRS, and ``bbox=`` those that meet a box, no others."""
    geopandas = pytest.importorskip("geopandas")
    path = parquet(town, tmp_path)
    frame = geopandas.read_parquet(path)
    assert frame.crs.to_epsg() == 32645
    assert frame.geometry.is_valid.all()
    assert frame.area.sum() == frame.area_m2.sum()
    box = (300_050.0, 2_999_800.0, 300_100.0, 2_999_850.0)
    near = geopandas.read_parquet(path, bbox=box)
    bounds, boxes = frame.bounds, np.array(box)
    meets = (bounds.minx <= boxes[2]) & (bounds.maxx >= boxes[0])
    meets &= (bounds.miny <= boxes[3]) & (bounds.maxy >= boxes[1])
    assert set(near.segment_id) == set(frame[meets].segment_id)
    assert 0 < len(near) < len(frame)


def test_duckdb_reads_it_as_plain_parquet(town: np.ndarray, tmp_path: Path) -> None:
    """A filter on the box column works without any spatial extension."""
    duckdb = pytest.importorskip("duckdb")
    path = parquet(town, tmp_path)
    count, pixels = duckdb.sql(
        f"select count(*), sum(area_px) from read_parquet('{path}') where bbox.xmax < 300100 and class_name = 'tree'"
    ).fetchall()[0]
    table = pq.read_table(path).to_pylist()
    expected = [r for r in table if r["bbox"]["xmax"] < 300_100 and r["class_name"] == "tree"]
    assert (count, pixels) == (len(expected), sum(r["area_px"] for r in expected))
    assert count > 0


def test_row_groups_are_tight_and_pruned(
    town: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hilbert order makes row groups compact: their boxes cover little more than the raster between them."""
    monkeypatch.setattr(geoparquet, "GROUP_ROWS", 40)
    file = pq.ParquetFile(parquet(dense(np.where(town == NODATA_ID, 0, town)), tmp_path))
    assert file.num_row_groups == 10
    assert max(file.metadata.row_group(i).num_rows for i in range(10)) == 40
    columns = {
        file.metadata.row_group(0).column(i).path_in_schema: i for i in range(file.metadata.num_columns)
    }
    area = 0.0
    for i in range(10):
        group = file.metadata.row_group(i)
        low = [group.column(columns[f"bbox.{s}"]).statistics.min for s in ("xmin", "ymin")]
        high = [group.column(columns[f"bbox.{s}"]).statistics.max for s in ("xmax", "ymax")]
        area += (high[0] - low[0]) * (high[1] - low[1])
    assert area < 3 * 700 * 900 * 0.25


def test_large_outlines_make_smaller_groups(
    town: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row groups end by bytes too, and their rows are the same, in the same order."""
    whole = pq.read_table(parquet(town, tmp_path / "a"))
    monkeypatch.setattr(geoparquet, "_GROUP_BYTES", 20_000)
    monkeypatch.setattr(geoparquet, "_BATCH_BYTES", 5_000)
    path = parquet(town, tmp_path / "b")
    assert pq.ParquetFile(path).num_row_groups > 5
    assert pq.read_table(path).equals(whole)
    assert isinstance(whole, pa.Table)


@given(st.integers(1, 6))
def test_the_curve_visits_neighbours(bits: int) -> None:
    """Hilbert keys number all cells of the square, and cells that follow each other share a side."""
    side = 1 << bits
    ys, xs = np.mgrid[:side, :side].reshape(2, -1).astype(np.uint64)
    keys = hilbert_keys(xs, ys, bits)
    order = np.argsort(keys)
    assert np.array_equal(keys[order], np.arange(side * side))
    steps = np.abs(np.diff(xs[order].astype(int))) + np.abs(np.diff(ys[order].astype(int)))
    assert (steps == 1).all()


@pytest.mark.parametrize(
    ("uri", "public"),
    [
        ("scenes/a?b#c.tif", "scenes/a?b#c.tif"),
        ("C:\\scenes\\a.tif", "C:\\scenes\\a.tif"),
        ("s3://bucket/a.tif", "s3://bucket/a.tif"),
        ("s3://bucket/sp ace #1%41 ü?.tif", "s3://bucket/sp ace #1%41 ü?.tif"),
        ("s3://me:pw@bucket/a.tif", "s3://bucket/a.tif"),
        ("https://me:pw@host:8443/a.tif?sig=1#x", "https://host:8443/a.tif"),
        ("/vsicurl/https://me@host/a.tif?sig=1", "/vsicurl/https://host/a.tif"),
    ],
)
def test_uris_are_published_without_secrets(uri: str, public: str) -> None:
    """User, password and query go; plain paths stay."""
    assert public_uri(uri) == public


def test_place_is_exact(tmp_path: Path) -> None:
    """Vertices are the raster's affine of whole pixels, bit by bit."""
    (row,) = pq.read_table(parquet(np.ones((3, 5), np.uint32), tmp_path)).to_pylist()
    a, _, c, _, e, f = NORTH_UP
    assert shapely.from_wkb(row["geometry"]).bounds == (c, e * 3 + f, a * 5 + c, f)
