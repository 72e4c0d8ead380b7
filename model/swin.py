"""Swin Transformer backbone (Liu et al., 2021): four maps at strides 4, 8, 16, 32, each with its own layer norm.

Unusual: every block pads its input to a multiple of the window and always shifts, also on maps smaller than one
window, as the segmentation networks were trained. The norms apply to the maps *before* patch merging.

Letters: B batch, H W pixels of a map, C channels, N pixels of a window, M windows of an image, h heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from panoptile.model.chunks import by_rows
from panoptile.model.constants import constant

STAGES = ("stage1", "stage2", "stage3", "stage4")


class SwinBackbone(nn.Module):
    """``forward(pixels (B, 3, H, W))`` returns 4 maps (B, C·2^i, ⌈H/4⌉/2^i, ⌈W/4⌉/2^i), odd sizes rounded up."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        _refuse_unsupported(config)
        width = int(config.get("embed_dim", 96))
        depths = list(config.get("depths", (2, 2, 6, 2)))
        self.channels: tuple[int, ...] = tuple(width * 2**i for i in range(len(depths)))
        self.embeddings = PatchEmbeddings(
            int(config.get("num_channels", 3)), width, int(config.get("patch_size", 4)), _dropout(config)
        )
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(_build_stages(config, depths, self.channels))
        self.hidden_states_norms = nn.ModuleDict(
            {name: nn.LayerNorm(c) for name, c in zip(STAGES, self.channels, strict=True)}
        )

    def forward(self, pixels_BCHW: Tensor) -> list[Tensor]:
        x = self.embeddings(pixels_BCHW)
        maps = []
        for stage, norm in zip(self.encoder.layers, self.hidden_states_norms.values(), strict=True):  # type: ignore[arg-type]
            for block in stage.blocks:
                x = block(x)
            maps.append(norm(x).permute(0, 3, 1, 2).contiguous())
            if stage.downsample is not None:
                x = stage.downsample(x)
        return maps


class PatchEmbeddings(nn.Module):
    """Patches of ``patch`` x ``patch`` pixels, projected and normed: (B, 3, H, W) to (B, H/patch, W/patch, C)."""

    def __init__(self, in_channels: int, width: int, patch: int, dropout: float) -> None:
        super().__init__()
        self.patch = patch
        self.patch_embeddings = nn.Module()
        self.patch_embeddings.projection = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        height, width = pixels_BCHW.shape[-2:]
        padded = F.pad(pixels_BCHW, (0, -width % self.patch, 0, -height % self.patch))
        x: Tensor = self.patch_embeddings.projection(padded)  # type: ignore[operator]
        embedded: Tensor = self.dropout(self.norm(x.permute(0, 2, 3, 1)))
        return embedded


