"""Training windows, cut from labelled images on the fly: random position, scale, rotation, flips and colour.

Nothing is cut to disk. Window ``n`` of a sampler is a pure function of its seed and ``n``, so that a resumed
training, or one on another number of processes, sees the same windows as one that was never stopped.

Letters in shapes: ``C`` bands, ``H W`` pixels, ``N`` objects of one window. Scales are factors on an image's own
resolution: 0.5 halves the pixels a side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from panoptile.pipeline.labelled_scene import (
    BACKGROUND,
    FILL,
    IGNORED,
    LabelledScene,
    LabelledSource,
    Mask,
    intersection,
)

_TRIES = 20
"""Draws until a window is taken although most of it is ignored."""
_MOST_IGNORED = 0.6


@dataclass(frozen=True, slots=True)
class TrainingWindow:
    """A window with its targets, ready for the criterion."""

    image: Tensor
    """uint8 (C, H, W)."""
    masks: Tensor
    """bool (N, H, W): things, then one mask per stuff class that is present."""
    class_labels: Tensor
    """int64 (N,)."""
    ignored: Tensor
    """bool (H, W)."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What may happen to a window."""

    scale_range: tuple[float, float] = (0.5, 1.0)
    """Drawn evenly on a logarithmic axis."""
    rotate: bool = True
    """Any angle; otherwise quarter turns alone."""
    flip: bool = True
    colour: float = 1.0
    """Strength of the random brightness, contrast, saturation, gamma and cast; 0 leaves colours alone."""

    def __post_init__(self) -> None:
        low, high = self.scale_range
        if not 0 < low <= high:
            raise ValueError(f"A range of scales is two positive numbers, the lower one first, got {self}.")
        if self.colour < 0:
            raise ValueError(f"The strength of colour changes is 0 or more, got {self.colour}.")


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a window lies in an image: a turned square."""

    row: float
    """Of the middle, in pixels of the image."""
    col: float
    extent: float
    """Side in pixels of the image."""
    angle: float = 0.0
    """Radians."""
    flip: bool = False

    @property
    def reach(self) -> float:
        """Side of the upright square around the window."""
        return self.extent * (abs(_cos(self.angle)) + abs(_sin(self.angle)))


def _cos(angle: float) -> float:
    return round(math.cos(angle), 12)  # quarter turns are exact


def _sin(angle: float) -> float:
    return round(math.sin(angle), 12)


@dataclass(frozen=True, slots=True)
class WindowSampler:
    """Random windows of several images."""

    sources: tuple[LabelledSource, ...]
    weights: tuple[float, ...]
    """How often each image is drawn, relative to the others."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    min_object_px: int = 24
    """Segments with fewer pixels in the window are ignored rather than asked for."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.sources or len(self.sources) != len(self.weights):
            raise ValueError(
                f"Expected a weight per image, got {len(self.sources)} images and {len(self.weights)} weights."
            )

    def window(self, index: int, *, size: int) -> TrainingWindow:
        """Window number ``index``, ``size`` pixels a side: the same for the same seed and index."""
        rng = np.random.default_rng((self.seed, index))
        for _ in range(_TRIES):
            window = self._draw(rng, size)
            if float(window.ignored.float().mean()) < _MOST_IGNORED:
                break
        return window

    def batch(self, step: int, *, count: int, size: int) -> list[TrainingWindow]:
        """The windows of training step ``step``."""
        return [self.window(step * count + i, size=size) for i in range(count)]

    def _draw(self, rng: np.random.Generator, size: int) -> TrainingWindow:
        chances = np.asarray(self.weights) / sum(self.weights)
        source = self.sources[int(rng.choice(len(self.sources), p=chances))]
        scene = cut(source, draw_placement(rng, source.shape, self.augmentation, size), size=size)
        window = window_of_scene(scene, min_object_px=self.min_object_px)
        image = jitter_colour(window.image, rng, strength=self.augmentation.colour)
        return TrainingWindow(image, window.masks, window.class_labels, window.ignored)


def draw_placement(
    rng: np.random.Generator, shape: tuple[int, int], augmentation: Augmentation, size: int
) -> Placement:
    """A random place in an image of ``shape``; the upright square of its extent lies inside (corners may not).

    Where the image is smaller than a window of the lowest scale, the window shows all of its shorter side.
    """
    low, high = (math.log(s) for s in augmentation.scale_range)
    extent = min(round(size / math.exp(rng.uniform(low, high))), *shape)
    row, col = (int(rng.integers(0, length - extent + 1)) + extent / 2 for length in shape)
    quarters = float(rng.uniform(0, 4)) if augmentation.rotate else float(rng.integers(4))
    flip = bool(rng.integers(2)) and augmentation.flip
    return Placement(row, col, extent, quarters * math.pi / 2, flip)


def cut(source: LabelledSource, place: Placement, *, size: int) -> LabelledScene:
    """The window at ``place``, ``size`` pixels a side: area-weighted colours, nearest labels.

    What lies outside the image is grey and ignored.
    """
    height, width = source.shape
    top, left = math.floor(place.row - place.reach / 2), math.floor(place.col - place.reach / 2)
    bottom, right = math.ceil(place.row + place.reach / 2), math.ceil(place.col + place.reach / 2)
    inside = intersection((top, left, bottom - top, right - left), (0, 0, height, width))
    if inside is None:
        raise ValueError(f"{source.name}: {place} lies outside of its {height}x{width} pixels.")
    part = source.crop(*inside)
    rows, cols = _source_points(place, size)
    rows, cols = rows - inside[0], cols - inside[1]
    labels, ids = _nearest(part, rows, cols)
    image = _colours(part.image, rows, cols, scale=size / place.extent)
    gsd_m = None if part.gsd_m is None else part.gsd_m * place.extent / size
    return LabelledScene(part.name, image, labels, ids, gsd_m)


def _source_points(place: Placement, size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Row and column (H, W) in the image of the middles of a window's pixels."""
    along = ((np.arange(size) + 0.5) / size - 0.5) * place.extent
    down, right = np.meshgrid(along, -along if place.flip else along, indexing="ij")
    cos, sin = _cos(place.angle), _sin(place.angle)
    return place.row + cos * down + sin * right, place.col - sin * down + cos * right


