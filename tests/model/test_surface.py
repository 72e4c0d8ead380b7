"""The documented surface of the network: names, arguments, defaults, fields, loss, loading and saving."""

from __future__ import annotations

import copy
import inspect
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.reference_network import assert_close, run_reference, use_reference_masks
from torch import Tensor

import panoptile.model
from panoptile.model import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerForUniversalSegmentationOutput,
    Mask2FormerModel,
)

ReferenceMaker = Callable[..., Any]


def fixed_points(*shape: Any, device: torch.device | None = None) -> Tensor:
    """In place of ``torch.rand``: the same points for every mask, however many are sampled at once."""
    sizes = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
    generator = torch.Generator().manual_seed(sizes[1])
    return torch.empty(1, *sizes[1:]).uniform_(generator=generator).expand(sizes).contiguous()


def some_labels(shape: tuple[int, ...], labels: int, *, seed: int) -> dict[str, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    counts = [(3 + 2 * b) % 5 for b in range(shape[0])]
    return {
        "mask_labels": [(torch.rand(n, *shape[2:], generator=generator) > 0.6).float() for n in counts],
        "class_labels": [torch.randint(labels, (n,), generator=generator) for n in counts],
    }


def random_case(seed: int) -> tuple[str, tuple[int, ...], dict[str, Any]]:
    """A backbone, a shape of images and changes of the small configuration."""
    rng = random.Random(seed)
    backbone = rng.choice(["swin4", "swin5", "swin7", "swin12", "resnet-basic", "resnet-bottleneck"])
    shape = (rng.randint(1, 3), 3, rng.randint(33, 130), rng.randint(33, 130))
    changes = {
        "num_queries": rng.choice([1, 3, 7, 24]),
        "decoder_layers": rng.randint(1, 7),
        "encoder_layers": rng.randint(1, 3),
        "pre_norm": rng.random() < 0.5,
        "activation_function": rng.choice(["relu", "gelu"]),
        "hidden_dim": rng.choice([32, 48, 64]),
        "feature_size": rng.choice([32, 64]),
        "mask_feature_size": rng.choice([24, 32]),
        "enforce_input_projection": rng.random() < 0.5,
        "num_attention_heads": rng.choice([2, 4, 8]),
        "num_labels": rng.choice([1, 2, 11]),
        "train_num_points": rng.choice([50, 333]),
        "importance_sample_ratio": rng.choice([0.5, 0.75]),
        "class_weight": rng.choice([2.0, 0.7]),
        "no_object_weight": rng.choice([0.1, 0.4]),
    }
    return backbone, shape, changes


@pytest.mark.parametrize(
    "seed", [*range(8), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(8, 60))]
)
def test_random_configurations_give_the_references_fields(
    make_reference: ReferenceMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """For random backbones, windows, odd sizes, batches, queries and layers every field is the reference's.

    That is: the same names in the same order, the same shapes, values within 1e-4 (the loss: within 1e-5 of itself),
    attentions included, of both classes.
    """
    backbone, shape, changes = random_case(seed)
    reference = make_reference(backbone, seed=seed, **changes)
    reference.save_pretrained(tmp_path)
    ours = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path)
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    labels = some_labels(shape, changes["num_labels"], seed=seed)
    monkeypatch.setattr(torch, "rand", fixed_points)
    options = {"output_attentions": True, **labels}
    expected, normed, blocked = run_reference(reference, pixels, **options)
    use_reference_masks(monkeypatch, ours, blocked)
    with torch.no_grad():
        got = ours(pixels, output_hidden_states=True, output_auxiliary_logits=True, **options)
    assert list(got.keys()) == list(expected.keys())
    for name in expected:
        if name == "loss":
            assert got.loss.shape == expected.loss.shape
            assert float(got.loss) == pytest.approx(float(expected.loss), rel=1e-5)
        else:
            assert_close(name, got[name], expected[name])
    use_reference_masks(monkeypatch, ours, blocked)
    with torch.no_grad():
        states = ours.model(pixels, output_hidden_states=True, output_attentions=True)
        wanted = reference.model(pixel_values=pixels, output_hidden_states=True, output_attentions=True)
    assert list(states.keys()) == list(wanted.keys())
    for name in wanted:
        assert_close(name, states[name], wanted[name])
    assert_close("normed", states.transformer_decoder_intermediate_states, tuple(normed))


