"""Memory and scratch of a whole job over a raster of 65,536 x 65,536 px with a fake model, publishing included.

Run: ``python tests/benchmarks/bounded.py [--size 65536] [--against 8192]``; TMPDIR needs about 10 GB. Each size runs in a
process of its own, with one worker process as ``--local`` starts it. The proportional set size of the driver and of
its children is sampled every 100 ms, the scratch folder every second. Prints the peaks and the bounds:
driver + worker at the larger size ≤ 1.1 x the smaller + 200 bytes per segment; scratch ≤ 3 x the published files +
2 x the largest fragment.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

TILE, SIDE = 1024, 128
"""Tile and side of the fake objects, pixels."""


@dataclass
class Peaks:
    """Highest values seen so far, bytes."""

    driver: int = 0
    workers: int = 0
    """All children together."""
    together: int = 0
    scratch: int = 0


def watch(process: psutil.Process, scratch: Path, peaks: Peaks, stop: threading.Event) -> None:
    """Sample the process tree and the scratch folder until told to stop."""
    looked = 0.0
    while not stop.wait(0.1):
        try:
            driver = process.memory_full_info().pss
            children = process.children(recursive=True)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        workers = sum(map(_pss, children))
        peaks.driver, peaks.workers = max(peaks.driver, driver), max(peaks.workers, workers)
        peaks.together = max(peaks.together, driver + workers)
        if time.monotonic() - looked >= 1.0:
            looked = time.monotonic()
            peaks.scratch = max(peaks.scratch, sum(map(_size, scratch.rglob("*"))))


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0


def run_one(raster: str, out: str) -> None:
    """The measured process: one job, metrics on stdout."""
    from tests.benchmarks.fakes import FakeFactory, prepared

    from panoptile.jobs.console import Console
    from panoptile.jobs.segment import run_job

    job = prepared(FakeFactory(side=SIDE), Path(raster), Path(out), local=True, workers=1, tile=TILE)
    print(json.dumps(run_job(job, Console()).metrics))


def measure(size: int) -> dict[str, float]:
    """Run one size in a process of its own and return its figures."""
    from tests.benchmarks.fakes import synthetic_raster

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        scratch = root / "scratch"
        scratch.mkdir()
        started = time.monotonic()
        raster = synthetic_raster(root / "raster.tif", size, size)
        print(
            f"{size} px: input {raster.stat().st_size / 2**20:,.0f} MiB made in {time.monotonic() - started:.0f} s",
            flush=True,
        )
        command = [sys.executable, __file__, "--one", str(raster), str(root / "out")]
        env = {"TMPDIR": str(scratch), "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]}
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        peaks, stop = Peaks(), threading.Event()
        watcher = threading.Thread(target=watch, args=(psutil.Process(process.pid), scratch, peaks, stop))
        watcher.start()
        text, _ = process.communicate()
        stop.set()
        watcher.join()
        if process.returncode != 0:
            raise RuntimeError(f"The run at {size} px ended with {process.returncode}.")
        metrics = json.loads(text.splitlines()[-1])
        outputs = sum(_size(p) for d in ("rasters", "segments") for p in (root / "out" / d).rglob("*"))
        fragments = [_size(p) for p in (root / "out" / "_state" / "data").iterdir()]
    return {
        "size": size,
        "driver": peaks.driver,
        "workers": peaks.workers,
        "together": peaks.together,
        "scratch": peaks.scratch,
        "outputs": outputs,
        "fragment": max(fragments),
        "segments": metrics["segments"],
        "wall": metrics["wall_seconds"],
    }


def main() -> None:
    """Measure both sizes and print the comparison."""
    if len(sys.argv) > 1 and sys.argv[1] == "--one":
        run_one(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=65536)
    parser.add_argument("--against", type=int, default=8192)
    a = parser.parse_args()
    small, large = measure(a.against), measure(a.size)
    for r in (small, large):
        print(
            f"{r['size']:>6} px²: peak PSS driver {_mib(r['driver'])}, worker {_mib(r['workers'])}, together "
            f"{_mib(r['together'])}; segments {r['segments']:,}; scratch {_mib(r['scratch'])}; outputs "
            f"{_mib(r['outputs'])}; largest fragment {_mib(r['fragment'])}; wall {r['wall']:.0f} s"
        )
    bound = 1.1 * small["together"] + 200 * large["segments"]
    held = [
        _judge("memory", bound, large["together"]),
        _judge("scratch", 3 * large["outputs"] + 2 * large["fragment"], large["scratch"]),
    ]
    raise SystemExit(0 if all(held) else 1)


def _mib(count: float) -> str:
    return f"{count / 2**20:,.1f} MiB"


def _judge(name: str, bound: float, found: float) -> bool:
    print(f"{name} bound {_mib(bound)}; measured {_mib(found)}: {'holds' if found <= bound else 'EXCEEDED'}")
    return found <= bound


if __name__ == "__main__":
    main()
