"""The grid start: what the network predicts before its first training step."""

from __future__ import annotations

import pytest
import torch

from panoptile.model.config import Mask2FormerConfig
from panoptile.model.grid_start import grid_places, start_as_grid
from panoptile.model.mask2former import Mask2FormerForUniversalSegmentation

SIDE = 4


def some_network(coordinate_frequencies: int = 3) -> Mask2FormerForUniversalSegmentation:
    torch.manual_seed(0)
    return Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(
            backbone_config={
                "model_type": "efficientnet_lite0",
                "coordinate_frequencies": coordinate_frequencies,
            },
            feature_size=32,
            mask_feature_size=32,
            hidden_dim=32,
            encoder_feedforward_dim=32,
            dim_feedforward=32,
            encoder_layers=1,
            decoder_layers=3,
            num_attention_heads=4,
            num_queries=SIDE**2 + 1,
        )
    ).eval()


def test_every_layer_starts_with_discs_on_the_grid() -> None:
    """After the start, each placed query's mask is brightest near its own place, in every layer's prediction."""
    network = some_network()
    torch.manual_seed(1)
    pixels = torch.randn(1, 3, 96, 96)
    start_as_grid(network, pixels, side=SIDE, iterations=200)
    with torch.no_grad():
        output = network(pixels, output_auxiliary_logits=True)
    layers = [layer["masks_queries_logits"] for layer in output.auxiliary_logits]
    for logits_BQhw in [*layers, output.masks_queries_logits]:
        peak_Q = logits_BQhw[0, : SIDE**2].flatten(1).argmax(dim=1)
        side = logits_BQhw.shape[-1]
        peaks_xy = (torch.stack([peak_Q % side, peak_Q // side], dim=1) + 0.5) / side
        distance_Q = (peaks_xy - grid_places(SIDE)).norm(dim=1)
        assert float((distance_Q < 0.13).float().mean()) > 0.8


def test_layers_can_still_learn() -> None:
    """Every decoder branch that starts at zero gets a gradient from the first step."""
    network = some_network()
    pixels = torch.randn(1, 3, 64, 64)
    start_as_grid(network, pixels, side=SIDE, iterations=5)
    network(pixels).masks_queries_logits.square().mean().backward()
    for layer in network.model.transformer_module.decoder.layers:
        for branch in (layer.cross_attn.out_proj, layer.self_attn.out_proj, layer.fc2):  # type: ignore[union-attr]
            assert float(branch.weight.grad.abs().max()) > 0  # type: ignore[union-attr,operator]


def test_a_backbone_without_coordinates_is_refused() -> None:
    """Without coordinate channels there are no places to start from."""
    with pytest.raises(ValueError, match="frequencies = 0"):
        start_as_grid(some_network(coordinate_frequencies=0), torch.zeros(1, 3, 64, 64), side=SIDE)
