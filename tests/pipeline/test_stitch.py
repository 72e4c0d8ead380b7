"""Stitching, proven with echoes of known worlds."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pipeline.worlds import echo_run, make_world

from panoptile.pipeline.fragment import NodeColumns
from panoptile.pipeline.raster_info import NODATA_ID
from panoptile.pipeline.stitch import NodeFilter, band_edges, merge_nodes


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    height=st.integers(60, 260),
    width=st.integers(60, 260),
    tile=st.integers(32, 140),
    share=st.floats(0, 1),
)
def test_any_tiling_equals_one_window(seed: int, height: int, width: int, tile: int, share: float) -> None:
    """Ids, classes and areas of a tiled echo equal those of a single window over the raster."""
    world = make_world(seed, height, width)
    overlap = 16 + round(share * (tile // 2 - 16))
    with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
        tiled, joined = echo_run(world, tile, overlap, Path(a))
        whole, single = echo_run(world, max(height, width), 0, Path(b))
    np.testing.assert_array_equal(tiled, whole)
    for name in ("class_ids", "areas", "at_edge", "scores"):
        np.testing.assert_array_equal(getattr(joined.segments, name), getattr(single.segments, name))
    assert joined.segments.suspects == 0
    assert (tiled[~world.valid] == NODATA_ID).all()
    assert (tiled[world.valid] != NODATA_ID).all()


def test_ids_are_ranks_of_first_pixels(tmp_path: Path) -> None:
    """Segment ids are 1…N in the order in which a scan of the raster first meets them."""
    painted, joined = echo_run(make_world(3, 150, 170), 64, 24, tmp_path)
    ids, first = np.unique(painted, return_index=True)
    named = (ids != 0) & (ids != NODATA_ID)
    assert list(ids[named]) == list(range(1, len(joined.segments) + 1))
    assert (np.diff(first[named]) > 0).all()


def _nodes(*rows: tuple[int, float, int, int]) -> NodeColumns:
    """Nodes of (class, score, area, first pixel)."""
    columns = list(zip(*rows, strict=True))
    return NodeColumns(
        np.array(columns[0], np.uint16),
        np.array(columns[1], np.float32),
        np.array(columns[2], np.int32),
        np.array(columns[3], np.int64),
        np.zeros(len(rows), np.bool_),
    )


def test_merged_class_is_voted_by_area_and_ties_go_to_the_lower_id() -> None:
    """Class by area vote, score by area-weighted mean."""
    nodes = _nodes((2, 1.0, 10, 5), (1, 0.5, 10, 9), (1, 0.2, 0, -1))
    stitched = merge_nodes(
        nodes, np.array([0, 1, 2], np.int32), [np.array([[0, 1], [1, 2]], np.int32)], frozenset({1, 2})
    )
    assert list(stitched.lut) == [1, 1, 1]
    assert list(stitched.segments.class_ids) == [1]
    assert stitched.segments.scores[0] == pytest.approx(0.75)
    assert list(stitched.segments.merged_from) == [2]
    assert list(stitched.segments.tile_ids) == [0, 1]


def test_a_segment_without_owned_pixels_links_but_gets_no_id() -> None:
    """Two pieces joined through a third that owns nothing are one; a lone one without pixels has no id."""
    nodes = _nodes((1, 1.0, 4, 7), (1, 1.0, 0, -1), (1, 1.0, 6, 2), (1, 1.0, 0, -1))
    tiles = np.array([0, 1, 2, 3], np.int32)
    stitched = merge_nodes(nodes, tiles, [np.array([[0, 1], [1, 2]], np.int32)], frozenset({1}))
    assert list(stitched.lut) == [1, 1, 1, 0]
    assert list(stitched.segments.areas) == [10]


def test_two_segments_of_one_tile_in_one_component_are_suspects() -> None:
    """An over-merge is counted, not hidden."""
    nodes = _nodes((1, 1.0, 4, 1), (1, 1.0, 4, 2), (1, 1.0, 4, 3))
    stitched = merge_nodes(
        nodes, np.array([0, 0, 1], np.int32), [np.array([[0, 2], [1, 2]], np.int32)], frozenset({1})
    )
    assert stitched.segments.suspects == 1


def test_filters_drop_segments_and_renumber() -> None:
    """Classes and small segments that are not asked for become void; ids stay dense."""
    nodes = _nodes((1, 1.0, 4, 1), (2, 1.0, 40, 2), (1, 1.0, 50, 3))
    stitched = merge_nodes(
        nodes, np.array([0, 0, 0], np.int32), [], frozenset({1, 2}), NodeFilter(frozenset({1}), min_area=5)
    )
    assert list(stitched.lut) == [0, 0, 1]


CLASSES = np.array([1, 1, 2], np.uint16)


@pytest.mark.parametrize(
    ("b_class", "cut", "joined"),
    [
        (1, 15, True),  # IoU 15/30 = .5, same class
        (1, 16, False),  # IoU 14/30
        (2, 7, True),  # other class, IoU 23/30 ≥ .75
        (2, 8, False),  # other class, IoU 22/30
    ],
)
def test_iou_rule(b_class: int, cut: int, joined: bool) -> None:
    """Same class joins from IoU .5, two things of other classes from .75; no pixel floor."""
    a = np.ones((3, 10), np.uint16)
    b = a.copy()
    b.ravel()[:cut] = 0
    edges = band_edges(a, b, np.array([1], np.uint16), np.array([b_class], np.uint16), frozenset({1, 2}))
    assert (len(edges) == 1) is joined


@pytest.mark.parametrize(("pixels", "b_class", "joined"), [(64, 1, True), (63, 1, False), (64, 2, False)])
def test_containment_rule(pixels: int, b_class: int, joined: bool) -> None:
    """A piece inside a larger one joins from 64 common pixels, and only in the same class."""
    a = np.ones((20, 20), np.uint16)
    b = np.zeros((20, 20), np.uint16)
    b.ravel()[:pixels] = 1
    edges = band_edges(a, b, np.array([1], np.uint16), np.array([b_class], np.uint16), frozenset({1, 2}))
    assert (len(edges) == 1) is joined


def test_nodata_and_stuff_never_join() -> None:
    """Pixels without input count for nothing, and stuff has no edges."""
    a = np.full((4, 4), 65535, np.uint16)
    a[0] = 1
    assert len(band_edges(a, a, np.array([1], np.uint16), np.array([1], np.uint16), frozenset({1}))) == 1
    assert len(band_edges(a, a, np.array([3], np.uint16), np.array([3], np.uint16), frozenset({1}))) == 0
