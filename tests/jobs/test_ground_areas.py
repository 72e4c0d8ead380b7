"""Areas of a job over a web map: on the ground, and made anew where an earlier version measured the map."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.jobs.nights import Nights
from tests.jobs.runs import WorldFiles, run, table

from panoptile.jobs import open_units_run
from panoptile.pipeline import ground_area

import rasterio  # isort: skip  (after runs, which sets GDAL's environment)

WORLD = (6, 110, 150)
TILING = {"tile": 64, "overlap": 16}
SCALE = 3.55
"""Of a web map at 58 degrees north."""


@pytest.fixture
def web_map(files: WorldFiles, tmp_path: Path) -> WorldFiles:
    """The module's world on a web map at 58 degrees north, 0.5 m of the map a pixel."""
    image = tmp_path / "web.tif"
    shutil.copy(files.image, image)
    with rasterio.open(image, "r+") as f:
        f.crs = "EPSG:3857"
        f.transform = rasterio.Affine(0.5, 0, 1.2e6, 0, -0.5, 7.97e6)
    return WorldFiles(image, files.labels, files.classes, files.table)


@pytest.fixture
def earlier(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Jobs as an earlier version ran them, until it is undone: areas of the map. They publish in this process, as
    nothing is patched in others."""
    monkeypatch.setattr(ground_area, "_notable_scale", lambda info: None)
    monkeypatch.setattr(open_units_run, "make_background", lambda *_: None)
    return monkeypatch


def mean_pixel(rows: pa.Table) -> float:
    """Square metres."""
    return float(np.mean(np.divide(rows["area_m2"], rows["area_px"])))


def test_min_area_is_ground(web_map: WorldFiles, tmp_path: Path) -> None:
    """The column and --min-area mean square metres on the ground, not on the map."""
    run(web_map, tmp_path / "all", **TILING)
    assert mean_pixel(table(tmp_path / "all")) == pytest.approx(0.25 / SCALE, rel=0.01)
    run(web_map, tmp_path / "large", min_area=10.0, **TILING)
    before, after = table(tmp_path / "all"), table(tmp_path / "large")
    expected = sum(a >= 10 * SCALE / 0.25 for a in before["area_px"].to_pylist())
    assert after.num_rows == expected < before.num_rows


def test_areas_of_the_map_are_made_anew_without_the_network(
    web_map: WorldFiles, tmp_path: Path, earlier: pytest.MonkeyPatch
) -> None:
    """The same command over a finished OUT of an earlier version publishes it again from its fragments, once."""
    out = tmp_path / "out"
    run(web_map, out, **TILING)
    assert mean_pixel(table(out)) == pytest.approx(0.25)
    earlier.undo()
    summary = run(web_map, out, **TILING)
    assert not summary.already_done
    assert summary.metrics["units_run"] == 0
    assert mean_pixel(table(out)) == pytest.approx(0.25 / SCALE, rel=0.01)
    assert run(web_map, out, **TILING).already_done


def test_a_true_map_is_not_made_anew(files: WorldFiles, tmp_path: Path, earlier: pytest.MonkeyPatch) -> None:
    """An OUT over UTM, whose areas are what they were, stays as it is."""
    run(files, tmp_path, **TILING)
    earlier.undo()
    assert run(files, tmp_path, **TILING).already_done


@pytest.mark.parametrize("lost", [False, True])
def test_an_archived_web_map(
    web_map: WorldFiles, nights: Nights, earlier: pytest.MonkeyPatch, lost: bool
) -> None:
    """A sheet whose file is gone is published again from its fragments; where one is lost, what there is stands."""
    for name in ("a.tif", "b.tif"):
        shutil.copy(web_map.image, nights.sheets / name)
    nights.run()
    (nights.sheets / "a.tif").unlink()
    if lost:
        next(nights.out.glob("_state/data/a-*")).unlink()
    earlier.undo()
    nights.run()
    assert nights.units_run() == 0
    assert nights.listed() == {"a.tif", "b.tif"}
    areas = {path.name[0]: pq.read_table(path) for path in nights.out.glob("segments/*.parquet")}
    assert mean_pixel(areas["a"]) == pytest.approx(0.25 if lost else 0.25 / SCALE, rel=0.01)
    assert mean_pixel(areas["b"]) == pytest.approx(0.25 / SCALE, rel=0.01)
    assert nights.run().already_done
