"""What Ray's metrics endpoint shows of a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.jobs.cluster_nodes import free_port
from tests.pipeline.planned import plan_tiles
from tests.pipeline.trigger_replica import RAISE

from panoptile.pipeline.store_local import LocalStore


@pytest.mark.slow
def test_the_figures_of_a_run_are_at_the_endpoint(tmp_path: Path) -> None:
    """Units, tiles, pixels and failures are counted once each; seconds are the driver's own sums."""
    store = LocalStore(tmp_path / "out")
    plan = plan_tiles(tmp_path, store, 4, 20, {37: RAISE})
    root = str(Path(__file__).parents[2])
    run = subprocess.run(
        [sys.executable, "-m", "tests.pipeline.metrics_run", str(tmp_path), str(free_port())],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([root, *filter(None, sys.path)])},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    answer = json.loads(run.stdout.strip().splitlines()[-1])
    print(answer)
    seen = answer["seen"]
    assert (
        seen["panoptile_units_total"] == plan.unit_count - 1
    )  # the driver itself commits the one in trouble
    assert seen["panoptile_tiles_total"] == plan.item_count - 1
    assert seen["panoptile_failed_tiles_total"] == 3  # three tries of the guilty tile
    assert seen["panoptile_retries_total"] == answer["retries"] == 2
    assert seen["panoptile_pixels_total"] == pytest.approx((plan.item_count - 1) * 64 * 64)
    assert seen["panoptile_failed_attempts_total"] == 2  # those in which it was alone
    for name in ("read", "infer", "encode"):
        assert (
            seen[f"panoptile_{name}_seconds_total"] >= answer[name]
        )  # the sums leave out the tries that failed
        assert seen[f"panoptile_{name}_seconds_total"] == pytest.approx(answer[name], rel=0.2, abs=0.2)
        assert seen[f"panoptile_unit_{name}_seconds_count"] == plan.unit_count
    assert seen["panoptile_idle_seconds_total"] > 0
