"""Multi-scale deformable attention (Zhu et al., 2021) among the pixels of three feature maps.

Unusual: the sampling is one ``F.embedding_bag``: each output row of a head is a weighted sum of 48 value rows
(3 levels x 4 points x 4 bilinear corners). That is exact, differentiable, needs no compiled extension, and is several
times faster than ``grid_sample`` on a CPU. The plain version stays beside it as the reference.

Letters: B batch, S pixels of all levels, L levels, P points, h heads, D channels of a head, C = h·D.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shapes = tuple[tuple[int, int], ...]
"""(height, width) of each level, in the order in which the levels are flattened."""

_CHUNK = 2688
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
        query = x_BSC + position_SC
        # Positions in fp32 whatever the activations are: bf16 is off by up to 0.75 px on a 160-px level.
        offsets = self.sampling_offsets(query).float()
        offsets = offsets.view(batch, size, self.heads, self.levels, self.points, 2)
        weights = self.attention_weights(query).view(batch, size, self.heads, self.levels * self.points)
        weights = weights.softmax(-1).view(batch, size, self.heads, self.levels, self.points)
        projected: Tensor = self.output_proj(sample(value, offsets, weights, shapes).to(x_BSC.dtype))
        return projected


def sample(
    value_BShD: Tensor, offsets_xy: Tensor, weights: Tensor, shapes: Shapes, chunk: int = _CHUNK
) -> Tensor:
    """Weighted sum of bilinear samples around every pixel's own position.

    ``offsets_xy`` (B, S, h, L, P, 2) in pixels of the sampled level, x first; ``weights`` (B, S, h, L, P); outside a
    level is zero. Returns (B, S, h·D).
    """
    batch, size, heads, depth = value_BShD.shape
    table = value_BShD.reshape(batch * size * heads, depth)
    points, weights = offsets_xy.flatten(0, 1), weights.flatten(0, 1)
    origins = pixel_origins(shapes, value_BShD.device)
    rows = []
    for start in range(0, batch * size, chunk):
        part = slice(start, min(start + chunk, batch * size))
        index, corner_weights = _corners(points[part], weights[part], origins, start, shapes)
        rows.append(
            F.embedding_bag(index, table, mode="sum", per_sample_weights=corner_weights.to(table.dtype))
        )
    return torch.cat(rows).view(batch, size, heads * depth)


def _corners(
    offsets: Tensor, weights: Tensor, origins: Tensor, start: int, shapes: Shapes
) -> tuple[Tensor, Tensor]:
    """Rows of the value table and their weights for the queries ``start…``: both (n·h, L·P·4)."""
    count, heads = offsets.shape[:2]
    size, device = origins.shape[0], offsets.device
    query = torch.arange(start, start + count, dtype=torch.int32, device=device)
    base = query.div(size, rounding_mode="floor") * size  # first row of the query's image
    x, y = (offsets + origins[query - base][:, None, :, None]).unbind(-1)  # (n, h, L, P)
    width, height, first = _level_geometry(shapes, device)
    col, weight_x = _axis(x, width)
    row, weight_y = _axis(y, height)
    # Rows of the table are (pixel, head); what depends on one axis is settled before the axes meet, at half the size.
    head = torch.arange(heads, dtype=torch.int32, device=device)
    start_of_level = (base[:, None, None] + first) * heads + head[:, None]  # (n, h, L)
    index_y = row * (width * heads)[:, None, None] + start_of_level[..., None, None]
    index = index_y[..., :, None] + (col * heads)[..., None, :]
    corner = (weights[..., None] * weight_y)[..., :, None] * weight_x[..., None, :]
    return index.reshape(count * heads, -1), corner.reshape(count * heads, -1)


def _axis(position: Tensor, extent: Tensor) -> tuple[Tensor, Tensor]:
    """The two neighbours along one axis, clamped into the level, and their weights, 0 outside: both (…, 2)."""
    low = position.detach().floor()
    high_weight = position - low
    cells = torch.stack([low, low + 1], dim=-1)
    limit = (extent - 1)[:, None, None].to(cells.dtype)
    clamped = torch.minimum(cells.clamp(min=0), limit)
    weights = torch.stack([1 - high_weight, high_weight], dim=-1) * (clamped == cells)
    return clamped.int(), weights


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


@lru_cache(maxsize=16)
def pixel_origins(shapes: Shapes, device: torch.device) -> Tensor:
    """(S, L, 2) position (x, y) of each pixel's centre in pixel coordinates of each level, fp32."""
    with torch.inference_mode(False):
        centres = []
        for height, width in shapes:
            y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
            x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
            centres.append(torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=-1))
        extents = torch.tensor([[w, h] for h, w in shapes], dtype=torch.float32, device=device)
        return torch.cat(centres)[:, None] * extents - 0.5


@lru_cache(maxsize=16)
def _level_geometry(shapes: Shapes, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(L,) width, height and first row of each level; integers."""
    with torch.inference_mode(False):
        heights, widths = zip(*shapes, strict=True)
        firsts = [sum(h * w for h, w in shapes[:i]) for i in range(len(shapes))]
        width, height, first = torch.tensor([widths, heights, firsts], dtype=torch.int32, device=device)
        return width, height, first
