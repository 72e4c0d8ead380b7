"""One global mapping of a raster's values to 0…255, the same for every tile.

The range is shared by the selected bands, so colour ratios stay. It comes from a bounded, deterministic
sample (an overview, or blocks on a regular lattice), never from a tile: a per-tile stretch makes seams.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from panoptile.pipeline.inputs import InputError
from panoptile.pipeline.window import Window

SAMPLE_PIXELS = 1 << 20
"""Pixels per band that the sample holds at most (about)."""

AUTO_PERCENTILES = (2.0, 98.0)

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"\s*({_NUMBER})\s*,\s*({_NUMBER})\s*")
_PERCENTILES = re.compile(r"\s*p(\d+(?:\.\d+)?)\s*,\s*p(\d+(?:\.\d+)?)\s*")


@dataclass(frozen=True, slots=True)
class ScaleRule:
    """What ``--scale`` asks for."""

    kind: Literal["auto", "range", "percentiles"]
    low: float = 0.0
    """The value that becomes 0, or its percentile."""
    high: float = 0.0
    """The value that becomes 255, or its percentile."""


def parse_scale(text: str) -> ScaleRule:
    """The rule of ``auto``, ``LOW,HIGH`` (values) or ``pA,pB`` (percentiles); InputError for anything else."""
    if text.strip() == "auto":
        return ScaleRule("auto")
    if match := _PERCENTILES.fullmatch(text):
        low, high = float(match[1]), float(match[2])
        if not low < high <= 100:
            raise InputError(f"--scale {text}: percentiles must rise and end at 100 at most, as in p2,p98.")
        return ScaleRule("percentiles", low, high)
    if match := _RANGE.fullmatch(text):
        low, high = float(match[1]), float(match[2])
        if not (low < high and math.isfinite(high - low)):
            raise InputError(f"--scale {text}: the first value must be the smaller one, as in 0,3000.")
        return ScaleRule("range", low, high)
    raise InputError(
        f"--scale {text}: give auto, two values such as 0,3000, or two percentiles such as p2,p98."
    )


def percentile_range(sample: NDArray[np.generic], low: float, high: float) -> tuple[float, float] | None:
    """(low, high) values at two percentiles of a 1-D sample of usable values; None for an empty sample.

    Where both percentiles are one value the sample's extremes are taken, and where these are one value too
    (a flat raster), value … value + 1, so that the range is never empty.
    """
    if sample.size == 0:
        return None
    values = sample.astype(np.float64)
    at_low, at_high = (float(v) for v in np.percentile(values, [low, high]))
    if at_low >= at_high:
        at_low, at_high = float(values.min()), float(values.max())
    if at_low >= at_high:
        at_high = max(at_low + 1.0, math.nextafter(at_low, math.inf))
    return at_low, at_high


def to_uint8(
    values: NDArray[np.generic], valid: NDArray[np.bool_], scale: tuple[float, float] | None
) -> NDArray[np.uint8]:
    """Values (C, H, W) mapped to 0…255, rounded to the nearest and cut off at both ends; 0 where invalid.

    ``scale`` None means values of 0…255 that are taken as they are.
    """
    if scale is None and values.dtype == np.uint8:
        return np.where(valid, values, 0).astype(np.uint8, copy=False)
    work = np.where(valid, values, 0).astype(np.float64)
    if scale is not None:
        low, high = scale
        with np.errstate(over="ignore"):  # beyond float64 is beyond the range too: cut off below
            work -= low
            work *= 255.0
        work /= high - low
    np.clip(work, 0, 255, out=work)
    np.rint(work, out=work)
    pixels: NDArray[np.uint8] = work.astype(np.uint8)
    pixels[:, ~valid] = 0
    return pixels


def sample_windows(
    height: int, width: int, block: tuple[int, int], *, pixels: int = SAMPLE_PIXELS
) -> Iterator[Window]:
    """Windows for a sample of at most about ``pixels`` pixels: the raster if it is small, else a block lattice.

    Windows are whole blocks (at most 512 rows; strips keep their full width) at the centres of an even
    partition of the block grid, so each costs one decoding and the choice depends on the file alone.
    """
    if height * width <= pixels:
        yield Window(0, 0, height, width)
        return
    block_h, block_w = min(block[0], 512, height), min(max(block[1], 64), width)
    if block_w > pixels or block[1] < width:  # tiles, or rows so long that one is more than the sample
        block_w = min(block_w, 512)
    block_h = min(max(block_h, 1), max(1, pixels // block_w))
    grid_rows, grid_cols = -(-height // block_h), -(-width // block_w)
    count = max(1, pixels // (block_h * block_w))
    across = min(grid_cols, count, max(1, round(math.sqrt(count * grid_cols / grid_rows))))
    down = min(grid_rows, count // across)
    across = min(grid_cols, count // down)
    for i in range(down):
        row = (2 * i + 1) * grid_rows // (2 * down) * block_h
        for j in range(across):
            col = (2 * j + 1) * grid_cols // (2 * across) * block_w
            yield Window.span(row, col, min(row + block_h, height), min(col + block_w, width))
