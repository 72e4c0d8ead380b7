"""Labelled scenes and the training windows that are cut from them on the fly.

Nothing is cut to disk: a scene is held whole as arrays, and window ``n`` of a sampler is a pure function of its
seed and ``n``, so that a resumed training sees the same windows as one that was never stopped. Stuff has no
hand-drawn labels in our sources; it comes from a colour index, and doubtful pixels are ignored (see the functions).

Letters in shapes: ``H W`` pixels, ``N`` objects of one window. Windows are (row, col, height, width).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

Mask = NDArray[np.bool_]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are exclusive."""

IGNORED = 255
"""Label of pixels that are neither right nor wrong."""
BUILDING, CROWN, VEGETATION, GROUND = range(4)
CLASS_NAMES = ("building", "tree crown", "vegetation", "ground")
THING_LABELS = (BUILDING, CROWN)


@dataclass(frozen=True, slots=True)
class LabelledScene:
    """One image and what is known about each of its pixels."""

    name: str
    image: NDArray[np.uint8]
    """Red, green, blue, (3, H, W)."""
    labels: NDArray[np.uint8]
    """Label id of each pixel (H, W); ``IGNORED`` where it is not known."""
    ids: NDArray[np.int32]
    """Object each pixel belongs to (H, W), from 1; 0 outside the things."""
    gsd_m: float
    """Ground resolution in metres per pixel."""

    def __post_init__(self) -> None:
        if self.labels.shape != self.image.shape[1:] or self.ids.shape != self.labels.shape:
            raise ValueError(
                f"Scene {self.name}: {self.image.shape = }, {self.labels.shape = } and {self.ids.shape = } disagree."
            )

    def crop(self, row: int, col: int, height: int, width: int) -> LabelledScene:
        """The part of the scene inside a window; views, no copies."""
        rows, cols = slice(row, row + height), slice(col, col + width)
        return LabelledScene(
            self.name, self.image[:, rows, cols], self.labels[rows, cols], self.ids[rows, cols], self.gsd_m
        )

    def without(self, row: int, col: int, height: int, width: int) -> LabelledScene:
        """A copy in which a window is black and ignored: set aside for validation."""
        image, labels, ids = self.image.copy(), self.labels.copy(), self.ids.copy()
        rows, cols = slice(row, row + height), slice(col, col + width)
        image[:, rows, cols], labels[rows, cols], ids[rows, cols] = 0, IGNORED, 0
        return LabelledScene(self.name, image, labels, ids, self.gsd_m)


# --- labels from colours, outlines and boxes ---------------------------------------------------------------------


def excess_green(image: NDArray[np.uint8], *, sigma_px: float) -> NDArray[np.float32]:
    """Excess green ``2g - r - b`` of the chromatic coordinates (Woebbecke et al., 1995), smoothed; (H, W), -1…2."""
    rgb = np.stack([ndimage.gaussian_filter(band.astype(np.float32), sigma_px) for band in image])
    index: NDArray[np.float32] = 3 * rgb[1] / np.maximum(rgb.sum(axis=0), np.float32(1)) - 1
    return index


def stuff_labels(image: NDArray[np.uint8], *, gsd_m: float) -> NDArray[np.uint8]:
    """Vegetation where the excess green (smoothed by 0.3 m) is above 0.10, ground below 0.05; else ``IGNORED``.

    Shadow (smoothed brightness under 45 of 255, or under half of the scene's median) is ignored too: its hue is
    that of the sky.
    """
    sigma_px = 0.3 / gsd_m
    index = excess_green(image, sigma_px=sigma_px)
    brightness = ndimage.gaussian_filter(image.astype(np.float32).mean(axis=0), sigma_px)
    labels = np.full(index.shape, IGNORED, np.uint8)
    labels[index > 0.10] = VEGETATION
    labels[index < 0.05] = GROUND
    labels[brightness < max(45.0, 0.5 * float(np.median(brightness)))] = IGNORED
    return labels


def read_boxes(path: str | Path) -> list[Box]:
    """Object boxes of a PASCAL VOC annotation file, in file order."""
    # Four integers in a fixed order need no XML parser, and so no defence against hostile XML.
    pattern = r"<xmin>(\d+)</xmin>\s*<ymin>(\d+)</ymin>\s*<xmax>(\d+)</xmax>\s*<ymax>(\d+)</ymax>"
    found = re.findall(pattern, Path(path).read_text(encoding="utf-8"))
    boxes = [(int(left), int(top), int(right), int(bottom)) for left, top, right, bottom in found]
    return [box for box in boxes if box[2] > box[0] and box[3] > box[1]]


