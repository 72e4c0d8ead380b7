"""From two label sources to their pair counts, block by block: memory is that of two blocks and of the pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from panoptile.pipeline.contingency import Contingency, Labels, PairCounter, segments_of
from panoptile.pipeline.label_source import LabelSource
from panoptile.pipeline.overlaps import SegmentLabels
from panoptile.pipeline.segments import blocks
from panoptile.pipeline.window import Window

BLOCK = 1024
"""Side of the blocks, pixels; results do not depend on it."""

Mask = Callable[[Window], NDArray[np.bool_]]
"""(H, W) of a window: which pixels count."""


def count_labels(
    truth: LabelSource,
    found: LabelSource,
    *,
    window: Window | None = None,
    mask: Mask | None = None,
    block: int = BLOCK,
) -> Contingency:
    """Pairs of labels in ``window`` (None: everywhere), where ``mask`` is true. Raises ``ValueError`` for two sizes."""
    if truth.shape != found.shape:
        raise ValueError(f"Both label maps need one size, got {truth.shape} and {found.shape}.")
    part = window or Window(0, 0, *truth.shape)
    counter = PairCounter()
    for b in blocks(part.height, part.width, block):
        at = Window(part.row + b.row, part.col + b.col, b.height, b.width)
        labels = truth.read(at), found.read(at)
        if mask is None:
            counter.add(*labels)
        elif (inside := mask(at)).any():
            counter.add(*(side[inside] for side in labels))
    return counter.result()


class Describes(Protocol):
    """Knows what labels mean."""

    def describe(self, labels: Labels) -> SegmentLabels: ...


def described(pairs: Contingency, truth: Describes, found: Describes) -> tuple[SegmentLabels, SegmentLabels]:
    """What the labels of both sides mean."""
    return (
        truth.describe(segments_of(np.unique(pairs.truth))),
        found.describe(segments_of(np.unique(pairs.found))),
    )
