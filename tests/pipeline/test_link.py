"""Linking: which segment goes on with which track, when tracks begin and end, and MinVIS as its paper has it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from panoptile.model.panoptic_map import QueryStates
from panoptile.pipeline.frame_segments import FrameSegments, color_histogram
from panoptile.pipeline.link import TrackLinker
from panoptile.pipeline.link_cost import Candidates, assign, pair_costs
from panoptile.pipeline.link_options import LinkOptions
from panoptile.pipeline.minvis import MinVisLinker
from panoptile.pipeline.tracks import TrackVotes

THING, OTHER_THING, STUFF = 1, 2, 3
THINGS = frozenset({THING, OTHER_THING})
AXES = np.eye(8)


def frame(
    time_s: float,
    embeddings: list[NDArray[np.float64]],
    *,
    class_ids: list[int] | None = None,
    scores: list[float] | None = None,
    overlap: list[list[int]] | None = None,
    histogram: NDArray[np.float32] | None = None,
) -> FrameSegments:
    """A frame of segments of 100 pixels each."""
    n = len(embeddings)
    return FrameSegments(
        time_s,
        np.array(class_ids or [THING] * n, np.uint16),
        np.array(scores or [0.9] * n, np.float32),
        np.full(n, 100, np.int64),
        np.array(embeddings, np.float16).reshape(n, -1) if n else np.zeros((0, 0), np.float16),
        None if overlap is None else np.array(overlap, np.int64).reshape(-1, n),
        histogram,
    )


def linked(linker: TrackLinker, *frames: FrameSegments) -> list[list[int]]:
    return [linker.link(f).tolist() for f in frames]


def near(axis: int, cosine: float) -> NDArray[np.float64]:
    """A direction with this cosine to an axis."""
    direction: NDArray[np.float64] = cosine * AXES[axis] + np.sqrt(1 - cosine**2) * AXES[7]
    return direction


def test_embeddings_tell_objects_again_wherever_they_are() -> None:
    """Two objects that change places, in the list and in the picture, keep their ids."""
    frames = [
        frame(0.0, [AXES[0], AXES[1]]),
        frame(0.1, [AXES[1], AXES[0]], overlap=[[40, 0], [0, 40]]),
        frame(0.2, [AXES[0], AXES[1]], overlap=[[0, 0], [0, 0]]),
    ]
    assert linked(TrackLinker(THINGS), *frames) == [[1, 2], [2, 1], [1, 2]]


def test_overlap_decides_between_twins() -> None:
    """Objects whose embeddings are the same are told apart by where they were."""
    frames = [frame(0.0, [AXES[0]] * 2), frame(0.1, [AXES[0]] * 2, overlap=[[0, 60], [60, 0]])]
    assert linked(TrackLinker(THINGS), *frames) == [[1, 2], [2, 1]]


def test_under_a_moving_camera_the_moved_overlap_counts() -> None:
    """Each thing has left its place for that of the other: the picture has moved, and they are told apart."""
    first = frame(0.0, [AXES[0]] * 2)
    second = frame(0.1, [AXES[0]] * 2, overlap=[[0, 60], [60, 0]])
    moved = replace(second, moved_iou=np.array([[0.9, 0.0], [0.0, 0.9]], np.float32))
    assert linked(TrackLinker(THINGS), first, moved) == [[1, 2], [1, 2]]
    still = TrackLinker(THINGS, LinkOptions(camera_motion=False))
    assert linked(still, first, moved) == [[1, 2], [2, 1]]


def test_what_the_camera_follows_keeps_its_track() -> None:
    """One thing moves with the ground, one keeps its place in the picture; a third comes where another left."""
    blind = [np.zeros(8)] * 3
    first = frame(0.0, blind)
    second = frame(0.1, blind, overlap=[[0, 100, 0], [0, 0, 90], [30, 0, 0]])
    moved = np.zeros((3, 3), np.float32)
    moved[0, 0] = 0.8
    assert linked(TrackLinker(THINGS), first, replace(second, moved_iou=moved)) == [[1, 2, 3], [1, 4, 2]]


def test_births_deaths_and_no_second_use_of_an_id() -> None:
    """A new object gets a new id; one that is unseen for longer than the limit comes back as another."""
    options = LinkOptions(max_age=0.5)
    frames = [
        frame(0.0, [AXES[0]]),
        frame(0.1, [AXES[0], AXES[1]]),
        frame(0.6, [AXES[0]]),  # the second was last seen 0.5 s ago: still within the limit
        frame(0.6 + 1e-9, [AXES[0], AXES[1]]),
        frame(1.3, [AXES[1], AXES[0]]),
    ]
    assert linked(TrackLinker(THINGS, options), *frames) == [[1], [1, 2], [1], [1, 2], [3, 4]]


def test_empty_frames_forget_nothing() -> None:
    """A frame in which nothing was found leaves the tracks' memory as it was; so does one without embeddings."""
    frames = [
        frame(0.0, [AXES[0]]),
        frame(0.1, []),
        frame(0.2, [np.zeros(0)]),
        frame(0.3, [AXES[1], AXES[0]]),
    ]
    assert linked(TrackLinker(THINGS), *frames) == [[1], [], [2], [3, 1]]


