"""Panoptic quality: PQ = SQ · RQ per class, and its means over all classes, things and stuff.

Kirillov et al., "Panoptic Segmentation" (CVPR 2019), section 4: a pair matches where the class is the same and
IoU > 0.5, strictly. Void of the truth is taken out of every union; unmatched predictions that lie for more than half
on void or on crowds of their class are no errors; a class without any segment on either side is not averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from panoptile.pipeline.overlaps import Overlaps, ScoredClass


@dataclass(frozen=True, slots=True)
class ClassQuality:
    """Counts of one class, and the figures that follow from them (0-1)."""

    iou_sum: float
    """Sum of the matches' IoU."""
    matched: int
    """True positives."""
    invented: int
    """False positives."""
    missed: int
    """False negatives."""

    @property
    def present(self) -> bool:
        """There is a segment of the class on either side."""
        return self.matched + self.invented + self.missed > 0

    @property
    def sq(self) -> float:
        """Segmentation quality: mean IoU of the matches."""
        return self.iou_sum / self.matched if self.matched else 0.0

    @property
    def rq(self) -> float:
        """Recognition quality: the F1 of segments at IoU > 0.5."""
        errors = self.invented + self.missed
        return self.matched / (self.matched + errors / 2) if self.present else 0.0

    @property
    def pq(self) -> float:
        errors = self.invented + self.missed
        return self.iou_sum / (self.matched + errors / 2) if self.present else 0.0

    @property
    def precision(self) -> float:
        return self.matched / max(self.matched + self.invented, 1)

    @property
    def recall(self) -> float:
        return self.matched / max(self.matched + self.missed, 1)


@dataclass(frozen=True, slots=True)
class GroupQuality:
    """Means over the present classes of a group, and sums of their counts. Figures are 0 without any class."""

    pq: float
    sq: float
    rq: float
    classes: int
    """How many classes were averaged."""
    matched: int
    invented: int
    missed: int

    @property
    def f1(self) -> float:
        """F1 at IoU > 0.5 of all segments together, whatever their class's share."""
        total = 2 * self.matched + self.invented + self.missed
        return 2 * self.matched / total if total else 0.0


@dataclass(frozen=True, slots=True)
class PanopticScores:
    """The figures of one evaluation."""

    per_class: tuple[tuple[ScoredClass, ClassQuality], ...]
    all: GroupQuality
    things: GroupQuality
    stuff: GroupQuality


class PanopticQuality:
    """Accumulates images; matches never cross images.

    With ``modified``, stuff is scored as in Porzi et al., "Seamless Scene Segmentation" (CVPR 2019): the mean IoU
    over the images in which the truth has the class, without a threshold.
    """

    def __init__(self, classes: Sequence[ScoredClass], *, modified: bool = False) -> None:
        self.classes = tuple(sorted(classes, key=lambda c: c.class_id))
        self._ids = np.array([c.class_id for c in self.classes], np.int64)
        if len(np.unique(self._ids)) != len(self._ids):
            raise ValueError("Each scored class needs an id of its own.")
        self._relaxed = np.array([modified and not c.is_thing for c in self.classes], np.bool_)
        self._iou = np.zeros(len(self.classes))
        self._counts = np.zeros((3, len(self.classes)), np.int64)

    def add(self, image: Overlaps) -> None:
        """Add one image, raster or tube window. Raises ``ValueError`` for a class that is not scored."""
        truth, found = self._rows(image.truth.class_ids), self._rows(image.found.class_ids)
        iou = image.iou
        comparable = image.same_class & ~image.truth.crowd[image.pair_truth]
        pair_class = truth[image.pair_truth]
        relaxed = comparable & self._relaxed[pair_class]
        match = comparable & ~relaxed & (iou > 0.5)
        hit_truth, hit_found = np.zeros(len(truth), np.bool_), image.ignored.copy()
        hit_truth[image.pair_truth[match]] = True
        hit_found[image.pair_found[match]] = True
        used = match | relaxed
        self._iou += np.bincount(pair_class[used], weights=iou[used], minlength=len(self._iou))
        matched = self._count(pair_class[match])
        missed = self._count(truth[~hit_truth & ~image.truth.crowd & ~self._relaxed[truth]])
        invented = self._count(found[~hit_found & ~self._relaxed[found]])
        matched += self._count(truth[~image.truth.crowd & self._relaxed[truth]])
        self._counts += np.stack([matched, invented, missed])

    def result(self) -> PanopticScores:
        """Figures so far."""
        rows = tuple(
            (c, ClassQuality(float(iou), *(int(n) for n in counts)))
            for c, iou, counts in zip(self.classes, self._iou, self._counts.T, strict=True)
        )
        return PanopticScores(
            rows,
            _group([q for _, q in rows]),
            _group([q for c, q in rows if c.is_thing]),
            _group([q for c, q in rows if not c.is_thing]),
        )

    def _rows(self, class_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        rows = np.searchsorted(self._ids, class_ids)
        if len(class_ids) and not np.isin(class_ids, self._ids).all():
            unknown = class_ids[~np.isin(class_ids, self._ids)]
            raise ValueError(f"Class {unknown[0]} is not among the scored classes {self._ids.tolist()[:20]}.")
        return rows.astype(np.int64)

    def _count(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.bincount(rows, minlength=len(self._ids)).astype(np.int64)


def _group(rows: list[ClassQuality]) -> GroupQuality:
    present = [q for q in rows if q.present]
    n = max(len(present), 1)
    return GroupQuality(
        sum(q.pq for q in present) / n,
        sum(q.sq for q in present) / n,
        sum(q.rq for q in present) / n,
        len(present),
        sum(q.matched for q in present),
        sum(q.invented for q in present),
        sum(q.missed for q in present),
    )
