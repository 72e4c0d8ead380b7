"""Fake models and synthetic rasters for benchmarks: real reads, real writes, no network."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from panoptile.jobs.models import ResolvedModel
from panoptile.jobs.prepare import Prepared
from panoptile.jobs.spec import JobSpec
from panoptile.model.classes import ClassTable
from panoptile.model.panoptic_map import PanopticMap
from panoptile.pipeline import gdal_env
from panoptile.pipeline.plan import RasterPlan
from panoptile.pipeline.raster_source import inspect_raster
from panoptile.pipeline.replica import TileBatch

gdal_env.configure()

import rasterio
from rasterio.windows import Window

CLASSES = ClassTable.from_names(["object", "ground"], {0})


@dataclass(frozen=True)
class FakeFactory:
    """A replica that sleeps per tile and returns squares of ``side`` px on the raster's own lattice."""

    seconds_per_tile: float = 0.0
    side: int = 64

    def __call__(self) -> FakeReplica:
        return FakeReplica(self)


class FakeReplica:
    """Squares with gaps of ground; the same squares in every tile that sees them, so stitching has work."""

    classes = CLASSES
    max_queries = 0
    fill = (0, 0, 0)

    def __init__(self, factory: FakeFactory) -> None:
        self._seconds, self._side = factory.seconds_per_tile, factory.side

    def segment(self, batch: TileBatch) -> Sequence[PanopticMap]:
        started = time.perf_counter()
        maps = [self._map(t.window.row, t.window.col, batch.pixels.shape[-1]) for t in batch.tiles]
        time.sleep(max(0.0, len(maps) * self._seconds - (time.perf_counter() - started)))
        return maps

    def _map(self, row: int, col: int, size: int) -> PanopticMap:
        rows, cols = np.arange(row, row + size), np.arange(col, col + size)
        a, b = rows // self._side, cols // self._side
        ground = ((rows % self._side) < 6)[:, None] | ((cols % self._side) < 6)[None]
        across = b[-1] - b[0] + 1
        labels = ((a - a[0])[:, None] * across + (b - b[0])[None] + 2).astype(np.int32)
        labels[ground] = 1
        count = int(labels.max())
        label_ids = np.zeros(count, np.int32)
        label_ids[0] = 1
        return PanopticMap(labels, label_ids, np.ones(count, np.float32), count)


@dataclass(frozen=True)
class TimedFactory:
    """A sleeping replica that notes when each forward pass began and ended, on the machine's one clock."""

    seconds_per_tile: float
    folder: str

    def __call__(self) -> TimedReplica:
        return TimedReplica(self)


class TimedReplica(FakeReplica):
    def __init__(self, factory: TimedFactory) -> None:
        super().__init__(FakeFactory(factory.seconds_per_tile))
        self._notes = Path(factory.folder) / f"{os.getpid()}.txt"

    def segment(self, batch: TileBatch) -> Sequence[PanopticMap]:
        began = time.monotonic()
        maps = super().segment(batch)
        with self._notes.open("a") as notes:
            notes.write(f"{began} {time.monotonic()} {len(batch.tiles)}\n")
        return maps


def synthetic_raster(path: Path, height: int, width: int) -> Path:
    """A tiled, compressed RGB GeoTIFF with texture, written block row by block row."""
    rng = np.random.default_rng(0)
    texture = rng.integers(40, 200, (3, 512, 512 + 64)).astype(np.uint8)
    profile = {
        "driver": "GTiff",
        "height": height,
        "width": width,
        "count": 3,
        "dtype": "uint8",
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "compress": "ZSTD",
        "bigtiff": "YES",
        "photometric": "RGB",
        "crs": "EPSG:32633",
        "transform": rasterio.Affine(0.1, 0, 500_000, 0, -0.1, 4_000_000),
    }
    smooth = np.repeat(np.repeat(texture[:, ::8, ::8], 8, 1), 8, 2)
    with rasterio.open(path, "w", **profile) as dst:
        for row in range(0, height, 512):
            for col in range(0, width, 512):
                h, w = min(512, height - row), min(512, width - col)
                shift = (row + col) // 512 % 64
                dst.write(smooth[:, :h, shift : shift + w], window=Window(col, row, w, h))
    return path


def prepared(factory: FakeFactory, raster: Path, out: Path, **options: object) -> Prepared:
    """A job over one raster with a fake model, ready to run."""
    spec = JobSpec((str(raster),), str(out), model="fake", **options)  # type: ignore[arg-type]
    info = inspect_raster(str(raster), bands=None, scale="auto", gsd=None, nodata=None, aoi=None, channels=3)
    model = ResolvedModel(factory, CLASSES, 3, "0" * 64, 0, 0, "fake model", lambda raster: None)
    return Prepared(spec, model, (RasterPlan(info, spec.tile, spec.overlap),), spec.fingerprint("0" * 64), ())


def start_ray(workers: int) -> None:
    """A Ray of this process's own with ``workers`` CPUs and as many fake GPUs; children find the tests."""
    import ray

    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  (Ray spells it so; connect_ray sets it too)
    ray.init(
        address="local",
        num_cpus=workers,
        num_gpus=workers,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parents[2])}},
    )
