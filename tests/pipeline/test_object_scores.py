"""Counting found objects: cases small enough to be checked by eye."""

from __future__ import annotations

import numpy as np
import pytest

from panoptile.pipeline.object_scores import ObjectScores, boxes_of, match_boxes, match_masks


def test_masks_match_above_half_overlap_only() -> None:
    """IoU 2/3 is a hit, IoU exactly 1/2 is not, and ids of the two maps need not agree."""
    truth = np.array([[1, 1, 1, 0, 2, 2]], np.int32)
    predicted = np.array([[0, 7, 7, 0, 9, 0]], np.int32)
    scores = match_masks(truth, predicted)
    assert (scores.hits, scores.missed, scores.invented) == (1, 1, 1)
    assert scores.f1 == pytest.approx(0.5)
    assert scores.pq == pytest.approx(2 / 3 / 2)
    assert match_masks(truth, truth).f1 == 1.0


def test_boxes_are_assigned_once_each() -> None:
    """Two predictions on one object are one hit and one invention."""
    truth = np.array([[0, 0, 10, 10], [20, 20, 30, 30]])
    predicted = np.array([[0, 0, 10, 10], [0, 0, 10, 8], [20, 24, 30, 34]])
    scores = match_boxes(truth, predicted, threshold=0.4)
    assert (scores.hits, scores.missed, scores.invented) == (2, 0, 1)
    assert scores.iou_sum == pytest.approx(1 + 60 / 140)
    none = np.zeros((0, 4), np.int64)
    assert match_boxes(truth, none, threshold=0.4) == ObjectScores(hits=0, missed=2, invented=0)


def test_boxes_of_a_label_map() -> None:
    """Boxes are half-open and skip ids that do not occur."""
    ids = np.zeros((5, 6), np.int32)
    ids[1:3, 2:5] = 3
    ids[4, 0] = 1
    assert boxes_of(ids).tolist() == [[0, 4, 1, 5], [2, 1, 5, 3]]
    assert boxes_of(np.zeros((3, 3), np.int32)).shape == (0, 4)
