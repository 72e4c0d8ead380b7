"""Segments of a ground truth and of a prediction with the pixels that they share: what every score is made from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from panoptile.pipeline.contingency import BACKGROUND, VOID, Contingency, Labels

UNSCORED = 0
"""Class id of segments that take no part: those of a prediction count as nothing claimed."""


@dataclass(frozen=True, slots=True)
class ScoredClass:
    """A class that figures are given for."""

    class_id: int
    """Positive; the same number on both sides."""
    name: str
    is_thing: bool

    def __post_init__(self) -> None:
        if self.class_id <= UNSCORED:
            raise ValueError(f"Class ids are positive, got {self.class_id} for {self.name!r}.")


@dataclass(frozen=True, slots=True)
class SegmentLabels:
    """What the labels of one side mean: ``N`` labels, ascending."""

    labels: Labels
    """(N,)"""
    class_ids: NDArray[np.int64]
    """(N,) ``UNSCORED`` or the id of a scored class."""
    crowd: NDArray[np.bool_]
    """(N,) groups of objects that nobody told apart: never matched, never missed."""
    scores: NDArray[np.float64]
    """(N,) confidence, 0-1."""

    @classmethod
    def of(
        cls,
        labels: Labels,
        class_ids: NDArray[np.integer],
        *,
        crowd: NDArray[np.bool_] | None = None,
        scores: NDArray[np.floating] | None = None,
    ) -> SegmentLabels:
        """A table from columns in any order. Raises ``ValueError`` for a label that comes twice."""
        labels = np.asarray(labels, np.int64)
        order = np.argsort(labels, kind="stable")
        ordered = labels[order]
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(twice):
            raise ValueError(f"Segment {twice[0]} is described twice.")
        return cls(
            ordered,
            np.asarray(class_ids, np.int64)[order],
            np.zeros(len(labels), np.bool_) if crowd is None else crowd[order],
            np.ones(len(labels)) if scores is None else scores[order].astype(np.float64),
        )

    def take(self, labels: Labels) -> SegmentLabels:
        """The rows of ``labels`` (ascending). Raises ``ValueError`` that names a label without a row."""
        rows = np.searchsorted(self.labels, labels)
        known = rows < len(self.labels)
        known[known] = self.labels[rows[known]] == labels[known]
        if not known.all():
            missing = labels[~known]
            raise ValueError(
                f"The label map holds segment {missing[0]}, which its table does not describe "
                f"({len(missing)} such segments)."
            )
        return SegmentLabels(labels, self.class_ids[rows], self.crowd[rows], self.scores[rows])


@dataclass(frozen=True, slots=True)
class Overlaps:
    """``T`` segments of the truth and ``F`` found ones that own pixels, and their ``P`` overlapping pairs."""

    truth: SegmentLabels
    truth_areas: NDArray[np.int64]
    """(T,) pixels."""
    found: SegmentLabels
    found_areas: NDArray[np.int64]
    """(F,) pixels, those on void among them."""
    found_void: NDArray[np.int64]
    """(F,) pixels that lie on void of the truth."""
    found_crowd: NDArray[np.int64]
    """(F,) pixels that lie on crowds of the same class."""
    pair_truth: NDArray[np.int64]
    """(P,) index of the pair's segment in ``truth``."""
    pair_found: NDArray[np.int64]
    """(P,) index in ``found``."""
    pixels: NDArray[np.int64]
    """(P,) shared pixels."""

    @property
    def iou(self) -> NDArray[np.float64]:
        """(P,) intersection over union; void of the truth belongs to no union."""
        truth, found = self.truth_areas[self.pair_truth], self.found_areas[self.pair_found]
        return self.pixels / (truth + found - self.pixels - self.found_void[self.pair_found])

    @property
    def same_class(self) -> NDArray[np.bool_]:
        """(P,) both segments have one class."""
        result: NDArray[np.bool_] = (
            self.truth.class_ids[self.pair_truth] == self.found.class_ids[self.pair_found]
        )
        return result

    @property
    def ignored(self) -> NDArray[np.bool_]:
        """(F,) more than half of the segment lies on void or on crowds of its class: no error if unmatched."""
        result: NDArray[np.bool_] = 2 * (self.found_void + self.found_crowd) > self.found_areas
        return result


def overlaps(pairs: Contingency, truth: SegmentLabels, found: SegmentLabels) -> Overlaps:
    """Segments and pairs of one image, raster or video.

    A truth segment of class ``UNSCORED`` counts as background, a found one as nothing claimed. Raises
    ``ValueError`` for a label that its table does not describe.
    """
    truth_labels, truth_areas = pairs.truth_areas()
    found_labels, found_areas = pairs.found_areas()
    truth_rows, truth_areas = _scored(truth, truth_labels, truth_areas)
    found_rows, found_areas = _scored(found, found_labels, found_areas)
    in_found = np.isin(pairs.found, found_rows.labels)
    void = in_found & (pairs.truth == VOID)
    both = in_found & np.isin(pairs.truth, truth_rows.labels)
    pair_truth = np.searchsorted(truth_rows.labels, pairs.truth[both])
    pair_found = np.searchsorted(found_rows.labels, pairs.found[both])
    pixels = pairs.pixels[both]
    on_crowd = truth_rows.crowd[pair_truth] & (
        truth_rows.class_ids[pair_truth] == found_rows.class_ids[pair_found]
    )
    return Overlaps(
        truth_rows,
        truth_areas,
        found_rows,
        found_areas,
        _summed(np.searchsorted(found_rows.labels, pairs.found[void]), pairs.pixels[void], len(found_areas)),
        _summed(pair_found[on_crowd], pixels[on_crowd], len(found_areas)),
        pair_truth,
        pair_found,
        pixels,
    )


def _scored(
    table: SegmentLabels, labels: Labels, areas: NDArray[np.int64]
) -> tuple[SegmentLabels, NDArray[np.int64]]:
    segments = (labels != VOID) & (labels != BACKGROUND)
    rows = table.take(labels[segments])
    keep = rows.class_ids != UNSCORED
    kept = SegmentLabels(rows.labels[keep], rows.class_ids[keep], rows.crowd[keep], rows.scores[keep])
    return kept, areas[segments][keep]


def _summed(index: NDArray[np.integer], pixels: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Whole-number sums by index; ``bincount`` would go through floats."""
    sums = np.zeros(size, np.int64)
    np.add.at(sums, index, pixels)
    return sums
