"""Pixel decoder: deformable attention over the maps at strides 32, 16 and 8, and an FPN step to stride 4.

Unusual: it returns the stride-4 map *before* the final 1x1 ``mask_projection``. That is linear, so the decoder applies
it to the few query embeddings instead of to every pixel (``MaskHead`` in ``decoder.py``), and no map of mask features
is built.

Letters: B batch, C channels, H W pixels, S pixels of the three levels, flattened 1/32, 1/16, 1/8.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from panoptile.model.chunks import by_rows
from panoptile.model.config import Mask2FormerConfig
from panoptile.model.msda import DeformableAttention, Shapes
from panoptile.model.positions import sine_positions

LEVELS = 3
POINTS = 4


class PixelDecoder(nn.Module):
    """``forward(maps)`` returns the stride-4 features and the three levels, all (B, feature_size, h, w)."""

    def __init__(self, config: Mask2FormerConfig, channels: tuple[int, ...]) -> None:
        super().__init__()
        width = config.feature_size
        self.input_projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, width, 1), nn.GroupNorm(32, width))
            for c in channels[: -LEVELS - 1 : -1]
        )
        self.level_embed = nn.Parameter(torch.empty(LEVELS, width))
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(DeformableLayer(config) for _ in range(config.encoder_layers))
        self.mask_projection = nn.Conv2d(width, config.mask_feature_size, 1)
        self.has_fpn = config.common_stride == 4
        if self.has_fpn:
            self.adapter_1 = nn.Sequential(
                nn.Conv2d(channels[0], width, 1, bias=False), nn.GroupNorm(32, width)
            )
            self.layer_1 = nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(32, width), nn.ReLU()
            )
        self._init_weights()

    def _init_weights(self) -> None:
        nn.init.normal_(self.level_embed)
        for module in self.children():
            for conv in module.modules():
                if isinstance(conv, nn.Conv2d):
                    # Xavier for the projections, He for the convolutions of the FPN, as in the original.
                    is_projection = module is self.input_projections
                    init = nn.init.xavier_uniform_ if is_projection else _init_he
                    init(conv.weight)
                    if conv.bias is not None:
                        nn.init.zeros_(conv.bias)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """``maps`` at strides 4, 8, 16, 32. Returns ((B, C, H/4, W/4), levels ordered 1/32, 1/16, 1/8)."""
        levels = [
            project(x) for project, x in zip(self.input_projections, maps[: -LEVELS - 1 : -1], strict=True)
        ]
        shapes: Shapes = tuple((x.shape[2], x.shape[3]) for x in levels)
        x_BSC = torch.cat([x.flatten(2).transpose(1, 2) for x in levels], dim=1)
        position_SC = self._positions(shapes, x_BSC)
        for layer in self.encoder.layers:  # type: ignore[union-attr]
            x_BSC = layer(x_BSC, position_SC, shapes)
        parts = torch.split(x_BSC, [h * w for h, w in shapes], dim=1)
        levels = [
            torch.unflatten(p.transpose(1, 2), 2, shape) for p, shape in zip(parts, shapes, strict=True)
        ]
        if not self.has_fpn:
            return levels[-1], levels
        lateral = self.adapter_1(maps[0])
        # Bilinear, though the FPN's authors used nearest: the weights were trained with it. Contiguous, because torch
        # resizes channels-last maps several times slower on a CPU.
        up = F.interpolate(
            levels[-1].contiguous(), size=lateral.shape[-2:], mode="bilinear", align_corners=False
        )
        return self.layer_1(lateral + up), levels

    def _positions(self, shapes: Shapes, like: Tensor) -> Tensor:
        """(S, C) sine positions plus the embedding of the pixel's level."""
        parts = [
            sine_positions(h, w, like.shape[-1], like.device).to(like.dtype) + self.level_embed[i]
            for i, (h, w) in enumerate(shapes)
        ]
        return torch.cat(parts)


class DeformableLayer(nn.Module):
    """Deformable attention and a feed-forward network, post-normed residuals on (B, S, C)."""

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__()
        width, hidden = config.feature_size, config.encoder_feedforward_dim
        self.self_attn = DeformableAttention(width, config.num_attention_heads, LEVELS, POINTS)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        for linear in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x_BSC: Tensor, position_SC: Tensor, shapes: Shapes) -> Tensor:
        attended = self.dropout(self.self_attn(x_BSC, position_SC, shapes))
        x_BSC = self.self_attn_layer_norm(x_BSC + attended)
        y: Tensor = self.final_layer_norm(x_BSC + by_rows(self._feed_forward, x_BSC))
        return y

    def _feed_forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.fc1(x), inplace=True)
        y: Tensor = self.dropout(self.fc2(self.dropout(hidden)))
        return y


def _init_he(weight: Tensor) -> Tensor:
    """Kaiming uniform with a = 1, which is what the original calls its "c2_xavier_fill"."""
    return nn.init.kaiming_uniform_(weight, a=1)
