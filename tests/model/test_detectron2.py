"""Checkpoints under Detectron2's and timm's key names: the same logits, the configuration from the shapes."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model.detectron2_files import detectron2_state, write_pickle

from panoptile.model.checkpoint import inspect_checkpoint, read_settings
from panoptile.model.inferred_config import read_config
from panoptile.model.label_tables import TABLES
from panoptile.model.mask2former import Mask2FormerForUniversalSegmentation
from panoptile.model.segmenter import Segmenter

_TOLD_BY_SHAPES = {
    *(
        "feature_size",
        "mask_feature_size",
        "hidden_dim",
        "num_queries",
        "num_attention_heads",
        "common_stride",
    ),
    *("encoder_feedforward_dim", "encoder_layers", "decoder_layers", "dim_feedforward", "pre_norm"),
}
BACKBONES = ("swin7", "swin12", "resnet-bottleneck", "resnet-basic")


@pytest.fixture(scope="module")
def saved(
    make_reference: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """A function: backbone and class count to a folder that transformers saved."""

    def save(backbone: str, num_labels: int = 19) -> Path:
        folder = tmp_path_factory.mktemp("hub") / backbone
        make_reference(backbone, num_labels=num_labels, num_attention_heads=4).save_pretrained(folder)
        return folder

    return save


def _predictions(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    network = Mask2FormerForUniversalSegmentation.from_pretrained(path)
    torch.manual_seed(1)
    with torch.inference_mode():
        output = network(torch.randn(1, 3, 70, 97))
    return output.class_queries_logits, output.masks_queries_logits


def _state(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_pickle_gives_the_same_logits_as_the_folder(
    saved: Callable[..., Path], tmp_path: Path, backbone: str
) -> None:
    """Every weight finds its place: a ``.pkl`` alone, without any configuration, predicts bit for bit the same."""
    folder = saved(backbone)
    path = write_pickle(tmp_path / "model_final_94dc52.pkl", detectron2_state(_state(folder)))
    for got, expected in zip(_predictions(path), _predictions(folder), strict=True):
        assert torch.equal(got, expected), f"{(got - expected).abs().max()=}"


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_configuration_is_read_from_the_shapes(
    saved: Callable[..., Path], tmp_path: Path, backbone: str
) -> None:
    """Backbone kind, depths, heads, window, queries, layers and all widths are those of ``config.json``."""
    folder = saved(backbone)
    got = read_config(write_pickle(tmp_path / "a.pkl", detectron2_state(_state(folder))))
    expected = read_config(folder)
    for name, value in expected.to_dict().items():
        if name in _TOLD_BY_SHAPES:
            assert getattr(got, name) == value, name
    told = {"model_type", "embed_dim", "depths", "num_heads", "window_size", "hidden_sizes", "layer_type"}
    for name in told & set(expected.backbone_config):
        assert got.backbone_config[name] == expected.backbone_config[name], name


def test_a_training_checkpoint_in_pth_loads_too(saved: Callable[..., Path], tmp_path: Path) -> None:
    """A ``.pth`` with optimiser and iteration beside the model is read with ``weights_only``."""
    folder = saved("resnet-bottleneck")
    content = {"model": detectron2_state(_state(folder)), "iteration": 7, "optimizer": {"lr": 0.1}}
    torch.save(content, tmp_path / "model_final.pth")
    for got, expected in zip(_predictions(tmp_path / "model_final.pth"), _predictions(folder), strict=True):
        assert torch.equal(got, expected)


def test_old_files_and_buffers_are_understood(saved: Callable[..., Path], tmp_path: Path) -> None:
    """``static_query``, the pixel decoder directly under the head, and buffers that we rebuild."""
    folder = saved("swin7")
    state = detectron2_state(_state(folder))
    old = {
        k.replace("query_feat", "static_query").replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): v
        for k, v in state.items()
    }
    assert set(old) != set(state)
    old |= {
        "criterion.empty_weight": torch.ones(20),
        "pixel_mean": torch.zeros(3, 1, 1),
        "backbone.layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49, dtype=torch.long),
    }
    got = _predictions(write_pickle(tmp_path / "old.pkl", old))
    assert all(torch.equal(a, b) for a, b in zip(got, _predictions(folder), strict=True))


def test_a_folder_may_hold_detectron2_keys(saved: Callable[..., Path]) -> None:
    """The layout is told by the keys, whatever the file is called: safetensors with such keys load and say so."""
    folder = saved("swin7")
    expected = _predictions(folder)
    save_file(detectron2_state(_state(folder)), folder / "model.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(_predictions(folder), expected, strict=True))
    assert inspect_checkpoint(str(folder), task="semantic").layout == "detectron2"


def test_files_of_weights_use_the_configuration_beside_them(
    saved: Callable[..., Path], tmp_path: Path
) -> None:
    """``.safetensors`` and ``.bin`` load by their path; ``config.json`` beside them names their classes."""
    folder = saved("swin7")
    expected = _predictions(folder)
    torch.save(_state(folder), folder / "other.bin")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(i): f"class {i}" for i in range(19)}
    (folder / "config.json").write_text(json.dumps(config))
    for path in (folder / "model.safetensors", folder / "other.bin"):
        assert all(torch.equal(a, b) for a, b in zip(_predictions(path), expected, strict=True))
        assert read_config(path).id2label[3] == "class 3"
    (folder / "config.json").unlink()
    assert read_config(folder / "other.bin").id2label[3] == "wall"
    (tmp_path / "weights.txt").touch()
    with pytest.raises(ValueError, match=r"must end in one of \.safetensors, \.bin"):
        inspect_checkpoint(str(tmp_path / "weights.txt"))


@pytest.mark.parametrize("table", TABLES, ids=lambda t: f"{t.dataset}-{len(t.names)}")
def test_classes_and_things_come_from_the_number_of_classes(tmp_path: Path, table: Any) -> None:
    """Each data set's count of classes gives its names and its things; instances where all are things."""
    from panoptile.model.config import Mask2FormerConfig

    shape_of_backbone = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 8, 8]}
    config = Mask2FormerConfig(
        backbone_config=shape_of_backbone | {"depths": [1, 1, 1, 1], "layer_type": "basic"},
        feature_size=32, mask_feature_size=8, hidden_dim=8, num_queries=3, encoder_layers=1, decoder_layers=2,
        num_attention_heads=2, num_labels=len(table.names),
    )  # fmt: skip
    network = Mask2FormerForUniversalSegmentation(config)
    path = write_pickle(tmp_path / "m.pkl", detectron2_state(network.state_dict()))
    settings = read_settings(str(path))
    assert [c.name for c in settings.classes] == list(table.names)
    assert settings.classes.thing_label_ids == table.thing_label_ids
    assert settings.task == ("instance" if table.things_only else "panoptic")
    assert settings.normalisation.mean_pixel == (124, 116, 104)


