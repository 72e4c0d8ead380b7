"""``model convert`` and ``model info`` on checkpoints that other programs wrote."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.detectron2_files import detectron2_state, write_pickle
from typer.testing import CliRunner

from panoptile.jobs.cli import app
from panoptile.jobs.exits import Exit, JobError
from panoptile.model.config import Mask2FormerConfig
from panoptile.model.flops import forward_flops
from panoptile.model.mask2former import Mask2FormerForUniversalSegmentation

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def network() -> Mask2FormerForUniversalSegmentation:
    """A tiny ResNet network with the classes of Cityscapes."""
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "hidden_sizes": [16, 16, 32, 32], "depths": [1, 2, 1, 1]}
    config = Mask2FormerConfig(
        backbone_config={"model_type": "resnet", "layer_type": "bottleneck", **sizes},
        feature_size=32, mask_feature_size=16, hidden_dim=32, num_queries=5, encoder_layers=1, decoder_layers=3,
        num_attention_heads=4, encoder_feedforward_dim=24, dim_feedforward=40, num_labels=19,
    )  # fmt: skip
    return Mask2FormerForUniversalSegmentation(config).eval()


@pytest.fixture
def pickled(network: Mask2FormerForUniversalSegmentation, tmp_path: Path) -> Path:
    """Its weights as Detectron2 writes them."""
    return write_pickle(tmp_path / "model_final.pkl", detectron2_state(network.state_dict()))


@pytest.fixture
def run() -> Run:
    """A function: arguments of the command line to what it prints as JSON."""

    def run(*arguments: str | Path) -> dict[str, Any]:
        result = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
        fields: dict[str, Any] = json.loads(result.stdout)
        return fields

    return run


def test_a_pickle_becomes_a_folder_that_says_everything(
    network: Mask2FormerForUniversalSegmentation, pickled: Path, tmp_path: Path, run: Run
) -> None:
    """The folder has safetensors, names, task, things and normalisation; its logits are the source's."""
    fields = run("model", "convert", pickled, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert (fields["source_layout"], fields["layout"], fields["task"]) == ("detectron2", "hub", "panoptic")
    block = json.loads((tmp_path / "out" / "config.json").read_text())["panoptile"]
    assert block == {"task": "panoptic", "thing_label_ids": list(range(11, 19))}
    assert run("model", "info", tmp_path / "out")["classes"] == run("model", "info", pickled)["classes"]
    converted = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "out")
    assert converted.config.id2label[18] == "bicycle"
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        got, expected = converted(image), network(image)
    assert torch.equal(got.class_queries_logits, expected.class_queries_logits)
    assert torch.equal(got.masks_queries_logits, expected.masks_queries_logits)


def test_the_result_is_a_checkpoint_of_transformers(pickled: Path, tmp_path: Path, run: Run) -> None:
    """The folder's weights fit the reference implementation without a missing or an unexpected key."""
    transformers = pytest.importorskip("transformers")
    run("model", "convert", pickled, tmp_path / "out")
    _, report = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_task_and_labels_are_written_down(pickled: Path, tmp_path: Path, run: Run) -> None:
    """``--task`` and ``--labels`` settle what the source leaves open; later no option is needed."""
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps([{"name": f"kind {i}", "is_thing": i < 2} for i in range(19)]))
    run("model", "convert", pickled, tmp_path / "a", "--labels", labels)
    run("model", "convert", pickled, tmp_path / "b", "--task", "semantic")
    a, b = run("model", "info", tmp_path / "a"), run("model", "info", tmp_path / "b")
    assert [c["name"] for c in a["classes"] if c["is_thing"]] == ["kind 0", "kind 1"]
    assert (b["task"], any(c["is_thing"] for c in b["classes"])) == ("semantic", False)


