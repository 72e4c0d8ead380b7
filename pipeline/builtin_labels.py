"""Labels that nobody drew, for the built-in model: crowns from boxes, vegetation and ground from colours.

Doubtful pixels are ignored rather than guessed; the rules are in the functions. Windows are (row, col, height,
width); letters in shapes: ``H W`` pixels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from scipy import ndimage

from panoptile.pipeline.labelled_scene import IGNORED, LabelledScene, Mask

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are exclusive."""

BUILDING, CROWN, VEGETATION, GROUND = range(4)
CLASS_NAMES = ("building", "tree crown", "vegetation", "ground")
THING_LABELS = (BUILDING, CROWN)


def excess_green(image: NDArray[np.uint8], *, sigma_px: float) -> NDArray[np.float32]:
    """Excess green ``2g - r - b`` of the chromatic coordinates (Woebbecke et al., 1995), smoothed; (H, W), -1…2."""
    rgb = np.stack([ndimage.gaussian_filter(band.astype(np.float32), sigma_px) for band in image])
    index: NDArray[np.float32] = 3 * rgb[1] / np.maximum(rgb.sum(axis=0), np.float32(1)) - 1
    return index


def stuff_labels(image: NDArray[np.uint8], *, gsd_m: float) -> NDArray[np.uint16]:
    """Vegetation where the excess green (smoothed by 0.3 m) is above 0.10, ground below 0.05; else ``IGNORED``.

    Shadow (smoothed brightness under 45 of 255, or under half of the scene's median) is ignored too: its hue is
    that of the sky.
    """
    sigma_px = 0.3 / gsd_m
    index = excess_green(image, sigma_px=sigma_px)
    brightness = ndimage.gaussian_filter(image.astype(np.float32).mean(axis=0), sigma_px)
    labels = np.full(index.shape, IGNORED, np.uint16)
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
