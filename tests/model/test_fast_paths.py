"""Each shortcut of the forward pass against the plain operation that it stands for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from panoptile.model.chunks import by_rows
from panoptile.model.decoder import pool_features


@pytest.mark.parametrize("full", [(32, 48), (16, 16), (33, 50), (24, 36)])
@pytest.mark.parametrize("size", [(16, 24), (8, 12), (4, 6), (2, 2), (11, 7)])
def test_pooled_features_are_resized_features(full: tuple[int, int], size: tuple[int, int]) -> None:
    """Even ratios by slices, all others in general: the same samples within rounding, for any memory order."""
    features = torch.randn(2, 5, *full, generator=torch.Generator().manual_seed(0)) * 40
    expected = F.interpolate(features, size=size, mode="bilinear", align_corners=False)
    for given in (features, features.contiguous(memory_format=torch.channels_last)):
        got = pool_features(given, size)
        assert got.shape == expected.shape
        assert float((got - expected).abs().max()) < 4e-5


@pytest.mark.parametrize("shape", [(1, 5000, 8), (2, 50, 41, 8), (3, 8)])
def test_pieces_of_rows_change_nothing(shape: tuple[int, ...]) -> None:
    """A perceptron applied in pieces gives what it gives as a whole; with gradients it stays whole."""
    torch.manual_seed(0)
    perceptron = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 6))
    x = torch.randn(shape)
    calls: list[int] = []

    def counted(rows: torch.Tensor) -> torch.Tensor:
        calls.append(len(rows))
        out: torch.Tensor = perceptron(rows)
        return out

    with torch.no_grad():
        got, expected = by_rows(counted, x), perceptron(x)
    assert got.shape == expected.shape
    assert torch.allclose(got, expected, atol=1e-6)
    assert (len(calls) > 1) == (x.numel() // 8 > 2048)
    calls.clear()
    torch.autograd.grad(by_rows(counted, x).sum(), list(perceptron.parameters()))
    assert len(calls) == 1
