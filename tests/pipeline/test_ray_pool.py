"""Workers as Ray actors: the same behaviour as processes, on nodes that come late and go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.pipeline.planned import commit_of, plan_tiles
from tests.pipeline.trigger_replica import ABORT, HANG, TriggerFactory

from panoptile.pipeline.driver import run_units
from panoptile.pipeline.layout import plan_key
from panoptile.pipeline.plan import RasterPlan
from panoptile.pipeline.pool import LocalPool, PoolError
from panoptile.pipeline.recovery import Policy
from panoptile.pipeline.store_local import LocalStore
from panoptile.pipeline.worker import WorkerSpec


def calm_commits(folder: Path, plan: RasterPlan) -> dict[str, object]:
    """sha256 of each unit's fragment in a run on one thread."""
    store = LocalStore(folder)
    store.put_bytes(plan_key(plan.key), plan.to_json())
    pool = LocalPool(WorkerSpec(str(store.root), TriggerFactory()), 1)
    pool.start()
    run_units(pool, store, plan.units(), Policy())
    pool.close()
    return {unit.id: commit_of(store, unit)["sha256"] for unit in plan.units()}


@pytest.mark.usefixtures("small_ray")
@pytest.mark.parametrize(
    ("trigger", "stage", "policy"),
    [
        (ABORT, "worker", Policy(attempts=2, max_failures=9, retry_seconds=0.01, unit_timeout=120.0)),
        (HANG, "timeout", Policy(attempts=1, max_failures=9, unit_timeout=5.0)),
    ],
    ids=["abort", "hang"],
)
def test_a_lost_actor_costs_one_tile_on_ray(tmp_path: Path, trigger: int, stage: str, policy: Policy) -> None:
    """An actor that aborts, or hangs, is replaced; all other tiles are done."""
    from panoptile.pipeline.ray_pool import RayPool

    store = LocalStore(tmp_path / "out")
    plan = plan_tiles(tmp_path, store, 2, 4, {2: trigger})
    pool = RayPool(WorkerSpec(str(store.root), TriggerFactory()), 2, gpus=0)
    try:
        pool.start()
        result = run_units(pool, store, plan.units(), policy)
        assert [(d.unit.first, d.stage) for d in result.dead_items] == [(2, stage)]
        assert result.totals.units == 7
        assert set(pool.peak_rss_bytes()) <= {"ray-0", "ray-1"}
    finally:
        pool.close()


@pytest.mark.usefixtures("small_ray")
def test_a_start_that_takes_too_long_names_what_is_pending() -> None:
    """Instead of waiting for ever: what was asked for, and what the cluster has."""
    from panoptile.pipeline.ray_pool import RayPool

    pool = RayPool(WorkerSpec("memory://x", TriggerFactory()), 3, gpus=1, start_timeout=1.0)
    with pytest.raises(PoolError, match=r"3 actors, each with 1 GPU.*are pending.*2 CPUs and 0 GPUs"):
        pool.start()


@pytest.mark.usefixtures("small_ray")
def test_a_replica_that_cannot_load_is_said_at_once_on_ray(tmp_path: Path) -> None:
    """The reason reaches the user."""
    from panoptile.pipeline.ray_pool import RayPool

    pool = RayPool(WorkerSpec(str(tmp_path), TriggerFactory(fails_to_load=True)), 1, gpus=0)
    with pytest.raises(PoolError, match="the checkpoint is torn"):
        pool.start()


@pytest.mark.slow
def test_a_late_node_is_used_and_a_lost_one_survived(tmp_path: Path) -> None:
    """Two nodes, the second of which comes late; the first one's raylet is killed: the bytes are a calm run's."""
    store = LocalStore(tmp_path / "out")
    plan = plan_tiles(tmp_path, store, 8, 20)
    root = str(Path(__file__).parents[2])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([root, *filter(None, sys.path)]),
        "RAY_AUTH_MODE": "disabled",
        "RAY_health_check_failure_threshold": "3",
        "RAY_health_check_period_ms": "1000",
        "RAY_raylet_start_wait_time_s": "240",  # a busy machine
    }
    run = subprocess.run(
        [sys.executable, "-m", "tests.pipeline.node_loss", str(tmp_path)],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    answer = json.loads((tmp_path / "answer.json").read_text())
    print(f"node loss: {answer}")
    assert answer["at_start"] == 1
    assert answer["largest"] == 2
    assert answer["killed"]
    assert answer["lost"] >= 1
    assert (answer["dead"], answer["units"]) == (0, plan.unit_count)
    calm = calm_commits(tmp_path / "calm", plan)
    assert {unit.id: commit_of(store, unit)["sha256"] for unit in plan.units()} == calm
