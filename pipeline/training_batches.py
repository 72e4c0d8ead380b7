"""Batches of training windows by step number, made in this process or in loader processes ahead of time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from panoptile.model.loss import ImageTargets
from panoptile.model.training import TrainingBatch
from panoptile.pipeline.training_windows import TrainingWindow, WindowSampler


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """How the windows of a step are shared out."""

    batch: int
    """Windows per forward pass."""
    accumulate: int = 1
    """Forward passes per step and process."""
    rank: int = 0
    processes: int = 1

    @property
    def windows_per_step(self) -> int:
        """Over all processes."""
        return self.batch * self.accumulate * self.processes

    def indices(self, step: int) -> list[int]:
        """Numbers of this process' windows in a step."""
        mine = self.batch * self.accumulate
        first = step * self.windows_per_step + self.rank * mine
        return list(range(first, first + mine))


class _Windows(Dataset[TrainingWindow]):
    """Windows by number."""

    def __init__(self, sampler: WindowSampler, size: int) -> None:
        self._sampler, self._size = sampler, size

    def __getitem__(self, index: int) -> TrainingWindow:
        return self._sampler.window(index, size=self._size)


def step_batches(
    sampler: WindowSampler,
    plan: BatchPlan,
    pixels: Callable[[Tensor], Tensor],
    *,
    size: int,
    first_step: int,
    steps: int,
    loaders: int = 0,
) -> Iterator[list[TrainingBatch]]:
    """The batches of each step from ``first_step`` to ``steps``; ``pixels`` normalises uint8 (B, C, H, W).

    With ``loaders`` processes, windows are made ahead of time; they are the same windows.
    """
    numbers = [i for step in range(first_step, steps) for i in plan.indices(step)]
    loader = DataLoader(
        _Windows(sampler, size),
        batch_size=plan.batch,
        sampler=numbers,
        num_workers=loaders,
        collate_fn=list,
        multiprocessing_context="forkserver" if loaders else None,
    )
    waiting: list[TrainingBatch] = []
    for windows in loader:
        waiting.append(as_batch(windows, pixels))
        if len(waiting) == plan.accumulate:
            yield waiting
            waiting = []


def as_batch(windows: list[TrainingWindow], pixels: Callable[[Tensor], Tensor]) -> TrainingBatch:
    """Windows of one size as one batch."""
    images = torch.stack([w.image for w in windows])
    return TrainingBatch(
        pixels(images).contiguous(memory_format=torch.channels_last),
        tuple(ImageTargets(w.masks, w.class_labels, w.ignored) for w in windows),
    )
