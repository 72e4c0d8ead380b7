"""``plan --sample``, ``--price`` and ``--budget``."""

from __future__ import annotations

import itertools
import math
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.benchmarks.fakes import FakeFactory
from tests.pipeline.worlds import raster_info

from panoptile.jobs import estimate as module
from panoptile.jobs.estimate import check_budget, check_prices, estimate, estimate_text, sample
from panoptile.jobs.exits import Exit, JobError
from panoptile.jobs.plan_report import pending, to_do
from panoptile.jobs.prepare import Prepared, prepare
from panoptile.jobs.spec import JobSpec
from panoptile.pipeline import gdal_env
from panoptile.pipeline.attempt import UnitReport
from panoptile.pipeline.plan import RasterPlan, Unit
from panoptile.pipeline.pool import IN_FLIGHT
from panoptile.pipeline.worker import Worker

gdal_env.configure()  # before rasterio

import rasterio


@settings(max_examples=60)
@given(
    sizes=st.lists(st.tuples(st.integers(64, 900), st.integers(64, 900)), min_size=1, max_size=5),
    wanted=st.integers(1, 60),
    batch=st.integers(1, 5),
)
def test_a_sample_is_of_the_jobs_own_items(sizes: list[tuple[int, int]], wanted: int, batch: int) -> None:
    """Groups are distinct, hold existing items of one unit, at most a batch each, and the same seed gives the same."""
    plans = [RasterPlan(raster_info(h, w, f"r{i}-0000000000"), 128, 32) for i, (h, w) in enumerate(sizes)]
    units = [unit for plan in plans for unit in plan.units()]
    groups = sample(units, wanted, batch, seed="s")
    assert groups == sample(units, wanted, batch, seed="s")
    seen = [(g.unit.key, i) for g in groups for i in g.items]
    assert len(set(seen)) == len(seen) > 0
    for group in groups:
        assert 1 <= len(group.items) <= batch
        assert set(group.items) <= set(group.unit.items)
    total = sum(len(p.grid) for p in plans)
    if batch == 1:
        assert len(seen) == min(wanted, total)


def job(tmp_path: Path, side: int = 700) -> Prepared:
    path = tmp_path / "a.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=side, width=side, count=3, dtype="uint8", crs="EPSG:32633",
        transform=rasterio.Affine(1, 0, 0, 0, -1, 0),
    ) as raster:  # fmt: skip
        raster.write(np.random.default_rng(0).integers(1, 255, (3, side, side)).astype(np.uint8))
    return prepare(JobSpec((str(path),), str(tmp_path / "out"), tile=128, overlap=32, local=True))


def everything(prepared: Prepared) -> list[Unit]:
    """All units, as of a job of which nothing is done."""
    return to_do(prepared, pending(prepared))


def test_a_steady_model_is_estimated_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that takes 20 ms a tile: seconds per item and the sum are right, and the sample leaves nothing behind."""
    prepared = job(tmp_path)
    object.__setattr__(prepared.model, "factory", FakeFactory(0.02))
    found = estimate(prepared, everything(prepared), 8, 3600.0)
    assert found.sampled == 8
    assert found.items == prepared.tiles
    assert 0.02 <= found.seconds_per_item < 0.2
    assert found.replica_seconds == pytest.approx(found.seconds_per_item * prepared.tiles)
    assert found.cost == pytest.approx(found.replica_seconds)
    assert not (tmp_path / "out").exists()


def test_samples_overlap_as_units_of_a_run_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one group holds the replica another is read or encoded: alone, a group on a CPU would seem too cheap."""
    prepared = job(tmp_path)
    object.__setattr__(prepared.model, "factory", FakeFactory(0.001))
    run, both, calls = module._run, threading.Barrier(IN_FLIGHT), itertools.count()

    def meet(worker: Worker, group: module._Group) -> UnitReport:
        if next(calls) >= module.WARM_UP:
            both.wait(timeout=60)
        return run(worker, group)

    monkeypatch.setattr(module, "_run", meet)
    assert estimate(prepared, everything(prepared), 2 * IN_FLIGHT, None).sampled == 2 * IN_FLIGHT


def test_the_whole_job_as_sample_has_no_error(tmp_path: Path) -> None:
    """Nothing is left to guess where every tile was timed."""
    prepared = job(tmp_path, side=200)
    object.__setattr__(prepared.model, "factory", FakeFactory(0.001))
    found = estimate(prepared, everything(prepared), 1000, None)
    assert found.sampled == prepared.tiles
    assert found.error == 0
    assert found.cost is None


def test_nothing_to_do_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without open units no replica is started, and any budget holds."""
    monkeypatch.setattr(module, "Worker", None)
    found = estimate(job(tmp_path), [], 8, 2.1)
    assert (found.items, found.sampled, found.replica_seconds, found.cost) == (0, 0, 0.0, 0.0)
    check_budget(found, 0.0)
    assert estimate_text(found) == "estimate 0 replica-seconds  cost 0.00  (no unit is left to run)"


def test_the_budget_is_held(tmp_path: Path) -> None:
    """Exit 8 where even the upper end of the estimate must fit; a single group counts as doubtful by itself."""
    sure = module.Estimate(8, 0, 100, 1.0, 3600.0, 0.1, 1.0, 0.0, 10.0)
    check_budget(sure, 11.1)
    with pytest.raises(JobError) as e:
        check_budget(sure, 10.9)
    assert int(e.value.code) == 8
    tiny = module.Estimate(8, 0, 100, 1.0, 3600.0, 0.0, 1.0, 0.0, 0.00024)
    with pytest.raises(JobError, match=r"cost 0\.00024 .* --budget 1e-06"):
        check_budget(tiny, 0.000001)
    alone = module.Estimate(1, 0, 100, 1.0, 3600.0, math.inf, 1.0, 0.0, 10.0)
    with pytest.raises(JobError, match=r"up to 20\.00"):
        check_budget(alone, 19.0)


@pytest.mark.parametrize(
    "given", [(None, 1.0, None), (5, None, 1.0), (0, None, None), (5, -1.0, None), (5, 1.0, math.nan)]
)
def test_options_without_effect_are_refused(given: tuple[int | None, float | None, float | None]) -> None:
    """A price without a sample, a budget without a price, and nonsense: exit 2."""
    with pytest.raises(JobError) as e:
        check_prices(*given)
    assert e.value.code == Exit.INVALID
