"""VPQ, STQ and track AP: published and hand-made cases, frames counted whole and in blocks."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.pipeline.metric_cases import Count, counted_in_blocks, counted_whole

from panoptile.pipeline.contingency import Contingency, Labels
from panoptile.pipeline.instance_ap import InstanceAP
from panoptile.pipeline.overlaps import ScoredClass, SegmentLabels, overlaps
from panoptile.pipeline.segmentation_tracking_quality import SegmentationTrackingQuality, TrackingScores
from panoptile.pipeline.video_quality import VideoPanopticQuality

both_ways = pytest.mark.parametrize("count", [counted_whole, counted_in_blocks])
CLASS = 1000
"""Labels of these tests are class * CLASS + id."""


def _describe(labels: Labels) -> SegmentLabels:
    return SegmentLabels.of(labels, labels // CLASS, crowd=labels % CLASS == 999)


def _stq(
    truth: NDArray[np.int64], found: NDArray[np.int64], classes: list[ScoredClass], count: Count
) -> TrackingScores:
    """Of one video; the first axis counts frames."""
    pairs = Contingency.merged([count(t, f) for t, f in zip(truth, found, strict=True)])
    score = SegmentationTrackingQuality(classes)
    tables = [_describe(np.unique(side[side > 0])) for side in (pairs.truth, pairs.found)]
    score.add(pairs, *tables)
    return score.result()


# Three frames of 8 x 8 px from the evaluation tests of DeepLab2 (Apache-2.0), recoded: 0 sky, 1 vegetation, and cars
# 2 and 3.
STEP_TRUTH = """
00000000 00000000 00020111 02222111 22222211 22222221 22222221 22222211
00000000 00000000 02001100 22211110 22221111 22222111 22222111 22221111
00000000 00000000 00000000 20111000 22111100 22211110 22211111 22211111
"""
STEP_FOUND = """
00000000 00000000 00000100 00022111 02222311 22222331 22223331 22223331
00000000 00000000 00001100 02221111 22221111 22222111 22223311 22223111
00000000 00000000 00001000 00111100 22211100 22211111 22221111 22221111
"""


def _frames(text: str) -> NDArray[np.int64]:
    digits = np.array([int(c) for c in text if c.isdigit()]).reshape(3, 8, 8)
    labels: NDArray[np.int64] = np.array([1 * CLASS, 2 * CLASS, 3 * CLASS + 2, 3 * CLASS + 3])[digits]
    return labels


@both_ways
def test_stq_of_the_published_video(count: Count) -> None:
    """E: three frames in which a second track covers part of one car."""
    classes = [ScoredClass(1, "sky", False), ScoredClass(2, "vegetation", False), ScoredClass(3, "car", True)]
    scores = _stq(_frames(STEP_TRUTH), _frames(STEP_FOUND), classes, count)
    assert (scores.stq, scores.aq, scores.sq) == pytest.approx(
        (0.66841773352, 0.55366581415, 0.80695295803), abs=1e-11
    )


@pytest.mark.parametrize(
    ("found", "stq"),
    [
        ([1, 1, 1, 1, 1], 1.0),
        ([1, 1, 2, 2, 2], 0.72111026),
        ([1, 2, 2, 2, 2], 0.82462113),
        ([1, 2, 1, 2, 2], 0.72111026),
        ([1, 2, 3, 4, 5], 0.447213596),
    ],
)
@both_ways
def test_stq_of_broken_tracks(found: list[int], stq: float, count: Count) -> None:
    """E: one object in five frames, its track broken in several ways."""
    classes = [ScoredClass(1, "car", True), ScoredClass(2, "sky", False)]
    truth = np.full((5, 1, 1), CLASS + 1)
    scores = _stq(truth, CLASS + np.array(found).reshape(5, 1, 1), classes, count)
    assert scores.stq == pytest.approx(stq, abs=5e-9)
    assert scores.tracks == 1


def test_stq_with_crowds_and_wrong_classes() -> None:
    """What is found on a crowd is left out; a track lost to another class costs both AQ and SQ."""
    classes = [ScoredClass(1, "car", True), ScoredClass(2, "sky", False)]
    crowd_first = CLASS + np.array([999, 1, 1, 1, 1, 1]).reshape(6, 1, 1)
    found = CLASS + np.array([2, 2, 2, 2, 1, 1]).reshape(6, 1, 1)
    scores = _stq(crowd_first, found, classes, counted_whole)
    assert (scores.aq, scores.sq) == pytest.approx((0.52, 1.0), abs=1e-12)
    sky_first = np.array([2 * CLASS, *[CLASS + 1] * 4]).reshape(5, 1, 1)
    found = CLASS + np.array([2, 2, 2, 1, 1]).reshape(5, 1, 1)
    scores = _stq(sky_first, found, classes, counted_whole)
    assert (scores.stq, scores.aq, scores.sq) == pytest.approx((0.42426407, 0.45, 0.4), abs=5e-9)


def _vpq(
    truth: list[list[int]], found: list[list[int]], windows: tuple[int, ...], count: Count
) -> VideoPanopticQuality:
    """A thing class 1 and a stuff class 2; a frame is one row of pixels."""
    score = VideoPanopticQuality([ScoredClass(1, "car", True), ScoredClass(2, "sky", False)], windows)
    score.start_video(_describe, _describe)
    for t, f in zip(truth, found, strict=True):
        score.add_frame(count(np.array([t]), np.array([f])))
    return score


CAR, OTHER, SKY = CLASS + 1, CLASS + 2, 2 * CLASS


@both_ways
def test_vpq_of_swapped_ids(count: Count) -> None:
    """F: an id swap inside two frames halves the tube (IoU 1/2 is no match); frame by frame all is right."""
    truth = [[CAR, SKY], [CAR, SKY]]
    found = [[CAR, SKY], [OTHER, SKY]]
    scores = _vpq(truth, found, (1, 2), count).result()
    assert scores.windows[1].all.pq == 1.0
    assert scores.windows[2].things.pq == 0.0
    assert scores.windows[2].stuff.pq == 1.0
    assert scores.all == pytest.approx((1 + 0.5) / 2)
    three = _vpq([*truth, truth[0]], [found[0], found[0], found[1]], (3,), count).result()
    assert 100 * three.things == pytest.approx(44.4444444444, abs=1e-9)
    row = three.windows[3].per_class[0][1]
    assert (row.matched, row.invented, row.missed) == (1, 1, 0)


def test_vpq_windows_slide_and_stay_in_their_video() -> None:
    """Four frames hold three windows of two; a window longer than every video is left out of the mean."""
    truth = [[CAR, SKY]] * 4
    score = _vpq(truth, truth, (2, 6), counted_whole)
    score.start_video(_describe, _describe)
    score.add_frame(counted_whole(np.array([[CAR, SKY]]), np.array([[CAR, SKY]])))
    scores = score.result()
    assert sorted(scores.windows) == [2]
    assert scores.windows[2].all.matched == 2 * 3
    assert scores.all == 1.0


@both_ways
def test_track_ap_sums_over_frames(count: Count) -> None:
    """A track with IoU 6/8 over its frames is right at the five lower thresholds and 0.75, wrong above."""
    truth = np.full((4, 1, 2), CAR)
    found = truth.copy()
    found[0] = 0
    pairs = Contingency.merged([count(t, f) for t, f in zip(truth, found, strict=True)])
    score = InstanceAP([ScoredClass(1, "car", True)])
    score.add(overlaps(pairs, _describe(np.array([CAR])), _describe(np.array([CAR]))))
    result = score.result()
    assert result.table[0].tolist() == [1.0] * 6 + [0.0] * 4
    assert (result.ap, result.ap50, result.ap75) == pytest.approx((0.6, 1.0, 1.0))
