"""ResNet backbone (He et al., 2016), basic or bottleneck blocks: four maps at strides 4, 8, 16, 32.

Unusual: the stride of a bottleneck sits in its 3x3 convolution unless ``downsample_in_bottleneck`` (ResNet v1.5, and
what the public Mask2Former weights use).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

STAGES = ("stage1", "stage2", "stage3", "stage4")


class ResNetBackbone(nn.Module):
    """``forward(pixels (B, 3, H, W))`` returns 4 maps (B, hidden_sizes[i], H/4/2^i, W/4/2^i), sizes rounded up."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        _refuse_unsupported(config)
        stem = int(config.get("embedding_size", 64))
        self.channels: tuple[int, ...] = tuple(config.get("hidden_sizes", (256, 512, 1024, 2048)))
        depths = list(config.get("depths", (3, 4, 6, 3)))
        self.embedder = nn.Module()
        self.embedder.embedder = ConvNorm(int(config.get("num_channels", 3)), stem, kernel=7, stride=2)
        self.encoder = nn.Module()
        self.encoder.stages = nn.ModuleList()
        for i, (into, out) in enumerate(zip((stem, *self.channels[:-1]), self.channels, strict=True)):
            halves = i > 0 or bool(config.get("downsample_in_first_stage", False))
            self.encoder.stages.append(_stage(config, into, out, stride=2 if halves else 1, depth=depths[i]))
        self._init_weights()

    def forward(self, pixels_BCHW: Tensor) -> list[Tensor]:
        x = F.relu(self.embedder.embedder(pixels_BCHW))  # type: ignore[operator]
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        maps = []
        for stage in self.encoder.stages:  # type: ignore[union-attr]
            for block in stage.layers:
                x = block(x)
            maps.append(x)
        return maps

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class ConvNorm(nn.Module):
    """Convolution without bias, then batch norm; the caller adds the activation."""

    def __init__(self, into: int, out: int, *, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(into, out, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.normalization = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.normalization(self.convolution(x))
        return y


class ResidualBlock(nn.Module):
    """A chain of convolutions with ReLU between them, added to the (projected) input, then ReLU."""

    def __init__(self, convolutions: list[ConvNorm], shortcut: ConvNorm | None) -> None:
        super().__init__()
        self.layer = nn.ModuleList(convolutions)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i, convolution in enumerate(self.layer):
            y = convolution(y)
            if i < len(self.layer) - 1:
                y = F.relu(y)
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


def _stage(config: Mapping[str, Any], into: int, out: int, *, stride: int, depth: int) -> nn.Module:
    stage = nn.Module()
    stage.layers = nn.ModuleList(
        [_block(config, into if j == 0 else out, out, stride=stride if j == 0 else 1) for j in range(depth)]
    )
    return stage


def _block(config: Mapping[str, Any], into: int, out: int, *, stride: int) -> ResidualBlock:
    if config.get("layer_type", "bottleneck") == "basic":
        chain = [ConvNorm(into, out, kernel=3, stride=stride), ConvNorm(out, out, kernel=3)]
    else:
        early = bool(config.get("downsample_in_bottleneck", False))
        narrow = out // 4
        chain = [
            ConvNorm(into, narrow, kernel=1, stride=stride if early else 1),
            ConvNorm(narrow, narrow, kernel=3, stride=1 if early else stride),
            ConvNorm(narrow, out, kernel=1),
        ]
    projected = into != out or stride != 1
    return ResidualBlock(chain, ConvNorm(into, out, kernel=1, stride=stride) if projected else None)


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    if config.get("hidden_act", "relu") != "relu":
        raise ValueError(f"A ResNet backbone uses relu, got hidden_act {config['hidden_act']!r}.")
    if config.get("layer_type", "bottleneck") not in ("basic", "bottleneck"):
        raise ValueError(
            f"layer_type of a ResNet backbone is basic or bottleneck, got {config['layer_type']!r}."
        )
    if len(config.get("depths", STAGES)) != 4 or len(config.get("hidden_sizes", STAGES)) != 4:
        raise ValueError(f"A ResNet backbone has 4 stages, got depths {config.get('depths')}.")
    if list(config.get("out_features") or STAGES) != list(STAGES):
        raise ValueError(
            f"All four stages of the backbone are needed, got out_features {config['out_features']}."
        )
