"""Tiny seeded checkpoints, saved by transformers, that the tests of the network share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

SMALL: dict[str, Any] = {
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 48,
    "encoder_layers": 2,
    "decoder_layers": 5,
    "num_attention_heads": 4,
    "dim_feedforward": 40,
    "num_queries": 10,
    "num_labels": 5,
}
STAGES = ["stage1", "stage2", "stage3", "stage4"]

ReferenceMaker = Callable[..., Any]


def _backbone(kind: str) -> Any:
    transformers = pytest.importorskip("transformers")
    if kind.startswith("swin"):
        window = int(kind.removeprefix("swin"))
        return transformers.SwinConfig(
            embed_dim=16, depths=[1, 2, 2, 1], num_heads=[1, 2, 4, 8], window_size=window, out_features=STAGES
        )
    return transformers.ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 24, 32, 48],
        depths=[1, 2, 1, 1],
        layer_type=kind.removeprefix("resnet-"),
        out_features=STAGES,
    )


@pytest.fixture(scope="session")
def make_reference() -> ReferenceMaker:
    """A function: backbone ("swin7", "swin12", "resnet-basic", "resnet-bottleneck") and config changes to a model."""
    transformers = pytest.importorskip("transformers")

    def make(backbone: str, *, seed: int = 0, **changes: Any) -> Any:
        config = transformers.Mask2FormerConfig(backbone_config=_backbone(backbone), **(SMALL | changes))
        torch.manual_seed(seed)
        model = transformers.Mask2FormerForUniversalSegmentation(config).eval()
        _randomise(model)
        return model

    return make


def _randomise(model: torch.nn.Module) -> None:
    """Move every number off its initial value: zeros and ones would hide a forgotten bias, norm or table."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
            elif name.endswith("running_mean"):
                buffer.normal_(std=0.3)


@pytest.fixture(scope="session")
def swin_folder(make_reference: ReferenceMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved Swin checkpoint that tests may read but not change."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-swin-panoptic"
    make_reference("swin7").save_pretrained(folder)
    return folder
