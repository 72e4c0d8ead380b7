"""Reading checkpoint folders: layouts, strict reports, broken and hostile files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from panoptile.model.checkpoint import inspect_checkpoint, read_settings
from panoptile.model.label_tables import ADE, CITYSCAPES, COCO, MAPILLARY, TABLES, find_table
from panoptile.model.mask2former import Mask2FormerForUniversalSegmentation
from panoptile.model.weights import read_shapes, safetensors_header

LABELS = [{"name": n, "is_thing": n != "road"} for n in ("roof", "tree", "road", "car", "pool")]


@pytest.fixture
def folder(swin_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Swin checkpoint that a test may damage."""
    return Path(shutil.copytree(swin_folder, tmp_path / "checkpoint-panoptic"))


@pytest.fixture
def labels(tmp_path: Path) -> str:
    """A class table for its five classes."""
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(LABELS))
    return str(path)


def _rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def test_missing_extra_and_misshaped_keys_are_named(folder: Path, labels: str) -> None:
    """Loading and inspecting refuse the folder with the same sentence, which names each faulty key."""

    def damage(state: dict[str, torch.Tensor]) -> None:
        del state["class_predictor.bias"]
        state["model.surplus.weight"] = torch.zeros(1)
        state["model.transformer_module.level_embed.weight"] = torch.zeros(4, 32)

    _rewrite(folder, damage)
    with pytest.raises(ValueError, match=r"does not fit its config\.json") as loading:
        Mask2FormerForUniversalSegmentation.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"does not fit its config\.json") as inspecting:
        inspect_checkpoint(str(folder), labels=labels)
    assert str(loading.value) == str(inspecting.value)
    for part in (
        "1 missing keys: class_predictor.bias",
        "1 unexpected keys: model.surplus.weight",
        "model.transformer_module.level_embed.weight (4, 32) instead of (3, 32)",
    ):
        assert part in str(loading.value)


def test_harmless_extras_are_accepted(folder: Path) -> None:
    """Rebuilt buffers and the unused norm may be present or absent."""

    def vary(state: dict[str, torch.Tensor]) -> None:
        prefix = "model.pixel_level_module.encoder."
        del state[prefix + "swin.layernorm.weight"]
        del state["criterion.empty_weight"]
        state[prefix + "layernorm.weight"] = torch.zeros(128)
        state[prefix + "encoder.layers.0.blocks.0.attention.self.relative_position_index"] = torch.zeros(
            49, 49
        )

    _rewrite(folder, vary)
    Mask2FormerForUniversalSegmentation.from_pretrained(folder)


def test_the_in_memory_layout_loads_to_the_same_network(
    make_reference: Callable[..., Any], folder: Path, labels: str
) -> None:
    """A state dict under newer transformers' own names gives the same weights."""
    expected = Mask2FormerForUniversalSegmentation.from_pretrained(folder).state_dict()
    state = {k: v.clone().contiguous() for k, v in make_reference("swin7").state_dict().items()}
    save_file(state, folder / "model.safetensors")
    assert any(".swin.encoder." in k and ".mlp.fc1." in k for k in state), "transformers changed its names"
    got = Mask2FormerForUniversalSegmentation.from_pretrained(folder).state_dict()
    assert all(torch.equal(got[k], v) for k, v in expected.items())
    assert inspect_checkpoint(str(folder), labels=labels).layout == "in-memory"


