"""Sheets of one grid as one raster."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptile.pipeline import gdal_env, mosaic
from panoptile.pipeline.inputs import InputError
from panoptile.pipeline.mosaic import MosaicSource, inspect_mosaic, open_source
from panoptile.pipeline.plan import RasterPlan
from panoptile.pipeline.raster_source import RasterSource, inspect_raster
from panoptile.pipeline.window import Window

gdal_env.configure()  # before rasterio

import rasterio
from rasterio.transform import Affine

WHOLE = Affine(0.5, 0, 500_000, 0, -0.5, 4_000_000)


def write(path: Path, values: np.ndarray, transform: Affine = WHOLE, **profile: Any) -> str:
    fields = {
        "driver": "GTiff",
        "crs": "EPSG:32633",
        "count": values.shape[0],
        "dtype": values.dtype,
    } | profile
    height, width = values.shape[1:]
    with rasterio.open(path, "w", height=height, width=width, transform=transform, **fields) as raster:
        raster.write(values)
    return str(path)


def cut(folder: Path, values: np.ndarray, rows: list[int], cols: list[int], overlap: int = 0) -> list[str]:
    """Sheets between the given lines, each reaching ``overlap`` px over the next one's edge."""
    height, width = values.shape[1:]
    paths = []
    for top, bottom in zip([0, *rows], [*rows, height], strict=True):
        for left, right in zip([0, *cols], [*cols, width], strict=True):
            part = values[:, top : bottom + overlap, left : right + overlap]
            name = f"sheet_{top:03d}_{left:03d}.tif"
            paths.append(write(folder / name, part, WHOLE * Affine.translation(left, top), nodata=0))
    return paths


