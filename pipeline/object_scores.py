"""How many objects were found: one-to-one matches of label maps by mask IoU, or of boxes by box IoU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from panoptile.pipeline.contingency import BACKGROUND, VOID, PairCounter
from panoptile.pipeline.overlaps import SegmentLabels, overlaps

Ids = NDArray[np.int32]
"""(H, W) object ids, 0 outside the objects."""


@dataclass(frozen=True, slots=True)
class ObjectScores:
    """Counts of one comparison, and the figures that follow from them."""

    hits: int
    missed: int
    invented: int
    iou_sum: float = 0.0
    """Sum of the hits' IoU."""

    @property
    def precision(self) -> float:
        return self.hits / max(self.hits + self.invented, 1)

    @property
    def recall(self) -> float:
        return self.hits / max(self.hits + self.missed, 1)

    @property
    def f1(self) -> float:
        return 2 * self.hits / max(2 * self.hits + self.missed + self.invented, 1)

    @property
    def pq(self) -> float:
        """Panoptic quality, where the matches were made at an IoU above 0.5."""
        return 2 * self.iou_sum / max(2 * self.hits + self.missed + self.invented, 1)

    def __add__(self, other: ObjectScores) -> ObjectScores:
        return ObjectScores(
            self.hits + other.hits,
            self.missed + other.missed,
            self.invented + other.invented,
            self.iou_sum + other.iou_sum,
        )


def match_masks(truth: Ids, predicted: Ids, *, threshold: float = 0.5) -> ObjectScores:
    """Objects of two label maps that overlap with an IoU above ``threshold`` (at least 0.5, so matches are unique)."""
    if truth.shape != predicted.shape or threshold < 0.5:
        raise ValueError(
            f"Expected maps of one shape and threshold >= 0.5: {truth.shape=} {predicted.shape=}."
        )
    pairs = PairCounter()
    pairs.add(np.where(truth == 0, BACKGROUND, truth), np.where(predicted == 0, VOID, predicted))
    one_class = [
        SegmentLabels.of(ids, np.ones(len(ids), np.int64))
        for ids in (np.unique(side[side != 0]).astype(np.int64) for side in (truth, predicted))
    ]
    shared = overlaps(pairs.result(), *one_class)
    hit = shared.iou[shared.iou > threshold]
    return ObjectScores(
        hits=len(hit),
        missed=len(shared.truth_areas) - len(hit),
        invented=len(shared.found_areas) - len(hit),
        iou_sum=float(hit.sum()),
    )


def match_boxes(truth: NDArray[np.int64], predicted: NDArray[np.int64], *, threshold: float) -> ObjectScores:
    """Boxes (N, 4) as left, top, right, bottom, assigned for the largest sum of IoU; hits have at least ``threshold``."""
    low = np.maximum(truth[:, None, :2], predicted[None, :, :2])
    high = np.minimum(truth[:, None, 2:], predicted[None, :, 2:])
    overlap = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (truth, predicted)]
    iou = overlap / np.maximum(areas[0][:, None] + areas[1][None] - overlap, 1)
    rows, cols = linear_sum_assignment(-iou)
    assigned = iou[rows, cols]
    hits = int((assigned >= threshold).sum())
    return ObjectScores(
        hits=hits,
        missed=len(truth) - hits,
        invented=len(predicted) - hits,
        iou_sum=float(assigned[assigned >= threshold].sum()),
    )


def boxes_of(ids: Ids) -> NDArray[np.int64]:
    """Boxes (N, 4) of the objects of a label map as left, top, right, bottom, ids ascending."""
    found = [s for s in ndimage.find_objects(ids) if s is not None]
    boxes = [(cols.start, rows.start, cols.stop, rows.stop) for rows, cols in found]
    return np.array(boxes, np.int64).reshape(-1, 4)
