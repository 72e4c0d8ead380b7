"""COCO's average precision of instances, from the overlaps of label maps; of tracks, from those of whole videos.

Lin et al., "Microsoft COCO" (ECCV 2014): thresholds 0.50 to 0.95, precision at 101 points of recall, means over
classes that the truth has. Label maps do not overlap, so above an IoU of 0.5 a match is unique and nothing is left to
the order of matching. Track AP (Yang et al., "Video Instance Segmentation", ICCV 2019) is the same figure with the
intersections and unions of a track summed over its frames: add a video's pairs in one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from panoptile.pipeline.overlaps import Overlaps, ScoredClass

THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, slots=True)
class AveragePrecision:
    """AP of ``K`` thing classes at ten thresholds."""

    classes: tuple[ScoredClass, ...]
    table: NDArray[np.float64]
    """(K, 10) AP; NaN for classes that the truth does not have."""

    @property
    def ap(self) -> float:
        """Mean over thresholds and classes; 0 without any class."""
        return _mean(self.table)

    @property
    def ap50(self) -> float:
        return _mean(self.table[:, :1])

    @property
    def ap75(self) -> float:
        return _mean(self.table[:, 5:6])

    def of_class(self, row: int) -> float | None:
        """AP of one class; None where the truth has none."""
        return None if np.isnan(self.table[row, 0]) else float(self.table[row].mean())


class InstanceAP:
    """Accumulates images (or videos, for tracks); 24 bytes a found thing."""

    def __init__(self, classes: Sequence[ScoredClass], *, max_found: int | None = None) -> None:
        """``max_found`` keeps the best so many of each class and image (COCO: 100); None keeps all."""
        things = sorted((c for c in classes if c.is_thing), key=lambda c: c.class_id)
        self.classes = tuple(things)
        self._ids = np.array([c.class_id for c in things], np.int64)
        self._max_found = max_found
        self._wanted = np.zeros(len(things), np.int64)
        self._rows: list[_Found] = []

    def add(self, image: Overlaps) -> None:
        """Add one image, raster, or whole video."""
        countable = np.isin(image.truth.class_ids, self._ids) & ~image.truth.crowd
        rows = np.searchsorted(self._ids, image.truth.class_ids[countable])
        self._wanted += np.bincount(rows, minlength=len(self._ids))
        things = np.flatnonzero(np.isin(image.found.class_ids, self._ids))
        order = things[np.argsort(-image.found.scores[things], kind="stable")]
        hits = _hits(image)
        ignored = _ignored(image) & ~hits
        found = _Found(
            np.searchsorted(self._ids, image.found.class_ids[order]),
            image.found.scores[order],
            hits[order],
            ignored[order],
        )
        self._rows.append(found if self._max_found is None else found.best(self._max_found))

    def result(self) -> AveragePrecision:
        table = np.full((len(self.classes), len(THRESHOLDS)), np.nan)
        if self._rows and len(self.classes):
            found = _Found.joined(self._rows)
            for row in range(len(self.classes)):
                if self._wanted[row]:
                    table[row] = _average_precisions(found.of_class(row), int(self._wanted[row]))
        return AveragePrecision(self.classes, table)


@dataclass(frozen=True, slots=True)
class _Found:
    """Found things in order of image and falling score."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float64]
    hits: NDArray[np.bool_]
    """(F, 10) matched at each threshold."""
    ignored: NDArray[np.bool_]
    """(F, 10) neither right nor wrong at each threshold."""

    def _take(self, index: NDArray[np.integer]) -> _Found:
        return _Found(self.rows[index], self.scores[index], self.hits[index], self.ignored[index])

    def best(self, count: int) -> _Found:
        keep = [np.flatnonzero(self.rows == row)[:count] for row in np.unique(self.rows)]
        return self._take(np.sort(np.concatenate(keep))) if keep else self

    def of_class(self, row: int) -> _Found:
        """Those of one class, by falling score."""
        index = np.flatnonzero(self.rows == row)
        return self._take(index[np.argsort(-self.scores[index], kind="stable")])

    @classmethod
    def joined(cls, parts: list[_Found]) -> _Found:
        return cls(
            *(np.concatenate([getattr(p, n) for p in parts]) for n in ("rows", "scores", "hits", "ignored"))
        )


def _hits(image: Overlaps) -> NDArray[np.bool_]:
    """(F, 10) found segments that match an object at each threshold."""
    hits = np.zeros((len(image.found_areas), len(THRESHOLDS)), np.bool_)
    iou = image.iou
    pairs = np.flatnonzero(image.same_class & ~image.truth.crowd[image.pair_truth] & (iou >= 0.5))
    for column, threshold in enumerate(THRESHOLDS):
        hits[image.pair_found[pairs[iou[pairs] >= threshold]], column] = True
    if (iou[pairs] == 0.5).any():  # only here can one object have two candidates: the better score takes it
        hits[:, 0] = False
        taken: set[int] = set()
        order = np.lexsort((-iou[pairs], -image.found.scores[image.pair_found[pairs]]))
        for pair in pairs[order].tolist():
            t, f = int(image.pair_truth[pair]), int(image.pair_found[pair])
            if t not in taken and not hits[f, 0]:
                taken.add(t)
                hits[f, 0] = True
    return hits


def _ignored(image: Overlaps) -> NDArray[np.bool_]:
    """(F, 10) segments that may be left unmatched: enough of them lies on one crowd, or most of them on void."""
    share = np.zeros(len(image.found_areas))
    on_crowd = image.same_class & image.truth.crowd[image.pair_truth]
    index = image.pair_found[on_crowd]
    np.maximum.at(share, index, image.pixels[on_crowd] / image.found_areas[index])
    mostly_void = 2 * image.found_void > image.found_areas
    return (share[:, None] >= THRESHOLDS) | mostly_void[:, None]


def _average_precisions(found: _Found, wanted: int) -> NDArray[np.float64]:
    """(10,) AP of one class with ``wanted`` objects in the truth."""
    values = np.zeros(len(THRESHOLDS))
    for column in range(len(THRESHOLDS)):
        counted = ~found.ignored[:, column]
        right = np.cumsum(found.hits[counted, column])
        if not len(right):
            continue
        precision = right / np.arange(1, len(right) + 1)
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        at = np.searchsorted(right / wanted, _RECALLS, side="left")
        reached = at < len(precision)
        values[column] = precision[at[reached]].sum() / len(_RECALLS)
    return values


def _mean(values: NDArray[np.float64]) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else 0.0
