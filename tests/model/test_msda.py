"""Deformable attention: the fast sampling against the plain one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from panoptile.model.msda import DeformableAttention, Shapes, pixel_origins, sample, sample_reference
from panoptile.model.positions import sine_positions

SHAPES: list[Shapes] = [((2, 3), (4, 6), (8, 12)), ((1, 1), (3, 2), (5, 7)), ((4, 4),)]


def _inputs(
    shapes: Shapes, *, dtype: torch.dtype, spread: float, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Values, offsets and weights for 2 images, 2 heads, 3 points, 5 channels."""
    g = torch.Generator().manual_seed(seed)
    size, levels = sum(h * w for h, w in shapes), len(shapes)
    value = torch.randn(2, size, 2, 5, dtype=dtype, generator=g)
    offsets = torch.randn(2, size, 2, levels, 3, 2, dtype=dtype, generator=g) * spread
    weights = torch.rand(2, size, 2, levels, 3, dtype=dtype, generator=g)
    return value, offsets, weights


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("spread", [0.0, 1.5, 40.0], ids=["own pixel", "near", "mostly outside"])
def test_fast_sampling_equals_grid_sample(shapes: Shapes, spread: float) -> None:
    """One embedding_bag gives what grid_sample gives, inside, across the border and outside."""
    value, offsets, weights = _inputs(shapes, dtype=torch.float32, spread=spread)
    got, expected = sample(value, offsets, weights, shapes), sample_reference(value, offsets, weights, shapes)
    assert torch.allclose(got, expected, atol=2e-5), float((got - expected).abs().max())


def test_sampling_does_not_depend_on_the_chunks() -> None:
    """Chunks of queries, also ones that straddle two images, change nothing."""
    value, offsets, weights = _inputs(SHAPES[0], dtype=torch.float32, spread=2.0)
    whole = sample(value, offsets, weights, SHAPES[0])
    for chunk in (1, 7, 100):
        assert torch.equal(sample(value, offsets, weights, SHAPES[0], chunk), whole)


def test_gradients_are_right() -> None:
    """Gradients by values, offsets and weights pass gradcheck in fp64 and equal grid_sample's."""
    shapes: Shapes = ((1, 2), (2, 2))
    inputs = tuple(x.requires_grad_() for x in _inputs(shapes, dtype=torch.float64, spread=0.6))

    def chunked(value: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
        return sample(value, offsets, weights, shapes, 5)

    assert torch.autograd.gradcheck(chunked, inputs)
    value, offsets, weights = inputs
    losses = [f(value, offsets, weights, shapes).square().sum() for f in (sample, sample_reference)]
    grads = [torch.autograd.grad(loss, inputs) for loss in losses]
    for fast, plain in zip(*grads, strict=True):
        assert torch.allclose(fast, plain, atol=1e-10)


def test_a_pixel_with_zero_offset_samples_itself() -> None:
    """The origin of a pixel on its own level is its own index, to 1e-4 px on a 320-px level."""
    shapes: Shapes = ((40, 80), (160, 320))
    origins = pixel_origins(shapes, torch.device("cpu"))
    last = origins[40 * 80 :, 1].view(160, 320, 2)
    assert torch.allclose(last[..., 0], torch.arange(320.0).expand(160, 320), atol=1e-4)
    assert torch.allclose(last[..., 1], torch.arange(160.0)[:, None].expand(160, 320), atol=1e-4)


def test_positions_stay_fp32_under_bf16() -> None:
    """With bf16 activations positions are fp32, so a bf16 module samples the same pixels as an fp32 one."""
    shapes: Shapes = ((20, 40),)
    module = DeformableAttention(32, heads=4, levels=1, points=4)
    x = torch.randn(1, 800, 32, generator=torch.Generator().manual_seed(0))
    position = sine_positions(20, 40, 32, torch.device("cpu"))
    assert position.dtype == torch.float32
    full = module(x, position, shapes).detach()
    half = module.to(torch.bfloat16)(x.bfloat16(), position.bfloat16(), shapes).detach()
    assert half.dtype == torch.bfloat16
    # bf16 has 8 bits: values differ by about 1 %, a sampling position that is off by 0.3 px by far more.
    assert float((half.float() - full).abs().mean()) < 0.02 * float(full.abs().mean())
