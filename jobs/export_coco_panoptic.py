"""COCO's panoptic format: images, a PNG of segment ids for each, and a JSON that names them.

Ids in a PNG count from 1 in each image (R + 256 G + 256² B, 0 void and no input), so rasters may have any number of
segments; ``segment_id`` of ``segments_info`` is the raster's, by which parts of a divided segment are joined.
Datumaro finds this layout by itself, and ``panoptile eval`` takes the folder as ground truth or prediction.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from panoptile.jobs.export_coco import (
    SUBSET,
    image_fields,
    info_fields,
    panoptic_category,
    raster_fields,
    segment_fields,
)
from panoptile.jobs.export_images import ImageDataset, Part, TiledImage
from panoptile.jobs.json_lists import JsonDocument


class CocoPanopticWriter:
    """``images/``, ``annotations/panoptic_default.json`` and ``annotations/panoptic_default/``."""

    def __init__(self, folder: Path, dataset: ImageDataset) -> None:
        self._dataset = dataset
        self._images = folder / "images"
        self._masks = folder / "annotations" / f"panoptic_{SUBSET}"
        for path in (self._images, self._masks):
            path.mkdir(parents=True)
        self._document = JsonDocument(self._masks.with_suffix(".json"), ("images", "annotations"))

    def close(self) -> None:
        self._document.close()

    def add(self, image: TiledImage) -> None:
        image.save(self._images)
        Image.fromarray(as_rgb(image.labels)).save(self._masks / image.file_name)
        self._document.append("images", image_fields(image))
        annotation = {
            "image_id": image.number,
            "file_name": image.file_name,
            "segments_info": [_segment(p) for p in image.parts],
        }
        self._document.append("annotations", annotation)

    def finish(self) -> None:
        fields = {
            "info": info_fields(),
            "licenses": [],
            "rasters": raster_fields(self._dataset.rasters),
            "categories": [panoptic_category(c) for c in self._dataset.classes],
        }
        self._document.finish(fields)


def as_rgb(labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """(H, W, 3) colours of ids below 2²⁴, the lowest eight bits red."""
    bytes_ = labels.astype("<u4").view(np.uint8).reshape(*labels.shape, 4)
    return np.ascontiguousarray(bytes_[..., :3])


def _segment(part: Part) -> dict[str, Any]:
    return {
        "id": part.number,
        "category_id": part.segment_class.class_id,
        "area": part.area,
        "bbox": list(part.bbox_xywh),
        "iscrowd": 0,
        **segment_fields(part),
    }
