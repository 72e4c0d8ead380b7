"""The configuration of a checkpoint: its ``config.json``, or else what the shapes of its weights tell.

Unusual: Detectron2 keeps the architecture in a training file of its own, which few people keep beside the weights. All
sizes can be read from the shapes; what cannot (pre-norm, activation, strides) is the same in all public checkpoints.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from panoptile.model.config import CONFIG_NAME, Mask2FormerConfig
from panoptile.model.label_tables import TABLES
from panoptile.model.timm_resnet import STAGES
from panoptile.model.weights import Shape, canonical_shapes, read_shapes

log = logging.getLogger(__name__)

_ENCODER = "model.pixel_level_module.encoder."
_DECODER = "model.pixel_level_module.decoder."
_TRANSFORMER = "model.transformer_module."
_LEVELS_POINTS_XY = 3 * 4 * 2
"""Numbers that a head of the deformable attention predicts per pixel: levels x points x (x, y)."""


def companion(path: str | Path, name: str) -> Path | None:
    """The file ``name`` that belongs to a checkpoint, or none: inside a folder, or beside a file of weights.

    Beside a ``.pkl`` nothing counts: such files are collected in one folder, and none of them has companions.
    """
    source = Path(path)
    if source.is_file() and source.suffix == ".pkl":
        return None
    found = (source if source.is_dir() else source.parent) / name
    return found if found.is_file() else None


def read_config(path: str | Path, **changes: Any) -> Mask2FormerConfig:
    """Of a checkpoint folder or a file of weights; ``changes`` override fields. ``ValueError`` if there is none."""
    if Path(path).is_dir():
        return Mask2FormerConfig.from_json_file(Path(path) / CONFIG_NAME, **changes)
    beside = companion(path, CONFIG_NAME)
    if beside is not None:
        return Mask2FormerConfig.from_json_file(beside, **changes)
    log.info("The configuration of %s is read from the shapes of its weights.", path)
    values = inferred_values(canonical_shapes(read_shapes(path)), str(path))
    if {"num_labels", "id2label", "label2id"} & set(changes):
        del values["id2label"]
    return Mask2FormerConfig(**values | changes)


def inferred_values(shapes: Mapping[str, Shape], where: str) -> dict[str, Any]:
    """Fields of the configuration from the shapes under the hub layout's keys. ``ValueError`` if some are missing."""
    try:
        queries, hidden = shapes[_TRANSFORMER + "queries_features.weight"]
        heads = shapes[_DECODER + "encoder.layers.0.self_attn.sampling_offsets.bias"][0] // _LEVELS_POINTS_XY
        values = {
            "backbone_config": _swin(shapes) or _resnet(shapes),
            "feature_size": shapes[_DECODER + "input_projections.0.0.weight"][0],
            "mask_feature_size": shapes[_DECODER + "mask_projection.weight"][0],
            "hidden_dim": hidden,
            "num_queries": queries,
            "num_attention_heads": heads,
            "encoder_layers": _count(shapes, _DECODER + "encoder.layers."),
            "encoder_feedforward_dim": shapes[_DECODER + "encoder.layers.0.fc1.weight"][0],
            "decoder_layers": _count(shapes, _TRANSFORMER + "decoder.layers.") + 1,
            "dim_feedforward": shapes[_TRANSFORMER + "decoder.layers.0.fc1.weight"][0],
            "enforce_input_projection": _TRANSFORMER + "input_projections.0.weight" in shapes,
            "common_stride": 4 if _DECODER + "adapter_1.0.weight" in shapes else 8,
            "id2label": _class_names(shapes["class_predictor.weight"][0] - 1),
        }
    except (KeyError, ValueError, IndexError) as e:
        raise ValueError(
            f"The weights {where} are not those of a whole Mask2Former: {e} is missing or of another shape. "
            "Pass a trained checkpoint (not a backbone alone), or put its config.json beside it."
        ) from e
    return values


def _swin(shapes: Mapping[str, Shape]) -> dict[str, Any] | None:
    patches = shapes.get(_ENCODER + "embeddings.patch_embeddings.projection.weight")
    if patches is None:
        return None
    stages = range(_count(shapes, _ENCODER + "encoder.layers."))
    first = _ENCODER + "encoder.layers.0.blocks.0."
    tables = [
        shapes[f"{_ENCODER}encoder.layers.{i}.blocks.0.attention.self.relative_position_bias_table"]
        for i in stages
    ]
    return {
        "model_type": "swin",
        "num_channels": patches[1],
        "patch_size": patches[2],
        "embed_dim": patches[0],
        "depths": [_count(shapes, f"{_ENCODER}encoder.layers.{i}.blocks.") for i in stages],
        "num_heads": [heads for _, heads in tables],
        "window_size": (math.isqrt(tables[0][0]) + 1) // 2,  # the table has (2·window - 1)² rows
        "mlp_ratio": shapes[first + "intermediate.dense.weight"][0] / patches[0],
        "qkv_bias": first + "attention.self.query.bias" in shapes,
    }


def _resnet(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    stem = shapes[_ENCODER + "embedder.embedder.convolution.weight"]
    stages = range(_count(shapes, _ENCODER + "encoder.stages."))
    last = _count(shapes, _ENCODER + "encoder.stages.0.layers.0.layer.") - 1
    return {
        "model_type": "resnet",
        "num_channels": stem[1],
        "embedding_size": stem[0],
        "layer_type": "bottleneck" if last == 2 else "basic",
        "out_features": list(STAGES),
        "depths": [_count(shapes, f"{_ENCODER}encoder.stages.{i}.layers.") for i in stages],
        "hidden_sizes": [
            shapes[f"{_ENCODER}encoder.stages.{i}.layers.0.layer.{last}.convolution.weight"][0]
            for i in stages
        ],
    }


def _count(shapes: Mapping[str, Shape], prefix: str) -> int:
    """How many numbered modules there are under a prefix."""
    numbers = {m[1] for k in shapes if (m := re.match(re.escape(prefix) + r"(\d+)\.", k))}
    return len(numbers)


def _class_names(count: int) -> dict[int, str]:
    """The names of the data set with that many classes (no two have the same number), else placeholders."""
    table = next((t for t in TABLES if len(t.names) == count), None)
    if table is None:
        return {i: f"LABEL_{i}" for i in range(count)}
    log.info("Its %d classes are taken to be those of %s.", count, table.dataset)
    return dict(enumerate(table.names))
