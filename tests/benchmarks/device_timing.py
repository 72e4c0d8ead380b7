"""Times on a GPU by its own events, and on a CPU by its clock (for rehearsals)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

STAGES: dict[str, Callable[[Any], list[Any]]] = {
    "backbone": lambda network: [network.model.pixel_level_module.encoder],
    "pixel decoder": lambda network: [network.model.pixel_level_module.decoder],
    "- deformable attention": lambda network: [
        layer.self_attn for layer in network.model.pixel_level_module.decoder.encoder.layers
    ],
    "transformer decoder": lambda network: [network.model.transformer_module],
}


def seconds_per_call(
    run: Callable[[], Any], device: torch.device, repeats: int, *, warm_up: int = 4
) -> float:
    """Least wall time of one call, with the device idle before and after."""
    best = float("inf")
    for turn in range(repeats + warm_up):
        synchronise(device)
        start = time.perf_counter()
        run()
        synchronise(device)
        if turn >= warm_up:  # the first build constants, choose kernels and capture graphs
            best = min(best, time.perf_counter() - start)
    return best


def stage_seconds(
    network: Any, run: Callable[[], Any], device: torch.device, repeats: int
) -> dict[str, float]:
    """Mean time of the stages of one eager call."""
    spans: dict[str, list[tuple[Any, Any]]] = {stage: [] for stage in STAGES}
    hooks = []
    for stage, find in STAGES.items():
        for module in find(network):
            open_spans: list[Any] = []
            hooks += [
                module.register_forward_pre_hook(lambda *_, s=open_spans: s.append(_now(device))),
                module.register_forward_hook(
                    lambda *_, s=open_spans, to=spans[stage]: to.append((s.pop(), _now(device)))
                ),
            ]
    run()
    for found in spans.values():
        found.clear()
    for _ in range(repeats):
        run()
    synchronise(device)
    for hook in hooks:
        hook.remove()
    return {stage: sum(_between(*span) for span in found) / repeats for stage, found in spans.items()}


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int:
    """Most memory that torch held during a call, beyond what it held before; 0 on a CPU."""
    if device.type != "cuda":
        run()
        return 0
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _now(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _between(start: Any, end: Any) -> float:
    return float(end - start if isinstance(start, float) else start.elapsed_time(end) / 1e3)
