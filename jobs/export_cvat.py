"""CVAT for images 1.1: images and one XML, with a mask for every segment, things and stuff.

Masks rather than polygons, because a polygon of CVAT has no holes: a mask says every pixel as it is. Its code counts
runs of 0 and 1 in turn, from 0, along the rows of the mask's box. CVAT imports the folder as a ZIP (``-o name.zip``)
and finds the images by their names. An object that the cut into images divides is a mask in each; the attribute
``segment_id``, the raster's, says which are one.
"""

from __future__ import annotations

import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from panoptile.jobs.export_images import ImageDataset, Part, TiledImage
from panoptile.jobs.xml_text import xml_text
from panoptile.model.classes import SegmentClass


class CvatWriter:
    """``images/`` and ``annotations.xml``."""

    def __init__(self, folder: Path, dataset: ImageDataset) -> None:
        self._dataset = dataset
        self._images = folder / "images"
        self._images.mkdir()
        self._path = folder / "annotations.xml"
        self._body = (folder / ".annotations.body").open("wb")
        self._count = 0

    def close(self) -> None:
        self._body.close()

    def add(self, image: TiledImage) -> None:
        image.save(self._images)
        height, width = image.window.shape
        element = ET.Element(
            "image", id=str(self._count), name=image.file_name, width=str(width), height=str(height)
        )
        for part in image.parts:
            _add_mask(element, image, part)
        self._body.write(ET.tostring(element) + b"\n")
        self._count += 1

    def finish(self) -> None:
        """Write the XML: the number of images, which stands first in it, is known only now."""
        self._body.close()
        scratch = Path(self._body.name)
        with self._path.open("wb") as file:
            file.write(b'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
            file.write(ET.tostring(_meta(self._dataset, self._count), encoding="utf-8") + b"\n")
            with scratch.open("rb") as body:
                shutil.copyfileobj(body, file)
            file.write(b"</annotations>\n")
        scratch.unlink()


def _add_mask(element: ET.Element, image: TiledImage, part: Part) -> None:
    x, y, width, height = part.bbox_xywh
    inside = image.labels[y : y + height, x : x + width] == part.number
    mask = ET.SubElement(
        element, "mask", label=xml_text(part.segment_class.name), source="auto", occluded="0",
        rle=", ".join(map(str, row_runs(inside).tolist())),
        left=str(x), top=str(y), width=str(width), height=str(height), z_order="0",
    )  # fmt: skip
    ET.SubElement(mask, "attribute", name="segment_id").text = str(part.segment_id)
    if part.score is not None:
        ET.SubElement(mask, "attribute", name="score").text = str(part.score)


def row_runs(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Lengths of the runs of ``mask`` (H, W) in scan order, False and True in turn; the first may be 0."""
    flat = mask.ravel()
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    start = [0, 0] if flat[0] else [0]
    return np.diff(np.concatenate([start, ends, [flat.size]]))


def _meta(dataset: ImageDataset, count: int) -> ET.Element:
    meta = ET.Element("meta")
    task = ET.SubElement(meta, "task")
    for name, value in (("name", dataset.name), ("size", str(count)), ("mode", "annotation")):
        ET.SubElement(task, name).text = xml_text(value)
    ET.SubElement(task, "overlap").text = "0"
    labels = ET.SubElement(task, "labels")
    for c in dataset.classes:
        labels.append(_label(c))
    return meta


def _label(c: SegmentClass) -> ET.Element:
    label = ET.Element("label")
    ET.SubElement(label, "name").text = xml_text(c.name)
    ET.SubElement(label, "color").text = "#{:02x}{:02x}{:02x}".format(*c.color)
    ET.SubElement(label, "type").text = "mask"
    attributes = ET.SubElement(label, "attributes")
    for name in ("segment_id", "score"):
        attribute = ET.SubElement(attributes, "attribute")
        fields = (("name", name), ("mutable", "False"), ("input_type", "text"), ("default_value", ""))
        for field, value in (*fields, ("values", "")):
            ET.SubElement(attribute, field).text = value
    return label
