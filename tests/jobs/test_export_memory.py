"""The memory of exports of images: that of one image, whatever the raster's size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from tests.pipeline.worlds import TABLE

from panoptile.pipeline.label_cog import COG_BLOCK, class_raster, segment_raster
from panoptile.pipeline.plan import RasterPlan
from panoptile.pipeline.raster_source import inspect_raster
from panoptile.pipeline.window import Window

SCRIPT = """
import resource, sys
from panoptile.jobs.export import export_to

export_to(sys.argv[1], sys.argv[2], sys.argv[3], (), 512)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def finished_run(folder: Path, side: int) -> Path:
    """OUT of a run over a square raster, written as the publisher would, block by block, without a run."""
    folder.mkdir()
    photo = folder / "photo.tif"
    profile = {
        "driver": "GTiff",
        "count": 3,
        "height": side,
        "width": side,
        "dtype": "uint8",
        "compress": "zstd",
    }
    with rasterio.open(photo, "w", tiled=True, blockxsize=512, blockysize=512, **profile) as dst:
        for window in windows(side):
            at = rasterio.windows.Window(window.col, window.row, window.width, window.height)
            dst.write(np.full((3, *window.shape), window.row // 512 % 251 + 1, np.uint8), window=at)
    info = inspect_raster(str(photo))
    place = folder / "out" / "rasters" / info.key
    place.mkdir(parents=True)
    with (
        segment_raster(place / f"{info.stem}.segments.tif", info, tags={}) as segments,
        class_raster(place / f"{info.stem}.classes.tif", info, TABLE, {}, tags={}) as classes,
    ):
        for number, window in enumerate(windows(side)):
            rows, cols = np.mgrid[: window.height, : window.width] // 32
            labels = (number * 256 + rows * 16 + cols + 1).astype(np.uint32)
            segments.write(window, labels)
            classes.write(window, (labels % 2 + 1).astype(np.uint8))
        segments.finish()
        classes.finish()
    plan = folder / "out" / "_state" / "plan" / f"{info.key}.json"
    plan.parent.mkdir(parents=True)
    plan.write_bytes(RasterPlan(info, 512, 64).to_json())
    (folder / "out" / "classes.json").write_text(json.dumps(TABLE.to_json()))
    (folder / "out" / "_SUCCESS.json").write_text("{}")
    return folder / "out"


def windows(side: int) -> list[Window]:
    starts = range(0, side, COG_BLOCK)
    return [Window(row, col, COG_BLOCK, COG_BLOCK) for row in starts for col in starts]


def peak_mib(out: Path, to: str) -> float:
    """Of a process that exports ``out``."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(out), to, str(out.parent / to)],
        capture_output=True, text=True, timeout=900, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.split()[-1]) / 1024


@pytest.mark.slow
def test_memory_does_not_grow_with_the_raster(tmp_path: Path) -> None:
    """64 times the pixels (labels and photograph: 560 MiB) cost less than 100 MiB more, of which 64 are GDAL's cache."""
    small = peak_mib(finished_run(tmp_path / "small", 1024), "labelstudio")
    large = peak_mib(finished_run(tmp_path / "large", 8192), "labelstudio")
    print(f"peak of 1024²: {small:.0f} MiB, of 8192²: {large:.0f} MiB")
    assert large - small < 100
