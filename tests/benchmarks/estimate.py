"""How well ``plan --sample 20`` foretells a run: built-in model, one replica, a scene of 336 tiles.

Run: ``PANOPTILE_TEST_DATA=… python tests/benchmarks/estimate.py [--sample 20] [--sleep]``. Prints the estimate, what the run took
between its first and last forward pass (start-up excluded), and their ratio. With ``--sleep`` the scene is synthetic and
the model sleeps 50 ms a tile.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.fakes import FakeFactory, prepared, synthetic_raster

from panoptile.jobs.console import Console
from panoptile.jobs.estimate import estimate, estimate_text
from panoptile.jobs.plan_report import to_do
from panoptile.jobs.prepare import prepare
from panoptile.jobs.segment import run_job
from panoptile.jobs.spec import JobSpec


def main() -> None:
    """Estimate, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, default=20)
    parser.add_argument("--sleep", action="store_true")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        if a.sleep:
            raster = synthetic_raster(Path(folder) / "raster.tif", 6144, 6144)
            job = prepared(FakeFactory(0.05), raster, out, workers=1, local=True)
        else:
            raster = Path(os.environ["PANOPTILE_TEST_DATA"]) / "banepa" / "banepa_rgb_cog.tif"
            job = prepare(JobSpec((str(raster),), str(out), tile=256, overlap=64, workers=1, local=True))
        found = estimate(job, to_do(job, None), a.sample, None)
        print(estimate_text(found), flush=True)
        metrics = run_job(job, Console(quiet=True)).metrics
    [busy] = metrics["busy_share"].values()
    took = metrics["infer_seconds"] / busy
    print(f"the run took {took:.1f} replica-seconds: estimate / run {found.replica_seconds / took:.2f}")


if __name__ == "__main__":
    main()
