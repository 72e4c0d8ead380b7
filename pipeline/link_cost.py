"""Which track goes on in which segment: costs, gates, and one assignment with explicit births and deaths.

Letters: T live tracks, N segments of the frame, C channels.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

LinkMethod = Literal["panoptile", "minvis"]

_DECIMALS = 6
"""Costs are rounded, so that the last bits of a matrix product cannot decide an assignment."""


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """What decides which segments become one track; nothing of it needs the network again."""

    method: LinkMethod = "panoptile"
    max_age: float = 1.0
    """Seconds that a track may stay unseen and keep its id."""
    match_threshold: float = 0.7
    """Cost from which a segment starts a track of its own rather than going on with one."""
    iou_weight: float = 0.5
    """Weight of 1 - IoU with the track's mask of the frame before, where it was seen there."""
    class_weight: float = 0.3
    """Cost of another class."""
    min_cosine: float = 0.5
    min_iou: float = 0.1
    """A pair below both ``min_cosine`` and ``min_iou`` is never joined."""
    birth_score: float = 0.5
    """A segment with a lower score neither starts a lasting track nor changes a track's memory."""
    min_hits: int = 3
    """Tracks seen in fewer frames are published as not confirmed."""
    scene_cut: float = 0.5
    """Change of the colour histogram (0-1, total variation) from which overlaps with the frame before say nothing."""

    def __post_init__(self) -> None:
        if self.method not in get_args(LinkMethod):
            raise ValueError(f"--link is panoptile or minvis, got {self.method!r}.")
        if not 0 <= self.max_age < math.inf:
            raise ValueError(f"--max-age must be seconds from 0, got {self.max_age}.")
        for name in ("match_threshold", "iou_weight", "class_weight"):
            if not 0 <= getattr(self, name) <= 10:
                raise ValueError(
                    f"--{name.replace('_', '-')} must lie between 0 and 10, got {getattr(self, name)}."
                )
        for name in ("min_cosine", "min_iou", "birth_score", "scene_cut"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"--{name.replace('_', '-')} must lie between 0 and 1, got {getattr(self, name)}."
                )
        if self.min_hits < 1:
            raise ValueError(f"--min-hits must be at least 1, got {self.min_hits}.")

    def to_json(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Candidates:
    """Live tracks against the segments of a frame."""

    cosine: NDArray[np.float64]
    """(T, N); NaN where one of the two has no embedding."""
    iou: NDArray[np.float64]
    """(T, N) with the track's mask of the frame before; NaN where it was not seen there."""
    same_class: NDArray[np.bool_]
    """(T, N)"""


def unit_rows(embeddings: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(rows of length 1 (N, C), which rows have a direction at all (N,)); the others stay zero."""
    rows = embeddings.astype(np.float64)
    length = np.sqrt((rows * rows).sum(axis=1)) if rows.size else np.zeros(len(rows))
    has = length > 0
    return np.divide(rows, length[:, None], out=np.zeros_like(rows), where=has[:, None]), has


def overlap_iou(
    overlap_TN: NDArray[np.int64], areas_T: NDArray[np.int64], areas_N: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(T, N) intersection over union, from common pixels and areas."""
    union = areas_T[:, None] + areas_N[None] - overlap_TN
    iou: NDArray[np.float64] = overlap_TN / np.maximum(union, 1)
    return iou


def pair_costs(pairs: Candidates, options: LinkOptions) -> NDArray[np.float64]:
    """(T, N) costs; infinite where a pair may not be joined.

    (1 - cosine) + ``iou_weight`` (1 - IoU) + ``class_weight`` [other class]. A term that is unknown costs nothing,
    but where there is no embedding, overlap alone decides: (1 - IoU) takes the place of (1 - cosine).
    """
    unknown, hidden = np.isnan(pairs.cosine), np.isnan(pairs.iou)
    cosine = np.where(unknown, -1.0, pairs.cosine)
    iou = np.where(hidden, 0.0, pairs.iou)
    by_overlap = np.where(hidden, 0.0, options.iou_weight * (1 - iou))
    cost = np.where(unknown, 1 - iou, 1 - cosine + by_overlap) + options.class_weight * ~pairs.same_class
    barred = (cosine < options.min_cosine) & (iou < options.min_iou)
    return np.where(barred, np.inf, np.round(cost, _DECIMALS))


def assign(costs_TN: NDArray[np.float64], threshold: float) -> NDArray[np.int64]:
    """(N,) the track that goes on in each segment, -1 for none: the least sum of costs (Hungarian method).

    One dummy column per track, of cost ``threshold``, makes "this track ends here" a choice like any other, so a pair
    is joined only where that costs less.
    """
    tracks, segments = costs_TN.shape
    chosen = np.full(segments, -1, np.int64)
    if tracks == 0 or segments == 0:
        return chosen
    usable = costs_TN < threshold
    barred = threshold * (tracks + 1) + 1.0  # dearer than any number of ends; the solver takes no infinity
    matrix = np.full((tracks, segments + tracks), threshold)
    matrix[:, :segments] = np.where(usable, costs_TN, barred)
    rows, cols = linear_sum_assignment(matrix)
    joined = cols < segments
    rows, cols = rows[joined], cols[joined]
    kept = usable[rows, cols]
    chosen[cols[kept]] = rows[kept]
    return chosen
