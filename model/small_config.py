"""A small Mask2Former on a small pretrained backbone: what is trained where there is no checkpoint to start from."""

from __future__ import annotations

from typing import Any

from panoptile.model.classes import ClassTable
from panoptile.model.config import Mask2FormerConfig

COORDINATE_FREQUENCIES = 5
"""The finest wave has 8 periods a tile: neighbours of 32 px side by side get opposite signs."""


def small_config(classes: ClassTable, *, grid_side: int, input_stride: int = 1) -> Mask2FormerConfig:
    """EfficientNet-Lite0 under a narrow Mask2Former, with a query per place of a grid and one per stuff class."""
    stuff = [c.label_id for c in classes if not c.is_thing]
    backbone: dict[str, Any] = {
        "model_type": "efficientnet_lite0",
        "coordinate_frequencies": COORDINATE_FREQUENCIES,
        "input_stride": input_stride,
    }
    return Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=128,
        mask_feature_size=128,
        hidden_dim=128,
        encoder_feedforward_dim=512,
        dim_feedforward=512,
        encoder_layers=2,
        decoder_layers=4,
        num_attention_heads=4,
        num_queries=grid_side**2 + len(stuff),
        # A third to a half of the queries have an object in dense scenes; the usual 0.1 would leave many doubles.
        no_object_weight=0.5,
        train_num_points=1280,
        id2label={c.label_id: c.name for c in classes},
        panoptile={
            "task": "panoptic",
            "thing_label_ids": sorted(classes.thing_label_ids),
            "query_grid": grid_side,
            "score_threshold": 0.5,
            # Neighbouring queries still claim parts of one object; 0.8 would drop both of them.
            "overlap_threshold": 0.6,
        },
    )
