"""Forward pass of a Swin-T against transformers eager: fp32, one thread, batch 1, by CPU time.

Run: ``python tests/benchmarks/forward.py [--sizes 384 1024] [--repeats 5] [--compile]``. Both networks have the same random weights
and run in turns; the least time of each counts. Prints ratio, stages and differences. At large sizes a mask logit near
0 can fall on the other side by rounding, which opens a pixel to a query and moves its outputs: differences before the
first mask are printed too. ``--compile`` adds ours through ``torch.compile``: what compiling costs, and what it brings.
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
from tests.benchmarks.network_pairs import Pair, swin_tiny

TARGETS = {384: 1.6, 1024: 1.8}
STAGES: dict[str, Callable[[Any], list[Any]]] = {
    "backbone": lambda network: [network.model.pixel_level_module.encoder],
    "pixel decoder": lambda network: [network.model.pixel_level_module.decoder],
    "- deformable attention": lambda network: [
        layer.self_attn for layer in network.model.pixel_level_module.decoder.encoder.layers
    ],
    "transformer decoder": lambda network: [network.model.transformer_module],
}


class Stopwatch:
    """CPU seconds spent in the stages of one network."""

    def __init__(self, network: Any) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        for stage, find in STAGES.items():
            for module in find(network):
                self._watch(stage, module)

    def _watch(self, stage: str, module: torch.nn.Module) -> None:
        starts: list[float] = []
        module.register_forward_pre_hook(lambda *_: starts.append(time.process_time()))
        module.register_forward_hook(lambda *_: self._add(stage, time.process_time() - starts.pop()))

    def _add(self, stage: str, seconds: float) -> None:
        self.seconds[stage] += seconds

    def run(self, network: Any, image: torch.Tensor) -> tuple[float, dict[str, float], Any]:
        """Total, stages, and the output with all that a caller reads."""
        self.seconds = dict.fromkeys(STAGES, 0.0)
        start = time.process_time()
        output = network(image)
        _ = output.masks_queries_logits, output.class_queries_logits
        return time.process_time() - start, self.seconds, output


def compare(pair: Pair, size: int, repeats: int) -> None:
    """Print one size."""
    torch.manual_seed(size)
    image = torch.randn(1, 3, size, size)
    watches = [Stopwatch(network) for network in pair]
    runs: list[list[tuple[float, dict[str, float], Any]]] = [[], []]
    with torch.inference_mode():
        for turn in range(repeats + 1):
            for which, (watch, network) in enumerate(zip(watches, pair, strict=True)):
                result = watch.run(network, image)
                if turn:  # the first builds constants
                    runs[which].append(result)
    ours, theirs = (min(r, key=lambda run: run[0]) for r in runs)
    ratio = theirs[0] / ours[0]
    print(f"{size}²: ours {ours[0]:.3f} s, transformers {theirs[0]:.3f} s: {ratio:.2f}x", end="")
    print(f" (target {TARGETS[size]}x)" if size in TARGETS else "")
    for stage in STAGES:
        a, b = ours[1][stage], theirs[1][stage]
        print(f"  {stage:<24} {a:7.3f} {b:7.3f}  {b / a:.2f}x")
    differences = {
        "mask features": "pixel_decoder_last_hidden_state",
        "class logits": "class_queries_logits",
        "mask logits": "masks_queries_logits",
    }
    for name, field in differences.items():
        a, b = getattr(ours[2], field), getattr(theirs[2], field)
        print(
            f"  largest difference of {name}: {(a - b).abs().max():.1e} (largest value {b.abs().max():.1f})"
        )


def compare_compiled(pair: Pair, size: int, repeats: int) -> None:
    """Print what compiling our network for one size costs, and its speed against our own eager one."""
    from panoptile.model.compiled import compile_forward

    eager = pair.ours.logits_and_embeddings
    compiled = compile_forward(eager, torch.device("cpu"))
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(size))
    with torch.inference_mode():
        wall, start = time.perf_counter(), time.process_time()
        got = compiled(image)
        cost = time.perf_counter() - wall, time.process_time() - start
        differences = [float((a - b).abs().max()) for a, b in zip(got, eager(image), strict=True)]
        best = [float("inf")] * 2
        for _ in range(repeats):
            for which, run in enumerate((eager, compiled)):
                start = time.process_time()
                run(image)
                best[which] = min(best[which], time.process_time() - start)
    print(f"{size}² compiled: {best[1]:.3f} s, eager {best[0]:.3f} s: {best[0] / best[1]:.2f}x")
    print(f"  compiling took {cost[0]:.0f} s ({cost[1]:.0f} s of this process's CPU)")
    print("  largest differences of class logits, mask logits, states:", *(f"{d:.1e}" for d in differences))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[384, 1024])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="ours through torch.compile too")
    a = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, 1 thread, fp32")
    pair = swin_tiny()
    for size in a.sizes:
        compare(pair, size, a.repeats)
        if a.compile:
            compare_compiled(pair, size, a.repeats)


if __name__ == "__main__":
    main()
