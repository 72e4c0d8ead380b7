"""What is known about the pixels of one image: the common form of all training data.

Unusual: a pixel can be *ignored* (nobody knows what it is: it counts neither for nor against any mask) or
*background* (it is known to belong to no segment); most formats know only one of the two. A source hands out parts
of an image on request, so that a raster of any size can be learnt from.

Letters in shapes: ``H W`` pixels. Windows are (row, col, height, width).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
PixelWindow = tuple[int, int, int, int]
"""Row, column, height, width."""

IGNORED = 65535
"""Label of pixels that are neither right nor wrong."""
BACKGROUND = 65534
"""Label of pixels that belong to no segment."""
MAX_CLASSES = BACKGROUND
FILL = 127
"""Grey of pixels without input."""


@dataclass(frozen=True, slots=True)
class LabelledScene:
    """One image, or a part of one, in memory."""

    name: str
    image: NDArray[np.uint8]
    """Bands as the network sees them, (C, H, W)."""
    labels: NDArray[np.uint16]
    """Label id of each pixel (H, W); ``IGNORED`` or ``BACKGROUND`` where it has none."""
    ids: NDArray[np.int32]
    """Object each pixel belongs to (H, W), from 1; 0 outside the things."""
    gsd_m: float | None = None
    """Ground resolution in metres per pixel, if known."""

    def __post_init__(self) -> None:
        if self.labels.shape != self.image.shape[1:] or self.ids.shape != self.labels.shape:
            raise ValueError(
                f"Scene {self.name}: {self.image.shape = }, {self.labels.shape = } and {self.ids.shape = } disagree."
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.labels.shape
        return height, width

    def crop(self, row: int, col: int, height: int, width: int) -> LabelledScene:
        """The part of the scene inside a window; views, no copies."""
        rows, cols = slice(row, row + height), slice(col, col + width)
        return LabelledScene(
            self.name, self.image[:, rows, cols], self.labels[rows, cols], self.ids[rows, cols], self.gsd_m
        )

    def without(self, row: int, col: int, height: int, width: int) -> LabelledScene:
        """A copy in which a window is blank and ignored: set aside for validation."""
        image, labels, ids = self.image.copy(), self.labels.copy(), self.ids.copy()
        rows, cols = slice(row, row + height), slice(col, col + width)
        image[:, rows, cols], labels[rows, cols], ids[rows, cols] = FILL, IGNORED, 0
        return LabelledScene(self.name, image, labels, ids, self.gsd_m)


class LabelledSource(Protocol):
    """An image with labels that may be larger than memory; :class:`LabelledScene` is one."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""

    def crop(self, row: int, col: int, height: int, width: int) -> LabelledScene:
        """The part inside a window, which lies inside the image."""


@dataclass(frozen=True, slots=True)
class WithoutWindows:
    """A source whose windows are blank and ignored, pixel for pixel: what validation sees, training does not."""

    source: LabelledSource
    windows: tuple[PixelWindow, ...]

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def shape(self) -> tuple[int, int]:
        return self.source.shape

    def crop(self, row: int, col: int, height: int, width: int) -> LabelledScene:
        part = self.source.crop(row, col, height, width)
        for top, left, rows, cols in self.windows:
            inside = intersection((row, col, height, width), (top, left, rows, cols))
            if inside is not None:
                part = part.without(inside[0] - row, inside[1] - col, inside[2], inside[3])
        return part


def intersection(a: PixelWindow, b: PixelWindow) -> PixelWindow | None:
    """The common part of two windows; None where they share no pixel."""
    top, left = max(a[0], b[0]), max(a[1], b[1])
    bottom, right = min(a[0] + a[2], b[0] + b[2]), min(a[1] + a[3], b[1] + b[3])
    return None if bottom <= top or right <= left else (top, left, bottom - top, right - left)


def bounding_window(windows: Sequence[PixelWindow]) -> PixelWindow:
    """The smallest window around all of ``windows``."""
    top, left = min(w[0] for w in windows), min(w[1] for w in windows)
    bottom, right = max(w[0] + w[2] for w in windows), max(w[1] + w[3] for w in windows)
    return top, left, bottom - top, right - left
