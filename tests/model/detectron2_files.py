"""Writes a state dict of the hub layout under Detectron2's key names, for the tests of reading such files."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_ENCODER, _DECODER = "model.pixel_level_module.encoder.", "model.pixel_level_module.decoder."
_TRANSFORMER = "model.transformer_module."
_SWIN_BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "attention.output.dense": "attn.proj",
    "attention.self.relative_position_bias_table": "attn.relative_position_bias_table",
}
_DEFORMABLE = {
    "self_attn_layer_norm": "norm1",
    "final_layer_norm": "norm2",
    "fc1": "linear1",
    "fc2": "linear2",
}
_QUERY_LAYER = {
    "self_attn_layer_norm": ("self_attention", "norm"),
    "cross_attn_layer_norm": ("cross_attention", "norm"),
    "final_layer_norm": ("ffn", "norm"),
    "fc1": ("ffn", "linear1"),
    "fc2": ("ffn", "linear2"),
}
_HEADS = {
    "queries_features": "query_feat",
    "queries_embedder": "query_embed",
    "level_embed": "level_embed",
    "decoder.layernorm": "decoder_norm",
}


def detectron2_state(hub: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same numbers under Detectron2's names, with its stacked matrices."""
    state: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in hub.items():
        if key.endswith("num_batches_tracked") or ".swin.layernorm." in key:
            continue
        name = _name(key)
        if isinstance(name, tuple):
            parts.setdefault(name[0], {})[name[1]] = value
        else:
            state[name] = value
    stacked = {k: torch.cat([v[p] for p in ("q", "k", "v")]) for k, v in parts.items()}
    return state | stacked


def _name(key: str) -> str | tuple[str, str]:
    """Detectron2's key; for one of three stacked matrices also which of q, k and v it is."""
    if key.startswith(_ENCODER):
        rest = key.removeprefix(_ENCODER)
        return _resnet(rest) if rest.startswith(("embedder", "encoder.stages")) else _swin(rest)
    if key.startswith(_DECODER):
        return "sem_seg_head.pixel_decoder." + _pixel_decoder(key.removeprefix(_DECODER))
    if key.startswith(_TRANSFORMER):
        return _predictor(key.removeprefix(_TRANSFORMER))
    return key.replace("class_predictor", "sem_seg_head.predictor.class_embed")


def _swin(key: str) -> str | tuple[str, str]:
    if m := re.fullmatch(r"encoder\.layers\.(\d)\.blocks\.(\d+)\.(.*)", key):
        block, inner = f"backbone.layers.{m[1]}.blocks.{m[2]}.", m[3]
        if qkv := re.fullmatch(r"attention\.self\.(query|key|value)\.(weight|bias)", inner):
            return block + f"attn.qkv.{qkv[2]}", qkv[1][0]
        stem, dot, last = inner.rpartition(".")
        return block + (_SWIN_BLOCK[inner] if inner in _SWIN_BLOCK else _SWIN_BLOCK[stem] + dot + last)
    if m := re.fullmatch(r"hidden_states_norms\.stage(\d)\.(.*)", key):
        return f"backbone.norm{int(m[1]) - 1}.{m[2]}"
    key = key.replace("embeddings.patch_embeddings.projection", "patch_embed.proj")
    key = key.replace("embeddings.norm", "patch_embed.norm").replace("encoder.layers", "layers")
    return "backbone." + key


def _resnet(key: str) -> str:
    key = key.replace(".convolution.", ".").replace(".normalization.", ".norm.")
    key = key.replace("embedder.embedder.", "stem.conv1.")
    if m := re.fullmatch(r"encoder\.stages\.(\d)\.layers\.(\d+)\.(.*)", key):
        inner = re.sub(r"^layer\.(\d)", lambda n: f"conv{int(n[1]) + 1}", m[3])
        key = f"res{int(m[1]) + 2}.{m[2]}.{inner}"
    return "backbone." + key


def _pixel_decoder(key: str) -> str:
    if m := re.fullmatch(r"encoder\.layers\.(\d+)\.([^.]+)\.(.*)", key):
        return f"transformer.encoder.layers.{m[1]}.{_DEFORMABLE.get(m[2], m[2])}.{m[3]}"
    if m := re.fullmatch(r"(adapter_1|layer_1)\.([01])\.(.*)", key):
        return f"{m[1]}.{'norm.' if m[2] == '1' else ''}{m[3]}"
    return {"level_embed": "transformer.level_embed"}.get(key) or key.replace(
        "mask_projection", "mask_features"
    ).replace("input_projections", "input_proj")


def _predictor(key: str) -> str | tuple[str, str]:
    head = "sem_seg_head.predictor."
    if m := re.fullmatch(r"decoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)", key):
        return f"{head}transformer_self_attention_layers.{m[1]}.self_attn.in_proj_{m[3]}", m[2]
    if m := re.fullmatch(r"decoder\.layers\.(\d+)\.(self|cross)_attn\.(.*)", key):
        attention = "self_attn" if m[2] == "self" else "multihead_attn"
        return f"{head}transformer_{m[2]}_attention_layers.{m[1]}.{attention}.{m[3]}"
    if m := re.fullmatch(r"decoder\.layers\.(\d+)\.([^.]+)\.(.*)", key):
        kind, module = _QUERY_LAYER[m[2]]
        return f"{head}transformer_{kind}_layers.{m[1]}.{module}.{m[3]}"
    if m := re.fullmatch(r"decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.(.*)", key):
        return f"{head}mask_embed.layers.{m[1]}.{m[2]}"
    if m := re.fullmatch(r"input_projections\.(.*)", key):
        return f"{head}input_proj.{m[1]}"
    stem, _, last = key.rpartition(".")
    return f"{head}{_HEADS[stem]}.{last}"


def write_pickle(path: Path, state: Mapping[str, Tensor], **more: Any) -> Path:
    """A ``.pkl`` as Detectron2's model zoo has them."""
    arrays = {k: v.numpy() for k, v in state.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "third party", **more}))
    return path
