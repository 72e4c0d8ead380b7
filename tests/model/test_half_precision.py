"""What must not be rounded to half precision is not: positions, the masks' threshold, the loss.

A bf16 number has 8 bits: a pixel position near 160 would be off by up to 0.75 pixels, and the reference's are. Here
positions are recorded while the network runs in bf16 (under autocast and as a whole) and compared with fp64 arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from panoptile.model import Mask2FormerForUniversalSegmentation, decoder, msda, pixel_decoder, positions

LIMIT_PX = 1e-3
SIZE = (1280, 96)
"""Pixels of the input: 160 rows at stride 8, where bf16 positions would be far off."""


@pytest.fixture(params=["autocast", "whole network"])
def run_in_bf16(request: pytest.FixtureRequest, swin_folder: Path) -> Callable[[], Any]:
    """Run the network on one image in bf16, from empty caches."""
    network = Mask2FormerForUniversalSegmentation.from_pretrained(swin_folder)
    pixels = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    is_whole = request.param == "whole network"
    if is_whole:
        network, pixels = network.to(torch.bfloat16), pixels.to(torch.bfloat16)

    def run() -> Any:
        positions.sine_positions.cache_clear()
        msda.pixel_origins.cache_clear()
        msda._origins_by_axis.cache_clear()
        context = nullcontext() if is_whole else torch.autocast("cpu", dtype=torch.bfloat16)
        with torch.inference_mode(), context:
            return network(pixels, output_auxiliary_logits=True)

    return run


def test_sampling_positions_stay_exact(
    run_in_bf16: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the deformable attention samples is the pixel's own place plus the offset, within 1e-3 px of fp64."""
    errors: list[float] = []
    seen: list[Tensor] = []
    original_corners, original_axis = msda._corners, msda._axis

    def axis(position: Tensor, extent: Tensor) -> Any:
        seen.append(position)
        return original_axis(position, extent)

    def corners(
        offsets_xy: tuple[Tensor, Tensor], origins: Tensor, weights: Tensor, shapes: msda.Shapes
    ) -> Any:
        seen.clear()
        out = original_corners(offsets_xy, origins, weights, shapes)
        exact_xy = _origins_fp64(shapes).permute(2, 1, 0)[
            :, :, None
        ]  # (2, L, 1, S): one chunk holds them all
        for position, offsets, exact in zip(seen, offsets_xy, exact_xy, strict=True):
            errors.append(float((position.double() - (offsets.double() + exact)).abs().max()))
        return out

    monkeypatch.setattr(msda, "_CHUNK", 10_000)
    monkeypatch.setattr(msda, "_corners", corners)
    monkeypatch.setattr(msda, "_axis", axis)
    run_in_bf16()
    assert errors
    assert max(errors) < LIMIT_PX, f"{max(errors)} px"


def test_sine_embeddings_stay_exact(run_in_bf16: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedding is fp32 and encodes each row and column within 1e-3 px, also when asked for inside autocast."""
    made: list[tuple[int, int, Tensor]] = []

    def recorded(height: int, width: int, channels: int, device: torch.device) -> Tensor:
        embedding = positions.sine_positions(height, width, channels, device)
        made.append((height, width, embedding))
        return embedding

    monkeypatch.setattr(decoder, "sine_positions", recorded)
    monkeypatch.setattr(pixel_decoder, "sine_positions", recorded)
    run_in_bf16()
    assert {(h, w) for h, w, _ in made} == {(40, 3), (80, 6), (160, 12)}
    for height, width, embedding in made:
        assert embedding.dtype == torch.float32
        y, x = embedding.view(height, width, 2, -1).unbind(2)
        rows = torch.arange(1, height + 1, dtype=torch.float64)[:, None].expand(-1, width)
        cols = torch.arange(1, width + 1, dtype=torch.float64).expand(height, -1)
        for values, extent, expected in ((y, height, rows), (x, width, cols)):
            assert float((_decoded(values, extent) - expected).abs().max()) < LIMIT_PX


def test_the_same_check_fails_in_bf16() -> None:
    """The limit is one that half precision breaks: reference points rounded to bf16 are off by a quarter."""
    exact = _origins_fp64(((160, 160),))[:, 0]
    reference_points = ((exact + 0.5) / 160).to(torch.bfloat16).double()
    error = float((reference_points * 160 - 0.5 - exact).abs().max())
    assert error >= 0.25


def test_logits_stay_close_to_fp32(run_in_bf16: Callable[[], Any], swin_folder: Path) -> None:
    """bf16 logits of a layer that has seen no attention mask differ from fp32's by rounding, not by place."""
    network = Mask2FormerForUniversalSegmentation.from_pretrained(swin_folder)
    pixels = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network(pixels, output_auxiliary_logits=True).auxiliary_logits[0]["masks_queries_logits"]
    got = run_in_bf16().auxiliary_logits[0]["masks_queries_logits"].float()
    correlation = torch.corrcoef(torch.stack([got.flatten(), expected.flatten()]))[0, 1]
    assert float(correlation) > 0.995, f"{correlation=}"


def test_attention_masks_are_decided_in_fp32(
    run_in_bf16: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a query may look at a pixel is decided on fp32 probabilities."""
    types: list[torch.dtype] = []
    original = Tensor.sigmoid

    def sigmoid(self: Tensor) -> Tensor:
        types.append(self.dtype)
        return original(self)

    monkeypatch.setattr(Tensor, "sigmoid", sigmoid)
    run_in_bf16()
    assert types
    assert set(types) == {torch.float32}


def _origins_fp64(shapes: msda.Shapes) -> Tensor:
    """(S, L, 2) position (x, y) of each pixel's centre in pixels of each level."""
    centres = []
    for height, width in shapes:
        y = (torch.arange(height, dtype=torch.float64) + 0.5) / height
        x = (torch.arange(width, dtype=torch.float64) + 0.5) / width
        centres.append(torch.stack([x.repeat(height), y.repeat_interleave(width)], -1))
    extents = torch.tensor([[w, h] for h, w in shapes], dtype=torch.float64)
    return torch.cat(centres)[:, None] * extents - 0.5


def _decoded(values: Tensor, extent: int) -> Tensor:
    """Position 1…extent from the sine and cosine of the longest angle; the last one is a whole turn."""
    angle = torch.atan2(values[..., 0].double(), values[..., 1].double()) % (2 * math.pi)
    position = angle / (2 * math.pi) * (extent + 1e-6)
    return torch.where(position < 0.5, position + extent, position)
