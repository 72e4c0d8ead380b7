"""ResNet backbones under timm's names: keys of the weights, and the depths that a model's name stands for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

STAGES = ("stage1", "stage2", "stage3", "stage4")
"""All four, as configurations name them; other programs give the last one only, unless told."""
_ENCODER = "model.pixel_level_module.encoder."
_BACKBONE = _ENCODER + "_backbone."
_DEPTHS: dict[str, tuple[int, ...]] = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
_RULES = tuple(
    (re.compile(pattern), target)
    for pattern, target in (
        (r"^conv1\.", "embedder.embedder.convolution."),
        (r"^bn1\.", "embedder.embedder.normalization."),
        (r"^layer(\d)\.(\d+)\.conv(\d)\.", r"encoder.stages.<\1>.layers.\2.layer.<\3>.convolution."),
        (r"^layer(\d)\.(\d+)\.bn(\d)\.", r"encoder.stages.<\1>.layers.\2.layer.<\3>.normalization."),
        (r"^layer(\d)\.(\d+)\.downsample\.0\.", r"encoder.stages.<\1>.layers.\2.shortcut.convolution."),
        (r"^layer(\d)\.(\d+)\.downsample\.1\.", r"encoder.stages.<\1>.layers.\2.shortcut.normalization."),
    )
)


def has_timm_backbone(keys: Iterable[str]) -> bool:
    """Whether the backbone's keys are timm's."""
    return any(k.startswith(_BACKBONE) for k in keys)


def hub_key(key: str) -> str:
    """The key in the hub layout; a key that we do not know is returned as it is."""
    if not key.startswith(_BACKBONE):
        return key
    rest = key[len(_BACKBONE) :]
    for pattern, target in _RULES:
        if found := pattern.match(rest):
            # timm counts stages and convolutions from 1.
            counted = re.sub(r"<(\d)>", lambda m: str(int(m[1]) - 1), found.expand(target))
            return _ENCODER + counted + rest[found.end() :]
    return key


def resnet_config(timm_config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of our ResNet for a ``timm_backbone`` configuration; ``ValueError`` names one that is no ResNet."""
    name = str(timm_config.get("backbone", ""))
    depths = _DEPTHS.get(name.split(".")[0])
    if depths is None:
        raise ValueError(
            f"Of timm's backbones, {', '.join(_DEPTHS)} are supported, got {name or 'no name'!r}."
        )
    basic = name.split(".")[0] in ("resnet18", "resnet34")
    return {
        "model_type": "resnet",
        "layer_type": "basic" if basic else "bottleneck",
        "depths": list(depths),
        "hidden_sizes": [64, 128, 256, 512] if basic else [256, 512, 1024, 2048],
        "out_features": list(STAGES),
        "num_channels": int(timm_config.get("num_channels", 3)),
    }