def crowns_from_boxes(image: NDArray[np.uint8], boxes: Sequence[Box]) -> tuple[NDArray[np.int32], Mask]:
    """Crown ids (H, W) from boxes, box ``i`` giving id ``i + 1``, and the doubtful pixels around them.

    A crown is the ellipse inscribed in its box, less what is darker than 0.55 of the median brightness of the
    ellipse's inner half (the shadow that a tree throws beside itself), its largest part with holes filled; the
    whole ellipse where less than half would be left. A pixel in several ellipses goes to the nearest centre, with
    distances measured in the ellipse's own radii. Corners of boxes and removed shadow are doubtful.
    """
    height, width = image.shape[1:]
    brightness = ndimage.gaussian_filter(image.astype(np.float32).mean(axis=0), 2.0)
    ids = np.zeros((height, width), np.int32)
    nearest = np.ones((height, width), np.float32)
    doubtful = np.zeros((height, width), np.bool_)
    for i, (left, top, right, bottom) in enumerate(boxes):
        inside = (
            slice(max(top, 0), min(bottom, height)),
            slice(max(left, 0), min(right, width)),
        )
        rows, cols = np.mgrid[inside]
        distance = np.hypot(
            (rows + 0.5 - (top + bottom) / 2) / ((bottom - top) / 2),
            (cols + 0.5 - (left + right) / 2) / ((right - left) / 2),
        ).astype(np.float32)
        doubtful[inside] = True
        crown = _bright_part(brightness[inside], distance)
        wins = crown & (distance < nearest[inside])
        ids[inside][wins] = i + 1
        nearest[inside][wins] = distance[wins]
    return ids, doubtful & (ids == 0)


def _bright_part(brightness: NDArray[np.float32], distance: NDArray[np.float32]) -> Mask:
    """The ellipse ``distance < 1`` without the shadow in it."""
    ellipse = distance < 1
    inner = brightness[distance < 0.7]
    if inner.size == 0:
        return ellipse
    lit = ellipse & (brightness > 0.55 * np.median(inner))
    parts, count = ndimage.label(lit)
    if count == 0:
        return ellipse
    largest = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    crown: Mask = ndimage.binary_fill_holes(largest) & ellipse
    return crown if 2 * crown.sum() >= ellipse.sum() else ellipse


# --- scenes ------------------------------------------------------------------------------------------------------


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """The first three bands of an 8-bit raster, (3, H, W)."""
    with rasterio.open(path) as dataset:
        if dataset.count < 3 or dataset.dtypes[0] != "uint8":
            raise ValueError(
                f"{path}: expected three uint8 bands, got {dataset.count} of {dataset.dtypes[0]}."
            )
        image: NDArray[np.uint8] = dataset.read([1, 2, 3])
    return image


def building_scene(image_path: str | Path, instances_path: str | Path, *, gsd_m: float) -> LabelledScene:
    """A scene whose buildings are an instance raster; 2 px on either side of an outline's outside are ignored."""
    image = read_image(image_path)
    with rasterio.open(instances_path) as dataset:
        ids = dataset.read(1).astype(np.int32)
    labels = stuff_labels(image, gsd_m=gsd_m)
    # Outlines are drawn on roofs that lean; the strip beside them is often wall or roof.
    labels[ndimage.binary_dilation(ids > 0, iterations=3)] = IGNORED
    labels[ids > 0] = BUILDING
    return LabelledScene(Path(image_path).stem, image, labels, ids, gsd_m)


def crown_scene(image_path: str | Path, boxes_path: str | Path, *, gsd_m: float) -> LabelledScene:
    """A scene whose tree crowns are boxes, made into masks by :func:`crowns_from_boxes`."""
    image = read_image(image_path)
    ids, doubtful = crowns_from_boxes(image, read_boxes(boxes_path))
    labels = stuff_labels(image, gsd_m=gsd_m)
    labels[doubtful] = IGNORED
    labels[ids > 0] = CROWN
    return LabelledScene(Path(image_path).stem, image, labels, ids, gsd_m)


# --- windows -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TrainingWindow:
    """A window with its targets, ready for the criterion."""

    image: Tensor
    """uint8 (3, H, W)."""
    masks: Tensor
    """bool (N, H, W): things, then one mask per stuff class that is present."""
    class_labels: Tensor
    """int64 (N,)."""
    ignored: Tensor
    """bool (H, W)."""