def test_shards_and_bin_load_to_the_same_network(folder: Path) -> None:
    """An index with two shards, and a pickled state dict, give the same weights as the single file."""
    expected = Mask2FormerForUniversalSegmentation.from_pretrained(folder).state_dict()
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    binary = Mask2FormerForUniversalSegmentation.from_pretrained(folder).state_dict()
    names = {k: f"part-{i % 2}.safetensors" for i, k in enumerate(state)}
    for name in set(names.values()):
        save_file({k: v for k, v in state.items() if names[k] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    sharded = Mask2FormerForUniversalSegmentation.from_pretrained(folder).state_dict()
    for got in (binary, sharded):
        assert all(torch.equal(got[k], v) for k, v in expected.items())


def test_an_index_may_not_lead_out_of_the_folder(folder: Path) -> None:
    """Shard names with directories are refused."""
    os.rename(folder / "model.safetensors", folder.parent / "model.safetensors")
    index = {"weight_map": {"class_predictor.bias": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="not beside it"):
        read_shapes(folder)


class _Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def test_a_malicious_pickle_has_no_effect(folder: Path, tmp_path: Path) -> None:
    """A .bin that would run code is refused and runs nothing."""
    (folder / "model.safetensors").unlink()
    torch.save({"class_predictor.bias": _Payload(tmp_path / "owned")}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be read safely"):
        Mask2FormerForUniversalSegmentation.from_pretrained(folder)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("keep", [4, 1000, -1])
def test_truncated_weights_are_refused(folder: Path, keep: int) -> None:
    """A file cut short in its length, its header or its last byte is named as not whole."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        safetensors_header(path)


def test_a_folder_without_weights_says_what_was_looked_for(folder: Path) -> None:
    """No weights, no folder and no config each give one sentence with the path."""
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no model\.safetensors"):
        read_shapes(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="Cannot read the model configuration"):
        Mask2FormerForUniversalSegmentation.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"is not a folder with config\.json"):
        inspect_checkpoint(str(folder / "nowhere"))


def test_inspection_reports_without_reading_weights(folder: Path, labels: str) -> None:
    """Backbone, task, classes, queries, parameters and a digest that follows each file's content."""
    info = inspect_checkpoint(str(folder), labels=labels)
    network = Mask2FormerForUniversalSegmentation.from_pretrained(folder)
    assert (info.layout, info.backbone, info.task) == ("hub", "swin 16 (1, 2, 2, 1)", "panoptic")
    assert (info.num_queries, info.channels, len(info.classes)) == (10, 3, 5)
    assert info.parameters == sum(v.numel() for v in network.state_dict().values())
    assert info.classes.thing_label_ids == {0, 1, 3, 4}
    assert inspect_checkpoint(str(folder), labels=labels).sha256 == info.sha256
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0]}')
    assert inspect_checkpoint(str(folder), labels=labels).sha256 != info.sha256


def test_settings_need_no_torch(folder: Path, labels: str) -> None:
    """Task, classes and normalisation are read in a process that never imports torch."""
    code = (
        "import sys; from panoptile.model.checkpoint import read_settings; "
        f"read_settings({str(folder)!r}, labels={labels!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_an_unknown_split_asks_for_labels(folder: Path, labels: str) -> None:
    """A panoptic checkpoint with unknown classes asks for --labels; a table of another length is refused."""
    with pytest.raises(ValueError, match="which of its 5 classes are things: pass --labels"):
        read_settings(str(folder))
    Path(labels).write_text(json.dumps(LABELS[:3]))
    with pytest.raises(ValueError, match=r"has 5 classes but .*labels.json names 3: pass --labels"):
        read_settings(str(folder), labels=labels)


def test_tasks_decide_what_is_a_thing(folder: Path, labels: str) -> None:
    """Semantic: all stuff. Instance: things only. --fuse makes its classes stuff, and only they are fused."""
    assert read_settings(str(folder), task="semantic").classes.thing_label_ids == frozenset()
    assert read_settings(str(folder), task="instance").classes.thing_label_ids == {0, 1, 2, 3, 4}
    assert read_settings(str(folder), labels=labels).label_ids_to_fuse == {2}
    fused = read_settings(str(folder), labels=labels, fuse=["tree", "road"])
    assert fused.label_ids_to_fuse == {1, 2}
    assert fused.classes.thing_label_ids == {0, 3, 4}
    with pytest.raises(ValueError, match="No class is called 'shed'"):
        read_settings(str(folder), labels=labels, fuse=["shed"])


def test_the_task_comes_from_the_block_then_the_table_then_the_folder(folder: Path) -> None:
    """config.json's own block wins; else an instance table or the folder's name decides."""
    config = json.loads((folder / "config.json").read_text())
    config["panoptile"] = {"task": "semantic", "thing_label_ids": [0], "gsd_m": 0.2}
    (folder / "config.json").write_text(json.dumps(config))
    assert read_settings(str(folder)).task == "semantic"
    assert read_settings(str(folder), task="panoptic").classes.thing_label_ids == {0}
    del config["panoptile"]
    config["id2label"] = dict(enumerate(COCO.names[:80]))
    (folder / "config.json").write_text(json.dumps(config))
    assert read_settings(str(folder)).task == "instance"
    config["id2label"] = dict(enumerate(CITYSCAPES.names))
    (folder / "config.json").write_text(json.dumps(config))
    renamed = folder.rename(folder.parent / "my-cityscapes-semantic")
    assert read_settings(str(renamed)).task == "semantic"


def test_label_tables_have_the_known_sizes_and_are_recognised() -> None:
    """Counts of classes and things are the data sets'; synonyms do not hinder recognition, another order does."""
    sizes = {t.dataset: (len(t.names), len(t.thing_label_ids)) for t in (COCO, ADE, CITYSCAPES, MAPILLARY)}
    assert sizes == {"coco": (133, 80), "ade": (150, 100), "cityscapes": (19, 8), "mapillary": (65, 37)}
    assert all(len(set(t.names)) == len(t.names) for t in TABLES)
    assert COCO.thing_label_ids == set(range(80))
    assert CITYSCAPES.thing_label_ids == set(range(11, 19))
    varied = ["bed ", "windowpane", "bathtub, tub"]
    assert find_table([*ADE.names[:7], *varied[:2], *ADE.names[9:37], varied[2], *ADE.names[38:]]) == ADE
    assert find_table(COCO.names[::-1]) is None
    placeholders = [f"LABEL_{i}" for i in range(19)]
    assert find_table(placeholders, hint="mask2former-swin-tiny-cityscapes-panoptic") == CITYSCAPES
    assert find_table(placeholders, hint="cascade") is None