def test_a_pair_costs_less_than_the_threshold_or_is_not_joined() -> None:
    """Without overlap the cost is 1 - cosine + 0.5: at a threshold of 1.2, 0.69 off is joined, 0.71 off is not."""
    for cosine, same in ((0.71, True), (0.31, True), (0.29, False)):
        options = LinkOptions(min_cosine=0.0, match_threshold=1.2)
        ids = linked(TrackLinker(THINGS, options), frame(0.0, [AXES[0]]), frame(0.1, [near(0, cosine)]))
        assert (ids[0] == ids[1]) is same


def test_what_looks_different_and_lies_elsewhere_is_never_joined() -> None:
    """Below both gates a pair is barred, however high the threshold; one of the two is enough to allow it."""
    options = LinkOptions(match_threshold=10.0, min_cosine=0.5, min_iou=0.1)
    first = frame(0.0, [AXES[0]])
    for cosine, common, same in ((0.4, 5, False), (0.6, 0, True), (0.4, 40, True)):
        second = frame(0.1, [near(0, cosine)], overlap=[[common]])
        ids = linked(TrackLinker(THINGS, options), first, second)
        assert (ids[0] == ids[1]) is same


def test_another_class_costs_but_does_not_forbid() -> None:
    """A thing that is once named another thing keeps its id; stuff and things never share one."""
    linker = TrackLinker(THINGS)
    ids = linked(
        linker,
        frame(0.0, [AXES[0]]),
        frame(0.1, [AXES[0]], class_ids=[OTHER_THING], overlap=[[90]]),
        frame(0.2, [AXES[0]], class_ids=[STUFF], overlap=[[90]]),
    )
    assert ids == [[1], [1], [2]]


def test_stuff_is_one_track_per_class() -> None:
    """All segments of a stuff class share an id, in one frame and over all, however long it was away."""
    linker = TrackLinker(THINGS)
    ids = linked(
        linker,
        frame(0.0, [AXES[0], AXES[1], AXES[2]], class_ids=[STUFF, STUFF, THING]),
        frame(0.1, []),
        frame(99.0, [AXES[5]], class_ids=[STUFF]),
    )
    assert ids == [[1, 1, 2], [], [1]]


def test_unsure_segments_neither_last_nor_shape() -> None:
    """Below the birth score a segment has an id of its own and is forgotten; a track's memory is not bent by it."""
    linker = TrackLinker(THINGS)
    unsure = frame(0.0, [AXES[0]], scores=[0.3])
    assert linked(linker, unsure, frame(0.1, [AXES[0]], overlap=[[100]])) == [[1], [2]]
    bent = frame(0.2, [near(0, 0.75)], scores=[0.3], overlap=[[100]])
    back = frame(0.3, [AXES[0]], overlap=[[100]])
    assert linked(linker, bent, back) == [[2], [2]]
    assert linker._memory is not None
    np.testing.assert_allclose(linker._memory[0], AXES[0], atol=1e-3)


def test_a_track_without_embeddings_is_followed_by_overlap() -> None:
    """A replica that gives none is linked by masks alone; unseen for one frame, such a track is lost."""
    nothing = np.zeros(0)
    linker = TrackLinker(THINGS)
    ids = linked(
        linker,
        frame(0.0, [nothing]),
        frame(0.1, [nothing, nothing], overlap=[[10, 80]]),
        frame(0.2, [nothing], overlap=[[0], [0]]),
    )
    assert ids == [[1], [2, 1], [3]]


def test_at_a_cut_overlap_says_nothing() -> None:
    """After a change of all colours a mask in the same place is another object, unless it looks the same."""
    red = color_histogram(np.full((8, 8, 3), (250, 0, 0), np.uint8))
    blue = color_histogram(np.full((8, 8, 3), (0, 0, 250), np.uint8))
    assert red.sum() == blue.sum() == 1
    for after, same in ((red, True), (blue, False)):
        linker = TrackLinker(THINGS, LinkOptions(match_threshold=1.0))
        ids = linked(
            linker,
            frame(0.0, [AXES[0]], histogram=red),
            frame(0.1, [near(0, 0.45)], overlap=[[100]], histogram=after),
        )
        assert (ids[0] == ids[1]) is same


def test_after_a_missing_frame_overlaps_do_not_count() -> None:
    """A track that was seen before the gap is found by its embedding; its place is not held against it."""
    linker = TrackLinker(THINGS)
    linker.link(frame(0.0, [near(0, 0.9)]))
    linker.skip()
    assert linker.link(frame(0.1, [near(0, 0.9), AXES[3]])).tolist() == [1, 2]


