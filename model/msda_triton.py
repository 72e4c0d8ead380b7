"""Forward of the deformable attention's sampling as one Triton kernel, for inference on a GPU.

Unusual: soft-max, bilinear corners and the weighted sum are one pass without intermediate tables: a program takes the
queries of a block, one head and one image. Positions, weights and sums are fp32 whatever the inputs are. It is compared
with ``sample_reference`` in Triton's interpreter on a CPU and compiled for GPUs there; no GPU has timed it yet
(``tests/benchmarks/forward_cuda.py`` does). Import it only where the package triton is: see ``msda.triton_sampler``.

Letters: B batch, S pixels of all levels, L levels, P points, h heads, D channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 32
"""Queries of a program; with 32 channels a value row in bf16 is one 64-byte read."""


@triton.jit  # type: ignore[untyped-decorator]
def deformable_forward(  # type: ignore[no-untyped-def]
    value,
    offsets,
    logits,
    origins,
    geometry,
    out,
    size,
    queries,
    HEADS: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    DEPTH: tl.constexpr,
    DEPTH_PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Contiguous: value (B, S, h, D), offsets (h, L, P, 2, B·S), logits (h, L·P, B·S), origins (2, L, S), geometry
    (3, L) int32 of width, height and first pixel, out (B, S, h, D). ``size`` S, ``queries`` B·S.
    """
    head = tl.program_id(1)
    image = tl.program_id(2)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_query = pixel < size
    channel = tl.arange(0, DEPTH_PADDED)
    is_channel = channel < DEPTH
    # 64-bit from here: a batch of large tiles has more than 2^31 values.
    own = image.to(tl.int64) * size + pixel
    logit_row = logits + (head * LEVELS * POINTS).to(tl.int64) * queries + own
    offset_row = offsets + (head * LEVELS * POINTS * 2).to(tl.int64) * queries + own
    image_values = value + image.to(tl.int64) * size * (HEADS * DEPTH) + head * DEPTH

    highest = tl.full((BLOCK,), float("-inf"), tl.float32)
    for sample in tl.static_range(LEVELS * POINTS):
        first_pass = tl.load(logit_row + sample * queries, mask=is_query, other=0.0).to(tl.float32)
        highest = tl.maximum(highest, first_pass)
    total = tl.zeros((BLOCK,), tl.float32)
    result = tl.zeros((BLOCK, DEPTH_PADDED), tl.float32)
    for level in range(LEVELS):  # not unrolled: 48 corners in a row would outgrow the instruction cache
        width = tl.load(geometry + level)
        height = tl.load(geometry + LEVELS + level)
        first = tl.load(geometry + 2 * LEVELS + level)
        origin_x = tl.load(origins + level * size + pixel, mask=is_query, other=0.0)
        origin_y = tl.load(origins + (LEVELS + level) * size + pixel, mask=is_query, other=0.0)
        for point in tl.static_range(POINTS):
            k = level * POINTS + point
            logit = tl.load(logit_row + k * queries, mask=is_query, other=0.0).to(tl.float32)
            weight = tl.exp(logit - highest)
            total += weight
            x = origin_x + tl.load(offset_row + 2 * k * queries, mask=is_query, other=0.0).to(tl.float32)
            y = origin_y + tl.load(offset_row + (2 * k + 1) * queries, mask=is_query, other=0.0).to(
                tl.float32
            )
            left, top = tl.floor(x), tl.floor(y)
            right_share, bottom_share = x - left, y - top
            for down in tl.static_range(2):
                row = top + down
                row_share = weight * (bottom_share if down == 1 else 1.0 - bottom_share)
                # Compared as floats: an offset of any size, or NaN, never becomes an address.
                row_inside = is_query & (row >= 0.0) & (row <= height - 1.0)
                for across in tl.static_range(2):
                    col = left + across
                    share = row_share * (right_share if across == 1 else 1.0 - right_share)
                    inside = row_inside & (col >= 0.0) & (col <= width - 1.0)
                    cell = tl.where(inside, row, 0.0).to(tl.int32) * width + tl.where(inside, col, 0.0).to(
                        tl.int32
                    )
                    place = (first + cell).to(tl.int64) * (HEADS * DEPTH)
                    values = tl.load(
                        image_values + place[:, None] + channel[None, :],
                        mask=inside[:, None] & is_channel[None, :],
                        other=0.0,
                    ).to(tl.float32)
                    result += tl.where(inside, share, 0.0)[:, None] * values
    result = result / total[:, None]
    target = out + (own * HEADS + head)[:, None] * DEPTH + channel[None, :]
    tl.store(target, result.to(out.dtype.element_ty), mask=is_query[:, None] & is_channel[None, :])


def sample_softmax(
    value_BShD: Tensor, offsets_hLP2N: Tensor, logits_hKN: Tensor, origins_xyLS: Tensor, geometry_3L: Tensor
) -> Tensor:
    """``msda.sample`` with the soft-max of the weights inside; returns (B, S, h·D) in the type of the values.

    ``offsets`` (h, L, P, 2, B·S) in pixels, x first; ``logits`` (h, L·P, B·S); ``origins`` (2, L, S) fp32 positions of
    the pixels on each level; ``geometry`` (3, L) int32: width, height and first pixel of each level. No gradients.
    """
    batch, size, heads, depth = value_BShD.shape
    levels, points = offsets_hLP2N.shape[1:3]
    value, offsets, logits = (x.contiguous() for x in (value_BShD, offsets_hLP2N, logits_hKN))
    out = torch.empty_like(value)
    launch: Any = deformable_forward[(triton.cdiv(size, _BLOCK), heads, batch)]
    launch(
        value,
        offsets,
        logits,
        origins_xyLS,
        geometry_3L,
        out,
        size,
        batch * size,
        HEADS=heads,
        LEVELS=levels,
        POINTS=points,
        DEPTH=depth,
        DEPTH_PADDED=triton.next_power_of_2(depth),
        BLOCK=_BLOCK,
    )
    return out.view(batch, size, heads * depth)