@dataclass(frozen=True, slots=True)
class WindowSampler:
    """Random windows of scenes: position, scale, flips, quarter turns and colour."""

    scenes: tuple[LabelledScene, ...]
    weights: tuple[float, ...]
    """How often each scene is drawn, relative to the others."""
    scale_range: tuple[float, float] = (0.5, 1.0)
    """Factor on the scene's own resolution: 0.5 halves the pixels a side."""
    min_object_px: int = 24
    """Things with fewer pixels in the window are ignored rather than asked for."""
    seed: int = 0

    def window(self, index: int, *, size: int) -> TrainingWindow:
        """Window number ``index``, ``size`` pixels a side: the same for the same seed and index."""
        rng = np.random.default_rng((self.seed, index))
        for _ in range(20):
            window = self._draw(rng, size)
            if float(window.ignored.float().mean()) < 0.6:
                break
        return window

    def batch(self, step: int, *, count: int, size: int) -> list[TrainingWindow]:
        """The windows of training step ``step``."""
        return [self.window(step * count + i, size=size) for i in range(count)]

    def _draw(self, rng: np.random.Generator, size: int) -> TrainingWindow:
        chances = np.asarray(self.weights) / sum(self.weights)
        scene = self.scenes[int(rng.choice(len(self.scenes), p=chances))]
        low, high = (float(np.log(s)) for s in self.scale_range)
        extent = round(size / float(np.exp(rng.uniform(low, high))))
        extent = min(extent, *scene.labels.shape)
        row, col = (int(rng.integers(0, length - extent + 1)) for length in scene.labels.shape)
        part = scene.crop(row, col, extent, extent)
        turned = _turn(part, quarters=int(rng.integers(4)), flip=bool(rng.integers(2)))
        window = window_of_scene(turned, size=size, min_object_px=self.min_object_px)
        image = jitter_colour(window.image, rng)
        return TrainingWindow(image, window.masks, window.class_labels, window.ignored)


def _turn(scene: LabelledScene, *, quarters: int, flip: bool) -> LabelledScene:
    def turn(array: NDArray[np.generic]) -> NDArray[np.generic]:
        array = np.rot90(array, quarters, axes=(-2, -1))
        return np.ascontiguousarray(array[..., ::-1] if flip else array)

    return LabelledScene(scene.name, turn(scene.image), turn(scene.labels), turn(scene.ids), scene.gsd_m)  # type: ignore[arg-type]


def window_of_scene(scene: LabelledScene, *, size: int, min_object_px: int) -> TrainingWindow:
    """A whole (square) scene resampled to ``size`` pixels a side: area-weighted colours, nearest labels."""
    image = torch.from_numpy(np.ascontiguousarray(scene.image))[None]
    image = F.interpolate(image, size=(size, size), mode="bilinear", antialias=True, align_corners=False)[0]
    rows, cols = ((np.arange(size) + 0.5) * length / size for length in scene.labels.shape)
    pick = np.ix_(rows.astype(np.intp), cols.astype(np.intp))
    labels, ids = scene.labels[pick], scene.ids[pick]
    masks: list[Mask] = []
    classes: list[int] = []
    ignored = labels == IGNORED
    found, areas = np.unique(ids[ids > 0], return_counts=True)
    for object_id, area in zip(found, areas, strict=True):
        mask = ids == object_id
        if area < min_object_px:
            ignored |= mask
        else:
            masks.append(mask)
            classes.append(int(labels[mask][0]))
    for stuff in (VEGETATION, GROUND):
        mask = labels == stuff
        if int(mask.sum()) >= min_object_px:
            masks.append(mask)
            classes.append(stuff)
    stacked = np.stack(masks) if masks else np.zeros((0, size, size), np.bool_)
    return TrainingWindow(
        image, torch.from_numpy(stacked), torch.tensor(classes, dtype=torch.int64), torch.from_numpy(ignored)
    )


def jitter_colour(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Random brightness, contrast, saturation and colour cast of a uint8 image (3, H, W)."""
    values = image.float()
    grey = values.mean(dim=0, keepdim=True)
    values = grey + (values - grey) * float(rng.uniform(0.7, 1.3))
    mean = float(grey.mean())
    values = mean + (values - mean) * float(rng.uniform(0.75, 1.25))
    cast = torch.from_numpy(rng.uniform(0.92, 1.08, size=3)).float()[:, None, None]
    return (values * cast * float(rng.uniform(0.8, 1.2))).round().clamp(0, 255).to(torch.uint8)
