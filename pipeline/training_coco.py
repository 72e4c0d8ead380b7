"""COCO panoptic and COCO instance annotations as training images.

Unusual: pixels that a panoptic annotation leaves open (id 0) and crowds are ignored for real; in instance
annotations, what no object covers is background. Where objects overlap, the smaller one lies on top.

Letters in shapes: ``H W`` pixels.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from panoptile.pipeline.inputs import InputError, shown
from panoptile.pipeline.label_report import LabelReport
from panoptile.pipeline.labelled_scene import BACKGROUND, IGNORED, LabelledScene

CocoForm = Literal["panoptic", "instances"]
_CHECKED_PNGS = 100
"""Label images that are opened before training; the others are checked for being there."""


@dataclass(frozen=True, slots=True)
class CocoClass:
    """A category of the file, with its place among the labels."""

    category_id: int
    name: str
    is_thing: bool


@dataclass(frozen=True, slots=True)
class CocoSegment:
    """One segment of one image."""

    label: int
    """Label id, or ``IGNORED`` for a crowd."""
    is_thing: bool
    segment_id: int
    """Panoptic: the id in the label image."""
    outline: Any = None
    """Instances: polygons or a run-length code, as in the file."""


@dataclass(frozen=True, slots=True)
class CocoImage:
    """One image of a COCO file."""

    path: str
    height: int
    width: int
    segments: tuple[CocoSegment, ...]
    mask_path: str | None
    """Panoptic: the label image."""

    @property
    def name(self) -> str:
        return self.path

    @property
    def shape(self) -> tuple[int, int]:
        return self.height, self.width

    def crop(self, row: int, col: int, height: int, width: int) -> LabelledScene:
        """The part inside a window; the whole image is decoded."""
        image = read_rgb(self.path)
        if image.shape[1:] != self.shape:
            raise InputError(
                f"{shown(self.path)} has {image.shape[2]}x{image.shape[1]} pixels, its annotation says "
                f"{self.width}x{self.height}."
            )
        labels, ids = self._panoptic() if self.mask_path is not None else self._instances()
        return LabelledScene(self.name, image, labels, ids).crop(row, col, height, width)

    def _panoptic(self) -> tuple[NDArray[np.uint16], NDArray[np.int32]]:
        assert self.mask_path is not None
        numbers = read_panoptic_png(self.mask_path)
        found, index = np.unique(numbers, return_inverse=True)
        by_id = {segment.segment_id: (i, segment) for i, segment in enumerate(self.segments)}
        labels = np.full(len(found), IGNORED, np.uint16)
        ids = np.zeros(len(found), np.int32)
        for k, number in enumerate(found.tolist()):
            if number in by_id:
                i, segment = by_id[number]
                labels[k] = segment.label
                ids[k] = i + 1 if segment.is_thing and segment.label != IGNORED else 0
        return labels[index].reshape(numbers.shape), ids[index].reshape(numbers.shape)

    def _instances(self) -> tuple[NDArray[np.uint16], NDArray[np.int32]]:
        labels = np.full(self.shape, BACKGROUND, np.uint16)
        ids = np.zeros(self.shape, np.int32)
        masks = [decode_outline(s.outline, self.height, self.width) for s in self.segments]
        for i in sorted(range(len(masks)), key=lambda i: -int(masks[i].sum())):
            segment = self.segments[i]
            labels[masks[i]] = segment.label
            ids[masks[i]] = 0 if segment.label == IGNORED else i + 1
        return labels, ids


def read_rgb(path: str) -> NDArray[np.uint8]:
    """A photograph as (3, H, W)."""
    from PIL import Image

    with Image.open(path) as image:
        rgb = np.asarray(image.convert("RGB"))
    return np.ascontiguousarray(rgb.transpose(2, 0, 1))


def read_panoptic_png(path: str) -> NDArray[np.int64]:
    """Segment ids (H, W) of a panoptic label image: R + 256 G + 65536 B."""
    rgb = read_rgb(path).astype(np.int64)
    ids: NDArray[np.int64] = rgb[0] + 256 * rgb[1] + 65536 * rgb[2]
    return ids


def decode_outline(outline: Any, height: int, width: int) -> NDArray[np.bool_]:
    """A mask (H, W) from COCO polygons, a compressed code or plain counts."""
    from pycocotools import mask as coco_mask

    if isinstance(outline, list):
        code = coco_mask.merge(coco_mask.frPyObjects(outline, height, width))
    elif isinstance(outline["counts"], list):
        code = coco_mask.frPyObjects(outline, height, width)
    else:
        code = outline
    return np.asarray(coco_mask.decode(code), bool)


@dataclass(frozen=True, slots=True)
class CocoFile:
    """A parsed annotation file."""

    path: str
    form: CocoForm
    classes: tuple[CocoClass, ...]
    images: tuple[dict[str, Any], ...]
    annotations: tuple[dict[str, Any], ...]


def read_coco(path: str) -> CocoFile:
    """Parse an annotation file and tell its form. Raises InputError."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        images, annotations = list(data["images"]), list(data["annotations"])
        categories = sorted(data["categories"], key=lambda c: c["id"])
        classes = tuple(
            CocoClass(int(c["id"]), str(c["name"]), bool(c.get("isthing", 1))) for c in categories
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise InputError(f"{shown(path)} is no COCO annotation file: {type(e).__name__} {e}.") from e
    panoptic = any("segments_info" in a for a in annotations)
    return CocoFile(path, "panoptic" if panoptic else "instances", classes, tuple(images), tuple(annotations))


def coco_images(
    file: CocoFile, *, label_of_category: dict[int, int], images: Path, masks: Path
) -> tuple[list[CocoImage], LabelReport]:
    """The images with at least one usable segment, and what is wrong with the rest."""
    if file.form == "panoptic":
        return _panoptic_images(file, label_of_category, images, masks)
    return _instance_images(file, label_of_category, images)


def _panoptic_images(
    file: CocoFile, label_of_category: dict[int, int], images: Path, masks: Path
) -> tuple[list[CocoImage], LabelReport]:
    report, by_id = LabelReport(), {image["id"]: image for image in file.images}
    things = {c.category_id: c.is_thing for c in file.classes}
    found: list[CocoImage] = []
    for annotation in file.annotations:
        image, segments = by_id.get(annotation["image_id"]), []
        where = str(annotation.get("file_name"))
        report.found += len(annotation["segments_info"])
        if image is None:
            report.bad("label images belong to no image", where)
            continue
        for segment in annotation["segments_info"]:
            label = label_of_category.get(segment["category_id"])
            if label is None:
                report.bad("labels have an unknown class", f"{where}: category {segment['category_id']}")
                continue
            crowd = bool(segment.get("iscrowd", 0))
            segments.append(
                CocoSegment(IGNORED if crowd else label, things[segment["category_id"]], int(segment["id"]))
            )
        mask = masks / where
        if not mask.is_file():
            report.bad("label images are missing", str(mask))
            continue
        _keep(found, report, images, image, segments, str(mask))
    for kept in found[:: max(1, len(found) // _CHECKED_PNGS)]:
        _check_png(kept, report)
    return found, report


def _keep(
    found: list[CocoImage],
    report: LabelReport,
    folder: Path,
    image: dict[str, Any],
    segments: Sequence[CocoSegment],
    mask: str | None,
) -> None:
    path = folder / str(image["file_name"])
    if not path.is_file():
        report.bad("images are missing", str(path))
    elif not segments:
        report.bad("images have no usable label", str(path))
    else:
        report.used += len(segments)
        found.append(CocoImage(str(path), int(image["height"]), int(image["width"]), tuple(segments), mask))


def _check_png(image: CocoImage, report: LabelReport) -> None:
    assert image.mask_path is not None
    numbers = read_panoptic_png(image.mask_path)
    if numbers.shape != image.shape:
        raise InputError(
            f"{shown(image.mask_path)} has {numbers.shape[1]}x{numbers.shape[0]} pixels, its image "
            f"{image.width}x{image.height}."
        )
    there = set(np.unique(numbers).tolist()) - {0}
    stated = {segment.segment_id for segment in image.segments}
    report.bad("segments are in the file but not in the label image", image.mask_path, len(stated - there))
    report.bad("segments are in the label image but not in the file", image.mask_path, len(there - stated))


def _instance_images(
    file: CocoFile, label_of_category: dict[int, int], folder: Path
) -> tuple[list[CocoImage], LabelReport]:
    report, by_id = LabelReport(found=len(file.annotations)), {image["id"]: image for image in file.images}
    per_image: dict[Any, list[CocoSegment]] = defaultdict(list)
    for annotation in file.annotations:
        image = by_id.get(annotation["image_id"])
        where = f"{file.path}, annotation {annotation.get('id')}"
        label = label_of_category.get(annotation["category_id"])
        if image is None:
            report.bad("labels belong to no image", where)
        elif label is None:
            report.bad("labels have an unknown class", f"{where}: category {annotation['category_id']}")
        elif problem := _outline_problem(annotation.get("segmentation"), image):
            report.bad(problem, where)
        else:
            crowd = bool(annotation.get("iscrowd", 0))
            segment = CocoSegment(
                IGNORED if crowd else label,
                True,
                int(annotation.get("id", 0)),
                annotation["segmentation"],
            )
            per_image[image["id"]].append(segment)
    found: list[CocoImage] = []
    for image_id, segments in per_image.items():
        _keep(found, report, folder, by_id[image_id], segments, None)
    return found, report


def _outline_problem(outline: Any, image: dict[str, Any]) -> str | None:
    """Why an outline cannot be used; None if it can."""
    height, width = int(image["height"]), int(image["width"])
    if not outline:
        return "labels have no outline"
    try:
        if isinstance(outline, list):
            rings = [np.asarray(ring, float).reshape(-1, 2) for ring in outline]
            if not any(len(ring) >= 3 for ring in rings):
                return "labels have an invalid outline without area"
            xy = np.concatenate(rings)
            x, y = xy.T
            if x.max() <= 0 or y.max() <= 0 or x.min() >= width or y.min() >= height:
                return "labels lie outside of their image"
        elif tuple(outline["size"]) != (height, width):
            return "labels have run-length codes of another size than their image"
    except (ValueError, KeyError, TypeError):
        return "labels have an outline that cannot be read"
    return None