class SwinStage(nn.Module):
    """Blocks at one resolution, then (but for the last stage) the merging to half of it."""

    def __init__(self, blocks: list[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample


class PatchMerging(nn.Module):
    """(B, H, W, C) to (B, ⌈H/2⌉, ⌈W/2⌉, 2C): each 2x2 patch concatenated, normed and projected."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        # The checkpoints' channel order is (row, col) = (0,0), (1,0), (0,1), (1,1).
        corners = [x[:, row::2, col::2] for col in (0, 1) for row in (0, 1)]
        merged: Tensor = self.reduction(self.norm(torch.cat(corners, dim=-1)))
        return merged


class SwinBlock(nn.Module):
    """(Shifted) window attention and a feed-forward network, both pre-normed residuals on (B, H, W, C)."""

    def __init__(
        self, width: int, heads: int, window: int, *, shift: int, drop_path: float, config: Mapping[str, Any]
    ) -> None:
        super().__init__()
        eps = float(config.get("layer_norm_eps", 1e-5))
        hidden = int(config.get("mlp_ratio", 4.0) * width)
        self.window, self.shift, self.drop_path = window, shift, drop_path
        self.layernorm_before = nn.LayerNorm(width, eps=eps)
        self.attention = WindowAttention(
            width,
            heads,
            window,
            bias=bool(config.get("qkv_bias", True)),
            dropout=float(config.get("attention_probs_dropout_prob", 0.0)),
        )
        self.layernorm_after = nn.LayerNorm(width, eps=eps)
        self.intermediate = nn.Module()
        self.intermediate.dense = nn.Linear(width, hidden)
        self.output = nn.Module()
        self.output.dense = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(_dropout(config))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        y = F.pad(self.layernorm_before(x), (0, 0, 0, -width % self.window, 0, -height % self.window))
        if self.shift:
            y = y.roll((-self.shift, -self.shift), dims=(1, 2))
        y = self.dropout(self.attention(y, self.shift))
        if self.shift:
            y = y.roll((self.shift, self.shift), dims=(1, 2))
        x = x + self._drop(y[:, :height, :width])
        return x + self._drop(by_rows(self._feed_forward, x))

    def _feed_forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.intermediate.dense(self.layernorm_after(x)))  # type: ignore[operator]
        y: Tensor = self.dropout(self.output.dense(hidden))  # type: ignore[operator]
        return y

    def _drop(self, branch: Tensor) -> Tensor:
        """Stochastic depth: drop the whole branch of some images, in training only."""
        if not self.training or self.drop_path == 0.0:
            return branch
        keep = 1.0 - self.drop_path
        mask = branch.new_empty((branch.shape[0], 1, 1, 1)).bernoulli_(keep)
        return branch * mask / keep


class WindowAttention(nn.Module):
    """Attention inside windows of ``window`` x ``window`` pixels with a learned relative position bias."""

    def __init__(self, width: int, heads: int, window: int, *, bias: bool, dropout: float) -> None:
        super().__init__()
        self.heads, self.window, self.dropout = heads, window, dropout
        inner = nn.Module()  # named "self" in the checkpoints
        inner.query = nn.Linear(width, width, bias=bias)
        inner.key = nn.Linear(width, width, bias=bias)
        inner.value = nn.Linear(width, width, bias=bias)
        inner.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.add_module("self", inner)
        self.output = nn.Module()
        self.output.dense = nn.Linear(width, width)

    def forward(self, x: Tensor, shift: int) -> Tensor:
        """``x`` (B, H, W, C), rolled by ``-shift``, H and W multiples of the window; returns the same shape."""
        batch, height, width, channels = x.shape
        w, rows, cols = self.window, x.shape[1] // self.window, x.shape[2] // self.window
        windows = (
            x.view(batch, rows, w, cols, w, channels).transpose(2, 3).reshape(batch, -1, w * w, channels)
        )
        inner: Any = self.get_submodule("self")
        # Windows join the heads' axis, so that one mask (1, M·h, N, N) serves the whole batch.
        q, k, v = (
            linear(windows)
            .view(batch, -1, w * w, self.heads, channels // self.heads)
            .transpose(2, 3)
            .flatten(1, 2)
            for linear in (inner.query, inner.key, inner.value)
        )
        bias = self._bias(rows, cols, shift, x.device).to(q.dtype)
        dropout = self.dropout if self.training else 0.0
        out: Tensor = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        out = out.view(batch, rows * cols, self.heads, w * w, -1).transpose(2, 3).flatten(3)
        out = self.output.dense(out).view(batch, rows, cols, w, w, channels)  # type: ignore[operator]
        return out.transpose(2, 3).reshape(batch, height, width, channels)

    def _bias(self, rows: int, cols: int, shift: int, device: torch.device) -> Tensor:
        """Position bias, plus -100 between regions that only the roll made neighbours: (1, M·h, N, N)."""
        table: Tensor = self.get_submodule("self").relative_position_bias_table  # type: ignore[assignment]
        n = self.window**2
        bias = table[relative_position_index(self.window, device)].view(n, n, self.heads).permute(2, 0, 1)
        if shift:
            mask = shift_mask(rows, cols, self.window, shift, device)
            return (bias + mask[:, None]).flatten(0, 1)[None]
        return bias[None].expand(rows * cols, -1, -1, -1).flatten(0, 1)[None]


@constant(maxsize=32)
def relative_position_index(window: int, device: torch.device) -> Tensor:
    """(N·N,) row of the bias table for each pair of pixels (query major) of one window."""
    line = torch.arange(window, device=device)
    row, col = (g.flatten() for g in torch.meshgrid(line, line, indexing="ij"))
    down = row[:, None] - row[None, :] + window - 1
    right = col[:, None] - col[None, :] + window - 1
    return (down * (2 * window - 1) + right).flatten()


@constant(maxsize=32)
def shift_mask(rows: int, cols: int, window: int, shift: int, device: torch.device) -> Tensor:
    """(M, N, N) 0 between pixels of one region of the rolled map, else -100 (finite, so no row is empty)."""

    def regions(count: int) -> Tensor:
        i = torch.arange(count * window, device=device)
        return (i >= count * window - window).int() + (i >= count * window - shift).int()

    region = regions(rows)[:, None] * 3 + regions(cols)[None, :]
    flat = region.view(rows, window, cols, window).transpose(1, 2).reshape(rows * cols, -1)
    return torch.where(flat[:, :, None] == flat[:, None, :], 0.0, -100.0)


def _build_stages(config: Mapping[str, Any], depths: list[int], channels: tuple[int, ...]) -> list[nn.Module]:
    window, heads = int(config.get("window_size", 7)), list(config.get("num_heads", (3, 6, 12, 24)))
    rate = float(config.get("drop_path_rate", 0.1))
    total, done, stages = max(sum(depths) - 1, 1), 0, []
    for i, (depth, width) in enumerate(zip(depths, channels, strict=True)):
        blocks: list[nn.Module] = [
            SwinBlock(
                width,
                heads[i],
                window,
                shift=window // 2 if j % 2 else 0,
                drop_path=rate * (done + j) / total,
                config=config,
            )
            for j in range(depth)
        ]
        done += depth
        stages.append(SwinStage(blocks, PatchMerging(width) if i < len(depths) - 1 else None))
    return list(stages)


def _dropout(config: Mapping[str, Any]) -> float:
    return float(config.get("hidden_dropout_prob", 0.0))


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    if config.get("use_absolute_embeddings"):
        raise ValueError("A Swin backbone with absolute position embeddings is not supported.")
    if config.get("hidden_act", "gelu") != "gelu":
        raise ValueError(f"A Swin backbone uses gelu, got hidden_act {config['hidden_act']!r}.")
    if len(config.get("depths", STAGES)) != len(STAGES) or len(config.get("num_heads", STAGES)) != len(
        STAGES
    ):
        raise ValueError(f"A Swin backbone has 4 stages, got depths {config.get('depths')}.")
    if list(config.get("out_features") or STAGES) != list(STAGES):
        raise ValueError(
            f"All four stages of the backbone are needed, got out_features {config['out_features']}."
        )
