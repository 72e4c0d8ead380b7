"""Helpers that run whole jobs on label worlds and read back what was published."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from panoptile.jobs import replicas
from panoptile.jobs.console import Console
from panoptile.jobs.earlier_result import Summary
from panoptile.jobs.prepare import prepare
from panoptile.jobs.segment import run_job
from panoptile.jobs.spec import JobSpec
from panoptile.pipeline import gdal_env, layout
from panoptile.pipeline.plan import RasterPlan, Unit
from panoptile.pipeline.pool import LocalPool
from panoptile.pipeline.store import Store

gdal_env.configure()  # before rasterio

import rasterio
from rasterio.transform import Affine
from tests.pipeline.worlds import World

TRANSFORM = Affine(0.5, 0, 500_000, 0, -0.5, 4_000_000)


@dataclass(frozen=True)
class WorldFiles:
    """A world as rasters on disk."""

    image: Path
    labels: Path
    classes: Path
    table: Path

    @property
    def model(self) -> str:
        return f"echo:{self.labels},{self.classes}"


def write_world(world: World, folder: Path) -> WorldFiles:
    """RGBA image (alpha 0 where there is no input), label and class raster, class table."""
    import json

    folder.mkdir(parents=True, exist_ok=True)
    files = WorldFiles(*(folder / n for n in ("image.tif", "labels.tif", "classes.tif", "table.json")))
    height, width = world.labels.shape
    rng = np.random.default_rng(0)
    image = rng.integers(1, 255, (4, height, width)).astype(np.uint8)
    image[3] = np.where(world.valid, 255, 0)
    _write(files.image, image)
    _write(files.labels, world.labels.astype(np.int32)[None])
    _write(files.classes, world.classes.astype(np.uint8)[None])
    files.table.write_text(json.dumps(world.table.to_json()))
    return files


def _write(path: Path, bands: NDArray[np.generic]) -> None:
    count, height, width = bands.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": bands.dtype.name}
    if count == 4:
        profile["photometric"] = "RGB"
        profile["alpha"] = "YES"
    with rasterio.open(
        path,
        "w",
        crs="EPSG:32633",
        transform=TRANSFORM,
        tiled=True,
        blockxsize=128,
        blockysize=128,
        **profile,
    ) as dst:
        dst.write(bands)


@contextlib.contextmanager
def threads() -> Iterator[None]:
    """Replicas of --local as threads of this process: they start at once, and a test can patch what they run."""
    with mock.patch.object(replicas, "ProcessPool", lambda spec, count, **_: LocalPool(spec, count)):
        yield


def run(files: WorldFiles, out: Path, *, shuffle: int | None = None, **options: object) -> Summary:
    """Run a job over the world.

    Args:
        shuffle: seeds a random order of the units.
        options: of the job; and ``processes=True`` for replicas that are processes, as for a user, not threads.
    """
    processes = options.pop("processes", False)
    with contextlib.nullcontext() if processes else threads():
        return _run(files, out, shuffle, options)


def _run(files: WorldFiles, out: Path, shuffle: int | None, options: dict[str, object]) -> Summary:
    fields: dict[str, object] = {
        "model": files.model,
        "labels": str(files.table),
        "local": True,
        "workers": 1,
    }
    spec = JobSpec((str(files.image),), str(out), **{**fields, **options})  # type: ignore[arg-type]
    prepared = prepare(spec)
    console = Console(quiet=True)
    if shuffle is None:
        return run_job(prepared, console)
    from panoptile.jobs import leased_run
    from panoptile.jobs.survey import open_units as real

    def shuffled(
        store: Store, plans: Sequence[RasterPlan], check_held: Callable[[], None], **options: Any
    ) -> list[Unit]:
        units = real(store, plans, check_held, **options)
        random.Random(shuffle).shuffle(units)
        return units

    with mock.patch.object(leased_run, "open_units", shuffled):
        return run_job(prepared, console)


def published(out: Path) -> dict[str, str]:
    """sha256 of every file of the published tree."""
    files = {}
    for name in layout.PUBLISHED:
        top = out / name
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            if path.is_file():
                files[str(path.relative_to(out))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return files


def arrays(out: Path) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    """The two label rasters of a run over one input."""
    (segments,) = out.glob("rasters/*/*.segments.tif")
    (classes,) = out.glob("rasters/*/*.classes.tif")
    with rasterio.open(segments) as a, rasterio.open(classes) as b:
        return a.read(1), b.read(1)


def table(out: Path) -> pa.Table:
    """segments.parquet of a run over one input."""
    (path,) = out.glob("segments/*.parquet")
    return pq.read_table(path)
