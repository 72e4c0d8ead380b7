"""How busy two replicas are: a 50 ms model per 512² tile, real reads and writes, two fake GPUs on Ray.

Run: ``python tests/benchmarks/busy.py [--local]``. Prints the share of the time between its first and last
forward pass that each replica spent in the model.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.fakes import FakeFactory, prepared, start_ray, synthetic_raster

from panoptile.jobs.console import Console
from panoptile.jobs.segment import run_job


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--local", action="store_true", help="two processes in place of Ray")
    parser.add_argument("--size", type=int, default=8192)
    parser.add_argument("--milliseconds", type=float, default=50.0)
    a = parser.parse_args()
    if not a.local:
        start_ray(2)
    with tempfile.TemporaryDirectory() as folder:
        raster = synthetic_raster(Path(folder) / "raster.tif", a.size, a.size)
        job = prepared(
            FakeFactory(a.milliseconds / 1000), raster, Path(folder) / "out", workers=2, local=a.local
        )
        metrics = run_job(job, Console(quiet=True)).metrics
    for name, share in metrics["busy_share"].items():
        print(f"{name}: busy {share:.1%}")
    print(
        f"tiles {metrics['tiles']}  segment {metrics['segment_seconds']:.1f} s"
        f"  (ideal {metrics['tiles'] * a.milliseconds / 2000:.1f} s)"
        f"  stitch {metrics['stitch_seconds']:.1f} s  publish {metrics['publish_seconds']:.1f} s"
    )


if __name__ == "__main__":
    main()
