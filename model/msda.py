"""Multi-scale deformable attention (Zhu et al., 2021) among the pixels of three feature maps.

Unusual: the sampling is one ``F.embedding_bag``: each output row of a head is a weighted sum of 48 value rows
(3 levels x 4 points x 4 bilinear corners). That is exact, differentiable, needs no compiled extension, and is several
times faster than ``grid_sample`` on a CPU. The plain version stays beside it as the reference. On a GPU, without
gradients, a Triton kernel does the same (``msda_triton.py``), where the package triton is.

Letters: B batch, S pixels of all levels, L levels, P points, h heads, D channels of a head, C = h·D.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from panoptile.model.constants import constant

log = logging.getLogger(__name__)

Shapes = tuple[tuple[int, int], ...]
"""(height, width) of each level, in the order in which the levels are flattened."""

_CHUNK = 1344
"""Queries sampled at once: bounds the corner table to some tens of MB and keeps it in cache."""


class DeformableAttention(nn.Module):
    """Each pixel attends to P points per level and head, at learned offsets from its own position."""

    def __init__(self, width: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(width, heads * levels * points * 2)
        self.attention_weights = nn.Linear(width, heads * levels * points)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)
        self.init_weights()

    def init_weights(self) -> None:
        """Points start on a ring: head k looks in direction 2πk/h, point p at distance p + 1 (in pixels)."""
        angles = torch.arange(self.heads, dtype=torch.float32) * (2.0 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        distances = torch.arange(1, self.points + 1, dtype=torch.float32)
        ring = directions[:, None, None, :] * distances[None, None, :, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(ring.expand(-1, self.levels, -1, -1).reshape(-1))
        for zero in (
            self.sampling_offsets.weight,
            self.attention_weights.weight,
            self.attention_weights.bias,
        ):
            nn.init.zeros_(zero)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x_BSC: Tensor, position_SC: Tensor, shapes: Shapes) -> Tensor:
        """Attend from every pixel to all levels; the position is added for the offsets and weights, not the values.

        ``position_SC`` is (S, C) or (1, S, C); returns (B, S, C).
        """
        batch, size, channels = x_BSC.shape
        value = self.value_proj(x_BSC).view(batch, size, self.heads, channels // self.heads)
        # One product for both, with the pixels last: all that follows then runs along contiguous memory.
        weight = torch.cat([self.sampling_offsets.weight, self.attention_weights.weight])
        bias = torch.cat([self.sampling_offsets.bias, self.attention_weights.bias])
        query_CN = (x_BSC + position_SC).flatten(0, 1).T
        predicted = torch.addmm(bias[:, None], weight, query_CN)
        count = len(self.attention_weights.weight)
        fused = _fused_sampler(predicted)
        if fused is not None:
            origins_xy = _origins_by_axis(shapes, value.device)
            offsets = predicted[: 2 * count].view(self.heads, self.levels, self.points, 2, -1)
            logits = predicted[2 * count :].view(self.heads, self.levels * self.points, -1)
            sampled = fused(value, offsets, logits, origins_xy, _geometry_table(shapes, value.device))
            return self._project(sampled, x_BSC.dtype)
        # Positions in fp32 whatever the activations are: bf16 is off by up to 0.75 px on a 160-px level.
        x, y = predicted[: 2 * count].float().view(self.heads, self.levels, self.points, 2, -1).unbind(3)
        weights = predicted[2 * count :].view(self.heads, self.levels * self.points, -1).softmax(1).view_as(x)
        sampled = _sample(value, x, y, weights, shapes, None if x.is_cuda else _CHUNK)
        return self._project(sampled, x_BSC.dtype)

    def _project(self, sampled_BSC: Tensor, dtype: torch.dtype) -> Tensor:
        projected: Tensor = self.output_proj(sampled_BSC.to(dtype))
        return projected


def _fused_sampler(x: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor] | None:
    """What does soft-max, corners and sum in one, for where ``x`` is; None: the steps one by one."""
    return None if torch.is_grad_enabled() or not x.is_cuda else triton_sampler()


@cache
def triton_sampler() -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor] | None:
    """``msda_triton.sample_softmax`` where the package triton is, else None; decided and logged once."""
    if importlib.util.find_spec("triton") is None:
        log.info(
            "Deformable attention uses plain PyTorch: the package triton, for its kernel, is not installed."
        )
        return None
    from panoptile.model.msda_triton import sample_softmax

    log.info("Deformable attention uses its Triton kernel on GPUs.")
    return sample_softmax


def sample(
    value_BShD: Tensor, offsets_xy: Tensor, weights: Tensor, shapes: Shapes, chunk: int = _CHUNK
) -> Tensor:
    """Weighted sum of bilinear samples around every pixel's own position.

    ``offsets_xy`` (B, S, h, L, P, 2) in pixels of the sampled level, x first; ``weights`` (B, S, h, L, P); outside a
    level is zero. Returns (B, S, h·D).
    """
    x, y = offsets_xy.flatten(0, 1).movedim(0, -1).unbind(-2)
    return _sample(value_BShD, x, y, weights.flatten(0, 1).movedim(0, -1), shapes, chunk)


def _sample(
    value_BShD: Tensor,
    x_hLPN: Tensor,
    y_hLPN: Tensor,
    weights_hLPN: Tensor,
    shapes: Shapes,
    chunk: int | None,
) -> Tensor:
    """``sample`` with offsets and weights (h, L, P, B·S): the pixels of the batch last."""
    batch, size, heads, depth = value_BShD.shape
    origins_xy = _origins_by_axis(shapes, value_BShD.device)
    rows = []
    for image, value_ShD in enumerate(value_BShD):
        table = value_ShD.reshape(size * heads, depth)
        for start in range(0, size, chunk or size):
            own = slice(start, min(start + (chunk or size), size))
            part = slice(image * size + own.start, image * size + own.stop)
            offsets_xy = x_hLPN[..., part], y_hLPN[..., part]
            index, corner_weights = _corners(
                offsets_xy, origins_xy[..., own], weights_hLPN[..., part], shapes
            )
            rows.append(
                F.embedding_bag(index, table, mode="sum", per_sample_weights=corner_weights.to(table.dtype))
            )
    return torch.cat(rows).view(batch, size, heads * depth)


def _corners(
    offsets_xy: tuple[Tensor, Tensor], origins_xy: Tensor, weights: Tensor, shapes: Shapes
) -> tuple[Tensor, Tensor]:
    """Rows of an image's value table (pixel, head) and their weights: both (n·h, 4·L·P).

    Offsets along x and y and weights are (h, L, P, n), the origins (2, L, 1, n).
    """
    heads, _, _, count = weights.shape
    width, height, first = _level_geometry(shapes, weights.device)
    cols, weights_x = _axis(offsets_xy[0] + origins_xy[0], width)
    rows, weights_y = _axis(offsets_xy[1] + origins_xy[1], height)
    head = torch.arange(heads, dtype=torch.int32, device=weights.device)[:, None, None, None]
    # What depends on one axis is settled before the axes meet, at half the size.
    steps = width * heads
    starts = [row * steps + (first * heads + head) for row in rows]
    cols = [col * heads for col in cols]
    parts = [weights * weight for weight in weights_y]
    index = torch.stack([start + col for start in starts for col in cols], dim=1)
    corner = torch.stack([part * weight for part in parts for weight in weights_x], dim=1)
    # Transposed last, as whole matrices: each query's samples must lie together.
    return tuple(t.view(-1, count).T.contiguous().view(count * heads, -1) for t in (index, corner))  # type: ignore[return-value]


def _axis(position: Tensor, extent: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The two neighbours along one axis, clamped into the level, and their weights, 0 outside."""
    low = position.detach().floor()
    high_weight = position - low
    last = (extent - 1).to(low.dtype)
    cells, weights = [], []
    for cell, weight in ((low, 1 - high_weight), (low + 1, high_weight)):
        clamped = torch.minimum(cell.clamp(min=0), last)
        cells.append(clamped.int())
        weights.append(torch.where(clamped == cell, weight, 0.0))
    return cells, weights


