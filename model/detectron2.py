"""Key names of Detectron2's Mask2Former checkpoints (Swin and ResNet) in the names of the public hub layout.

Unusual: names are all that differs, but for two stacked matrices: Swin's ``qkv`` and the self attention's ``in_proj``
hold query, key and value on top of each other, so one stored key can stand for three of ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_ENCODER = "model.pixel_level_module.encoder."
_DECODER = "model.pixel_level_module.decoder."
_TRANSFORMER = "model.transformer_module."

_Rule = tuple[re.Pattern[str], str | tuple[str, ...]]


def _rules(*pairs: tuple[str, str | tuple[str, ...]]) -> tuple[_Rule, ...]:
    return tuple((re.compile(pattern), target) for pattern, target in pairs)


# A rule replaces the start of a key and keeps the rest. ``<n-2>`` is worked out by _renumbered.
_BLOCK, _BLOCK_IN = _ENCODER + r"encoder.layers.\1.blocks.\2.", r"backbone\.layers\.(\d+)\.blocks\.(\d+)\."
_SWIN = _rules(
    (r"backbone\.patch_embed\.proj\.", _ENCODER + "embeddings.patch_embeddings.projection."),
    (r"backbone\.patch_embed\.norm\.", _ENCODER + "embeddings.norm."),
    (_BLOCK_IN + r"norm1\.", _BLOCK + "layernorm_before."),
    (_BLOCK_IN + r"norm2\.", _BLOCK + "layernorm_after."),
    (_BLOCK_IN + r"mlp\.fc1\.", _BLOCK + "intermediate.dense."),
    (_BLOCK_IN + r"mlp\.fc2\.", _BLOCK + "output.dense."),
    (_BLOCK_IN + r"attn\.proj\.", _BLOCK + "attention.output.dense."),
    (
        _BLOCK_IN + r"attn\.qkv\.",
        tuple(_BLOCK + f"attention.self.{name}." for name in ("query", "key", "value")),
    ),
    (_BLOCK_IN + r"attn\.relative_position", _BLOCK + "attention.self.relative_position"),
    (r"backbone\.layers\.(\d+)\.downsample\.", _ENCODER + r"encoder.layers.\1.downsample."),
    (r"backbone\.norm(\d)\.", _ENCODER + r"hidden_states_norms.stage<\1+1>."),
)
_UNIT_IN, _UNIT = r"backbone\.res(\d)\.(\d+)\.", _ENCODER + r"encoder.stages.<\1-2>.layers.\2."
_RESNET = _rules(
    (r"backbone\.stem\.conv1\.norm\.", _ENCODER + "embedder.embedder.normalization."),
    (r"backbone\.stem\.conv1\.", _ENCODER + "embedder.embedder.convolution."),
    (_UNIT_IN + r"shortcut\.norm\.", _UNIT + "shortcut.normalization."),
    (_UNIT_IN + r"shortcut\.", _UNIT + "shortcut.convolution."),
    (_UNIT_IN + r"conv(\d)\.norm\.", _UNIT + r"layer.<\3-1>.normalization."),
    (_UNIT_IN + r"conv(\d)\.", _UNIT + r"layer.<\3-1>.convolution."),
)
_PIXEL, _DEFORMABLE = r"sem_seg_head\.pixel_decoder\.", _DECODER + r"encoder.layers.\1."
_DEFORMABLE_IN = _PIXEL + r"transformer\.encoder\.layers\.(\d+)\."
_PIXEL_DECODER = _rules(
    (_PIXEL + r"(adapter_1|layer_1)\.norm\.", _DECODER + r"\1.1."),
    (_PIXEL + r"(adapter_1|layer_1)\.", _DECODER + r"\1.0."),
    (_PIXEL + r"input_proj\.", _DECODER + "input_projections."),
    (_PIXEL + r"mask_features\.", _DECODER + "mask_projection."),
    (_PIXEL + r"transformer\.level_embed$", _DECODER + "level_embed"),
    (_DEFORMABLE_IN + r"linear(\d)\.", _DEFORMABLE + r"fc\2."),
    (_DEFORMABLE_IN + r"norm1\.", _DEFORMABLE + "self_attn_layer_norm."),
    (_DEFORMABLE_IN + r"norm2\.", _DEFORMABLE + "final_layer_norm."),
    (_DEFORMABLE_IN + r"self_attn\.", _DEFORMABLE + "self_attn."),
)
_PREDICTOR, _LAYER = r"sem_seg_head\.predictor\.", _TRANSFORMER + r"decoder.layers.\1."
_SELF_IN, _CROSS_IN, _FFN_IN = (
    _PREDICTOR + rf"transformer_{name}_layers\.(\d+)\."
    for name in ("self_attention", "cross_attention", "ffn")
)
_HEADS = _rules(
    (
        _SELF_IN + r"self_attn\.in_proj_(weight|bias)$",
        tuple(_LAYER + rf"self_attn.{name}_proj.\2" for name in ("q", "k", "v")),
    ),
    (_SELF_IN + r"self_attn\.", _LAYER + "self_attn."),
    (_SELF_IN + r"norm\.", _LAYER + "self_attn_layer_norm."),
    (_CROSS_IN + r"multihead_attn\.", _LAYER + "cross_attn."),
    (_CROSS_IN + r"norm\.", _LAYER + "cross_attn_layer_norm."),
    (_FFN_IN + r"linear(\d)\.", _LAYER + r"fc\2."),
    (_FFN_IN + r"norm\.", _LAYER + "final_layer_norm."),
    (_PREDICTOR + r"decoder_norm\.", _TRANSFORMER + "decoder.layernorm."),
    (
        _PREDICTOR + r"mask_embed\.layers\.(\d)\.",
        _TRANSFORMER + r"decoder.mask_predictor.mask_embedder.\1.0.",
    ),
    (_PREDICTOR + r"(query_feat|static_query)\.", _TRANSFORMER + "queries_features."),
    (_PREDICTOR + r"query_embed\.", _TRANSFORMER + "queries_embedder."),
    (_PREDICTOR + r"level_embed\.", _TRANSFORMER + "level_embed."),
    (_PREDICTOR + r"input_proj\.", _TRANSFORMER + "input_projections."),
    (_PREDICTOR + r"class_embed\.", "class_predictor."),
)
_RULES = (*_SWIN, *_RESNET, *_PIXEL_DECODER, *_HEADS)


def is_detectron2(keys: Iterable[str]) -> bool:
    """Whether the keys are Detectron2's."""
    return any(k.startswith(("sem_seg_head.", "backbone.")) for k in keys)


def hub_keys(key: str) -> tuple[str, ...]:
    """The key in the hub layout; three of them where the stored matrix is to be cut into three along its rows.

    A key that we do not know is returned as it is.
    """
    # Old files have the pixel decoder's modules directly under the head.
    key = re.sub(r"^sem_seg_head\.(?!predictor\.|pixel_decoder\.)", "sem_seg_head.pixel_decoder.", key)
    for pattern, target in _RULES:
        if found := pattern.match(key):
            targets = (target,) if isinstance(target, str) else target
            return tuple(_renumbered(found.expand(t)) + key[found.end() :] for t in targets)
    return (key,)


def _renumbered(key: str) -> str:
    """Detectron2 numbers stages and convolutions from another number: ``<3-2>`` becomes 1."""
    return re.sub(
        r"<(\d+)([+-])(\d)>",
        lambda m: str(int(m[1]) + int(m[3]) if m[2] == "+" else int(m[1]) - int(m[3])),
        key,
    )
