"""How a job scales: replicas on one raster, and inputs in one job.

Run: ``python tests/benchmarks/scaling.py [--ray] [--replicas 1 2 4] [--inputs 100 10000 [--at-once 1 2]]``. The model sleeps 200 ms a tile.
Prints the efficiency of 1, 2 and 4 replicas on one raster (tiles × 200 ms / (replicas × time from the first forward
pass to the last)), whether they publish the same bytes, and the time and the
driver's peak memory for few and for many inputs, with ``--at-once`` for each number of inputs published at once.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.fakes import CLASSES, FakeFactory, TimedFactory, prepared, start_ray, synthetic_raster

from panoptile.jobs import replicas
from panoptile.jobs.console import Console
from panoptile.jobs.models import ResolvedModel
from panoptile.jobs.prepare import Prepared
from panoptile.jobs.segment import run_job
from panoptile.jobs.spec import JobSpec
from panoptile.pipeline.plan import RasterPlan
from panoptile.pipeline.raster_source import inspect_raster

PUBLISHED = ("rasters", "segments", "classes.json", "manifest.parquet")


def scale_replicas(counts: Sequence[int], side: int, seconds: float, local: bool) -> None:
    """Print the efficiency of each number of replicas, and whether the bytes are the same."""
    trees = []
    with tempfile.TemporaryDirectory() as folder:
        raster = synthetic_raster(Path(folder) / "raster.tif", side, side)
        for count in counts:
            out, notes = Path(folder) / f"out{count}", Path(folder) / f"notes{count}"
            notes.mkdir()
            job = prepared(TimedFactory(seconds, str(notes)), raster, out, workers=count, local=local)  # type: ignore[arg-type]
            run_job(job, Console(quiet=True))
            passes = [
                list(map(float, line.split())) for p in notes.iterdir() for line in p.read_text().splitlines()
            ]
            tiles = int(sum(p[2] for p in passes))
            span = max(p[1] for p in passes) - min(p[0] for p in passes)
            print(
                f"{count} replicas: {tiles} tiles in {span:.1f} s, ideal {tiles * seconds / count:.1f} s, "
                f"efficiency {tiles * seconds / count / span:.1%}",
                flush=True,
            )
            trees.append(tree(out))
    print(f"published bytes equal: {all(t == trees[0] for t in trees)}", flush=True)


def tree(out: Path) -> dict[str, str]:
    """Hashes of the published tree."""
    found = {}
    for name in PUBLISHED:
        paths = [out / name] if (out / name).is_file() else sorted((out / name).rglob("*"))
        found.update(
            {
                str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
                for p in paths
                if p.is_file()
            }
        )
    return found


def many_inputs(count: int, at_once: int | None) -> None:
    """Run a job over ``count`` small rasters in this process, and print its peak memory.

    ``at_once`` inputs are published at once, in place of as many as the machine has cores to spare.
    """
    if at_once is not None:
        replicas.publishers = lambda *_, **__: at_once
    with tempfile.TemporaryDirectory() as folder:
        first = synthetic_raster(Path(folder) / "raster_00000.tif", 96, 96)
        paths = [first]
        for i in range(1, count):
            path = Path(folder) / f"raster_{i:05d}.tif"
            os.link(first, path)
            paths.append(path)
        spec = JobSpec(
            tuple(map(str, paths)),
            str(Path(folder) / "out"),
            model="fake",
            tile=96,
            overlap=16,
            workers=1,
            local=True,
        )
        plans = tuple(RasterPlan(inspect_raster(str(p)), spec.tile, spec.overlap) for p in paths)
        model = ResolvedModel(FakeFactory(), CLASSES, 3, "0" * 64, 0, 0, "fake model", lambda raster: None)
        began, before = time.perf_counter(), peak_mib()
        forget_peak()
        run_job(
            Prepared(spec, model, plans, spec.fingerprint("0" * 64), (), spec.sources), Console(quiet=True)
        )
        print(
            f"{count:,} inputs{'' if at_once is None else f', {at_once} published at once'}: "
            f"{time.perf_counter() - began:.1f} s, driver peak {peak_mib():.0f} MiB "
            f"({before:.0f} MiB until it was planned)",
            flush=True,
        )


def forget_peak() -> None:
    """Start the peak anew from what is resident now (Linux): imports reach a peak that would hide the run's."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """Peak resident size of this process since the last :func:`forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--ray", action="store_true", help="replicas as Ray actors")
    parser.add_argument("--side", type=int, default=5120)
    parser.add_argument("--milliseconds", type=float, default=200.0)
    parser.add_argument("--inputs", type=int, nargs="*", default=[100, 10_000])
    parser.add_argument("--at-once", type=int, nargs="*", help="for each: publish so many inputs at once")
    parser.add_argument("--only-inputs", type=int, help="run this many inputs in this process")
    a = parser.parse_args()
    if a.only_inputs:
        many_inputs(a.only_inputs, next(iter(a.at_once or ()), None))
        return
    if a.replicas:
        if a.ray:
            start_ray(max(a.replicas))
        scale_replicas(a.replicas, a.side, a.milliseconds / 1000, not a.ray)
    for count in a.inputs:
        for at_once in [["--at-once", str(n)] for n in a.at_once] if a.at_once else [[]]:
            subprocess.run([sys.executable, __file__, "--only-inputs", str(count), *at_once], check=True)


if __name__ == "__main__":
    main()
