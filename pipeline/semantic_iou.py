"""The confusion of classes, pixel by pixel, and mean IoU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from panoptile.pipeline.contingency import BACKGROUND, VOID, Contingency, Labels
from panoptile.pipeline.overlaps import ScoredClass, SegmentLabels


@dataclass(frozen=True, slots=True)
class SemanticScores:
    """``K`` classes against each other; void of the truth is left out."""

    classes: tuple[ScoredClass, ...]
    confusion: NDArray[np.int64]
    """(K + 1, K + 1) pixels, truth down, found across. The last row is background, the last column nothing claimed."""

    @property
    def per_class(self) -> NDArray[np.float64]:
        """(K,) IoU; NaN for a class on neither side."""
        own = np.diag(self.confusion)[:-1]
        union = self.confusion.sum(axis=1)[:-1] + self.confusion.sum(axis=0)[:-1] - own
        iou: NDArray[np.float64] = np.divide(own, union, out=np.full(len(own), np.nan), where=union > 0)
        return iou

    @property
    def mean(self) -> float:
        """Mean over the classes on either side; 0 without any."""
        return self.mean_of([c.class_id for c in self.classes])

    def mean_of(self, class_ids: Sequence[int]) -> float:
        """Mean over some classes, those on neither side left out."""
        wanted = np.isin([c.class_id for c in self.classes], class_ids)
        values = self.per_class[wanted]
        return float(np.nanmean(values)) if np.isfinite(values).any() else 0.0

    @property
    def accuracy(self) -> float:
        """Share of the pixels with a class in the truth that got it."""
        labelled = self.confusion[:-1].sum()
        return float(np.diag(self.confusion)[:-1].sum() / labelled) if labelled else 0.0


class SemanticIoU:
    """Accumulates contingency tables of segments by their classes; crowds count as their class."""

    def __init__(self, classes: Sequence[ScoredClass]) -> None:
        self.classes = tuple(sorted(classes, key=lambda c: c.class_id))
        self._ids = np.array([c.class_id for c in self.classes], np.int64)
        self._confusion = np.zeros((len(self._ids) + 1, len(self._ids) + 1), np.int64)

    def add(self, pairs: Contingency, truth: SegmentLabels, found: SegmentLabels) -> None:
        """Add one image, raster or video."""
        known = pairs.truth != VOID
        rows = self._row_of(pairs.truth[known], truth)
        cols = self._row_of(pairs.found[known], found)
        np.add.at(self._confusion, (rows, cols), pairs.pixels[known])

    def result(self) -> SemanticScores:
        return SemanticScores(self.classes, self._confusion.copy())

    def _row_of(self, labels: Labels, table: SegmentLabels) -> NDArray[np.int64]:
        """Row in the confusion of each label; the last one for what has no scored class."""
        unique, index = np.unique(labels, return_inverse=True)
        segments = (unique != VOID) & (unique != BACKGROUND)
        class_ids = np.zeros(len(unique), np.int64)
        class_ids[segments] = table.take(unique[segments]).class_ids
        rows = np.searchsorted(self._ids, class_ids)
        rows[~np.isin(class_ids, self._ids)] = len(self._ids)
        result: NDArray[np.int64] = rows[index]
        return result