def _nearest(
    part: LabelledScene, rows: NDArray[np.float64], cols: NDArray[np.float64]
) -> tuple[NDArray[np.uint16], NDArray[np.int32]]:
    height, width = part.shape
    row, col = np.floor(rows).astype(np.intp), np.floor(cols).astype(np.intp)
    known = (row >= 0) & (row < height) & (col >= 0) & (col < width)
    pick = row.clip(0, height - 1), col.clip(0, width - 1)
    labels = np.where(known, part.labels[pick], np.uint16(IGNORED))
    return labels.astype(np.uint16), np.where(known, part.ids[pick], 0).astype(np.int32)


def _colours(
    image: NDArray[np.uint8], rows: NDArray[np.float64], cols: NDArray[np.float64], *, scale: float
) -> NDArray[np.uint8]:
    """Colours at points: the image is first shrunk with a filter, then read bilinearly."""
    _, height, width = image.shape
    values = torch.from_numpy(np.ascontiguousarray(image)).float()[None]
    if scale < 1:
        shrunk = max(1, round(height * scale)), max(1, round(width * scale))
        values = F.interpolate(values, size=shrunk, mode="bilinear", antialias=True, align_corners=False)
    grid = np.stack([2 * cols / width - 1, 2 * rows / height - 1], axis=-1)
    read = F.grid_sample(
        values, torch.from_numpy(grid).float()[None], padding_mode="border", align_corners=False
    )[0]
    colours: NDArray[np.uint8] = read.round().clamp(0, 255).to(torch.uint8).numpy()
    outside = (rows < 0) | (rows >= height) | (cols < 0) | (cols >= width)
    colours[:, outside] = FILL
    return colours


def window_of_scene(scene: LabelledScene, *, min_object_px: int) -> TrainingWindow:
    """A whole scene with its segments as masks; what is too small to ask for is ignored."""
    masks: list[Mask] = []
    classes: list[int] = []
    ignored = scene.labels == IGNORED
    found, areas = np.unique(scene.ids[scene.ids > 0], return_counts=True)
    for object_id, area in zip(found, areas, strict=True):
        mask = scene.ids == object_id
        if area < min_object_px:
            ignored |= mask
        else:
            masks.append(mask)
            classes.append(int(scene.labels[mask][0]))
    stuff = np.where(scene.ids > 0, np.uint16(BACKGROUND), scene.labels)
    for label in np.unique(stuff[stuff < BACKGROUND]):
        mask = stuff == label
        if int(mask.sum()) < min_object_px:
            ignored |= mask
        else:
            masks.append(mask)
            classes.append(int(label))
    stacked = np.stack(masks) if masks else np.zeros((0, *scene.shape), np.bool_)
    return TrainingWindow(
        torch.from_numpy(np.ascontiguousarray(scene.image)),
        torch.from_numpy(stacked),
        torch.tensor(classes, dtype=torch.int64),
        torch.from_numpy(ignored),
    )


def jitter_colour(image: Tensor, rng: np.random.Generator, *, strength: float = 1.0) -> Tensor:
    """Random saturation, contrast, gamma, cast and brightness of a uint8 image (C, H, W)."""
    if strength == 0:
        return image

    def factor(spread: float, count: int | None = None) -> NDArray[np.float64]:
        return np.exp(rng.uniform(-spread * strength, spread * strength, size=count))

    values = image.float()
    grey = values.mean(dim=0, keepdim=True)
    values = grey + (values - grey) * float(factor(0.4))
    mean = float(grey.mean())
    values = mean + (values - mean) * float(factor(0.3))
    values = 255 * (values.clamp(0, 255) / 255) ** float(factor(0.25))
    cast = torch.from_numpy(factor(0.08, len(image))).float()[:, None, None]
    return (values * cast * float(factor(0.2))).round().clamp(0, 255).to(torch.uint8)