def sample_reference(value_BShD: Tensor, offsets_xy: Tensor, weights: Tensor, shapes: Shapes) -> Tensor:
    """The same as ``sample``, written plainly with ``F.grid_sample``, level by level."""
    batch, size, heads, depth = value_BShD.shape
    origins = pixel_origins(shapes, value_BShD.device)
    positions = offsets_xy + origins[None, :, None, :, None]  # (B, S, h, L, P, 2), pixels
    out = value_BShD.new_zeros((batch * heads, depth, size))
    values = torch.split(value_BShD, [h * w for h, w in shapes], dim=1)
    for level, (height, width) in enumerate(shapes):
        maps = values[level].permute(0, 2, 3, 1).reshape(batch * heads, depth, height, width)
        extent = positions.new_tensor([width, height])
        grid = (2 * positions[:, :, :, level] + 1) / extent - 1  # -1…1 from edge to edge
        grid = grid.transpose(1, 2).flatten(0, 1).to(maps.dtype)  # (B·h, S, P, 2)
        sampled = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        level_weights = weights[:, :, :, level].transpose(1, 2).reshape(batch * heads, 1, size, -1)
        out = out + (sampled * level_weights).sum(-1)
    return out.view(batch, heads * depth, size).transpose(1, 2)


@constant(maxsize=16)
def pixel_origins(shapes: Shapes, device: torch.device) -> Tensor:
    """(S, L, 2) position (x, y) of each pixel's centre in pixel coordinates of each level, fp32."""
    centres = []
    for height, width in shapes:
        y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
        x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
        centres.append(torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=-1))
    extents = torch.tensor([[w, h] for h, w in shapes], dtype=torch.float32, device=device)
    return torch.cat(centres)[:, None] * extents - 0.5


@constant(maxsize=16)
def _origins_by_axis(shapes: Shapes, device: torch.device) -> Tensor:
    """(2, L, 1, S) the same, x first, with the pixels last."""
    return pixel_origins(shapes, device).permute(2, 1, 0)[:, :, None].contiguous()


@constant(maxsize=16)
def _level_geometry(shapes: Shapes, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(L, 1, 1) width, height and first row of each level; integers."""
    width, height, first = _geometry_table(shapes, device)[:, :, None, None]
    return width, height, first


@constant(maxsize=16)
def _geometry_table(shapes: Shapes, device: torch.device) -> Tensor:
    """(3, L) int32 width, height and first row of each level."""
    heights, widths = zip(*shapes, strict=True)
    firsts = [sum(h * w for h, w in shapes[:i]) for i in range(len(shapes))]
    return torch.tensor([widths, heights, firsts], dtype=torch.int32, device=device)
