"""Spatial hold-out: which parts of the images judge a training, and which it never sees.

A held-out area is blank and ignored in training, pixel for pixel, with a guard strip around it; a validation window
sees nothing but its own area. So the two share no pixel, however windows are turned.

Windows are (row, col, height, width).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from panoptile.pipeline.labelled_scene import (
    FILL,
    IGNORED,
    LabelledScene,
    LabelledSource,
    PixelWindow,
    WithoutWindows,
    intersection,
)
from panoptile.pipeline.training_windows import Placement, cut


@dataclass(frozen=True, slots=True)
class OnlyWindow:
    """A source of which nothing but a window can be seen; the rest is blank and ignored."""

    source: LabelledSource
    window: PixelWindow

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def shape(self) -> tuple[int, int]:
        return self.source.shape

    def crop(self, row: int, col: int, height: int, width: int) -> LabelledScene:
        """The part inside a window, blank outside of ours."""
        inside = intersection((row, col, height, width), self.window)
        if inside == (row, col, height, width):
            return self.source.crop(row, col, height, width)
        bands = self.source.crop(row, col, 1, 1).image.shape[0] if inside is None else 0
        seen = None if inside is None else self.source.crop(*inside)
        image = np.full((bands or len(seen.image), height, width), FILL, np.uint8)  # type: ignore[union-attr]
        labels = np.full((height, width), IGNORED, np.uint16)
        ids = np.zeros((height, width), np.int32)
        if inside is not None and seen is not None:
            rows = slice(inside[0] - row, inside[0] - row + inside[2])
            cols = slice(inside[1] - col, inside[1] - col + inside[3])
            image[:, rows, cols], labels[rows, cols], ids[rows, cols] = seen.image, seen.labels, seen.ids
        return LabelledScene(self.name, image, labels, ids, None if seen is None else seen.gsd_m)


@dataclass(frozen=True, slots=True)
class ValidationWindow:
    """One upright window that judges."""

    source: LabelledSource
    place: Placement

    def scene(self, size: int) -> LabelledScene:
        """The window, ``size`` pixels a side."""
        return cut(self.source, self.place, size=size)


def block_windows(
    shape: tuple[int, int], *, block: int, fraction: float, seed: int
) -> tuple[PixelWindow, ...]:
    """Blocks of ``block`` pixels a side (smaller at the end) that make up about ``fraction`` of an image.

    At least one, and never all of several; a single block is not held out.
    """
    height, width = shape
    windows = [
        (row, col, min(block, height - row), min(block, width - col))
        for row in range(0, height, block)
        for col in range(0, width, block)
    ]
    if len(windows) < 2 or fraction <= 0:
        return ()
    count = min(max(1, round(fraction * len(windows))), len(windows) - 1)
    chosen = np.random.default_rng((seed, height, width)).permutation(len(windows))[:count]
    return tuple(windows[i] for i in sorted(chosen.tolist()))


def with_guard(window: PixelWindow, guard: int, shape: tuple[int, int]) -> PixelWindow:
    """A window with a strip around it, clipped to the image."""
    row, col, height, width = window
    grown = intersection((row - guard, col - guard, height + 2 * guard, width + 2 * guard), (0, 0, *shape))
    assert grown is not None
    return grown


def training_part(
    source: LabelledSource, held_out: Sequence[PixelWindow], *, guard: int
) -> LabelledSource | None:
    """The source without the held-out windows and their guard; None where nothing is left."""
    if not held_out:
        return source
    windows = tuple(with_guard(w, guard, source.shape) for w in held_out)
    if any(w == (0, 0, *source.shape) for w in windows):
        return None
    return WithoutWindows(source, windows)


def validation_windows(
    source: LabelledSource, held_out: Sequence[PixelWindow], *, extent: int
) -> list[ValidationWindow]:
    """Upright windows of ``extent`` source pixels that cover the held-out ones, the last ones pulled inwards."""
    found = []
    for window in held_out:
        row, col, height, width = window
        hidden = OnlyWindow(source, window)
        for top in _starts(height, extent):
            for left in _starts(width, extent):
                place = Placement(row + top + extent / 2, col + left + extent / 2, extent)
                found.append(ValidationWindow(hidden, place))
    return found


def _starts(length: int, extent: int) -> list[int]:
    if length <= extent:
        return [0]
    return [*range(0, length - extent, extent), length - extent]
