"""The network against transformers', on seeded random checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.reference_network import assert_close, run_reference, use_reference_masks

from panoptile.model.config import Mask2FormerConfig
from panoptile.model.mask2former import Mask2FormerForUniversalSegmentation

BACKBONES = ["swin7", "swin12", "resnet-basic", "resnet-bottleneck"]

CASES: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
    (backbone, shape, {}) for backbone in BACKBONES for shape in ((2, 3, 96, 128), (1, 3, 77, 101))
]
CASES += [
    ("swin7", (3, 3, 64, 64), {"pre_norm": True, "activation_function": "gelu"}),
    ("swin7", (1, 3, 130, 66), {"hidden_dim": 48, "mask_feature_size": 24, "decoder_layers": 8}),
    ("resnet-basic", (2, 3, 65, 97), {"feature_size": 64, "enforce_input_projection": True}),
    ("resnet-basic", (1, 3, 96, 96), {"decoder_layers": 1, "encoder_layers": 1, "num_queries": 3}),
]


@pytest.mark.parametrize(("backbone", "shape", "changes"), CASES)
def test_every_output_equals_the_reference(
    make_reference: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backbone: str,
    shape: tuple[int, ...],
    changes: dict[str, Any],
) -> None:
    """Logits, auxiliary logits and states of all layers agree, given the reference's attention masks.

    Our own masks are compared with the reference's first: they may differ only where the mask logit is within
    rounding of zero. Without the exchange one such bit would move all later layers.
    """
    reference = make_reference(backbone, **changes)
    reference.save_pretrained(tmp_path)
    ours = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path)
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    expected, normed, blocked = run_reference(reference, pixels)
    use_reference_masks(monkeypatch, ours, blocked)
    with torch.inference_mode():
        got = ours(pixels, output_hidden_states=True, output_auxiliary_logits=True)
    assert float(expected.masks_queries_logits.abs().mean()) > 0.1, (
        "the logits are too small to prove anything"
    )
    for name in (
        "class_queries_logits",
        "masks_queries_logits",
        "encoder_last_hidden_state",
        "pixel_decoder_last_hidden_state",
        "transformer_decoder_last_hidden_state",
        "encoder_hidden_states",
        "pixel_decoder_hidden_states",
        "transformer_decoder_hidden_states",
    ):
        assert_close(name, getattr(got, name), getattr(expected, name))
    use_reference_masks(monkeypatch, ours, blocked)
    with torch.inference_mode():
        states = ours.model(pixels, output_hidden_states=True)
    assert_close("normed states", states.transformer_decoder_intermediate_states, tuple(normed))
    assert len(got.auxiliary_logits) == len(expected.auxiliary_logits)
    for i, (a, b) in enumerate(zip(got.auxiliary_logits, expected.auxiliary_logits, strict=True)):
        for name in ("class_queries_logits", "masks_queries_logits"):
            assert_close(f"auxiliary {i} {name}", a[name], b[name])


@pytest.mark.parametrize("backbone", ["swin7", "resnet-bottleneck"])
def test_save_pretrained_is_read_by_transformers(
    make_reference: Callable[..., Any], tmp_path: Path, backbone: str
) -> None:
    """A folder that we save loads in transformers without missing or unexpected keys and gives the same logits."""
    transformers = pytest.importorskip("transformers")
    reference = make_reference(
        backbone, id2label={0: "roof", 1: "road"}, label2id={"roof": 0, "road": 1}, num_labels=2
    )
    reference.save_pretrained(tmp_path / "theirs")
    Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "theirs").save_pretrained(
        tmp_path / "ours"
    )
    loaded, info = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    unused_norm = {"model.pixel_level_module.encoder.swin.layernorm." + k for k in ("weight", "bias")}
    assert set(info["missing_keys"]) <= unused_norm
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert loaded.config.id2label == {0: "roof", 1: "road"}
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected, got = reference(pixel_values=pixels), loaded.eval()(pixel_values=pixels)
    assert torch.equal(got.masks_queries_logits, expected.masks_queries_logits)


def test_training_keeps_all_layers_and_reaches_every_weight(swin_folder: Path) -> None:
    """Each layer's logits are differentiable, and together they move every parameter."""
    network = Mask2FormerForUniversalSegmentation.from_pretrained(swin_folder).train()
    output = network(torch.randn(2, 3, 64, 96), output_auxiliary_logits=True)
    assert output.auxiliary_logits is not None
    assert len(output.auxiliary_logits) == network.config.decoder_layers - 1
    last = {"class": output.class_queries_logits, "mask": output.masks_queries_logits}
    logits = [t for layer in (*output.auxiliary_logits, last) for t in layer.values()]
    torch.autograd.backward(torch.stack([t.square().mean() for t in logits]).sum())
    without = [n for n, p in network.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert without == []


def test_a_fresh_network_is_initialised_as_in_the_paper() -> None:
    """Deformable offsets start on a ring and do not depend on the pixel; queries are unit-normal embeddings."""
    config = Mask2FormerConfig(
        backbone_config={"model_type": "resnet", "depths": [1, 1, 1, 1]}, encoder_layers=1
    )
    network = Mask2FormerForUniversalSegmentation(config)
    attention = network.model.pixel_level_module.decoder.encoder.layers[0].self_attn  # type: ignore[index,union-attr]
    ring = attention.sampling_offsets.bias.view(8, 3, 4, 2)
    assert torch.allclose(ring[0, :, 2], torch.tensor([3.0, 0.0]).expand(3, 2), atol=1e-6)
    assert torch.allclose(ring[1, 0, 3], torch.tensor([4.0, 4.0]), atol=1e-5)
    assert not attention.sampling_offsets.weight.any()
    assert 0.8 < float(network.model.transformer_module.queries_features.weight.detach().std()) < 1.2


def test_auxiliary_logits_are_built_only_on_request(swin_folder: Path) -> None:
    """Inference builds masks once; asking for the other layers' logits does not change the last one's."""
    network = Mask2FormerForUniversalSegmentation.from_pretrained(swin_folder)
    pixels = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        plain, full = network(pixels), network(pixels, output_auxiliary_logits=True)
    assert plain.auxiliary_logits is None
    assert plain.encoder_hidden_states is None
    assert torch.equal(plain.masks_queries_logits, full.masks_queries_logits)


def test_training_works_after_inference_mode(swin_folder: Path) -> None:
    """Constants cached during inference can be used with gradients later."""
    network = Mask2FormerForUniversalSegmentation.from_pretrained(swin_folder)
    pixels = torch.randn(1, 3, 160, 96)
    with torch.inference_mode():
        network(pixels)
    torch.autograd.backward(network.train()(pixels).masks_queries_logits.sum())


def test_wrong_channels_are_refused(swin_folder: Path) -> None:
    """Images of another number of channels give an error that names both."""
    network = Mask2FormerForUniversalSegmentation.from_pretrained(swin_folder)
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\), got \(1, 4, 64, 64\)"):
        network(torch.zeros(1, 4, 64, 64))


def test_config_survives_a_round_trip_and_notes_unknown_keys(caplog: pytest.LogCaptureFixture) -> None:
    """A configuration written and read is equal; keys of no meaning to us are ignored with a note."""
    config = Mask2FormerConfig(num_queries=7, id2label={0: "tree"}, panoptile={"task": "panoptic"})
    assert Mask2FormerConfig.from_dict(config.to_dict()) == config
    with caplog.at_level(logging.INFO):
        again = Mask2FormerConfig.from_dict(config.to_dict() | {"flux_capacitor": 1})
    assert again == config
    assert "flux_capacitor" in caplog.text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "detr"}, "mask2former"),
        ({"feature_size": 48}, "multiple of 32"),
        ({"hidden_dim": 250}, "num_attention_heads"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label"),
        ({"backbone_config": {"model_type": "vit"}}, "'vit'"),
        ({"backbone_config": {"model_type": "swin", "use_absolute_embeddings": True}}, "absolute"),
    ],
)
def test_impossible_configurations_are_refused(values: dict[str, Any], message: str) -> None:
    """What we cannot build is refused with the reason, not built differently."""
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        Mask2FormerForUniversalSegmentation(Mask2FormerConfig.from_dict(values))