def test_by_default_the_same_fields_are_filled(make_reference: ReferenceMaker, tmp_path: Path) -> None:
    """Without requests both outputs have the fields of the reference, and as tuples the same length and order."""
    reference = make_reference("resnet-basic")
    reference.save_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for cls, theirs in (
        (Mask2FormerForUniversalSegmentation, reference),
        (Mask2FormerModel, reference.model),
    ):
        network = cls.from_pretrained(tmp_path)
        with torch.no_grad():
            expected, as_tuple = theirs(pixel_values=pixels), theirs(pixel_values=pixels, return_dict=False)
            assert list(network(pixels).keys()) == list(expected.keys())
            got = network(pixels, return_dict=False)
        assert isinstance(got, tuple)
        assert [type(v) for v in got] == [type(v) for v in as_tuple]
        assert [v.shape for v in got if isinstance(v, Tensor)] == [
            v.shape for v in as_tuple if isinstance(v, Tensor)
        ]


@pytest.mark.parametrize("name", ["Mask2FormerModel", "Mask2FormerForUniversalSegmentation"])
def test_arguments_have_the_references_names_order_and_defaults(name: str) -> None:
    """A call written for the reference means the same here."""
    transformers = pytest.importorskip("transformers")
    ours = inspect.signature(getattr(panoptile.model, name).forward).parameters.values()
    theirs = inspect.signature(getattr(transformers, name).forward).parameters.values()
    named = [(p.name, p.default) for p in theirs if p.kind is not inspect.Parameter.VAR_KEYWORD]
    assert [(p.name, p.default) for p in ours] == named


@pytest.mark.parametrize(
    "name",
    [
        "preprocess",
        "post_process_semantic_segmentation",
        "post_process_instance_segmentation",
        "post_process_panoptic_segmentation",
    ],
)
def test_processor_methods_begin_with_the_references_arguments(name: str) -> None:
    """Positional arguments are the documented ones; ours adds keywords only."""
    transformers = pytest.importorskip("transformers")
    ours = inspect.signature(getattr(panoptile.model.Mask2FormerImageProcessor, name)).parameters.values()
    theirs = inspect.signature(getattr(transformers.Mask2FormerImageProcessorPil, name)).parameters.values()
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    expected = [(p.name, p.default) for p in theirs if p.kind is positional]
    assert [(p.name, p.default) for p in ours if p.kind is positional] == expected


def test_configuration_fields_and_defaults_are_the_references() -> None:
    """Each documented field exists here with the same default, and aliases read and write the same number."""
    transformers = pytest.importorskip("transformers")
    ours, theirs = Mask2FormerConfig(), transformers.Mask2FormerConfig()
    own = {"backbone_config", "id2label", "panoptile"}
    for name in ours.to_dict().keys() - own - {"architectures", "model_type", "label2id"}:
        expected = getattr(theirs, name)
        assert getattr(ours, name) == (tuple(expected) if isinstance(expected, list) else expected), name
    for name in ("depths", "drop_path_rate", "embed_dim", "num_heads", "window_size"):
        ours_value, value = ours.backbone_config[name], getattr(theirs.backbone_config, name)
        assert ours_value == (list(value) if isinstance(value, tuple) else value)
    assert ours.hidden_size == theirs.hidden_size == 256
    assert ours.num_hidden_layers == theirs.num_hidden_layers == 10
    renamed = Mask2FormerConfig(hidden_size=64, num_hidden_layers=3, num_labels=4)
    assert (renamed.hidden_dim, renamed.decoder_layers, renamed.num_labels) == (64, 3, 4)
    assert Mask2FormerConfig(label2id={"roof": 0, "road": 1}).id2label == {0: "roof", 1: "road"}
    with pytest.raises(ValueError, match="num_labels is 3"):
        Mask2FormerConfig(num_labels=3, id2label={0: "roof"})


