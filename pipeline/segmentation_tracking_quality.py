"""STQ: the geometric mean of association quality and segmentation quality over whole videos.

Weber et al., "STEP: Segmenting and Tracking Every Pixel" (NeurIPS 2021), section 4: SQ is mean IoU of all classes over
all videos; AQ asks of each true track how well single found tracks cover it, whatever their class. All of it follows
from the pair counts of whole videos.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from panoptile.pipeline.contingency import BACKGROUND, VOID, Contingency
from panoptile.pipeline.overlaps import ScoredClass, SegmentLabels
from panoptile.pipeline.semantic_iou import SemanticIoU


@dataclass(frozen=True, slots=True)
class TrackingScores:
    """0-1."""

    aq: float
    """Association quality of things."""
    sq: float
    """Mean IoU of all classes."""
    tracks: int
    """True tracks."""

    @property
    def stq(self) -> float:
        return math.sqrt(self.aq * self.sq)


class SegmentationTrackingQuality:
    """Accumulates videos."""

    def __init__(self, classes: Sequence[ScoredClass]) -> None:
        self._things = [c.class_id for c in classes if c.is_thing]
        self._iou = SemanticIoU(classes)
        self._aq_sum = 0.0
        self._tracks = 0

    def add(self, pairs: Contingency, truth: SegmentLabels, found: SegmentLabels) -> None:
        """Add one video: the pairs of all its frames; labels are track ids.

        Found pixels on true crowds of things count neither for nor against a track; those on void count against it,
        as in the paper's implementation.
        """
        self._iou.add(pairs, truth, found)
        truth_labels, truth_row = np.unique(pairs.truth, return_inverse=True)
        found_labels, found_row = np.unique(pairs.found, return_inverse=True)
        true_thing, crowd = self._things_of(truth_labels, truth)
        found_thing, _ = self._things_of(found_labels, found)
        counted = ~(true_thing & crowd)[truth_row]
        areas = np.zeros(len(truth_labels), np.int64)
        np.add.at(areas, truth_row, pairs.pixels)
        found_areas = np.zeros(len(found_labels), np.int64)
        np.add.at(found_areas, found_row[counted], pairs.pixels[counted])
        tube = true_thing & ~crowd
        pair = tube[truth_row] & found_thing[found_row]
        t, f, shared = truth_row[pair], found_row[pair], pairs.pixels[pair]
        union = areas[t] + found_areas[f] - shared
        self._aq_sum += float(np.sum(shared * (shared / union) / areas[t]))
        self._tracks += int(tube.sum())

    def result(self) -> TrackingScores:
        """Figures so far; 0 without tracks."""
        aq = self._aq_sum / self._tracks if self._tracks else 0.0
        return TrackingScores(aq, self._iou.result().mean, self._tracks)

    def _things_of(self, labels: np.ndarray, table: SegmentLabels) -> tuple[np.ndarray, np.ndarray]:
        """(is a thing, is a crowd) of each label."""
        segments = (labels != VOID) & (labels != BACKGROUND)
        rows = table.take(labels[segments])
        thing, crowd = np.zeros(len(labels), np.bool_), np.zeros(len(labels), np.bool_)
        thing[segments] = np.isin(rows.class_ids, self._things)
        crowd[segments] = rows.crowd
        return thing, crowd
