"""COCO's instance format: images, and a JSON with a run-length mask for every thing in each of them.

An object that the cut into images divides is an annotation in each; ``segment_id``, the raster's, says which are one.
It stands beside the standard fields, as FiftyOne reads it, and in ``attributes``, as CVAT and Datumaro read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from panoptile.jobs.exits import invalid
from panoptile.jobs.export_images import ImageDataset, Part, TiledImage
from panoptile.jobs.json_lists import JsonDocument
from panoptile.model.classes import SegmentClass
from panoptile.pipeline.raster_info import RasterInfo
from panoptile.pipeline.redaction import redacted

SUBSET = "default"
"""Name of the only subset, in the names of the files: CVAT's and Datumaro's own."""


class InstancesDocument:
    """The JSON: things as annotations."""

    def __init__(self, path: Path, dataset: ImageDataset) -> None:
        self._dataset = dataset
        self._document = JsonDocument(path, ("images", "annotations"))
        self._annotations = 0

    def close(self) -> None:
        self._document.close()

    def add(self, image: TiledImage) -> None:
        """Add one image and its things."""
        self._document.append("images", image_fields(image))
        for part in image.parts:
            if part.segment_class.is_thing:
                self._annotations += 1
                self._document.append("annotations", _annotation(self._annotations, image, part))

    def finish(self) -> None:
        """Write the file."""
        things = [c for c in self._dataset.classes if c.is_thing]
        fields = {
            "info": info_fields(),
            "licenses": [],
            "rasters": raster_fields(self._dataset.rasters),
            "categories": [
                {"id": c.class_id, "name": c.name, "supercategory": "thing", "color": list(c.color)}
                for c in things
            ],
        }
        self._document.finish(fields)


class CocoWriter:
    """``images/`` and ``annotations/instances_default.json``."""

    def __init__(self, folder: Path, dataset: ImageDataset) -> None:
        if not any(c.is_thing for c in dataset.classes):
            raise invalid("COCO's instances hold things alone, and no class is one: export coco-panoptic.")
        self._images = folder / "images"
        self._images.mkdir()
        self._document = InstancesDocument(folder / "annotations" / f"instances_{SUBSET}.json", dataset)

    def close(self) -> None:
        self._document.close()

    def add(self, image: TiledImage) -> None:
        image.save(self._images)
        self._document.add(image)

    def finish(self) -> None:
        self._document.finish()


def _annotation(number: int, image: TiledImage, part: Part) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image.number,
        "category_id": part.segment_class.class_id,
        "segmentation": {"size": list(image.window.shape), "counts": part.counts},
        "bbox": list(part.bbox_xywh),
        "area": part.area,
        "iscrowd": 0,
        **segment_fields(part),
    }


def segment_fields(part: Part) -> dict[str, Any]:
    """What COCO does not know of a part: the segment that it belongs to, and how sure the model was."""
    score = {} if part.score is None else {"score": part.score}
    return {**score, "segment_id": part.segment_id, "attributes": {"segment_id": part.segment_id}}


def image_fields(image: TiledImage) -> dict[str, Any]:
    """An image in COCO's terms, and where it lies: ``geotransform`` is GDAL's, ``row_off`` and ``col_off`` count in
    the raster, which ``rasters`` of the document describes."""
    return {
        "id": image.number,
        "file_name": image.file_name,
        "height": image.window.height,
        "width": image.window.width,
        "raster": image.info.key,
        "row_off": image.window.row,
        "col_off": image.window.col,
        "geotransform": list(image.geotransform),
    }


def raster_fields(rasters: Sequence[RasterInfo]) -> list[dict[str, Any]]:
    """The rasters that images are cut from."""
    return [
        {
            "raster": info.key,
            "source_uri": redacted(info.uri),
            "height": info.height,
            "width": info.width,
            "crs_wkt": info.crs_wkt,
            "georeferenced": info.georeferenced,
        }
        for info in rasters
    ]


def info_fields() -> dict[str, str]:
    """The head of a document; without a time, so that one result gives the same bytes."""
    return {"description": "Segments found by panoptile", "version": version("panoptile")}


def panoptic_category(c: SegmentClass) -> dict[str, Any]:
    """A class as COCO's panoptic format has it."""
    kind = "thing" if c.is_thing else "stuff"
    return {
        "id": c.class_id,
        "name": c.name,
        "supercategory": kind,
        "isthing": int(c.is_thing),
        "color": list(c.color),
    }
