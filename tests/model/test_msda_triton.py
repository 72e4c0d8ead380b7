"""The Triton kernel: interpreted on a CPU against the plain version, compiled for a GPU without one, run where one is."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from panoptile.model import msda

ROOT = Path(__file__).parents[2]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def assert_close(results: list[dict[str, Any]]) -> None:
    """fp32 to a few roundings; bf16 to the last of its 8 bits: Triton's interpreter cuts where a GPU rounds."""
    for result in results:
        limit = 1e-5 + float(result["largest"]) * (2**-7 if result["is_bf16"] else 1e-6)
        assert result["shapes_equal"], result
        assert result["difference"] <= limit, result


def interpreted(cases: int, tmp_path: Path) -> list[dict[str, Any]]:
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "tests.model.triton_cases", str(cases)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results: list[dict[str, Any]] = json.loads(done.stdout)
    return results


def test_the_kernel_equals_the_plain_version(tmp_path: Path) -> None:
    """Random levels, odd sizes, heads, points, channels, wild coordinates, bf16 values; and the module around it."""
    pytest.importorskip("triton")
    results = interpreted(8, tmp_path)
    assert len(results) == 9
    assert {r["is_bf16"] for r in results} == {True, False}
    assert_close(results)


@pytest.mark.slow
def test_the_kernel_equals_the_plain_version_in_many_cases(tmp_path: Path) -> None:
    """Sixty random cases."""
    pytest.importorskip("triton")
    assert_close(interpreted(60, tmp_path))


def test_the_kernel_compiles_for_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton makes machine code for compute capability 9.0 without a GPU, and value rows are read 16 bytes at a time."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from panoptile.model.msda_triton import deformable_forward

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    numbers = {"HEADS": 8, "LEVELS": 3, "POINTS": 4, "DEPTH": 32, "DEPTH_PADDED": 32, "BLOCK": 32}
    types = dict.fromkeys(("value", "offsets", "logits"), "*bf16")
    types |= {"origins": "*fp32", "geometry": "*i32", "out": "*bf16", "size": "i32", "queries": "i32"}
    source = ASTSource(
        fn=deformable_forward,
        signature=types | dict.fromkeys(numbers, "constexpr"),
        constexprs=numbers,
        attrs={(i,): [["tt.divisibility", 16]] for i in range(len(types))},
    )
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert len(made.asm["cubin"]) > 1000
    assert "ld.global.v4" in made.asm["ptx"]


def test_the_choice_is_made_once_and_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the package triton the plain version is used, and the log says so once."""
    msda.triton_sampler.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with caplog.at_level(logging.INFO):
        assert [msda.triton_sampler() for _ in range(3)] == [None] * 3
    assert len([r for r in caplog.records if "triton" in r.message]) == 1
    msda.triton_sampler.cache_clear()


def test_a_cpu_and_gradients_use_the_plain_version() -> None:
    """The kernel has no backward pass and runs on GPUs alone."""
    with torch.inference_mode():
        assert msda._fused_sampler(torch.zeros(1)) is None
    assert msda._fused_sampler(torch.zeros(1)) is None


@needs_gpu
def test_the_kernel_equals_the_plain_version_on_a_gpu() -> None:
    """Random small and large cases, and the module, on the GPU itself."""
    pytest.importorskip("triton")
    from tests.model.triton_cases import case, module

    torch.backends.cuda.matmul.allow_tf32 = False
    results = [module("cuda"), *(case(seed, "cuda") for seed in range(40))]
    assert_close(results + [case(seed, "cuda", large=True) for seed in range(4)])
