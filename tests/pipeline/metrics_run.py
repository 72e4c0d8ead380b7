"""Segments a raster on a small Ray and reads the figures back from Ray's metrics endpoint; prints JSON.

A program of its own: a process can have one Ray only. Arguments: a folder with a planned raster, and a free port.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from pathlib import Path

import ray
from tests.pipeline.trigger_replica import TriggerFactory

from panoptile.pipeline.driver import run_units
from panoptile.pipeline.plan import RasterPlan
from panoptile.pipeline.ray_pool import RayPool
from panoptile.pipeline.recovery import Policy
from panoptile.pipeline.store_local import LocalStore
from panoptile.pipeline.worker import WorkerSpec

SCRAPE_SECONDS = 120.0


def main(folder: Path, port: int) -> None:
    """Run, then look at the endpoint until all is seen there, or for two minutes."""
    store = LocalStore(folder / "out")
    plan = RasterPlan.from_json(next((folder / "out" / "_state" / "plan").iterdir()).read_bytes())
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        _metrics_export_port=port,
    )
    pool = RayPool(WorkerSpec(str(store.root), TriggerFactory(seconds=0.02)), 2, gpus=0, start_timeout=300)
    pool.start()
    result = run_units(pool, store, plan.units(), Policy(max_failures=9, retry_seconds=0.01))
    until = time.monotonic() + SCRAPE_SECONDS
    while not is_complete(seen := scrape(port), plan.unit_count) and time.monotonic() < until:
        time.sleep(1)
    pool.close()
    totals = result.totals
    sums = {"read": totals.read_seconds, "infer": totals.infer_seconds, "encode": totals.encode_seconds}
    print(json.dumps({"seen": seen, "units": totals.units, "retries": result.retries, **sums}), flush=True)
    ray.shutdown()


def is_complete(seen: dict[str, float], units: int) -> bool:
    """Ray collects from each process every few seconds. The driver commits one unit itself: the one in trouble."""
    return seen.get("panoptile_units_total", 0) >= units - 1 and seen.get("panoptile_retries_total", 0) >= 2


def scrape(port: int) -> dict[str, float]:
    """Each figure of panoptile's, summed over its tags; buckets left out."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    sums: dict[str, float] = {}
    for line in lines:
        if line.startswith("ray_panoptile_"):
            name, value = line.split("{", 1)[0].removeprefix("ray_"), float(line.rsplit(" ", 1)[1])
            assert 'worker="' in line, f"not tagged with its worker: {line}"
            if not name.endswith("_bucket"):
                sums[name] = sums.get(name, 0.0) + value
    return sums


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
