"""Resampling of a raster to another pixel size, each output pixel from its own source pixels alone.

Why not GDAL's warper: its result for a pixel depends on the window it is asked for (source windows and
chunks are chosen per request), and results here must be the same for every tiling. So each output pixel is
a fixed sequence of multiplications and additions in float64 over source pixels that depend on its absolute
position only. No BLAS, no shortcut for windows without nodata: both would change last bits.

Filters: the exact area average for reductions by 2 or more, else a triangle (bilinear; widened by the
reduction between 1 and 2, against aliasing).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_COVER = 0.5
"""Share of valid input, by weight, from which an output pixel is valid: nodata neither grows nor shrinks."""


@dataclass(frozen=True, slots=True, eq=False)
class Taps:
    """Weights of one axis: output pixel i is the sum over k of weight[i, k] * source[start + index[i, k]]."""

    start: int
    """First source pixel needed."""
    stop: int
    """The source pixel after the last one needed."""
    index: NDArray[np.int64]
    """(N, K), from ``start``."""
    weight: NDArray[np.float64]
    """(N, K); each row sums to 1, pixels beyond the raster's edge have weight 0."""


def axis_taps(start: int, stop: int, *, ratio: float, source_size: int) -> Taps:
    """Taps for the output pixels ``start``…``stop - 1`` of an axis; ``ratio`` = source pixels per output pixel."""
    position = np.arange(start, stop, dtype=np.float64)
    if ratio >= 2:
        low, high = position * ratio, (position + 1) * ratio
        index = np.floor(low).astype(np.int64)[:, None] + np.arange(int(np.ceil(ratio)) + 1)
        weight = np.minimum(high[:, None], index + 1) - np.maximum(low[:, None], index)
    else:
        support = max(1.0, ratio)
        centre = ((position + 0.5) * ratio)[:, None]
        index = np.floor(centre - support - 0.5).astype(np.int64) + np.arange(int(np.ceil(2 * support)) + 2)
        weight = 1 - np.abs(index + 0.5 - centre) / support
    inside = (index >= 0) & (index < source_size)
    weight = np.where(inside, np.maximum(weight, 0.0), 0.0)
    total = weight[:, 0].copy()
    for k in range(1, weight.shape[1]):  # not .sum(): its order of additions depends on the array's shape
        total += weight[:, k]
    used = np.where(weight > 0, index, np.int64(source_size))
    first = int(used.min())
    last = int(np.where(weight > 0, index, -1).max())
    return Taps(first, last + 1, np.clip(index, first, last) - first, weight / total[:, None])


def resample(
    values: NDArray[np.generic], valid: NDArray[np.bool_], rows: Taps, cols: Taps
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(values (C, N, M), valid (N, M)) from the source window (C, H, W) that the taps span.

    Invalid source pixels (valid (H, W) False) have no weight; an output pixel without enough valid input
    (MIN_COVER) is invalid and 0.
    """
    weighted = np.where(valid, values, 0).astype(np.float64)
    total = _along_cols(_along_rows(weighted, rows), cols)
    cover = _along_cols(_along_rows(valid[None].astype(np.float64), rows), cols)[0]
    is_valid = cover >= MIN_COVER
    return np.where(is_valid, total / np.where(is_valid, cover, 1.0), 0.0), is_valid


def _along_rows(image: NDArray[np.float64], taps: Taps) -> NDArray[np.float64]:
    out = image[:, taps.index[:, 0], :] * taps.weight[:, 0, None]
    for k in range(1, taps.weight.shape[1]):
        out += image[:, taps.index[:, k], :] * taps.weight[:, k, None]
    return out


def _along_cols(image: NDArray[np.float64], taps: Taps) -> NDArray[np.float64]:
    out = image[:, :, taps.index[:, 0]] * taps.weight[:, 0]
    for k in range(1, taps.weight.shape[1]):
        out += image[:, :, taps.index[:, k]] * taps.weight[:, k]
    return out
