"""torch.compile of the network: refused with one sentence where there is no compiler, and the same logits where there is."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from panoptile.model import Mask2FormerConfig, Mask2FormerForUniversalSegmentation
from panoptile.model.compiled import compile_forward, compile_problem

CPU = torch.device("cpu")


def tiny() -> Mask2FormerForUniversalSegmentation:
    """A Swin network of one block a stage, with all parts."""
    torch.manual_seed(0)
    sizes = {"embed_dim": 32, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 2, 2], "window_size": 4}
    config = Mask2FormerConfig(
        backbone_config={"model_type": "swin", **sizes},
        feature_size=32, mask_feature_size=16, hidden_dim=32, num_queries=5, encoder_layers=1, decoder_layers=3,
        num_attention_heads=4, encoder_feedforward_dim=24, dim_feedforward=40, num_labels=4,
    )  # fmt: skip
    return Mask2FormerForUniversalSegmentation(config).eval().requires_grad_(False)


def test_a_missing_compiler_is_said_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence names what is missing and what to do, for a CPU and for a GPU."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler, and there is no no-such-compiler here"):
        compile_forward(tiny().logits_and_embeddings, CPU)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "the package triton" in str(compile_problem("cuda"))


def test_a_compiler_that_is_there_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any program that CXX names will do."""
    monkeypatch.setenv("CXX", "sh")
    assert compile_problem("cpu") is None


@pytest.mark.slow
@pytest.mark.skipif(compile_problem("cpu") is not None, reason="needs a C++ compiler")
def test_compiled_logits_equal_eager_ones() -> None:
    """Class logits, mask logits and states agree within 1e-4, for two shapes."""
    network = tiny()
    compiled = compile_forward(network.logits_and_embeddings, CPU)
    with torch.inference_mode():
        for size in ((96, 96), (64, 96)):
            x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
            for got, expected in zip(compiled(x), network.logits_and_embeddings(x), strict=True):
                assert float((got - expected).abs().max()) < 1e-4