def test_preprocessing_and_our_own_block_are_kept(
    network: Mask2FormerForUniversalSegmentation, tmp_path: Path, run: Run
) -> None:
    """Converting a folder keeps its normalisation, resolution and licence."""
    block = {"task": "instance", "thing_label_ids": [3], "gsd_m": 0.25, "license": "CC-BY-NC-4.0"}
    network.config = Mask2FormerConfig.from_dict(network.config.to_dict() | {"panoptile": block})
    network.save_pretrained(tmp_path / "in")
    preprocessing = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25], "size": {"height": 384}}
    (tmp_path / "in" / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    (tmp_path / "out").mkdir()
    fields = run("model", "convert", tmp_path / "in", tmp_path / "out")
    assert (fields["gsd_m"], fields["license"], fields["task"]) == (0.25, "CC-BY-NC-4.0", "instance")
    assert json.loads((tmp_path / "out" / "preprocessor_config.json").read_text()) == preprocessing


def test_a_target_that_is_in_use_is_refused(pickled: Path, tmp_path: Path, run: Run) -> None:
    """A folder with files, a file, and a folder in no folder: exit 2, and nothing is written."""
    for target in (tmp_path, pickled, tmp_path / "no" / "where"):
        before = sorted(tmp_path.iterdir())
        with pytest.raises(JobError) as error:
            run("model", "convert", pickled, target)
        assert error.value.code == Exit.INVALID
        assert sorted(tmp_path.iterdir()) == before


def test_a_broken_source_leaves_nothing(pickled: Path, tmp_path: Path, run: Run) -> None:
    """Half a pickle, a wrong table and a wrong task: exit 2, one sentence, no folder."""
    labels = tmp_path / "labels.json"
    labels.write_text('[{"name": "a", "is_thing": true}]')
    half = tmp_path / "half.pkl"
    half.write_bytes(pickled.read_bytes()[:2000])
    for source, *options in ((half,), (pickled, "--labels", labels), (pickled, "--task", "depth")):
        with pytest.raises(JobError) as error:
            run("model", "convert", source, tmp_path / "out", *options)
        assert error.value.code == Exit.INVALID
        assert "\n" not in str(error.value)
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]


def test_a_timm_backbone_is_renamed(tmp_path: Path, run: Run) -> None:
    """The converted folder names a plain ResNet, which its keys are those of."""
    small = {"feature_size": 32, "hidden_dim": 32, "num_queries": 4, "encoder_layers": 1, "decoder_layers": 2}
    timm = {"model_type": "timm_backbone", "backbone": "resnet18"}
    source = Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(backbone_config=timm, num_labels=19, **small)
    )
    source.save_pretrained(tmp_path / "in")
    run("model", "convert", tmp_path / "in", tmp_path / "out", "--task", "semantic")
    assert Mask2FormerConfig.from_pretrained(tmp_path / "out").backbone_type == "resnet"
    shutil.rmtree(tmp_path / "in")
    assert run("model", "info", tmp_path / "out")["backbone"] == "resnet basic (2, 2, 2, 2)"


def test_operations_grow_with_the_tile(run: Run, pickled: Path) -> None:
    """GFLOPs at a size are printed and grow with the pixels; a size that is none is refused."""
    small, large = (run("model", "info", pickled, "--size", str(size))["gflops"] for size in (256, 512))
    assert 3.5 < large / small < 4.1
    with pytest.raises(JobError, match="--size is between"):
        run("model", "info", pickled, "--size", "0")


def test_a_swin_tiny_takes_the_known_number_of_operations() -> None:
    """About 76 GFLOP at 384²: the reference's 78 without nine of its ten mask products and its mask projection."""
    backbone = {"model_type": "swin", "depths": [2, 2, 6, 2]}
    assert (
        72 < forward_flops(Mask2FormerConfig(backbone_config=backbone, num_labels=133), 384, 384) / 1e9 < 78
    )


def test_colours_of_the_class_table_are_kept(pickled: Path, tmp_path: Path, run: Run) -> None:
    """Colours of --labels are the result's own; where a row has none, it is the generated one."""
    rows: list[dict[str, object]] = [{"name": f"kind {i}", "is_thing": i < 2} for i in range(19)]
    rows[0]["color"], rows[7]["color"] = "#102030", "#ff0080"
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps(rows))
    run("model", "convert", pickled, tmp_path / "out", "--labels", labels)
    expected = [c["color"] for c in run("model", "info", pickled, "--labels", labels)["classes"]]
    assert (expected[0], expected[7]) == ("#102030", "#ff0080")
    assert [c["color"] for c in run("model", "info", tmp_path / "out")["classes"]] == expected
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["panoptile"]["colors"] == expected


def test_info_tells_the_numbers_that_it_can_compute_in(pickled: Path, run: Run) -> None:
    """Which precisions there are on this machine, and which one auto is; here, without a GPU, fp32."""
    told = run("model", "info", pickled)["precision"]
    assert "fp32 or bf16" in told
    if not torch.cuda.is_available():
        assert told.endswith("on this CPU; auto is fp32")
