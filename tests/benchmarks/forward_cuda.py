"""A Swin-T on a GPU against transformers eager under the same bf16 autocast, and what each part of ours brings.

Run: ``python tests/benchmarks/forward_cuda.py [--size 1024] [--batch 8] [--repeats 20] [--compile] [--json FILE]``. It
needs torch, transformers and this repository, nothing else, and prints: milliseconds, tiles per second and ratio of each
variant (target 6x); stages; the way from uint8 tiles to maps with copies in turn and overlapped; that nothing in between
synchronises; differences (graph to eager, Triton to plain, bf16 to fp32); memory. Without CUDA it says so and measures
nothing; ``--rehearse`` runs what a CPU can run of it, on tiny tiles, to prove the script.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import numpy as np
import torch
from tests.benchmarks.device_timing import STAGES, peak_bytes, seconds_per_call, stage_seconds
from torch import Tensor

from panoptile.model import msda
from panoptile.model.cuda_graph import GraphCache
from panoptile.model.segmenter import Segmenter

TARGET = 6.0


@dataclass
class Bench:
    """What is measured on, and what was found."""

    device: torch.device
    size: int
    batch: int
    repeats: int
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"


@contextmanager
def plain_sampling() -> Iterator[None]:
    """Inside, deformable attention does without the Triton kernel."""
    with mock.patch.object(msda, "_fused_sampler", return_value=None):
        yield


def autocast(network: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """One pass under bf16 autocast, with all that a caller reads; the network's weights are fp32."""

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(), torch.autocast(images.device.type, dtype=torch.bfloat16):
            output = network(images)
            return output.class_queries_logits, output.masks_queries_logits

    return run


