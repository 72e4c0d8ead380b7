"""COCO codes from outlines against pycocotools on drawn masks."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from numpy.typing import NDArray
from pycocotools import mask as coco
from tests.pipeline.label_arrays import label_rasters, voronoi
from tests.pipeline.test_polygons import outlines_of

from panoptile.pipeline.polygons import Outlines
from panoptile.pipeline.rle import encode_runs


def _assert_as_pycocotools(labels: NDArray[np.uint32]) -> None:
    outlines = outlines_of(labels, 16)
    boxes = outlines.boxes()
    codes = encode_runs(outlines, boxes).to_pylist()
    for i, (x0, y0, x1, y1), code in zip(outlines.ids, boxes, codes, strict=True):
        mask = np.asfortranarray(labels[y0:y1, x0:x1] == i, np.uint8)
        assert code == coco.encode(mask)["counts"].decode()


@given(label_rasters())
def test_codes_are_those_of_pycocotools(labels: NDArray[np.uint32]) -> None:
    """For parts, holes and corner contacts, the code equals pycocotools' of the drawn mask, byte by byte."""
    _assert_as_pycocotools(labels)


def test_long_runs_are_packed_right() -> None:
    """Runs that need several 5-bit groups, rising and falling, are packed as pycocotools does."""
    labels = np.zeros((700, 900), np.uint32)
    labels[10:650, 3:800] = 1
    labels[100:600:37, 50:700] = 0
    labels[699, 899] = 1
    _assert_as_pycocotools(labels)
    _assert_as_pycocotools(voronoi(5, 300, 200, 30))


def _frame(side: int) -> Outlines:
    """One segment: the pixels along the border of a square of ``side``."""
    starts = [(0, 0), (side, side), (1, 1), (side - 1, side - 1)]
    starts[2:] = [(side - 1, 1), (1, side - 1)]  # the hole's top edge runs to the left
    return Outlines(
        np.array([1], np.uint32), np.array([0, 2]), np.array([False, True]), np.array([0, 2, 4]),
        np.array(starts, np.int32),
    )  # fmt: skip


def test_a_huge_box_costs_its_outline_alone() -> None:
    """A frame of 60,000 px a side (3.6 thousand million pixels) is coded; one past 2^32 px has no code."""
    frame = _frame(60_000)
    assert frame.areas().tolist() == [4 * 59_999]
    (code,) = encode_runs(frame, frame.boxes()).to_pylist()
    small = np.zeros((9, 9), np.uint32)
    small[[0, -1]] = small[:, [0, -1]] = 1
    (small_code,) = encode_runs(_frame(9), _frame(9).boxes()).to_pylist()
    assert small_code == coco.encode(np.asfortranarray(small, np.uint8))["counts"].decode()
    runs = coco.frPyObjects(
        {"size": [60_000, 60_000], "counts": [0, 60_001] + [59_998, 2] * 59_997 + [59_998, 60_001]},
        60_000,
        60_000,
    )
    assert code == runs["counts"].decode()
    assert encode_runs(_frame(65_536), _frame(65_536).boxes()).to_pylist() == [None]