def test_a_segmenter_runs_a_pickle(saved: Callable[..., Path], tmp_path: Path) -> None:
    """The pipeline's entry point takes the file itself, and gives the maps that the folder gives."""
    folder = saved("resnet-bottleneck")
    path = write_pickle(tmp_path / "m.pkl", detectron2_state(_state(folder)))
    tiles = np.random.default_rng(0).integers(0, 255, (1, 3, 64, 64), dtype=np.uint8)
    maps = [
        Segmenter.load(str(source), task="semantic", device="cpu").predict(tiles)[0]
        for source in (path, folder)
    ]
    assert np.array_equal(maps[0].labels, maps[1].labels)
    assert np.array_equal(maps[0].label_ids, maps[1].label_ids)


def test_missing_unknown_and_misshaped_keys_are_named(saved: Callable[..., Path], tmp_path: Path) -> None:
    """A missing weight, a key that no rule knows and a wrong shape are each named."""
    state = detectron2_state(_state(saved("swin7")))
    del state["backbone.norm2.weight"]
    state["sem_seg_head.predictor.reid.weight"] = torch.zeros(2)
    state["sem_seg_head.predictor.query_embed.weight"] = torch.zeros(10, 31)
    with pytest.raises(ValueError, match="does not fit") as error:
        inspect_checkpoint(str(write_pickle(tmp_path / "m.pkl", state)))
    for part in (
        "1 missing keys: model.pixel_level_module.encoder.hidden_states_norms.stage3.weight",
        "1 unexpected keys: sem_seg_head.predictor.reid.weight",
        "queries_embedder.weight (10, 31) instead of (10, 32)",
    ):
        assert part in str(error.value)


