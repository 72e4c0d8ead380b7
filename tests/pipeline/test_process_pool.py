"""Workers in processes of their own: a crash, a hang or a kill costs one attempt, never the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import rasterio
from tests.pipeline.planned import TILE, commit_of, finish, plan_tiles
from tests.pipeline.trigger_replica import ABORT, BREAK, CLASSES, HANG, RAISE, TriggerFactory

from panoptile.pipeline.attempt import Attempt
from panoptile.pipeline.child_process import ChildProcess
from panoptile.pipeline.driver import Listener, run_units
from panoptile.pipeline.pool import Outcome, PoolError
from panoptile.pipeline.process_pool import ProcessPool, visible_gpus
from panoptile.pipeline.raster_info import NODATA_ID
from panoptile.pipeline.recovery import Policy
from panoptile.pipeline.run_result import RunResult
from panoptile.pipeline.store_local import LocalStore
from panoptile.pipeline.worker import WorkerSpec

QUICK = Policy(max_failures=99, retry_seconds=0.01, unit_timeout=60.0)


def spec(store: LocalStore, factory: TriggerFactory | None = None, batch: int = 1) -> WorkerSpec:
    return WorkerSpec(str(store.root), factory or TriggerFactory(), batch)


def run(
    pool: ProcessPool, store: LocalStore, units: object, policy: Policy = QUICK, **more: object
) -> RunResult:
    """Run on two processes; there are as many of them at the end as at the start."""
    try:
        pool.start()
        result = run_units(pool, store, units, policy, **more)  # type: ignore[arg-type]
        deadline = time.monotonic() + 30
        while pool.size() < 2 and time.monotonic() < deadline:
            pool.wait(0.1)
        assert pool.size() == 2
        return result
    finally:
        pool.close()


def test_bad_tiles_are_nodata_and_their_neighbours_are_whole(tmp_path: Path) -> None:
    """A tile that aborts the process, one that breaks the replica and one that raises are lost; no other is."""
    store = LocalStore(tmp_path / "out")
    bad = {3: ABORT, 17: BREAK, 30: RAISE}
    plan = plan_tiles(tmp_path, store, 4, 8, bad)
    result = run(ProcessPool(spec(store), 2), store, plan.units())
    assert {d.item: d.stage for d in result.dead_items} == {3: "worker", 17: "worker", 30: "infer"}
    texts = {d.item: d for d in result.dead_items}
    assert "SIGABRT" in texts[3].message
    assert "Abort" in texts[3].traceback  # the last words of the process
    assert "CUDA error" in texts[17].message or "broke its replica" in texts[17].message
    assert texts[30].error_type == "ValueError"
    assert "too ugly" in texts[30].message
    assert commit_of(store, plan.unit_of(3))["failed_tiles"] == [3]
    finished = finish(store, plan, CLASSES)
    assert (finished.failed_tiles, finished.empty_tiles, finished.missing_units) == (3, 0, ())
    with rasterio.open(next((tmp_path / "out").glob("rasters/*/*.segments.tif"))) as src:
        segments = src.read(1)
    with rasterio.open(next((tmp_path / "out").glob("rasters/*/*.classes.tif"))) as src:
        classes = src.read(1)
    is_bad = np.zeros((4, 8), np.bool_)
    is_bad.ravel()[list(bad)] = True
    lost = np.kron(is_bad, np.ones((TILE, TILE), np.bool_)).astype(np.bool_)
    np.testing.assert_array_equal(segments == NODATA_ID, lost)
    np.testing.assert_array_equal(classes == 255, lost)
    (tiles,) = (tmp_path / "out").glob("tiles/*.parquet")
    status = pq.read_table(tiles)["status"].to_pylist()
    assert [i for i, s in enumerate(status) if s == "failed"] == sorted(bad)
    assert status.count("done") == 29


def test_a_hung_tile_is_killed_at_its_deadline(tmp_path: Path) -> None:
    """A replica that never answers is replaced, and the dead letter says so; the run takes seconds, not an hour."""
    store = LocalStore(tmp_path / "out")
    plan = plan_tiles(tmp_path, store, 2, 4, {5: HANG})
    started = time.monotonic()
    policy = Policy(max_failures=9, retry_seconds=0.01, unit_timeout=2.0)
    result = run(ProcessPool(spec(store), 2), store, plan.units(), policy)
    assert [(d.stage, d.error_type) for d in result.dead_items] == [("timeout", "TimeoutError")]
    assert result.dead_items[0].unit == plan.unit_of(5)
    assert result.totals.units == 7
    assert time.monotonic() - started < 40


def test_a_killed_worker_costs_one_attempt(tmp_path: Path) -> None:
    """SIGKILL of a worker, as by an out-of-memory killer: everything is done, the result is a calm run's."""
    calm, store = LocalStore(tmp_path / "calm"), LocalStore(tmp_path / "out")
    plan = plan_tiles(tmp_path, calm, 8, 8)
    plan_tiles(tmp_path, store, 8, 8)
    run(ProcessPool(spec(calm), 2), calm, plan.units())
    pool = ProcessPool(spec(store, TriggerFactory(seconds=0.02)), 2)
    done = 0

    def kill_one(_: object) -> None:
        nonlocal done
        done += 1
        if done in (3, 8):
            os.kill(pool.pids()[0], signal.SIGKILL)

    result = run(pool, store, plan.units(), listener=Listener(on_done=kill_one))
    assert result.lost_workers >= 2
    assert not result.dead
    for unit in plan.units():
        assert commit_of(store, unit)["sha256"] == commit_of(calm, unit)["sha256"]


