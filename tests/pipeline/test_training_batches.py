"""Batches by step number: shared out between processes, and the same from loader processes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.jobs.training_worlds import world
from torch import Tensor

from panoptile.pipeline.labelled_scene import LabelledScene
from panoptile.pipeline.training_batches import BatchPlan, step_batches
from panoptile.pipeline.training_windows import WindowSampler


def halved(images: Tensor) -> Tensor:
    return images.float() / 2


def sampler() -> WindowSampler:
    scenes = []
    for seed in range(2):
        truth = world(seed)
        scenes.append(LabelledScene(f"{seed}", truth.image, truth.labels.astype(np.uint16), truth.ids))
    return WindowSampler(tuple(scenes), (1.0, 2.0), seed=3)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 50))
def test_processes_share_out_the_windows_of_a_step(
    batch: int, accumulate: int, processes: int, step: int
) -> None:
    """Over all processes and steps each window is used once, whatever the split."""
    plans = [BatchPlan(batch, accumulate, rank, processes) for rank in range(processes)]
    used = [i for s in (step, step + 1) for plan in plans for i in plan.indices(s)]
    first = step * batch * accumulate * processes
    assert used == list(range(first, first + 2 * batch * accumulate * processes))


def test_a_resumed_run_sees_the_same_batches() -> None:
    """Batches of a step are the same whether a run starts there or comes by, accumulated in the same way."""
    plan = BatchPlan(batch=2, accumulate=2)
    whole = list(step_batches(sampler(), plan, halved, size=32, first_step=0, steps=4))
    resumed = list(step_batches(sampler(), plan, halved, size=32, first_step=2, steps=4))
    assert [len(step) for step in whole] == [2] * 4
    for a, b in zip(whole[2:], resumed, strict=True):
        for x, y in zip(a, b, strict=True):
            assert torch.equal(x.pixels, y.pixels)
            assert all(torch.equal(s.masks, t.masks) for s, t in zip(x.targets, y.targets, strict=True))


@pytest.mark.slow
def test_loader_processes_make_the_same_windows() -> None:
    """Windows that another process made ahead of time are those of this process."""
    plan = BatchPlan(batch=2)
    here = list(step_batches(sampler(), plan, halved, size=32, first_step=0, steps=3))
    there = list(step_batches(sampler(), plan, halved, size=32, first_step=0, steps=3, loaders=2))
    assert all(torch.equal(a[0].pixels, b[0].pixels) for a, b in zip(here, there, strict=True))