@settings(max_examples=15)
@given(data=st.data())
def test_any_window_equals_the_merged_raster(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """However the raster is cut into sheets, every window has the pixels and the validity of the whole."""
    folder = tmp_path_factory.mktemp("sheets")
    height, width = data.draw(st.tuples(st.integers(20, 60), st.integers(20, 60)))
    values = np.random.default_rng(height).integers(0, 5, (3, height, width)).astype(np.uint8) * 50
    rows, cols = (sorted(data.draw(st.sets(st.integers(4, n - 4), max_size=3))) for n in (height, width))
    paths = cut(folder, values, rows, cols, overlap=data.draw(st.integers(0, 3)))
    random.Random(height).shuffle(paths)
    whole = RasterSource(inspect_raster(write(folder / "whole.tiff", values, nodata=0)))
    info = inspect_mosaic(paths)
    assert (info.height, info.width, info.transform) == (height, width, tuple(WHOLE)[:6])
    with MosaicSource(info) as source, whole:
        for _ in range(4):
            row, col = data.draw(st.tuples(st.integers(0, height - 1), st.integers(0, width - 1)))
            window = Window(
                row, col, data.draw(st.integers(1, height - row)), data.draw(st.integers(1, width - col))
            )
            ours, theirs = source.read(window), whole.read(window)
            np.testing.assert_array_equal(ours.valid, theirs.valid)
            np.testing.assert_array_equal(ours.pixels, theirs.pixels)


def test_where_no_sheet_lies_is_no_input(tmp_path: Path) -> None:
    """An L of three sheets: the missing corner is not valid."""
    values = np.full((3, 40, 40), 7, np.uint8)
    paths = [p for p in cut(tmp_path, values, [20], [20]) if not p.endswith("020_020.tif")]
    with MosaicSource(inspect_mosaic(paths)) as source:
        valid = source.read(Window(0, 0, 40, 40)).valid
    assert not valid[20:, 20:].any()
    assert valid.sum() == 3 * 400


def test_the_plan_of_a_mosaic_survives_its_file(tmp_path: Path) -> None:
    """A worker reads back the same sheets."""
    info = inspect_mosaic(cut(tmp_path, np.ones((3, 40, 60), np.uint8), [], [30]))
    plan = RasterPlan(info, 64, 16)
    assert RasterPlan.from_json(plan.to_json()) == plan
    assert isinstance(open_source(info), MosaicSource)
    assert info.key.startswith("mosaic-sheet_000_000-")


def test_one_scale_for_all_sheets(tmp_path: Path) -> None:
    """A dark and a bright sheet of 16 bits keep their difference: the range is taken from both."""
    values = np.zeros((3, 64, 128), np.uint16)
    values[:, :, :64], values[:, :, 64:] = 1000, 3000
    values += np.random.default_rng(0).integers(0, 10, values.shape).astype(np.uint16)
    info = inspect_mosaic(cut(tmp_path, values, [], [64]))
    assert info.scale is not None
    assert info.scale[0] < 1100
    assert info.scale[1] > 2900
    with MosaicSource(info) as source:
        pixels = source.read(Window(0, 0, 64, 128)).pixels
    assert pixels[:, :, :64].max() < 10
    assert pixels[:, :, 64:].min() > 245


def test_few_sheets_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sheets that nobody reads are closed: a mosaic of thousands does not run out of handles."""
    monkeypatch.setattr(mosaic, "OPEN_SHEETS", 2)
    values = np.arange(64, dtype=np.uint8).repeat(16).reshape(1, 32, 32).repeat(3, 0) + 1
    with MosaicSource(inspect_mosaic(cut(tmp_path, values, [8, 16, 24], [8, 16, 24]))) as source:
        assert np.array_equal(source.read(Window(0, 0, 32, 32)).pixels, values)
        assert len(source._open) <= 3


CHANGES: dict[str, tuple[dict[str, Any], Affine, str]] = {
    "CRS": ({"crs": "EPSG:32634"}, WHOLE, r"the CRS .*a\.tif: .*gdalwarp -tap"),
    "type": ({"dtype": "uint16"}, WHOLE, r"the type .*\(uint16 instead of uint8\): .*gdal_translate -ot"),
    "bands": ({"count": 1}, WHOLE, r"the bands .*\(\(1, 1, 1\) instead of \(1, 2, 3\)\): .*--bands"),
    "pixel size": (
        {},
        WHOLE * Affine.scale(2),
        r"the pixel size .*\(\(1\.0, .* instead of \(0\.5, .*gdalwarp -tap",
    ),
    "half a pixel off": ({}, WHOLE * Affine.translation(20.5, 0), "0.50 px off the pixel grid"),
    "not georeferenced": ({"crs": None}, Affine.identity(), "not georeferenced"),
}


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("name", CHANGES)
def test_sheets_of_another_grid_are_refused(tmp_path: Path, name: str) -> None:
    """One sentence that names the sheet, what differs, and what to do."""
    profile, transform, words = CHANGES[name]
    values = np.ones((3, 20, 20), np.uint8)
    first = write(tmp_path / "a.tif", values)
    changed = values[: profile.get("count", 3)].astype(profile.get("dtype", "uint8"))
    other = write(tmp_path / "b.tif", changed, transform, **profile)
    with pytest.raises(InputError, match=words) as e:
        inspect_mosaic([first, other])
    assert "b.tif" in str(e.value)


def test_a_far_sheet_is_refused(tmp_path: Path) -> None:
    """A sheet in another town would make a raster of a trillion pixels: the cap names both numbers."""
    values = np.ones((3, 20, 20), np.uint8)
    paths = [
        write(tmp_path / "a.tif", values),
        write(tmp_path / "b.tif", values, WHOLE * Affine.translation(9e6, 9e6)),
    ]
    with pytest.raises(InputError, match="--max-pixels"):
        inspect_mosaic(paths)


def test_a_changed_sheet_changes_the_version(tmp_path: Path) -> None:
    """The mosaic's tag follows from its sheets'."""
    paths = cut(tmp_path, np.ones((3, 40, 60), np.uint8), [], [30])
    before = inspect_mosaic(paths)
    write(Path(paths[0]), np.full((3, 40, 30), 9, np.uint8), WHOLE, nodata=0, compress="deflate")
    after = inspect_mosaic(paths)
    assert before.etag != after.etag
    assert dataclasses.replace(after, sheets=()).key == before.key
