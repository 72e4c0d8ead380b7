"""Panoptic post-processing against transformers: one thread, 40 kept of 100 queries, masks of 256², CPU time.

Run: ``python tests/benchmarks/postprocess.py [--sizes 2048 4096] [--repeats 3]``. ``semantics="hf"``: maps and tables are
the same bits, which is checked. Each memory figure comes from a process of its own: the highest resident size during
the call, less that before it and less the returned map.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import torch
import torch.nn.functional as F

from panoptile.model.postprocess import post_process_panoptic_segmentation

torch.set_num_threads(1)

QUERIES, KEPT, LABELS, GRID = 100, 40, 133, 256
TARGET_RATIO, TARGET_MB = {2048: 4.0}, {4096: 60}
Call = Callable[[int], dict[str, Any]]


def scene(seed: int = 0) -> Any:
    """Touching regions around 40 places, soft along their borders and wavy; the other queries see nothing."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(KEPT, 2, generator=generator) * GRID
    rows, cols = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    distances = torch.cdist(torch.stack([rows, cols], -1).flatten(0, 1).float(), places).T.view(
        KEPT, GRID, GRID
    )
    nearest = distances.topk(2, dim=0, largest=False).values
    others = torch.where(distances == nearest[0], nearest[1], nearest[0])
    waves = F.interpolate(
        torch.randn(1, QUERIES, 16, 16, generator=generator), size=(GRID, GRID), mode="bicubic"
    )
    masks = waves - 6
    masks[0, :KEPT] = ((others - distances) * 0.4).clamp(-9, 9) + 1 + waves[0, :KEPT]
    classes = torch.randn(1, QUERIES, LABELS + 1, generator=generator)
    classes[0, KEPT:, LABELS] = 12
    classes[0, torch.arange(KEPT), torch.arange(KEPT) * 3] = 9 + torch.rand(KEPT, generator=generator) * 4
    return SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)


def calls() -> dict[str, Call]:
    """Name to function of the target's side."""
    import transformers

    outputs, processor = scene(), transformers.Mask2FormerImageProcessorPil()
    options: dict[str, Any] = {"threshold": 0.8, "label_ids_to_fuse": set(range(80, LABELS))}

    def ours(side: int) -> dict[str, Any]:
        return post_process_panoptic_segmentation(outputs, target_sizes=[(side, side)], **options)[0]

    def theirs(side: int) -> dict[str, Any]:
        found: dict[str, Any] = processor.post_process_panoptic_segmentation(
            outputs, target_sizes=[(side, side)], **options
        )[0]
        return found

    return {"ours": ours, "transformers": theirs}


def timed(side: int, repeats: int) -> None:
    """Print the ratio, and stop if the results differ."""
    functions = calls()
    results = {name: function(side) for name, function in functions.items()}
    ours, theirs = results["ours"], results["transformers"]
    if not torch.equal(ours["segmentation"], theirs["segmentation"]):
        raise SystemExit(f"The maps of {side}² differ.")
    if ours["segments_info"] != theirs["segments_info"]:
        raise SystemExit(f"The tables of {side}² differ.")
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.process_time()
            function(side)
            best[name] = min(best[name], time.process_time() - start)
    ratio = best["transformers"] / best["ours"]
    target = f" (target {TARGET_RATIO[side]:g}x)" if side in TARGET_RATIO else ""
    print(
        f"{side}²: ours {best['ours']:.3f} s, transformers {best['transformers']:.3f} s: {ratio:.2f}x{target}, "
        f"{len(ours['segments_info'])} segments, the same bits"
    )


def measured_memory(name: str, side: int) -> float:
    """MB beyond inputs and map, from a fresh process."""
    command = [sys.executable, __file__, "--memory-of", name, "--sizes", str(side)]
    run = subprocess.run(command, check=True, capture_output=True, text=True, timeout=900)
    return float(run.stdout)


def print_memory(name: str, side: int) -> None:
    """Body of that process: the kernel's own peak, reset just before the call."""
    function = calls()[name]
    function(512)  # constants, thread pools
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    found = function(side)["segmentation"]
    map_mb = found.numel() * found.element_size() / 1e6
    print(_status("VmHWM") - before - map_mb)


def _status(field: str) -> float:
    """MB of a field of the process's status."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024 / 1e6


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-of", choices=("ours", "transformers"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.memory_of:
        print_memory(a.memory_of, a.sizes[0])
        return
    for side in a.sizes:
        timed(side, a.repeats)
        ours, theirs = (measured_memory(name, side) for name in ("ours", "transformers"))
        target = f" (target {TARGET_MB[side]} MB)" if side in TARGET_MB else ""
        print(f"  extra memory: ours {ours:.0f} MB, transformers {theirs:.0f} MB{target}", flush=True)


if __name__ == "__main__":
    main()
