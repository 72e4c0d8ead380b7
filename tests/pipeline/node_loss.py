"""Segments a raster on a Ray cluster of two nodes of which one comes late and the other is killed.

What happened goes to answer.json in the folder.

A program of its own: a process can have one Ray only. Arguments: a folder with a planned raster.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster
from tests.pipeline.trigger_replica import TriggerFactory

from panoptile.pipeline.attempt import UnitReport
from panoptile.pipeline.driver import Listener, run_units
from panoptile.pipeline.plan import RasterPlan
from panoptile.pipeline.ray_pool import RayPool
from panoptile.pipeline.recovery import Policy
from panoptile.pipeline.store_local import LocalStore
from panoptile.pipeline.worker import WorkerSpec


def main(folder: Path) -> None:
    """Run, kill the first node when the second one works, and say who did what."""
    store = LocalStore(folder / "out")
    plan = RasterPlan.from_json(next((folder / "out" / "_state" / "plan").iterdir()).read_bytes())
    memory = 100 * 2**20
    cluster: Any = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": memory}
    )
    first = cluster.add_node(num_cpus=1, object_store_memory=memory)
    ray.init(address=cluster.address, log_to_driver=False)
    pool = RayPool(WorkerSpec(str(store.root), TriggerFactory(seconds=0.2)), 2, gpus=0, start_timeout=300)
    started = time.monotonic()
    pool.start()
    at_start = pool.size()
    cluster.add_node(num_cpus=1, object_store_memory=memory)
    sizes: list[int] = []
    workers: set[str] = set()
    killed_at = 0.0

    def on_done(report: UnitReport) -> None:
        nonlocal killed_at
        workers.add(report.worker)
        if len(workers) == 2 and not killed_at:
            killed_at = time.monotonic()
            cluster.remove_node(first, allow_graceful=False)  # SIGKILL of its raylet

    listener = Listener(on_done=on_done, on_turn=lambda: sizes.append(pool.size()))
    policy = Policy(retry_seconds=0.01, unit_timeout=120, lost_timeout=240)
    result = run_units(pool, store, plan.units(), policy, listener=listener)
    answer = {
        "at_start": at_start,
        "largest": max(sizes),
        "at_end": pool.size(),
        "killed": bool(killed_at),
        "lost": result.lost_workers,
        "dead": len(result.dead_items),
        "units": result.totals.units,
        "seconds": time.monotonic() - started,
        "seconds_after_kill": time.monotonic() - killed_at,
    }
    pool.close()
    (folder / "answer.json").write_text(json.dumps(answer))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