def test_a_backbone_may_be_a_configuration_of_transformers() -> None:
    """Their objects for the backbone are accepted where a dict is."""
    transformers = pytest.importorskip("transformers")
    backbone = transformers.SwinConfig(
        depths=[1, 1, 2, 1], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    config = Mask2FormerConfig(backbone_config=backbone, num_labels=2)
    assert config.backbone_type == "swin"
    assert config.backbone_config["depths"] == [1, 1, 2, 1]


def test_the_configuration_decides_where_the_call_does_not(swin_folder: Path) -> None:
    """Fields of the configuration are the defaults of the arguments of the same names."""
    network = Mask2FormerForUniversalSegmentation.from_pretrained(
        swin_folder, output_hidden_states=True, output_attentions=True, output_auxiliary_logits=True
    )
    with torch.inference_mode():
        output = network(torch.randn(1, 3, 64, 64))
        plain = network(
            torch.randn(1, 3, 64, 64),
            output_hidden_states=False,
            output_attentions=False,
            output_auxiliary_logits=False,
        )
    assert len(output.attentions) == network.config.decoder_layers - 1
    assert len(output.encoder_hidden_states) == 4
    assert len(output.auxiliary_logits) == network.config.decoder_layers - 1
    assert plain.attentions is plain.encoder_hidden_states is plain.auxiliary_logits is None


def test_the_loss_may_leave_earlier_layers_out(swin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without auxiliary losses only the last layer counts; labels alone do not fill ``auxiliary_logits``."""
    labels = some_labels((2, 3, 64, 64), 5, seed=0)
    monkeypatch.setattr(torch, "rand", fixed_points)
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    losses = {}
    for auxiliary in (True, False):
        network = Mask2FormerForUniversalSegmentation.from_pretrained(
            swin_folder, use_auxiliary_loss=auxiliary, train_num_points=100
        )
        output = network(pixels, **labels)
        assert output.auxiliary_logits is None
        losses[auxiliary] = float(output.loss.detach())
    assert 0 < losses[False] < losses[True]


def test_an_image_without_objects_has_a_loss(swin_folder: Path) -> None:
    """A batch without any object gives a finite loss with gradients."""
    network = Mask2FormerForUniversalSegmentation.from_pretrained(swin_folder, train_num_points=50).train()
    output = network(
        torch.randn(1, 3, 64, 64),
        mask_labels=[torch.zeros(0, 64, 64)],
        class_labels=[torch.zeros(0, dtype=torch.int64)],
    )
    output.loss.backward()
    gradient = network.class_predictor.weight.grad
    assert gradient is not None
    assert bool(gradient.isfinite().all())


def test_an_output_is_a_dict_a_tuple_and_an_object(swin_folder: Path) -> None:
    """Values are found by attribute, name, position and slice; unpacking, copying and pickling keep all of them."""
    network = Mask2FormerForUniversalSegmentation.from_pretrained(swin_folder)
    with torch.inference_mode():
        output = network(torch.randn(1, 3, 64, 64))
    assert output.loss is None
    assert "loss" not in output
    assert output[0] is output["class_queries_logits"] is output.class_queries_logits
    assert output[:2] == output.to_tuple()[:2]
    assert {**output}.keys() == dict(output).keys() == output.keys()
    # None of them may hand out a promise in place of the mask features.
    for values in ({**output}, dict(output), copy.copy(output), pickle.loads(pickle.dumps(output))):
        assert isinstance(values["pixel_decoder_last_hidden_state"], Tensor)
    output.loss = torch.tensor(1.0)
    assert output[0] is output.loss
    again = type(output)(dict(output))
    assert again.keys() == output.keys()
    with pytest.raises(AttributeError, match="no field lozz"):
        _ = output.lozz
    with pytest.raises(TypeError, match="no field"):
        Mask2FormerForUniversalSegmentationOutput(lozz=1)
    leaves, spec = torch.utils._pytree.tree_flatten(output)
    assert all(isinstance(leaf, Tensor) for leaf in leaves)
    assert torch.utils._pytree.tree_unflatten(leaves, spec).keys() == output.keys()


def test_what_nobody_reads_is_not_computed(swin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inference builds mask features and the masks of earlier layers only when they are looked at."""
    network = Mask2FormerForUniversalSegmentation.from_pretrained(swin_folder)
    projection = network.model.pixel_level_module.decoder.mask_projection
    calls: list[int] = []
    projection.register_forward_hook(lambda *_: calls.append(1))
    with torch.inference_mode():
        output = network(torch.randn(1, 3, 64, 64))
    assert calls == []
    assert output.pixel_decoder_last_hidden_state.shape == (1, 32, 16, 16)
    assert output.pixel_decoder_last_hidden_state.is_inference()
    assert calls == [1]
    trained = network(torch.randn(1, 3, 64, 64))
    with torch.no_grad():
        assert trained.pixel_decoder_last_hidden_state.requires_grad


def test_asking_for_attentions_changes_nothing_else(swin_folder: Path) -> None:
    """The logits are the same within rounding with and without them, and each row of weights sums to 1."""
    network = Mask2FormerForUniversalSegmentation.from_pretrained(swin_folder)
    pixels = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        plain = network(pixels, output_auxiliary_logits=True)
        asked = network(pixels, output_auxiliary_logits=True, output_attentions=True)
    first = "auxiliary logits 1", plain.auxiliary_logits[1], asked.auxiliary_logits[1]
    assert_close(*first)  # before any bit of an attention mask can have flipped
    assert plain.attentions is None
    for weights in asked.attentions:
        assert weights.shape == (2, 4, 10, 10)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 10))


