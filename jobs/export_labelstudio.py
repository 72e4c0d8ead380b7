"""Label Studio: images, tasks with a brush mask for every segment as predictions, and the labelling interface.

Brush masks rather than polygons, because a polygon of Label Studio has no holes. The tasks name the images as Label
Studio serves local files; the README that is written beside them says which two settings that takes. An object that
the cut into images divides is a region in each; its note ``segment_id=N``, the raster's, says which are one.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from panoptile.jobs.brush_rle import brush_rle
from panoptile.jobs.export_images import ImageDataset, Part, TiledImage
from panoptile.jobs.json_lists import JsonList
from panoptile.jobs.xml_text import xml_text
from panoptile.model.classes import SegmentClass
from panoptile.pipeline.redaction import redacted

FROM_NAME, TO_NAME = "segment", "image"
README = """# Segments for Label Studio, written by panoptile

1. Start Label Studio so that it serves this folder (the paths in `tasks.json` begin with this folder's name):

       LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true \\
       LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=<the folder that holds "{name}"> label-studio start

2. Make a project with the labelling interface `label_config.xml`.
3. In the project's Cloud Storage settings, add "Local files" with the absolute path of `{name}/images`.
4. Import `tasks.json`: every image comes with its segments as a prediction to correct.

The note `segment_id=N` of a region is its id in the raster: regions of neighbouring images with the same one are one
segment, which the cut into images divided.
"""


class LabelStudioWriter:
    """``images/``, ``tasks.json``, ``label_config.xml`` and ``README.md``."""

    def __init__(self, folder: Path, dataset: ImageDataset) -> None:
        self._folder, self._dataset = folder, dataset
        self._images = folder / "images"
        self._images.mkdir()
        self._tasks = JsonList(folder / "tasks.json")

    def close(self) -> None:
        self._tasks.close()

    def add(self, image: TiledImage) -> None:
        image.save(self._images)
        place = quote(f"{self._dataset.name}/images/{image.file_name}")
        data = {
            "image": f"/data/local-files/?d={place}",
            "raster": image.info.key,
            "source_uri": redacted(image.info.uri),
            "row_off": image.window.row,
            "col_off": image.window.col,
            "geotransform": list(image.geotransform),
        }
        self._tasks.append(
            {"data": data, "predictions": [{"model_version": "panoptile", "result": _regions(image)}]}
        )

    def finish(self) -> None:
        self._tasks.finish()
        config = ET.ElementTree(_config(self._dataset.classes))
        ET.indent(config)
        config.write(self._folder / "label_config.xml", encoding="utf-8")
        text = README.format(name=self._dataset.name)
        (self._folder / "README.md").write_text(text, encoding="utf-8")


def _regions(image: TiledImage) -> list[dict[str, Any]]:
    """The regions of one image; its runs are sorted by part once, so that each takes its own."""
    runs = image.runs
    order = np.argsort(runs.ids, kind="stable")
    starts, lengths = runs.starts[order], runs.lengths[order]
    at = np.searchsorted(runs.ids[order], np.arange(1, len(image.parts) + 2))
    height, width = image.window.shape
    return [
        _region(image, part, brush_rle(starts[at[i] : at[i + 1]], lengths[at[i] : at[i + 1]], height * width))
        for i, part in enumerate(image.parts)
    ]


def _region(image: TiledImage, part: Part, rle: list[int]) -> dict[str, Any]:
    score = {} if part.score is None else {"score": part.score}
    return {
        "id": f"{image.name}-{part.number}",
        "type": "brushlabels",
        "from_name": FROM_NAME,
        "to_name": TO_NAME,
        "original_width": image.window.width,
        "original_height": image.window.height,
        "image_rotation": 0,
        "value": {"format": "rle", "rle": rle, "brushlabels": [xml_text(part.segment_class.name)]},
        "meta": {"text": [f"segment_id={part.segment_id}"]},
        **score,
    }


def _config(classes: tuple[SegmentClass, ...]) -> ET.Element:
    view = ET.Element("View")
    ET.SubElement(view, "Image", name=TO_NAME, value="$image", zoom="true")
    labels = ET.SubElement(view, "BrushLabels", name=FROM_NAME, toName=TO_NAME)
    for c in classes:
        color = "#{:02x}{:02x}{:02x}".format(*c.color)
        ET.SubElement(labels, "Label", value=xml_text(c.name), background=color)
    return view
