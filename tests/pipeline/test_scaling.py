"""Scaling to 0…255, its sample, and resampling."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from panoptile.pipeline.inputs import InputError
from panoptile.pipeline.resample import axis_taps, resample
from panoptile.pipeline.scaling import ScaleRule, parse_scale, percentile_range, sample_windows, to_uint8
from panoptile.pipeline.window import Window


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("auto", ScaleRule("auto")),
        ("0,3000", ScaleRule("range", 0, 3000)),
        ("-1.5, 2e3", ScaleRule("range", -1.5, 2000)),
        ("p2,p98", ScaleRule("percentiles", 2, 98)),
        ("p0,p99.5", ScaleRule("percentiles", 0, 99.5)),
    ],
)
def test_the_three_forms_of_scale_are_read(text: str, rule: ScaleRule) -> None:
    """auto, two values, two percentiles."""
    assert parse_scale(text) == rule


@pytest.mark.parametrize(
    "text", ["", "dark", "3", "5,5", "9,1", "p98,p2", "p2,98", "p2,p101", "nan,1", "0,1e999", "1,2,3"]
)
def test_any_other_scale_is_refused(text: str) -> None:
    """The message names the option."""
    with pytest.raises(InputError, match="--scale"):
        parse_scale(text)


def test_values_are_mapped_rounded_and_cut_off() -> None:
    """low -> 0, high -> 255, beyond is cut off, invalid is 0."""
    values = np.array([[[-5.0, 0, 50, 100, 1e9, np.nan]]])
    valid = np.array([[True, True, True, True, True, False]])
    assert to_uint8(values, valid, (0, 100))[0, 0].tolist() == [0, 0, 128, 255, 255, 0]


def test_uint8_is_taken_as_it_is() -> None:
    """Without a scale only invalid pixels change."""
    values = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    valid = np.array([[True, True, False], [True, True, True]])
    assert to_uint8(values, valid, None).ravel().tolist() == [0, 1, 0, 3, 4, 5]


@pytest.mark.parametrize("value", [0.0, -7.0, 1e-30, 1e300, 65535.0])
def test_a_flat_raster_gets_a_range_that_is_not_empty(value: float) -> None:
    """No division by zero, whatever the value."""
    low, high = percentile_range(np.full(100, value), 2, 98) or (0.0, 0.0)
    assert low == value < high
    assert to_uint8(np.full((1, 2, 2), value), np.ones((2, 2), bool), (low, high)).max() == 0


def test_a_raster_with_few_outliers_falls_back_to_its_extremes() -> None:
    """Where p2 equals p98 the range still shows what is there; without values there is no range."""
    assert percentile_range(np.array([0.0] * 999 + [10.0]), 2, 98) == (0.0, 10.0)
    assert percentile_range(np.array([]), 2, 98) is None


@given(
    st.integers(1, 300_000), st.integers(1, 300_000),
    st.sampled_from([(512, 512), (1, 0), (8, 0), (256, 256), (4096, 4096), (10**6, 0)]),
)  # fmt: skip
def test_the_sample_is_bounded_spread_and_inside(height: int, width: int, block: tuple[int, int]) -> None:
    """At most 4/3 of the pixels asked for, no window twice, each inside the raster."""
    shape = min(block[0], height), min(block[1] or width, width)
    budget = 1 << 18
    seen = 0
    windows = list(sample_windows(height, width, shape, pixels=budget))
    for window in windows:
        assert window.intersect(Window(0, 0, height, width)) == window
        seen += window.pixels
    assert 1 <= len(windows) == len(set(windows))
    assert seen <= budget * 4 // 3


def tiled(
    values: np.ndarray, valid: np.ndarray, ratio: float, size: int, cuts: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Resample tile by tile and put the tiles together."""
    n = values.shape[1]
    out, ok = np.zeros((values.shape[0], size, size)), np.zeros((size, size), bool)
    edges = sorted({0, size, *(c for c in cuts if c < size)})
    for top, bottom in itertools.pairwise(edges):
        for left, right in itertools.pairwise(edges):
            rows = axis_taps(top, bottom, ratio=ratio, source_size=n)
            cols = axis_taps(left, right, ratio=ratio, source_size=n)
            part = slice(rows.start, rows.stop), slice(cols.start, cols.stop)
            out[:, top:bottom, left:right], ok[top:bottom, left:right] = resample(
                values[(slice(None), *part)], valid[part], rows, cols
            )
    return out, ok


@given(st.floats(0.2, 7), st.lists(st.integers(1, 40), max_size=4), st.integers(0, 9))
def test_resampled_tiles_equal_the_resampled_whole(ratio: float, cuts: list[int], seed: int) -> None:
    """Bit for bit, for any pixel size, tiling and nodata."""
    rng = np.random.default_rng(seed)
    values, valid = rng.normal(size=(2, 40, 40)), rng.random((40, 40)) < 0.8
    size = max(1, round(40 / ratio))
    whole, cut = tiled(values, valid, ratio, size, []), tiled(values, valid, ratio, size, cuts)
    assert np.array_equal(whole[0], cut[0])
    assert np.array_equal(whole[1], cut[1])


def test_a_reduction_by_a_whole_number_is_the_block_mean() -> None:
    """Every source pixel counts once; invalid ones not at all; half a block is enough."""
    values = np.arange(36, dtype=float).reshape(1, 6, 6)
    valid = np.ones((6, 6), bool)
    valid[0, 0] = False
    valid[:2, 2:4] = [[True, False], [False, False]]
    out, ok = tiled(values, valid, 2.0, 3, [])
    assert out[0, 2, 2] == pytest.approx(values[0, 4:, 4:].mean(), abs=1e-12)
    assert out[0, 0, 0] == pytest.approx((1 + 6 + 7) / 3, abs=1e-12)
    assert ok.tolist() == [[True, False, True], [True] * 3, [True] * 3]


def test_enlarging_keeps_a_linear_ramp() -> None:
    """Bilinear interpolation at pixel centres, flat beyond the outermost centres."""
    values = np.tile(np.arange(8.0), (1, 8, 1))
    out, _ = tiled(values, np.ones((8, 8), bool), 0.5, 16, [])
    expected = np.clip((np.arange(16) + 0.5) / 2 - 0.5, 0, 7)
    np.testing.assert_allclose(out[0, 3], expected, atol=1e-12)