def test_new_labels_keep_what_fits(swin_folder: Path) -> None:
    """For fine-tuning: other classes are an error that names the keys, or fresh class weights on request."""
    labels = {0: "roof", 1: "road", 2: "tree"}
    with pytest.raises(ValueError, match=r"class_predictor\.weight"):
        Mask2FormerForUniversalSegmentation.from_pretrained(swin_folder, id2label=labels)
    old = Mask2FormerForUniversalSegmentation.from_pretrained(swin_folder)
    new = Mask2FormerForUniversalSegmentation.from_pretrained(
        swin_folder,
        id2label=labels,
        label2id={v: k for k, v in labels.items()},
        ignore_mismatched_sizes=True,
    )
    assert new.class_predictor.out_features == 4
    assert new.config.label2id == {"roof": 0, "road": 1, "tree": 2}
    for name, value in old.state_dict().items():
        if not name.startswith("class_predictor"):
            assert torch.equal(new.state_dict()[name], value), name


def test_a_type_can_be_asked_for(swin_folder: Path) -> None:
    """Weights are fp32 unless a type is named; ``device`` and ``dtype`` say what they are."""
    network = Mask2FormerForUniversalSegmentation.from_pretrained(swin_folder, dtype=torch.bfloat16)
    assert (network.dtype, network.device) == (torch.bfloat16, torch.device("cpu"))
    assert Mask2FormerForUniversalSegmentation.from_pretrained(swin_folder).dtype == torch.float32


def test_the_model_without_heads_goes_to_transformers_and_back(
    make_reference: ReferenceMaker, tmp_path: Path
) -> None:
    """A base model saved by either library loads in both with the same weights."""
    transformers = pytest.importorskip("transformers")
    reference = make_reference("swin7")
    reference.save_pretrained(tmp_path / "whole")
    base = Mask2FormerModel.from_pretrained(tmp_path / "whole")
    base.save_pretrained(tmp_path / "base")
    theirs, info = transformers.Mask2FormerModel.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert not [k for k in info["missing_keys"] if "swin.layernorm" not in k]
    assert not info["unexpected_keys"]
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    again = Mask2FormerModel.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        expected, got = theirs.eval()(pixel_values=pixels), again(pixels)
    assert_close("maps", got.encoder_last_hidden_state, expected.encoder_last_hidden_state)
    reference.model.save_pretrained(tmp_path / "theirs")
    loaded = Mask2FormerModel.from_pretrained(tmp_path / "theirs").state_dict()
    assert loaded.keys() == base.state_dict().keys()
    assert all(torch.equal(loaded[k], v) for k, v in base.state_dict().items())


def test_a_hub_model_is_fetched_once_and_its_absence_explained(
    swin_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An id is resolved through the hub's client, with its options; offline the error says what to do."""
    import huggingface_hub

    asked: list[tuple[Any, ...]] = []

    def snapshot(repo_id: str, *, allow_patterns: list[str], **options: Any) -> str:
        asked.append((repo_id, tuple(allow_patterns), options["revision"]))
        return str(swin_folder)

    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub, "snapshot_download", snapshot)
        config = Mask2FormerConfig.from_pretrained("some/model", num_queries=10)
        network = Mask2FormerForUniversalSegmentation.from_pretrained("some/model", revision="v2")
    assert config.num_queries == network.config.num_queries == 10
    assert asked[0] == ("some/model", ("config.json",), None)
    assert asked[1][2] == "v2"
    assert not any(pattern.endswith(".bin") for pattern in asked[1][1])
    with pytest.raises(ValueError, match="neither in the local cache nor within reach"):
        Mask2FormerForUniversalSegmentation.from_pretrained(
            "some/model", cache_dir=tmp_path, local_files_only=True
        )
    with pytest.raises(ValueError, match="no id of a model"):
        Mask2FormerForUniversalSegmentation.from_pretrained("../no/such/folder")


def test_importing_the_package_is_light_and_names_are_complete() -> None:
    """``import panoptile.model`` brings in no torch; each public name is found on first use, others are refused."""
    code = "import sys, panoptile.model as m; assert 'torch' not in sys.modules; print(len(dir(m)))"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
    for name in panoptile.model.__all__:
        assert getattr(panoptile.model, name).__name__ == name
    assert sorted(panoptile.model._MODULE_OF) == panoptile.model.__all__
    with pytest.raises(AttributeError, match="Mask3Former"):
        _ = panoptile.model.Mask3Former
