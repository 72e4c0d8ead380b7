"""Which track goes on in which segment: costs, gates, and one assignment with explicit births and deaths.

Letters: T live tracks, N segments of the frame, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from panoptile.pipeline.link_options import LinkOptions

FOLLOWED_IOU = 0.5
"""IoU from which two segments in one place of successive pictures are one thing that the camera follows."""
_DECIMALS = 6
"""Costs are rounded, so that the last bits of a matrix product cannot decide an assignment."""


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


def with_camera(
    moved_TN: NDArray[np.floating], still_TN: NDArray[np.float64], min_iou: float
) -> NDArray[np.float64]:
    """(T, N) intersection over union under a camera that moves.

    What stands on the ground moves with the picture: ``moved_TN``. What the camera follows keeps its place: where neither
    track nor segment has anything to go with in the picture that moved, and the two overlap by half (:data:`FOLLOWED_IOU`)
    in the one that did not, ``still_TN`` holds.
    """
    moved = np.asarray(moved_TN, np.float64)
    alone_T = moved.max(axis=1, initial=0.0) < min_iou
    alone_N = moved.max(axis=0, initial=0.0) < min_iou
    followed = alone_T[:, None] & alone_N[None] & (still_TN >= FOLLOWED_IOU)
    return np.where(followed, still_TN, moved)


def pair_costs(pairs: Candidates, options: LinkOptions) -> NDArray[np.float64]:
    """(T, N) costs; infinite where a pair may not be joined.

    (1 - cosine) + ``iou_weight`` (1 - IoU) + ``class_weight`` [other class]. A track that was not seen in the frame
    before has IoU 0 with everything: were it free of that term, the stray half of an object that was once cut in two
    would take the object over from the track that has it. Where there is no embedding, overlap alone decides:
    (1 - IoU) takes the place of (1 - cosine).
    """
    unknown = np.isnan(pairs.cosine)
    cosine = np.where(unknown, -1.0, pairs.cosine)
    iou = np.nan_to_num(pairs.iou)
    by_look = 1 - cosine + options.iou_weight * (1 - iou)
    cost = np.where(unknown, 1 - iou, by_look) + options.class_weight * ~pairs.same_class
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