def replica(network: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """One pass as a replica does it: in the type of the weights."""

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            classes, masks, _ = network.logits_and_embeddings(images.to(network.dtype))
            return classes, masks

    return run


def as_graph(run: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Callable[[Tensor], Tensor]:
    """The pass as a CUDA graph; the masks stand for both results."""
    return GraphCache(lambda images: run(images)[1])


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--compile", action="store_true", help="our network through torch.compile too")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on the CPU: proves the script alone")
    a = parser.parse_args()
    if not a.rehearse and not torch.cuda.is_available():
        print("not measured: torch finds no CUDA GPU here, and this benchmark compares two networks on one.")
        return
    if a.rehearse:
        print("A rehearsal on the CPU: none of these figures is a measurement.")
        bench = Bench(torch.device("cpu"), 64, 2, 1)
    else:
        bench = Bench(torch.device("cuda"), a.size, a.batch, a.repeats)
    from tests.benchmarks.network_pairs import swin_tiny

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    print(f"{_machine(bench)}, bf16, {bench.size}², batch {bench.batch}")
    pair = swin_tiny()
    ours, theirs = (n.eval().requires_grad_(False).to(bench.device) for n in pair)
    measure_differences(bench, ours)
    measure_forward(bench, ours, theirs, compiled=a.compile)
    measure_stages(bench, ours, theirs)
    with tempfile.TemporaryDirectory() as folder:
        _save_with_things(pair.ours, folder)
        del pair, ours, theirs
        measure_tiles(bench, folder)
    if a.json:
        Path(a.json).write_text(json.dumps(bench.results, indent=2) + "\n")


def measure_differences(bench: Bench, ours: Any) -> None:
    """Graph to eager, Triton to plain, and bf16 to fp32 before any attention mask has been used."""
    images = _images(bench)[:1]
    found: dict[str, float] = {}
    with torch.inference_mode():

        def first_masks(dtype: torch.dtype) -> Tensor:
            with torch.autocast(bench.device.type, dtype=dtype, enabled=dtype != torch.float32):
                output = ours(images, output_auxiliary_logits=True)
            masks: Tensor = output.auxiliary_logits[0]["masks_queries_logits"]
            return masks.float()

        kernel = first_masks(torch.float32)
        with plain_sampling():
            full, half = first_masks(torch.float32), first_masks(torch.bfloat16)
        found["largest fp32 mask logit"] = float(full.abs().max())
        found["Triton from plain, fp32"] = float((kernel - full).abs().max())
        found["bf16 from fp32, plain"] = float((half - full).abs().max())
        found["bf16 from fp32, Triton"] = float((first_masks(torch.bfloat16) - full).abs().max())
    run = autocast(ours)
    graph = as_graph(run) if bench.is_gpu else lambda x: run(x)[1]
    for _ in range(4):
        replayed = graph(images).clone()
    found["graph from eager, bf16"] = float((replayed - run(images)[1]).abs().max())
    print(
        "Largest differences of mask logits (of the first prediction, before masks are used; graph: of the last)"
    )
    for name, value in found.items():
        print(f"  {name:<26} {value:.3e}")
    bench.results["differences"] = found


def measure_forward(bench: Bench, ours: Any, theirs: Any, *, compiled: bool) -> None:
    """Logits from normalised images: each variant of ours against transformers eager."""
    images = _images(bench)
    rows: dict[str, tuple[float, int]] = {}

    def add(name: str, run: Callable[[Tensor], Any]) -> None:
        seconds = seconds_per_call(lambda: run(images), bench.device, bench.repeats)
        rows[name] = seconds, peak_bytes(lambda: run(images), bench.device)

    add("transformers, autocast", autocast(theirs))
    with plain_sampling():
        add("ours, autocast, plain", autocast(ours))
    add("ours, autocast, Triton", autocast(ours))
    if bench.is_gpu:
        add("ours, autocast, Triton, graph", as_graph(autocast(ours)))
    half = _copy(ours).to(torch.bfloat16)
    with plain_sampling():
        add("ours, bf16, plain", replica(half))
    add("ours, bf16, Triton", replica(half))
    if bench.is_gpu:
        with plain_sampling():
            add("ours, bf16, plain, graph", as_graph(replica(half)))
        add("ours, bf16, Triton, graph", as_graph(replica(half)))
    if compiled:
        from panoptile.model.compiled import compile_forward

        half.logits_and_embeddings = compile_forward(half.logits_and_embeddings, bench.device)
        add("ours, bf16, compiled", replica(half))
    print("Forward pass                      ms/batch  tiles/s   ratio  memory")
    base = rows["transformers, autocast"][0]
    for name, (seconds, held) in rows.items():
        tiles = bench.batch / seconds
        print(f"  {name:<30} {seconds * 1e3:9.1f} {tiles:8.1f} {base / seconds:6.2f}x {held / 2**20:6.0f} MB")
    print(f"  target {TARGET:g}x")
    bench.results["forward"] = {
        n: {"seconds": s, "bytes": b, "ratio": base / s} for n, (s, b) in rows.items()
    }


def measure_stages(bench: Bench, ours: Any, theirs: Any) -> None:
    """Where an eager pass under autocast spends its time."""
    images, repeats = _images(bench), max(1, bench.repeats // 4)
    columns = {}
    for name, network in (("transformers", theirs), ("ours, Triton", ours)):
        run = autocast(network)
        columns[name] = stage_seconds(network, lambda run=run: run(images), bench.device, repeats)  # type: ignore[misc]
    with plain_sampling():
        columns["ours, plain"] = stage_seconds(ours, lambda: autocast(ours)(images), bench.device, repeats)
    print("Stages, ms/batch          " + "".join(f"{name:>14}" for name in columns))
    for stage in STAGES:
        print(f"  {stage:<24}" + "".join(f"{column[stage] * 1e3:14.2f}" for column in columns.values()))
    bench.results["stages"] = columns


def measure_tiles(bench: Bench, folder: str) -> None:
    """From uint8 tiles in host memory to label maps there, as the pipeline's replica does it."""
    batches = [
        np.random.default_rng(i).integers(0, 256, (bench.batch, 3, bench.size, bench.size), np.uint8)
        for i in range(2)
    ]
    rows = {}
    for name in ("eager", "graph") if bench.is_gpu else ("eager",):
        segmenter = Segmenter.load(folder, device=bench.device.type, precision="bf16")
        if bench.is_gpu and name == "eager":
            from panoptile.model.device_copies import CudaDevice

            segmenter._runner = segmenter._runner_on(CudaDevice(bench.device), lambda f: f)
        for _ in range(4 if bench.is_gpu else 1):
            segmenter.predict(batches[0])
        rows[f"{name}, one after the other"] = _tiles_per_second(bench, segmenter, batches, ahead=0)
        rows[f"{name}, overlapped"] = _tiles_per_second(bench, segmenter, batches, ahead=1)
    print("uint8 tiles to maps               tiles/s")
    for name, value in rows.items():
        print(f"  {name:<30} {value:8.1f}")
    bench.results["tiles per second"] = rows
    if bench.is_gpu:
        check_synchronisation(bench, segmenter, batches[0])


def check_synchronisation(bench: Bench, segmenter: Segmenter, batch: Any) -> None:
    """Print whether CUDA sees a synchronising call between pixels and packed result."""
    runner = segmenter._runner
    assert runner is not None
    pixels = torch.from_numpy(batch).to(bench.device)
    runner.run(pixels)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        runner.run(pixels)
        found = "none"
    except RuntimeError as e:
        found = str(e).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    print(f"Synchronising calls between pixels and packed maps: {found}")
    bench.results["synchronising calls"] = found


def _tiles_per_second(bench: Bench, segmenter: Segmenter, batches: list[Any], *, ahead: int) -> float:
    """``ahead`` batches are started before one is asked for."""

    def run() -> None:
        waiting: list[Callable[[], Any]] = []
        for i in range(rounds):
            waiting.append(segmenter.start(batches[i % 2]))
            if len(waiting) > ahead:
                waiting.pop(0)()
        for ask in waiting:
            ask()

    rounds = 10 if bench.is_gpu else 2
    seconds = seconds_per_call(
        run, bench.device, max(1, bench.repeats // 5), warm_up=1 if bench.is_gpu else 0
    )
    return rounds * bench.batch / seconds


def _images(bench: Bench) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(bench.batch, 3, bench.size, bench.size, generator=generator).to(bench.device)


def _copy(network: Any) -> Any:
    twin = type(network)(network.config).eval().requires_grad_(False)
    twin.load_state_dict(network.state_dict())
    return twin.to(network.device)


def _save_with_things(network: Any, folder: str) -> None:
    """A checkpoint folder that says which classes are things: the first 80, as COCO's."""
    network.config.panoptile = {"task": "panoptic", "thing_label_ids": list(range(80))}
    network.save_pretrained(folder)


def _machine(bench: Bench) -> str:
    if not bench.is_gpu:
        return f"torch {torch.__version__}, CPU"
    import importlib.util

    has_triton = importlib.util.find_spec("triton") is not None
    major, minor = torch.cuda.get_device_capability()
    return (
        f"torch {torch.__version__}, {torch.cuda.get_device_name()} ({major}.{minor}), "
        f"Triton {'found' if has_triton else 'missing: plain sampling everywhere'}"
    )


if __name__ == "__main__":
    main()
