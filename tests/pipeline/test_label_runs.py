"""Runs of label maps: what they count equals what pixels say, and the codes are pycocotools'."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from panoptile.pipeline.label_runs import (
    LabelRuns,
    coded_labels,
    column_runs,
    common_pixels,
    decoded_labels,
    merged_text,
)

MAPS = st.tuples(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 30), st.integers(0, 9))


def _map(seed: int, height: int, width: int, n: int) -> np.ndarray:
    """Labels 0…n in blocks, so that runs are long and labels may be missing."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, n + 1, (height // 3 + 1, width // 3 + 1))
    return coarse.repeat(3, axis=0).repeat(3, axis=1)[:height, :width].astype(np.int32)


@given(MAPS)
def test_codes_are_those_of_pycocotools(case: tuple[int, int, int, int]) -> None:
    """Text, box and area of every label equal pycocotools', and decoding gives the map back."""
    labels, n = _map(*case), case[3]
    runs = LabelRuns.of(labels)
    coded = coded_labels(labels, runs, n)
    areas = runs.areas(n)
    for label in range(n + 1):
        rle = coco.encode(np.asfortranarray((labels == label).astype(np.uint8)))
        if areas[label] == 0:
            assert coded.texts[label] == ""
            assert not coded.boxes_xywh[label].any()
            continue
        assert coded.texts[label] == rle["counts"].decode()
        np.testing.assert_array_equal(coded.boxes_xywh[label], coco.toBbox(rle))
        assert areas[label] == coco.area(rle)
    present = [label for label in range(1, n + 1) if areas[label]]
    back = decoded_labels([coded.texts[label] for label in present], labels.shape)
    np.testing.assert_array_equal(back, np.searchsorted(present, labels) * (labels > 0) + (labels > 0))
    np.testing.assert_array_equal(runs.to_labels(), labels)
    columns = column_runs([coded.texts[label] for label in present], labels.shape)
    np.testing.assert_array_equal(columns.to_labels().T, back)


@given(MAPS, st.integers(0, 10_000))
def test_common_pixels_and_first_pixels_are_those_of_the_maps(
    case: tuple[int, int, int, int], other: int
) -> None:
    """The contingency table of two maps and each label's first pixel, counted on runs, are those of the pixels."""
    seed, height, width, n = case
    a, b = _map(seed, height, width, n), _map(other, height, width, n + 2)
    runs_a, runs_b = LabelRuns.of(a), LabelRuns.of(b)
    expected = [
        [int(np.count_nonzero((a == i) & (b == j))) for j in range(1, n + 3)] for i in range(1, n + 1)
    ]
    np.testing.assert_array_equal(
        common_pixels(runs_a, runs_b, n, n + 2), np.array(expected).reshape(n, n + 2)
    )
    for label, first in enumerate(runs_a.first_pixels(n)):
        at = np.flatnonzero(a.ravel() == label)
        assert first == (at[0] if len(at) else -1)


def test_union_of_masks() -> None:
    """Merged codes are the code of the union."""
    labels = _map(4, 20, 25, 5)
    coded = coded_labels(labels, LabelRuns.of(labels), 5)
    union = coco.encode(np.asfortranarray(np.isin(labels, (1, 3)).astype(np.uint8)))
    assert merged_text([coded.texts[1], coded.texts[3]], labels.shape) == union["counts"].decode()


def test_maps_of_other_shapes_are_refused() -> None:
    """Overlaps of maps of different shapes are an error that names both."""
    with pytest.raises(ValueError, match="one shape"):
        common_pixels(LabelRuns.of(np.zeros((2, 3), int)), LabelRuns.of(np.zeros((3, 2), int)), 1, 1)
