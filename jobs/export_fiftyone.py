"""FiftyOne: things as its COCO detection dataset with masks, and a PNG of class ids for each image.

FiftyOne has no panoptic type, so the two halves of a panoptic result are two fields of a sample: ``segments``
(instances) and ``classes`` (a semantic mask with things and stuff, 0 void and no input). ``load.py`` beside them makes
the dataset. An object that the cut into images divides is an instance in each; ``segment_id``, the raster's, says
which are one.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from panoptile.jobs.export_coco import InstancesDocument
from panoptile.jobs.export_images import ImageDataset, TiledImage

LOADER = '''"""Make a FiftyOne dataset of this folder: python load.py [NAME], or load("NAME") from Python.

Needs fiftyone and pycocotools (pip install fiftyone pycocotools).
"""

import json
import sys
from pathlib import Path

import fiftyone as fo

HERE = Path(__file__).resolve().parent


def load(name=None, folder=HERE):
    """The dataset: instances in the field "segments", class masks in the field "classes"."""
    dataset = fo.Dataset.from_dir(
        dataset_dir=str(folder),
        dataset_type=fo.types.COCODetectionDataset,
        label_types="segmentations",
        label_field="segments",
        extra_attrs=True,
        name=name,
    )
    targets = json.loads((folder / "mask_targets.json").read_text(encoding="utf-8"))
    dataset.mask_targets = {"classes": {int(value): name for value, name in targets.items()}}
    for sample in dataset.iter_samples(autosave=True):
        sample["classes"] = fo.Segmentation(mask_path=str(folder / "masks" / Path(sample.filepath).name))
    return dataset


if __name__ == "__main__":
    print(load(*sys.argv[1:2]))
'''


class FiftyOneWriter:
    """``data/``, ``labels.json``, ``masks/``, ``mask_targets.json`` and ``load.py``."""

    def __init__(self, folder: Path, dataset: ImageDataset) -> None:
        self._folder, self._dataset = folder, dataset
        for name in ("data", "masks"):
            (folder / name).mkdir()
        most = max((c.class_id for c in dataset.classes), default=0)
        self._dtype: type[np.unsignedinteger] = np.uint8 if most <= 0xFF else np.uint16
        self._document = InstancesDocument(folder / "labels.json", dataset)

    def close(self) -> None:
        self._document.close()

    def add(self, image: TiledImage) -> None:
        image.save(self._folder / "data")
        class_ids = np.array([0, *(p.segment_class.class_id for p in image.parts)], self._dtype)
        Image.fromarray(class_ids[image.labels]).save(self._folder / "masks" / image.file_name)
        self._document.add(image)

    def finish(self) -> None:
        self._document.finish()
        targets = {str(c.class_id): c.name for c in self._dataset.classes}
        text = json.dumps(targets, ensure_ascii=False, indent=1)
        (self._folder / "mask_targets.json").write_text(text, encoding="utf-8")
        (self._folder / "load.py").write_text(LOADER, encoding="utf-8")