def test_a_stray_half_does_not_take_the_object_over() -> None:
    """An object that was cut in two for one frame keeps the id that it had, though the other half, which has another
    track now and looks the same, was not seen since."""
    frames = [
        frame(0.0, [AXES[0]]),
        frame(0.1, [AXES[0], AXES[0]], overlap=[[60, 40]]),
        frame(0.2, [AXES[0]], overlap=[[60], [40]]),
        frame(0.3, [AXES[0]], overlap=[[70]]),
        frame(0.4, [AXES[0]], overlap=[[70]]),
    ]
    assert linked(TrackLinker(THINGS), *frames) == [[1], [1, 2], [1], [1], [1]]


@given(
    tracks=st.integers(0, 4), segments=st.integers(0, 4), seed=st.integers(0, 9999), barred=st.floats(0, 1)
)
def test_the_assignment_is_the_cheapest(tracks: int, segments: int, seed: int, barred: float) -> None:
    """Against all possible assignments: the sum of joined costs and of one threshold per track that ends is least,
    and nothing is joined at or above the threshold."""
    rng = np.random.default_rng(seed)
    costs = np.where(rng.random((tracks, segments)) < barred, np.inf, rng.random((tracks, segments)))
    threshold = 0.6
    chosen = assign(costs, threshold)
    joined = {int(t): j for j, t in enumerate(chosen.tolist()) if t >= 0}
    assert len(joined) == np.count_nonzero(chosen >= 0)
    assert all(costs[t, j] < threshold for t, j in joined.items())

    def total(of: dict[int, int]) -> float:
        return float(sum(costs[t, j] for t, j in of.items())) + threshold * (tracks - len(of))

    options = [
        dict(zip(rows, cols, strict=True))
        for k in range(min(tracks, segments) + 1)
        for rows in itertools.combinations(range(tracks), k)
        for cols in itertools.permutations(range(segments), k)
    ]
    assert total(joined) == pytest.approx(min(total(o) for o in options))


def test_costs_are_those_of_the_formula() -> None:
    """(1 - cosine) + 0.5 (1 - IoU) + 0.3 [other class]; a track that was not seen before has IoU 0."""
    pairs = Candidates(
        cosine=np.array([[0.9, 0.6]]), iou=np.array([[0.5, np.nan]]), same_class=np.array([[True, False]])
    )
    np.testing.assert_allclose(pair_costs(pairs, LinkOptions()), [[0.1 + 0.25, 0.4 + 0.5 + 0.3]])


@given(seed=st.integers(0, 1000), frames=st.integers(1, 6), queries=st.integers(2, 9))
def test_minvis_is_the_paper_s_algorithm(seed: int, frames: int, queries: int) -> None:
    """Slots equal those of the definition written out: align all queries with the frame before, then permute."""
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(frames, queries, 5)).astype(np.float16)
    logits = rng.normal(size=(frames, queries, 4)).astype(np.float16)
    linker = MinVisLinker(frozenset({1, 2, 3}))
    found = []
    for t in range(frames):
        segments = FrameSegments(
            t / 10,
            np.ones(queries, np.uint16),
            np.ones(queries, np.float32),
            np.ones(queries, np.int64),
            embeddings[t],
            None,
            states=QueryStates(embeddings[t], logits[t]),
            queries=np.arange(queries, dtype=np.int32),
        )
        found.append(linker.link(segments))
    aligned, mean = [embeddings[0].astype(float)], logits[0].astype(float)
    for t in range(frames):
        current = embeddings[t].astype(float)
        if t:
            before = aligned[-1]
            norms = np.linalg.norm(before, axis=1)[:, None] * np.linalg.norm(current, axis=1)[None]
            _, order = linear_sum_assignment(1 - before @ current.T / norms)
            aligned.append(current[order])
            mean = mean + logits[t].astype(float)[order]
        else:
            order = np.arange(queries)
        for slot, query in enumerate(order):
            assert found[t][query] == slot + 1
    for slot in range(queries):
        assert linker.class_of(slot + 1) == int(np.argmax(mean[slot, :-1])) + 1


def test_votes_weigh_scores_and_count_frames() -> None:
    """The class of a track is the one with the largest sum of scores, of equals the lower; stuff in two parts counts
    one frame."""
    votes = TrackVotes()
    for ids, classes, scores in (
        ([1, 5, 5], [1, 3, 3], [0.9, 0.8, 0.8]),
        ([1, 2], [2, 2], [0.5, 0.5]),
        ([1, 2], [2, 1], [0.5, 0.5]),
    ):
        votes.add(np.array(ids, np.int32), np.array(classes, np.uint16), np.array(scores, np.float32))
    tracks = votes.counted()
    assert len(tracks) == 3
    assert tracks.class_ids[[1, 2, 5]].tolist() == [2, 1, 3]
    assert tracks.hits[[1, 2, 5]].tolist() == [3, 2, 1]
    assert [c for c, _ in tracks.votes[1]] == [2, 1]
