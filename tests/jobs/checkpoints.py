"""Checkpoints for tests: the real network, very small, with seeded random weights."""

from __future__ import annotations

from pathlib import Path

NAMES = {0: "house", 1: "tree", 2: "grass", 3: "road"}


def tiny_checkpoint(folder: Path, seed: int = 0) -> Path:
    """A Swin network of 12 queries and four classes (two things) in ``folder``."""
    import torch

    from panoptile.model.config import Mask2FormerConfig
    from panoptile.model.mask2former import Mask2FormerForUniversalSegmentation

    torch.manual_seed(seed)
    config = Mask2FormerConfig(
        backbone_config={
            "model_type": "swin",
            "embed_dim": 8,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 2, 2],
            "window_size": 4,
        },
        feature_size=32,
        mask_feature_size=16,
        hidden_dim=16,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=3,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=12,
        id2label=NAMES,
        panoptile={"task": "panoptic", "thing_label_ids": [0, 1]},
    )
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    return folder
