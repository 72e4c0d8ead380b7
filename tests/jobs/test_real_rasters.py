"""Real aerial rasters with the built-in checkpoint: the products open everywhere and agree with each other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shapely
from tests.jobs.runs import arrays, published

from panoptile.jobs.console import Console
from panoptile.jobs.demo import SCENES, fetch_scenes
from panoptile.jobs.earlier_result import Summary
from panoptile.jobs.prepare import prepare
from panoptile.jobs.segment import run_job
from panoptile.jobs.spec import JobSpec
from panoptile.pipeline import gdal_env
from panoptile.pipeline.raster_info import NODATA_ID

gdal_env.configure()

import rasterio
from rasterio import features

CACHE = Path(__file__).parents[2] / ".cache" / "demo"


@pytest.fixture(scope="session")
def neon() -> Path:
    """The NEON scene of 2299x2472 px, from the package index; downloaded once."""
    return fetch_scenes(CACHE)[SCENES.index("2019_YELL_2_528000_4978000_image_crop2.png")]


@pytest.fixture(scope="session")
def banepa(data_dir: Path) -> Path:
    return data_dir / "banepa" / "banepa_rgb_cog.tif"


def segment(raster: Path, out: Path, *, local: bool, workers: int) -> Summary:
    """The default job over one raster."""
    spec = JobSpec((str(raster),), str(out), local=local, workers=workers)
    return run_job(prepare(spec), Console(quiet=True))


@pytest.fixture(scope="session")
def neon_run(neon: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("neon") / "out"
    segment(neon, out, local=True, workers=1)
    return out


@pytest.fixture(scope="session")
def banepa_run(
    banepa: Path, tmp_path_factory: pytest.TempPathFactory, small_ray: None
) -> tuple[Path, Summary]:
    out = tmp_path_factory.mktemp("banepa") / "out"
    return out, segment(banepa, out, local=False, workers=2)


def check_products(out: Path) -> None:
    """Every promise about the files of a run over one raster."""
    (segments_tif,) = out.glob("rasters/*/*.segments.tif")
    (classes_tif,) = out.glob("rasters/*/*.classes.tif")
    (parquet,) = out.glob("segments/*.parquet")
    _check_cogs(segments_tif, classes_tif)
    _check_table(parquet)
    _check_raster_equals_vector(out, segments_tif, parquet)


def _check_cogs(*paths: Path) -> None:
    from rio_cogeo.cogeo import cog_validate

    for path in paths:
        valid, errors, warnings = cog_validate(path, strict=True, quiet=True)
        assert valid, (path.name, errors, warnings)
        with rasterio.open(path) as src:
            full = set(np.unique(src.read(1)).tolist())
            levels = src.overviews(1)
        assert levels
        for level in range(len(levels)):
            with rasterio.open(path, overview_level=level) as src:
                assert set(np.unique(src.read(1)).tolist()) <= full


def _check_table(parquet: Path) -> None:
    import duckdb
    import geopandas

    validator = Path(sys.executable).parent / "geoparquet-validator"
    report = subprocess.run([validator, "check", parquet], capture_output=True, text=True, check=False)
    assert report.returncode == 0, report.stdout + report.stderr
    frame = geopandas.read_parquet(parquet)
    x0, y0, x1, y1 = frame.total_bounds
    box = (x0, y0, (x0 + x1) / 2, (y0 + y1) / 2)
    part = geopandas.read_parquet(parquet, bbox=box)
    assert 0 < len(part) < len(frame)
    found = (
        duckdb.connect()
        .execute(
            f"select count(*) from '{parquet}' where bbox.xmin <= ? and bbox.ymin <= ? and bbox.xmax >= ? and bbox.ymax >= ?",
            [box[2], box[3], box[0], box[1]],
        )
        .fetchall()
    )
    assert found == [(len(part),)]


def _check_raster_equals_vector(out: Path, segments_tif: Path, parquet: Path) -> None:
    import geopandas

    frame = geopandas.read_parquet(parquet)
    labels, _ = arrays(out)
    with rasterio.open(segments_tif) as src:
        transform = src.transform
    ids = set(np.unique(labels).tolist()) - {0, NODATA_ID}
    assert ids == set(frame.segment_id.tolist())
    geometry = frame.geometry.to_numpy()
    assert shapely.is_valid(geometry).all()
    burned = features.rasterize(
        zip(geometry, frame.segment_id.astype("int64"), strict=True),
        out_shape=labels.shape,
        transform=transform,
        dtype="int64",
    )
    np.testing.assert_array_equal(burned, np.where(labels == NODATA_ID, 0, labels))
    assert int(frame.area_px.sum()) == int(np.count_nonzero(burned))  # nothing lies under anything else


def test_neon_products(neon_run: Path) -> None:
    """COGs, overviews, GeoParquet, and raster = vector on the NEON scene."""
    check_products(neon_run)


def test_neon_is_byte_identical_from_two_ray_workers(
    neon: Path, neon_run: Path, tmp_path: Path, small_ray: None
) -> None:
    """One local worker and two Ray actors publish the same bytes."""
    segment(neon, tmp_path / "out", local=False, workers=2)
    tree = published(neon_run)
    assert len(tree) == 5
    assert published(tmp_path / "out") == tree


def test_banepa_objects(banepa_run: tuple[Path, Summary]) -> None:
    """At least 300 things, at least 20 of them made whole over a seam; all products hold."""
    out, summary = banepa_run
    (found,) = summary.inputs
    things = sum(c.segments for c in found.counts if c.class_id <= 2)
    print(f"Banepa: {things} things, {found.things_over_seams} merged over a seam")
    assert things >= 300
    assert found.things_over_seams >= 20
    check_products(out)


@pytest.mark.slow
@pytest.mark.parametrize(("local", "workers"), [(True, 1), (True, 2), (False, 1)])
def test_banepa_is_byte_identical(
    banepa: Path, banepa_run: tuple[Path, Summary], tmp_path: Path, local: bool, workers: int
) -> None:
    """Ray and --local, one and two workers: the same bytes as two Ray actors."""
    segment(banepa, tmp_path / "out", local=local, workers=workers)
    assert published(tmp_path / "out") == published(banepa_run[0])
