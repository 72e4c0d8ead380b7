"""Named faults: each is reached, each costs an attempt at most, and without the variable they do nothing."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.pipeline.planned import commit_of, finish, plan_tiles
from tests.pipeline.scripted_pool import ScriptedPool
from tests.pipeline.trigger_replica import CLASSES, TriggerFactory

from panoptile.pipeline import fault_points
from panoptile.pipeline.driver import run_units
from panoptile.pipeline.fault_points import (
    DRIVER_POINTS,
    FINISH_POINTS,
    ONCE_VARIABLE,
    VARIABLE,
    WORKER_POINTS,
    reach,
)
from panoptile.pipeline.plan import Unit
from panoptile.pipeline.process_pool import ProcessPool
from panoptile.pipeline.recovery import Policy
from panoptile.pipeline.store_local import LocalStore
from panoptile.pipeline.worker import WorkerSpec

POLICY = Policy(retry_seconds=0.01, unit_timeout=60.0)


def segment(store: LocalStore, folder: Path) -> dict[str, str]:
    """Run one raster on one process; sha256 of the fragment by the unit's name, less the input's."""
    plan = plan_tiles(folder, store, 2, 2)
    pool = ProcessPool(WorkerSpec(str(store.root), TriggerFactory()), 1)
    try:
        pool.start()
        result = run_units(pool, store, plan.units(), POLICY)
    finally:
        pool.close()
    assert not result.dead
    return {unit.id.removeprefix(unit.key): str(commit_of(store, unit)["sha256"]) for unit in plan.units()}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("calm")
    return segment(LocalStore(folder / "out"), folder)


@pytest.mark.parametrize(
    ("point", "action"),
    [
        ("fragment.after", "kill"),
        ("commit.before", "abort"),
        ("commit.after", "kill"),
        ("encode.before", "raise"),
        *(
            pytest.param(point, action, marks=pytest.mark.slow)
            for point in WORKER_POINTS
            for action in ("kill", "abort", "raise")
        ),
    ],
)
def test_a_fault_in_a_worker_costs_an_attempt(
    tmp_path: Path, calm: dict[str, str], monkeypatch: pytest.MonkeyPatch, point: str, action: str
) -> None:
    """Whatever happens wherever in a worker, the committed bytes are a calm run's, and nothing is given up."""
    marker = tmp_path / "marker"
    monkeypatch.setenv(VARIABLE, f"{point}:2:{action}")
    monkeypatch.setenv(ONCE_VARIABLE, str(marker))
    shas = segment(LocalStore(tmp_path / "out"), tmp_path)
    assert marker.exists(), f"{point} was not reached"
    assert shas == calm


@pytest.fixture(scope="module")
def segmented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a segmented raster that is not published."""
    folder = tmp_path_factory.mktemp("segmented")
    segment(LocalStore(folder / "out"), folder)
    return folder


def arm(monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    """Make this process fail at the point."""
    monkeypatch.setenv(VARIABLE, f"{point}:raise")
    monkeypatch.setattr(fault_points, "_reached", type(fault_points._reached)())


@pytest.mark.parametrize("point", FINISH_POINTS)
def test_a_fault_while_publishing_is_reached(
    segmented: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """Each named point exists; an error there is not swallowed."""
    plan = plan_tiles(segmented, LocalStore(segmented / "out"), 2, 2)
    arm(monkeypatch, point)
    with pytest.raises(OSError, match=re.escape(point)):
        finish(LocalStore(segmented / "out"), plan, CLASSES)


@pytest.mark.parametrize("point", DRIVER_POINTS)
def test_a_fault_in_the_driver_is_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """Each named point exists; an error there ends the run."""
    arm(monkeypatch, point)
    units = [Unit("k", i, 1) for i in range(3)]
    with pytest.raises(OSError, match=re.escape(point)):
        run_units(ScriptedPool(), LocalStore(tmp_path), units, POLICY)


def test_a_point_costs_nothing_without_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults may stand in hot loops: less than a few microseconds each."""
    monkeypatch.delenv(VARIABLE, raising=False)
    started = time.perf_counter()
    for _ in range(10_000):
        reach("reader.before")
    assert (time.perf_counter() - started) / 10_000 < 20e-6


def test_the_default_is_sigkill() -> None:
    """NAME alone kills at the first time, without any handler running."""
    code = "from panoptile.pipeline.fault_points import reach; reach('x'); print('alive')"
    run = subprocess.run([sys.executable, "-c", code], env={VARIABLE: "x"}, capture_output=True, check=False)
    assert run.returncode == -9
    assert run.stdout == b""
