"""EfficientNet-Lite0: the small backbone of the built-in model, with ImageNet weights behind it.

Four maps at strides 4, 8, 16 and 32 with 24, 40, 112 and 320 channels. The published weights were trained in
TensorFlow, hence the "same" padding that puts the odd pixel at the bottom right and the batch-norm eps of 1e-3.
Batch statistics stay those of ImageNet: fine-tuning on batches of a few crops would spoil them.

Letters in shapes: ``B`` batch, ``C`` channels, ``H W`` pixels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH_NORM_EPS = 1e-3
PIXEL_MEAN, PIXEL_SCALE = 127.0, 128.0
"""The network was trained on ``(rgb - 127) / 128``."""


class _Stage(NamedTuple):
    expand: int
    channels: int
    blocks: int
    stride: int
    kernel: int


# Table 1 of "EfficientNet" (Tan and Le, 2019), B0; Lite0 drops squeeze-and-excitation and takes ReLU6.
_STAGES = (
    _Stage(expand=1, channels=16, blocks=1, stride=1, kernel=3),
    _Stage(expand=6, channels=24, blocks=2, stride=2, kernel=3),
    _Stage(expand=6, channels=40, blocks=2, stride=2, kernel=5),
    _Stage(expand=6, channels=80, blocks=3, stride=2, kernel=3),
    _Stage(expand=6, channels=112, blocks=3, stride=1, kernel=5),
    _Stage(expand=6, channels=192, blocks=4, stride=2, kernel=5),
    _Stage(expand=6, channels=320, blocks=1, stride=1, kernel=3),
)
_STEM_CHANNELS = 32
_TAPPED_STAGES = (1, 2, 4, 6)


class SameConv2d(nn.Conv2d):
    """A bias-free convolution whose output has ``ceil(size / stride)`` pixels a side, as TensorFlow pads it."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        # A stride of 1 pads alike on both sides, so the convolution can do it without a copy.
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(inputs, outputs, kernel, stride, padding=padding, groups=groups, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.stride[0] > 1:
            bottom_right = [
                max((-(-size // self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - size, 0)
                for size in x_BCHW.shape[-2:]
            ]
            (rows, cols) = bottom_right
            x_BCHW = F.pad(x_BCHW, (cols // 2, cols - cols // 2, rows // 2, rows - rows // 2))
        return super().forward(x_BCHW)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS)


class InvertedBottleneck(nn.Module):
    """Expand 1×1, depthwise k×k, project 1×1; added to its input where the shapes agree."""

    def __init__(self, inputs: int, stage: _Stage, stride: int) -> None:
        super().__init__()
        wide = inputs * stage.expand
        self.expand = nn.Sequential()
        if stage.expand != 1:
            self.expand = nn.Sequential(SameConv2d(inputs, wide, 1), _norm(wide), nn.ReLU6(inplace=True))
        self.depthwise = nn.Sequential(
            SameConv2d(wide, wide, stage.kernel, stride, groups=wide), _norm(wide), nn.ReLU6(inplace=True)
        )
        self.project = nn.Sequential(SameConv2d(wide, stage.channels, 1), _norm(stage.channels))
        self.has_shortcut = stride == 1 and inputs == stage.channels

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out_BCHW = self.project(self.depthwise(self.expand(x_BCHW)))
        return x_BCHW + out_BCHW if self.has_shortcut else out_BCHW  # type: ignore[no-any-return]


class EfficientNetLite0(nn.Module):
    """The backbone; ``config`` is the checkpoint's ``backbone_config`` and may hold ``model_type`` alone.

    Two options. ``coordinate_frequencies``, by default 0: with ``n``, each map gets ``4 n`` channels more that tell a
    pixel's place (see :func:`coordinate_channels`). Masks are products of query and pixel features, and without them
    look-alike neighbours are told apart only by what leaks in from the image's border; with them a short training
    separates objects much earlier (as CoordConv in SOLO: Wang et al., 2020). ``input_stride``, by default 1: with
    ``n``, images are averaged over n × n pixels first and all strides grow by that factor, for a network that was
    trained at a coarser resolution than it is given.
    """

    channels: tuple[int, int, int, int] = (24, 40, 112, 320)
    """Channels of the four maps, finest first."""
    strides: tuple[int, int, int, int] = (4, 8, 16, 32)

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        model_type = (config or {}).get("model_type", "efficientnet_lite0")
        if model_type != "efficientnet_lite0":
            raise ValueError(f"EfficientNetLite0 cannot build a backbone of {model_type = }.")
        self.stem = nn.Sequential(
            SameConv2d(3, _STEM_CHANNELS, 3, stride=2), _norm(_STEM_CHANNELS), nn.ReLU6(inplace=True)
        )
        self.stages = nn.ModuleList()
        self.coordinate_frequencies = int((config or {}).get("coordinate_frequencies", 0))
        self.input_stride = int((config or {}).get("input_stride", 1))
        if self.coordinate_frequencies < 0 or self.input_stride < 1:
            raise ValueError(
                f"Expected coordinate_frequencies >= 0 and input_stride >= 1, "
                f"got {self.coordinate_frequencies} and {self.input_stride}."
            )
        first, second, third, fourth = (s * self.input_stride for s in type(self).strides)
        self.strides = (first, second, third, fourth)
        fine, middle, coarse, coarsest = (c + 4 * self.coordinate_frequencies for c in type(self).channels)
        self.channels = (fine, middle, coarse, coarsest)
        inputs = _STEM_CHANNELS
        for stage in _STAGES:
            blocks = nn.Sequential()
            for i in range(stage.blocks):
                blocks.append(InvertedBottleneck(inputs, stage, stage.stride if i == 0 else 1))
                inputs = stage.channels
            self.stages.append(blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        self.train(self.training)

    def forward(self, pixels_BCHW: Tensor) -> list[Tensor]:
        """Maps at :attr:`strides` of ``(rgb - 127) / 128``, each ``(B, channels[i], ceil(H/s), ceil(W/s))``."""
        if self.input_stride > 1:
            pixels_BCHW = F.avg_pool2d(pixels_BCHW, self.input_stride, ceil_mode=True)
        x_BCHW = self.stem(pixels_BCHW)
        maps = []
        for i, stage in enumerate(self.stages):
            x_BCHW = stage(x_BCHW)
            if i in _TAPPED_STAGES:
                maps.append(x_BCHW)
        if self.coordinate_frequencies:
            maps = [self._with_coordinates(x_BCHW) for x_BCHW in maps]
        return maps

    def _with_coordinates(self, x_BCHW: Tensor) -> Tensor:
        batch, _, height, width = x_BCHW.shape
        place_CHW = coordinate_channels(height, width, self.coordinate_frequencies).to(x_BCHW)
        return torch.cat([x_BCHW, place_CHW[None].expand(batch, -1, -1, -1)], dim=1)

    def train(self, mode: bool = True) -> EfficientNetLite0:
        """Switch the training mode, but keep every batch norm on its running statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def coordinate_channels(height: int, width: int, frequencies: int) -> Tensor:
    """Sines and cosines of ``2^k π y`` and ``2^k π x``, k from 0, with y and x in 0…1: (4·frequencies, H, W)."""
    waves = torch.pi * 2.0 ** torch.arange(frequencies)[:, None]
    y_FH, x_FW = (waves * ((torch.arange(n) + 0.5) / n) for n in (height, width))
    rows = torch.cat([y_FH.sin(), y_FH.cos()])[:, :, None].expand(-1, -1, width)
    cols = torch.cat([x_FW.sin(), x_FW.cos()])[:, None, :].expand(-1, height, -1)
    return torch.cat([rows, cols])


_BLOCK_KEY = re.compile(r"_blocks\.(\d+)\._(expand_conv|bn0|depthwise_conv|bn1|project_conv|bn2)\.(.+)")
_BLOCK_PARTS = {
    "expand_conv": "expand.0",
    "bn0": "expand.1",
    "depthwise_conv": "depthwise.0",
    "bn1": "depthwise.1",
    "project_conv": "project.0",
    "bn2": "project.1",
}


def backbone_state_from_imagenet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the published classifier's state dict to this module's; its head (1280 features, 1000 classes) is dropped.

    Raises ``ValueError`` naming the keys that belong to no part of an EfficientNet-Lite0.
    """
    places = [(s, b) for s, stage in enumerate(_STAGES) for b in range(stage.blocks)]
    renamed: dict[str, Tensor] = {}
    foreign: list[str] = []
    for key, value in state.items():
        if key.startswith("_conv_stem."):
            renamed["stem.0." + key.removeprefix("_conv_stem.")] = value
        elif key.startswith("_bn0."):
            renamed["stem.1." + key.removeprefix("_bn0.")] = value
        elif (match := _BLOCK_KEY.fullmatch(key)) and int(match[1]) < len(places):
            s, b = places[int(match[1])]
            renamed[f"stages.{s}.{b}.{_BLOCK_PARTS[match[2]]}.{match[3]}"] = value
        elif not key.startswith(("_conv_head.", "_bn1.", "_fc.")):
            foreign.append(key)
    if foreign:
        raise ValueError(f"Not an EfficientNet-Lite0 state dict: unexpected keys {foreign[:5]}.")
    return renamed


def load_imagenet_backbone(path: str) -> EfficientNetLite0:
    """The backbone with the weights of a ``.pth`` file (tensors only: nothing in it is executed)."""
    backbone = EfficientNetLite0()
    backbone.load_state_dict(
        backbone_state_from_imagenet(torch.load(path, map_location="cpu", weights_only=True))
    )
    return backbone.eval()
