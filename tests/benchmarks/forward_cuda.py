"""Forward pass of a Swin-T on a GPU against transformers eager, both under the same bf16 autocast.

Run: ``python tests/benchmarks/forward_cuda.py [--size 1024] [--batch 8] [--repeats 20]``. Prints tiles per second of
both, the ratio (target 6x), what whole ``torch.compile`` adds where asked for, and the largest difference of our bf16
logits from our fp32 logits before any attention mask has been used. Without CUDA it says so and measures nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

TARGET = 6.0


def seconds_per_batch(run: Callable[[], Any], repeats: int) -> float:
    """Least wall time of one batch, with the device idle before and after."""
    best = float("inf")
    for turn in range(repeats + 3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        if turn >= 3:  # the first build constants and choose kernels
            best = min(best, time.perf_counter() - start)
    return best


def forward(network: Any, images: torch.Tensor) -> Any:
    """One pass under bf16 autocast, with all that a caller reads."""
    with torch.inference_mode(), torch.autocast("cuda", dtype=torch.bfloat16):
        output = network(images)
        return output.class_queries_logits, output.masks_queries_logits


def rounding(network: Any, images: torch.Tensor) -> tuple[float, float]:
    """Largest difference of the first prediction's mask logits between bf16 and fp32, and the largest fp32 logit.

    Later predictions use masks: a logit near 0 on the other side moves them by more than rounding does.
    """
    with torch.inference_mode():
        full = network(images, output_auxiliary_logits=True).auxiliary_logits[0]["masks_queries_logits"]
        with torch.autocast("cuda", dtype=torch.bfloat16):
            half = network(images, output_auxiliary_logits=True).auxiliary_logits[0]["masks_queries_logits"]
    return float((half.float() - full).abs().max()), float(full.abs().max())


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--compile", action="store_true", help="our network through torch.compile too")
    a = parser.parse_args()
    if not torch.cuda.is_available():
        print("not measured: torch finds no CUDA GPU here, and this benchmark compares two networks on one.")
        return
    from tests.benchmarks.network_pairs import swin_tiny

    device = torch.device("cuda")
    print(
        f"torch {torch.__version__}, {torch.cuda.get_device_name()}, bf16 autocast, {a.size}², batch {a.batch}"
    )
    pair = swin_tiny()
    ours, theirs = pair.ours.to(device), pair.reference.to(device)
    images = torch.randn(a.batch, 3, a.size, a.size, device=device)
    seconds = {
        "transformers": seconds_per_batch(lambda: forward(theirs, images), a.repeats),
        "ours": seconds_per_batch(lambda: forward(ours, images), a.repeats),
    }
    if a.compile:
        compiled = torch.compile(ours)
        start = time.perf_counter()
        forward(compiled, images)
        print(f"  compiling took {time.perf_counter() - start:.0f} s")
        seconds["ours, compiled"] = seconds_per_batch(lambda: forward(compiled, images), a.repeats)
    for name, value in seconds.items():
        ratio = seconds["transformers"] / value
        print(f"  {name:<16} {value * 1e3:8.1f} ms  {a.batch / value:7.1f} tiles/s  {ratio:.2f}x")
    print(f"  target {TARGET:g}x")
    difference, largest = rounding(ours, images[:1])
    print(
        f"  largest difference of bf16 from fp32 mask logits: {difference:.2e} (largest logit {largest:.1f})"
    )


if __name__ == "__main__":
    main()
