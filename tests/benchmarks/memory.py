"""Memory and scratch against the raster's size: the whole ``--local`` job with a fake model.

Run: ``python tests/benchmarks/memory.py [--sizes 8192 32768]``. Each size runs in a process of its own; the
proportional set size of the process tree is sampled every 50 ms. Prints the peaks, the scratch, and the bound:
peak at the larger size ≤ 1.1 × peak at the smaller + 200 bytes per segment.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))


@dataclass
class Peaks:
    """Highest values seen so far."""

    pss: int = 0
    scratch: int = 0


def watch(process: psutil.Process, scratch: Path, peaks: Peaks, stop: threading.Event) -> None:
    """Sample the process tree and the scratch folder until told to stop."""
    while not stop.wait(0.05):
        try:
            tree = [process, *process.children(recursive=True)]
            pss = sum(p.memory_full_info().pss for p in tree)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        peaks.pss = max(peaks.pss, pss)
        used = 0
        for p in scratch.rglob("*"):
            try:
                used += p.stat().st_size if p.is_file() else 0
            except FileNotFoundError:
                continue
        peaks.scratch = max(peaks.scratch, used)


def run_one(raster: str, out: str, tile: int, side: int) -> None:
    """The measured process: one job, metrics on stdout."""
    from tests.benchmarks.fakes import FakeFactory, prepared

    from panoptile.jobs.console import Console
    from panoptile.jobs.segment import run_job

    job = prepared(FakeFactory(side=side), Path(raster), Path(out), local=True, workers=1, tile=tile)
    metrics = run_job(job, Console(quiet=True)).metrics
    print(json.dumps(metrics))


def measure(size: int, tile: int, side: int) -> dict[str, float]:
    """Run one size in a process of its own and return its figures."""
    from tests.benchmarks.fakes import synthetic_raster

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        scratch = root / "scratch"
        scratch.mkdir()
        raster = synthetic_raster(root / "raster.tif", size, size)
        command = [sys.executable, __file__, "--one", str(raster), str(root / "out"), str(tile), str(side)]
        env = {"TMPDIR": str(scratch), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        peaks, stop = Peaks(), threading.Event()
        watcher = threading.Thread(target=watch, args=(psutil.Process(process.pid), scratch, peaks, stop))
        watcher.start()
        text, _ = process.communicate()
        stop.set()
        watcher.join()
        if process.returncode != 0:
            raise RuntimeError(f"The run at {size} px ended with {process.returncode}.")
        metrics = json.loads(text)
        outputs = sum(
            p.stat().st_size for d in ("rasters", "segments") for p in (root / "out" / d).rglob("*.*")
        )
        fragments = [p.stat().st_size for p in (root / "out" / "_state" / "data").iterdir()]
    return {
        "size": size,
        "pss": peaks.pss,
        "scratch": peaks.scratch,
        "outputs": outputs,
        "unit": max(fragments),
        "segments": metrics["segments"],
        "wall": metrics["wall_seconds"],
        "stitch": metrics["stitch_seconds"],
        "publish": metrics["publish_seconds"],
    }


def main() -> None:
    """Measure both sizes and print the comparison."""
    if len(sys.argv) > 1 and sys.argv[1] == "--one":
        run_one(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs=2, default=[8192, 32768])
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--side", type=int, default=64, help="side of the fake objects, px")
    a = parser.parse_args()
    rows = [measure(size, a.tile, a.side) for size in a.sizes]
    for r in rows:
        print(
            f"{r['size']:>6} px²: peak PSS {r['pss'] / 2**20:,.0f} MiB  segments {r['segments']:,}  scratch "
            f"{r['scratch'] / 2**20:,.1f} MiB  outputs {r['outputs'] / 2**20:,.1f} MiB  largest unit "
            f"{r['unit'] / 2**20:,.2f} MiB  wall {r['wall']:.0f} s (stitch {r['stitch']:.0f}, publish {r['publish']:.0f})"
        )
    small, large = rows
    bound = 1.1 * small["pss"] + 200 * large["segments"]
    print(
        f"PSS bound 1.1 x {small['size']} px + 200 B/segment: {bound / 2**20:,.0f} MiB; "
        f"measured {large['pss'] / 2**20:,.0f} MiB: {'holds' if large['pss'] <= bound else 'EXCEEDED'}"
    )
    for r in rows:
        bound = 3 * r["outputs"] + 2 * r["unit"]
        print(
            f"scratch bound at {r['size']} px: {bound / 2**20:,.1f} MiB; measured {r['scratch'] / 2**20:,.1f} MiB: "
            f"{'holds' if r['scratch'] <= bound else 'EXCEEDED'}"
        )


if __name__ == "__main__":
    main()
