"""Run transformers' network and ours on the same masks of attention, and compare what comes out.

Unusual: a mask bit flips where its logit is within rounding of zero, and then all later layers differ. So ours runs
with the reference's masks, after its own were compared with them; tolerances stay tight.
"""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, no_grad

from panoptile.model.decoder import MaskHead
from panoptile.model.mask2former import Mask2FormerForUniversalSegmentation

# fp32 rounding of a few hundred operations gives 1e-6 here; an error of the method gives more than 1e-2.
TOLERANCE = 1e-4


def run_reference(reference: Any, pixels: Tensor, **options: Any) -> tuple[Any, list[Tensor], list[Tensor]]:
    """The reference's output and, per prediction, its normed states (Q, B, C) and its attention mask (B, Q, S)."""
    normed: list[Tensor] = []
    blocked: list[Tensor] = []  # True where a query may not look

    def keep(module: Any, args: Any, out: Any) -> None:
        normed.append(args[0])
        blocked.append(out[1].view(pixels.shape[0], -1, *out[1].shape[1:])[:, 0])

    hook = reference.model.transformer_module.decoder.mask_predictor.register_forward_hook(keep)
    with no_grad():
        output = reference(
            pixel_values=pixels, output_hidden_states=True, output_auxiliary_logits=True, **options
        )
    hook.remove()
    return output, normed, blocked


def use_reference_masks(
    monkeypatch: pytest.MonkeyPatch, ours: Mask2FormerForUniversalSegmentation, blocked: list[Tensor]
) -> None:
    decoder = ours.model.transformer_module.decoder
    own = type(decoder).attention_mask.__get__(decoder)
    remaining = iter(blocked)

    def exchanged(normed: Tensor, pooled: MaskHead) -> Tensor:
        attend = ~next(remaining)
        attend = (attend | ~attend.any(-1, keepdim=True))[:, None]
        logits = pooled.logits(decoder.mask_embedding(normed)).flatten(2)[:, None]
        flipped = own(normed, pooled) != attend
        whole_rows = flipped.all(-1, keepdim=True)  # a row whose last open bit flipped opens as a whole
        assert not (flipped & ~whole_rows & (logits.abs() > TOLERANCE)).any()
        return attend

    monkeypatch.setattr(decoder, "attention_mask", exchanged)


def assert_close(name: str, got: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert set(got) == set(expected), name
        for key in expected:
            assert_close(f"{name}[{key}]", got[key], expected[key])
        return
    if isinstance(expected, tuple | list):
        assert len(got) == len(expected), name
        for i, (a, b) in enumerate(zip(got, expected, strict=True)):
            assert_close(f"{name}[{i}]", a, b)
        return
    assert got.shape == expected.shape, f"{name}: {got.shape} against {expected.shape}"
    difference = (got - expected).detach().abs()
    assert float(difference.max()) < TOLERANCE, (
        f"{name}: max {difference.max():.2e}, mean {difference.mean():.2e}"
    )
