"""Sine position embedding of a feature map (Carion et al., 2020), computed once per shape."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from panoptile.model.constants import constant

_TEMPERATURE = 10_000.0


@constant(maxsize=32)
def sine_positions(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """(height·width, channels) embedding: the first half of the channels holds y, the second x; fp32 always."""
    half = channels // 2
    exponent = 2 * torch.arange(half, device=device).div(2, rounding_mode="floor") / half
    wavelengths = _TEMPERATURE**exponent
    y = _encode(height, wavelengths)[:, None].expand(-1, width, -1)
    x = _encode(width, wavelengths)[None].expand(height, -1, -1)
    return torch.cat([y, x], dim=-1).flatten(0, 1)


def _encode(extent: int, wavelengths: Tensor) -> Tensor:
    """(extent, half) sines (even channels) and cosines (odd) of the positions 1…extent, scaled to 2π."""
    position = torch.arange(1, extent + 1, dtype=torch.float32, device=wavelengths.device)
    angle = (position / (extent + 1e-6) * (2 * math.pi))[:, None] / wavelengths
    return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=-1).flatten(1)
