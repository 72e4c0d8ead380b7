"""``--mosaic``: objects are whole across files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.jobs.runs import run, write_world
from tests.pipeline.worlds import make_world

from panoptile.jobs.console import Console
from panoptile.jobs.exits import JobError
from panoptile.jobs.prepare import prepare
from panoptile.jobs.segment import run_job
from panoptile.jobs.spec import JobSpec
from panoptile.pipeline import gdal_env

gdal_env.configure()  # before rasterio

import rasterio
from rasterio.windows import Window, transform


def cut(image: Path, folder: Path, at: int) -> list[Path]:
    """Two adjacent sheets of a raster."""
    folder.mkdir()
    paths = []
    with rasterio.open(image) as whole:
        for name, left, right in (("west.tif", 0, at), ("east.tif", at, whole.width)):
            window = Window(left, 0, right - left, whole.height)
            profile = whole.profile | {"width": right - left, "transform": transform(window, whole.transform)}
            with rasterio.open(folder / name, "w", **profile) as sheet:
                sheet.write(whole.read(window=window))
                sheet.colorinterp = whole.colorinterp
            paths.append(folder / name)
    return paths


def labels(out: Path) -> np.ndarray:
    [path] = out.glob("rasters/*/*.segments.tif")
    with rasterio.open(path) as raster:
        found: np.ndarray = raster.read(1)
        return found


def test_two_sheets_equal_the_one_raster(tmp_path: Path) -> None:
    """Segments, classes and rows of the table are those of the uncut raster, ids included."""
    files = write_world(make_world(seed=11, height=220, width=300), tmp_path / "world")
    run(files, tmp_path / "whole", tile=128, overlap=32)
    sheets = cut(files.image, tmp_path / "sheets", 141)
    spec = JobSpec(
        tuple(map(str, sheets)), str(tmp_path / "joined"), model=files.model, labels=str(files.table), tile=128,
        overlap=32, local=True, workers=1, mosaic=True,
    )  # fmt: skip
    run_job(prepare(spec), Console(quiet=True))
    np.testing.assert_array_equal(labels(tmp_path / "joined"), labels(tmp_path / "whole"))
    tables = []
    for name in ("joined", "whole"):
        [path] = (tmp_path / name / "segments").glob("*.parquet")
        tables.append(pq.read_table(path).drop_columns(["source_uri"]))
    assert tables[0].equals(tables[1])


def test_a_sheet_of_another_grid_ends_with_exit_2(tmp_path: Path) -> None:
    """The sentence names the sheet; nothing is written."""
    files = write_world(make_world(seed=1, height=120, width=160), tmp_path / "world")
    west, east = cut(files.image, tmp_path / "sheets", 80)
    with rasterio.open(east, "r+") as sheet:
        sheet.transform = sheet.transform * rasterio.Affine.translation(0.4, 0)
    spec = JobSpec((str(west), str(east)), str(tmp_path / "out"), model=files.model, local=True, mosaic=True)
    with pytest.raises(JobError, match=r"(east|west)\.tif lies 0\.40 px off") as e:
        prepare(spec)
    assert int(e.value.code) == 2
    assert not (tmp_path / "out").exists()


def test_mosaic_is_part_of_the_job(tmp_path: Path) -> None:
    """The same sheets apart are another job: exit 5 in the same folder."""
    files = write_world(make_world(seed=2, height=100, width=140), tmp_path / "world")
    spec = JobSpec((str(files.image),), "out", model=files.model)
    assert spec.fingerprint("m") != JobSpec(
        (str(files.image),), "out", model=files.model, mosaic=True
    ).fingerprint("m")


def test_no_sheet_is_left_out_silently() -> None:
    """--skip-invalid would be ignored, or leave a hole: it is refused."""
    with pytest.raises(ValueError, match="--skip-invalid does not go with --mosaic"):
        JobSpec(("a.tif",), "out", mosaic=True, skip_invalid=True)
