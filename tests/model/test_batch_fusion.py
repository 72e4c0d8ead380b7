"""The fusion of a whole batch against the plain one, and that it asks the device for nothing."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.model.waits import Waits
from torch import Tensor

from panoptile.model import batch_fusion
from panoptile.model.batch_fusion import fuse_batch
from panoptile.model.fusion import Canvas, FusionRules, Task, fuse_logits
from panoptile.model.panoptic_map import PanopticMap
from panoptile.model.result_buffer import ResultBuffer

CANVAS = Canvas(29, 45, 32, 48)


def logits(seed: int, *, batch: int = 2, queries: int = 14) -> tuple[Tensor, Tensor]:
    """Class logits (B, Q, 5) and smooth mask logits (B, Q, 8, 12)."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, queries, 3, 3, generator=g) * 8
    return torch.randn(batch, queries, 5, generator=g) * 3, F.interpolate(coarse, (8, 12), mode="bilinear")


def fused(class_logits: Tensor, mask_logits: Tensor, rules: FusionRules) -> list[PanopticMap]:
    """Through the buffer, as on a GPU; the states are those of nobody."""
    batch, queries, labels = class_logits.shape
    layout = ResultBuffer(CANVAS, queries, 7, labels - 1, rules.task == "semantic")
    states = torch.zeros(batch, queries, 7)
    packed = layout.pack(fuse_batch(class_logits, mask_logits, CANVAS, rules), states, class_logits)
    assert packed.shape == (batch, layout.length)
    return layout.read(packed.numpy(), "none")


def rules_of(task: Task, score: float = 0.3, overlap: float = 0.6) -> FusionRules:
    return FusionRules(task, frozenset({1, 2}), frozenset({0, 3}), score, overlap)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    task=st.sampled_from(get_args(Task)),
    score=st.sampled_from([0.0, 0.3, 0.6, 0.99]),
    overlap=st.sampled_from([0.0, 0.5, 0.8, 1.0]),
)
def test_a_batch_is_fused_as_its_images_are(seed: int, task: Task, score: float, overlap: float) -> None:
    """Maps, classes and queries used are the plain method's, bit for bit; scores to rounding."""
    class_logits, mask_logits = logits(seed)
    rules = rules_of(task, score, overlap)
    expected = fuse_logits(class_logits, mask_logits, CANVAS, rules)
    got = fused(class_logits, mask_logits, rules)
    for a, b in zip(got, expected, strict=True):
        assert np.array_equal(a.labels, b.labels), f"{(a.labels != b.labels).mean()=}"
        assert np.array_equal(a.label_ids, b.label_ids)
        assert np.allclose(a.scores, b.scores, atol=1e-6)
        assert a.queries_used == b.queries_used
        if a.queries is None or b.queries is None:
            assert task == "semantic" or len(a.label_ids) == 0
        else:
            assert np.array_equal(a.queries, b.queries)
        assert a.labels.dtype == np.int32
        assert a.label_ids.dtype == np.int32
        assert a.scores.dtype == np.float32


def test_something_is_fused_hidden_and_dropped() -> None:
    """The random cases above are not empty: segments that are fused, dropped and kept occur."""
    found = [fused(*logits(seed), rules_of("panoptic")) for seed in range(8)]
    maps = [m for batch in found for m in batch]
    assert sum(len(m.label_ids) for m in maps) > 20
    assert any(len(m.label_ids) < m.queries_used for m in maps), "nothing was fused or dropped"
    assert any((m.labels == 0).any() for m in maps), "nothing is void"


@pytest.mark.parametrize("task", get_args(Task))
def test_chunks_do_not_change_the_result(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries one at a time, or rows one by one, give the buffer of all at once."""
    inputs = logits(3)
    whole = fused(*inputs, rules_of(task))
    monkeypatch.setattr(batch_fusion, "_CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(batch_fusion, "_BAND_ELEMENTS", 1)
    parts = fused(*inputs, rules_of(task))
    for a, b in zip(whole, parts, strict=True):
        assert np.array_equal(a.labels, b.labels)
        assert np.allclose(a.scores, b.scores, atol=1e-6)


def test_of_equal_queries_the_first_wins() -> None:
    """A tie goes to the lower index, inside a chunk and across chunks."""
    class_logits = torch.tensor([[[0.0, 9, 0, 0, 0], [0, 0, 9, 0, 0], [0, 9, 0, 0, 0]]])
    mask_logits = torch.full((1, 3, 8, 12), 3.0)
    got = fused(class_logits, mask_logits, rules_of("panoptic"))[0]
    assert got.label_ids.tolist() == [1]
    assert (got.labels == 1).all()


def test_a_batch_without_any_segment_is_void() -> None:
    """No query above the threshold: all void, empty tables."""
    class_logits, mask_logits = logits(0)
    for got in fused(class_logits * 0, mask_logits, rules_of("panoptic", 0.9)):
        assert not got.labels.any()
        assert len(got.label_ids) == len(got.scores) == got.queries_used == 0


@pytest.mark.parametrize("task", get_args(Task))
def test_nothing_is_asked_of_the_device(task: Task) -> None:
    """Between logits and buffer no operation runs whose result the host must wait for."""
    inputs = logits(1)
    fuse_batch(*inputs, CANVAS, rules_of(task))  # builds constants
    with Waits() as waits:
        fuse_batch(*inputs, CANVAS, rules_of(task))
    assert waits.seen == []
    with Waits() as waits:  # the plain version is what this watch was made for
        fuse_logits(*inputs, CANVAS, rules_of(task))
    assert waits.seen
