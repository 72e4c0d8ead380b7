"""Random cases of the Triton kernel against the plain sampling; run as a program, it prints the differences as JSON.

Where the variable TRITON_INTERPRET is 1, Triton's interpreter runs the kernel on a CPU. It is read when the kernel's
module is imported, so the tests start this file as a process of its own.
"""

from __future__ import annotations

import json
import random
import sys
from unittest import mock

import torch
from torch import Tensor

from panoptile.model import msda
from panoptile.model.msda import DeformableAttention, Shapes, sample_reference
from panoptile.model.msda_triton import sample_softmax


def kernel(value: Tensor, offsets: Tensor, logits: Tensor, shapes: Shapes) -> Tensor:
    """The kernel on values (B, S, h, D), offsets (h, L, P, 2, B·S) and logits (h, L·P, B·S)."""
    origins, geometry = (f(shapes, value.device) for f in (msda._origins_by_axis, msda._geometry_table))
    return sample_softmax(value, offsets, logits, origins, geometry)


def plain(value: Tensor, offsets: Tensor, logits: Tensor, shapes: Shapes) -> Tensor:
    """The same by soft-max and ``grid_sample``, all in fp32."""
    batch, size, heads, _ = value.shape
    points = offsets.shape[2]
    xy = offsets.float().movedim(-1, 0).reshape(batch, size, heads, len(shapes), points, 2)
    weights = logits.float().softmax(1).movedim(-1, 0).reshape(batch, size, heads, len(shapes), points)
    return sample_reference(value.float(), xy, weights, shapes)


def case(seed: int, device: str, *, large: bool = False) -> dict[str, object]:
    """One random case: 1-3 levels of odd sizes, heads, points and channels; near, far or wild offsets; bf16 or fp32."""
    pick = random.Random(seed)
    scale = 40 if large else 1
    shapes: Shapes = tuple(
        (pick.randint(1, 5) * scale, pick.randint(1, 6) * scale) for _ in range(pick.randint(1, 3))
    )
    heads, points, depth = pick.randint(1, 2), pick.randint(1, 4), pick.choice([4, 5, 8, 32])
    if large:
        heads, points, depth = 8, 4, 32
    dtype = pick.choice([torch.float32, torch.bfloat16])
    spread = pick.choice([0.0, 1.5, 30.0, 1e12])
    batch = pick.randint(1, 2)
    size = sum(h * w for h, w in shapes)
    g = torch.Generator().manual_seed(seed)
    value = torch.randn(batch, size, heads, depth, generator=g).to(device, dtype)
    offsets = torch.randn(heads, len(shapes), points, 2, batch * size, generator=g) * spread
    offsets = offsets.to(device, dtype)
    logits = (torch.randn(heads, len(shapes) * points, batch * size, generator=g) * 3).to(device, dtype)
    got = kernel(value, offsets, logits, shapes).float()
    expected = plain(value, offsets, logits, shapes)
    return {
        "case": f"{shapes=} {heads=} {points=} {depth=} {dtype=} {spread=} {batch=}",
        "is_bf16": dtype == torch.bfloat16,
        "shapes_equal": got.shape == expected.shape,
        "difference": float((got - expected).abs().max()),
        "largest": float(expected.abs().max()),
    }


def module(device: str) -> dict[str, object]:
    """The whole attention module with the kernel and without, in fp32."""
    torch.manual_seed(0)
    shapes: Shapes = ((2, 3), (4, 5), (7, 9))
    attention = DeformableAttention(16, heads=2, levels=3, points=4).to(device)
    torch.nn.init.normal_(attention.sampling_offsets.weight, std=0.3)
    torch.nn.init.normal_(attention.attention_weights.weight, std=0.3)
    size = sum(h * w for h, w in shapes)
    x, position = torch.randn(2, size, 16, device=device), torch.randn(size, 16, device=device)
    with torch.inference_mode():
        with mock.patch.object(msda, "_fused_sampler", return_value=None):
            expected = attention(x, position, shapes)
        calls = []

        def counted(*arguments: Tensor) -> Tensor:
            calls.append(1)
            return sample_softmax(*arguments)

        with mock.patch.object(msda, "_fused_sampler", return_value=counted):
            got = attention(x, position, shapes)
    return {
        "case": "module",
        "is_bf16": False,
        "shapes_equal": got.shape == expected.shape and len(calls) == 1,
        "difference": float((got - expected).abs().max()),
        "largest": float(expected.abs().max()),
    }


if __name__ == "__main__":
    json.dump([module("cpu"), *(case(seed, "cpu") for seed in range(int(sys.argv[1])))], sys.stdout)