def test_a_replica_that_cannot_load_is_said_at_once(tmp_path: Path) -> None:
    """The reason reaches the user; nothing is tried again and again."""
    store = LocalStore(tmp_path / "out")
    pool = ProcessPool(spec(store, TriggerFactory(fails_to_load=True)), 2)
    with pytest.raises(PoolError, match="the checkpoint is torn"):
        pool.start()
    assert pool.pids() == []


def test_workers_end_with_their_driver(tmp_path: Path) -> None:
    """A driver that is killed leaves no process behind that keeps writing."""
    program = (
        "import sys, time\n"
        "from tests.pipeline.trigger_replica import TriggerFactory\n"
        "from panoptile.pipeline.process_pool import ProcessPool\n"
        "from panoptile.pipeline.worker import WorkerSpec\n"
        "pool = ProcessPool(WorkerSpec(sys.argv[1], TriggerFactory()), 2)\n"
        "pool.start()\n"
        "print(*pool.pids(), flush=True)\n"
        "time.sleep(600)\n"
    )
    root = str(Path(__file__).parents[2])
    driver = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([root, *filter(None, sys.path)])},
    )
    assert driver.stdout is not None
    pids = [int(p) for p in driver.stdout.readline().split()]
    assert len(pids) == 2
    driver.kill()
    driver.wait(10)
    deadline = time.monotonic() + 10
    while any(_runs(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(_runs(pid) for pid in pids)


def test_a_worker_of_an_echo_imports_no_torch(tmp_path: Path) -> None:
    """Starting a worker costs what its replica needs: without a network that is neither torch nor Ray."""
    store = LocalStore(tmp_path / "out")
    pool = ProcessPool(spec(store), 1)
    try:
        pool.start()
        maps = Path(f"/proc/{pool.pids()[0]}/maps")
        if not maps.exists():
            pytest.skip("no /proc here")
        libraries = maps.read_text()
        assert "libtorch" not in libraries
        assert "_raylet" not in libraries
    finally:
        pool.close()


def test_each_process_gets_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's list counts where there is one (empty hides all), else the driver's device files."""
    for name in ("nvidia0", "nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(tmp_path) == ("0", "2", "10")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-aa")
    assert visible_gpus(tmp_path) == ("3", "GPU-aa")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus(tmp_path) == ()
    pool = ProcessPool(spec(LocalStore(tmp_path / "out")), 3, gpus=("3", "5"))
    with mock.patch.object(ChildProcess, "launch"), mock.patch.object(ProcessPool, "size", return_value=3):
        pool.start()
    assert [seat.child.gpu for seat in pool._seats] == ["3", "5", "3"]
    pool.close()


def test_stop_ends_a_run_within_the_draining_time(tmp_path: Path) -> None:
    """Hung units do not keep a stopped run alive; its processes are gone when it has ended."""
    from panoptile.pipeline.driver import Interrupted

    store = LocalStore(tmp_path / "out")
    plan = plan_tiles(tmp_path, store, 4, 4, {0: HANG, 9: HANG})
    pool, stop = ProcessPool(spec(store), 2), threading.Event()
    pool.start()
    pids = pool.pids()
    threading.Timer(0.5, stop.set).start()
    started = time.monotonic()
    with pytest.raises(Interrupted):
        run_units(pool, store, plan.units(), Policy(drain_seconds=1.0), stop=stop)
    pool.close()
    assert time.monotonic() - started < 10
    assert not any(_runs(pid) for pid in pids)


def test_a_submitted_attempt_to_a_dead_worker_comes_back(tmp_path: Path) -> None:
    """A worker that dies between two looks at it loses nothing silently."""
    store = LocalStore(tmp_path / "out")
    plan = plan_tiles(tmp_path, store, 1, 2)
    pool = ProcessPool(spec(store), 1)
    try:
        pool.start()
        (pid,) = pool.pids()
        os.kill(pid, signal.SIGKILL)
        while _runs(pid):
            time.sleep(0.01)
        unit = next(plan.units())
        pool.submit(Attempt(unit))
        outcomes: list[Outcome] = []
        deadline = time.monotonic() + 20
        while not outcomes and time.monotonic() < deadline:
            outcomes = pool.wait(0.5)
        (outcome,) = outcomes
        assert outcome.failure is not None
        assert outcome.failure.lost
    finally:
        pool.close()


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