def test_a_backbone_alone_is_no_mask2former(tmp_path: Path) -> None:
    """The pickles that trainings start from are refused with a sentence that says what they are not."""
    path = write_pickle(tmp_path / "R-50.pkl", {"backbone.stem.conv1.weight": torch.zeros(64, 3, 7, 7)})
    with pytest.raises(
        ValueError, match=r"not those of a whole Mask2Former: .*queries_features.* is missing"
    ):
        inspect_checkpoint(str(path))


class _Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("suffix", ["pkl", "pth", "bin"])
def test_a_malicious_file_has_no_effect(tmp_path: Path, suffix: str) -> None:
    """Whatever the suffix: one clear error, and the code in the file does not run."""
    path = tmp_path / f"hostile.{suffix}"
    content = {"model": {"sem_seg_head.a": _Payload(tmp_path / "owned")}}
    if suffix == "pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    for load in (Segmenter.load, inspect_checkpoint, Mask2FormerForUniversalSegmentation.from_pretrained):
        with pytest.raises(ValueError, match="cannot be read safely"):
            load(str(path))
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["resnet50", "resnet18.a1_in1k"])
def test_a_timm_resnet_loads_to_the_same_logits(tmp_path: Path, name: str) -> None:
    """The keys and the configuration that timm's backbones leave give the network of our own names."""
    from panoptile.model.config import Mask2FormerConfig
    from panoptile.model.timm_resnet import resnet_config

    timm = {"model_type": "timm_backbone", "backbone": name, "use_pretrained_backbone": True}
    small = {"feature_size": 32, "hidden_dim": 32, "num_queries": 4, "encoder_layers": 1, "decoder_layers": 2}
    torch.manual_seed(0)
    network = Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(backbone_config=resnet_config(timm), **small)
    )
    network.save_pretrained(tmp_path / "ours")
    network.config.backbone_config = timm
    network.save_pretrained(tmp_path / "timm")
    state = {_timm_key(k): v for k, v in _state(tmp_path / "ours").items()}
    save_file(state, tmp_path / "timm" / "model.safetensors")
    got, expected = _predictions(tmp_path / "timm"), _predictions(tmp_path / "ours")
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert inspect_checkpoint(str(tmp_path / "timm"), task="semantic").layout == "timm"


def _timm_key(key: str) -> str:
    encoder = "model.pixel_level_module.encoder."
    if not key.startswith(encoder):
        return key
    rest = key.removeprefix(encoder)
    if m := re.fullmatch(r"encoder\.stages\.(\d)\.layers\.(\d+)\.(.*)", rest):
        inner = (
            m[3]
            .replace("shortcut.convolution", "downsample.0")
            .replace("shortcut.normalization", "downsample.1")
        )
        inner = re.sub(r"layer\.(\d)\.convolution", lambda n: f"conv{int(n[1]) + 1}", inner)
        inner = re.sub(r"layer\.(\d)\.normalization", lambda n: f"bn{int(n[1]) + 1}", inner)
        rest = f"layer{int(m[1]) + 1}.{m[2]}.{inner}"
    rest = rest.replace("embedder.embedder.convolution", "conv1").replace(
        "embedder.embedder.normalization", "bn1"
    )
    return f"{encoder}_backbone.{rest}"
