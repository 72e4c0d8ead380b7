"""Every option of ``segment`` changes the result as it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.jobs.runs import TRANSFORM, WorldFiles, arrays, run, table, write_world
from tests.pipeline.worlds import TABLE, make_world

from panoptile.jobs.exits import JobError
from panoptile.jobs.prepare import prepare
from panoptile.jobs.spec import JobSpec
from panoptile.pipeline.plan import RasterPlan
from panoptile.pipeline.raster_info import NODATA_ID

import rasterio  # isort: skip  (after runs, which sets GDAL's environment)


WORLD = (5, 200, 220)
TILING = {"tile": 80, "overlap": 24}


def names(out: Path) -> set[str]:
    return set(table(out)["class_name"].to_pylist())


def test_classes_and_exclude(files: WorldFiles, tmp_path: Path) -> None:
    """--classes keeps the named classes alone, --exclude drops some; ids stay 1…N without gaps."""
    run(files, tmp_path / "all", **TILING)
    assert names(tmp_path / "all") == {c.name for c in TABLE}
    run(files, tmp_path / "kept", classes=("house", "road"), **TILING)
    assert names(tmp_path / "kept") == {"house", "road"}
    run(files, tmp_path / "dropped", exclude=("house", "road"), **TILING)
    assert names(tmp_path / "dropped") == {"tree", "grass"}
    ids = set(np.unique(arrays(tmp_path / "kept")[0]).tolist()) - {0, NODATA_ID}
    assert ids == set(range(1, len(ids) + 1))


def test_min_area(files: WorldFiles, tmp_path: Path) -> None:
    """--min-area drops segments below that many square metres (0.25 m² a pixel here)."""
    run(files, tmp_path / "all", **TILING)
    run(files, tmp_path / "large", min_area=50.0, **TILING)
    before, after = table(tmp_path / "all"), table(tmp_path / "large")
    expected = sum(a >= 200 for a in before["area_px"].to_pylist())
    assert after.num_rows == expected < before.num_rows
    assert min(after["area_m2"].to_pylist()) >= 50


def test_aoi(files: WorldFiles, tmp_path: Path) -> None:
    """Pixels whose centre lies outside --aoi are nodata; what was skipped needs no replica."""
    a, b = TRANSFORM @ (30, 40), TRANSFORM @ (120, 100)
    ring = [[a[0], a[1]], [b[0], a[1]], [b[0], b[1]], [a[0], b[1]], [a[0], a[1]]]
    aoi = tmp_path / "aoi.geojson"
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    aoi.write_text(json.dumps({"type": "Polygon", "coordinates": [ring], "crs": crs}))
    run(files, tmp_path / "all", **TILING)
    summary = run(files, tmp_path / "part", aoi=str(aoi), **TILING)
    whole, part = arrays(tmp_path / "all")[0], arrays(tmp_path / "part")[0]
    inside = np.zeros(whole.shape, np.bool_)
    inside[40:100, 30:120] = True
    assert (part[~inside] == NODATA_ID).all()
    np.testing.assert_array_equal(part[inside] == NODATA_ID, whole[inside] == NODATA_ID)
    assert summary.inputs[0].empty_tiles > 0


def test_nodata(files: WorldFiles, tmp_path: Path) -> None:
    """--nodata VALUE makes pixels with that value in all bands nodata."""
    image = tmp_path / "dark.tif"
    pixels = np.full((3, 200, 220), 100, np.uint8)
    pixels[:, 50:90, 60:] = 7
    profile = {"driver": "GTiff", "height": 200, "width": 220, "count": 3, "dtype": "uint8"}
    with rasterio.open(image, "w", crs="EPSG:32633", transform=TRANSFORM, **profile) as dst:
        dst.write(pixels)
    dark = WorldFiles(image, files.labels, files.classes, files.table)
    run(dark, tmp_path / "out", nodata=7.0, **TILING)
    np.testing.assert_array_equal(arrays(tmp_path / "out")[0] == NODATA_ID, pixels[0] == 7)


def test_gsd(files: WorldFiles, tmp_path: Path) -> None:
    """--gsd works on, and publishes, pixels of that size; an echo of another grid is refused before."""
    spec = JobSpec((str(files.image),), str(tmp_path / "out"), model=files.model, gsd=1.0, local=True)
    with pytest.raises(JobError, match="100x110"):
        prepare(spec)
    coarse = write_world(make_world(6, 100, 110, wedge=False), tmp_path / "coarse")
    both = WorldFiles(files.image, coarse.labels, coarse.classes, coarse.table)
    run(both, tmp_path / "out", gsd=1.0, **TILING)
    (path,) = (tmp_path / "out").glob("rasters/*/*.segments.tif")
    with rasterio.open(path) as src:
        assert (src.height, src.width) == (100, 110)
        assert src.res == pytest.approx((1.0, 1.0))


def test_bands_and_scale_reach_the_reader(files: WorldFiles, tmp_path: Path) -> None:
    """--bands and --scale are part of the plan that workers read by, and of the fingerprint."""
    base = JobSpec((str(files.image),), str(tmp_path / "out"), model=files.model, local=True)
    other = JobSpec(base.sources, base.out, model=base.model, bands=(3, 2, 1), scale="10,90", local=True)
    a, b = prepare(base), prepare(other)
    first, second = a.plans[0], b.plans[0]
    assert isinstance(first, RasterPlan)
    assert isinstance(second, RasterPlan)
    assert first.info.bands == (1, 2, 3)
    assert (second.info.bands, second.info.scale) == ((3, 2, 1), (10.0, 90.0))
    assert a.fingerprint != b.fingerprint


def test_raster_and_vector_can_be_left_out(files: WorldFiles, tmp_path: Path) -> None:
    """--no-raster and --no-vector leave their files out."""
    run(files, tmp_path / "v", raster=False, **TILING)
    assert not (tmp_path / "v" / "rasters").exists()
    assert list((tmp_path / "v" / "segments").iterdir())
    run(files, tmp_path / "r", vector=False, **TILING)
    assert not (tmp_path / "r" / "segments").exists()
    assert len(list((tmp_path / "r").glob("rasters/*/*.tif"))) == 2


def test_compression(files: WorldFiles, tmp_path: Path) -> None:
    """--compression deflate writes COGs that old readers open, with the same pixels."""
    run(files, tmp_path / "z", **TILING)
    run(files, tmp_path / "d", compression="deflate", **TILING)
    np.testing.assert_array_equal(arrays(tmp_path / "z")[0], arrays(tmp_path / "d")[0])
    (path,) = (tmp_path / "d").glob("rasters/*/*.segments.tif")
    with rasterio.open(path) as src:
        assert src.compression.name == "deflate"


def test_several_sources(files: WorldFiles, tmp_path: Path) -> None:
    """Two rasters in one job: each has its own files, and the manifest names both."""
    import pyarrow.parquet as pq

    twin = tmp_path / "twin.tif"
    twin.write_bytes(files.image.read_bytes())
    run(files, tmp_path / "one", **TILING)
    spec_files = WorldFiles(tmp_path / "*.tif", files.labels, files.classes, files.table)
    (tmp_path / "image.tif").write_bytes(files.image.read_bytes())
    run(spec_files, tmp_path / "two", **TILING)
    rasters = sorted((tmp_path / "two").glob("rasters/*/*.segments.tif"))
    assert [p.name for p in rasters] == ["image.segments.tif", "twin.segments.tif"]
    manifest = pq.read_table(tmp_path / "two" / "manifest.parquet").to_pylist()
    assert len({row["source_uri"] for row in manifest}) == 2
    with rasterio.open(rasters[0]) as a:
        np.testing.assert_array_equal(a.read(1), arrays(tmp_path / "one")[0])
