"""FiftyOne's dataset, read back by pycocotools, and by FiftyOne."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from tests.jobs.exported import SHAPE, SIDE, answer, finished, joined, place_of, python_with, truth

from panoptile.jobs.export import export_to

__all__ = ["finished"]  # a fixture


@pytest.fixture(scope="module")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("fiftyone") / "x"
    export_to(str(finished), "fiftyone", str(target), (), SIDE)
    return target


def test_masks_hold_every_class(finished: Path, exported: Path) -> None:
    """The masks together are the class raster, 0 for void and no input; targets name the values."""
    whole = np.zeros(SHAPE, np.int64)
    for path in (exported / "masks").iterdir():
        mask = np.asarray(Image.open(path))
        assert (exported / "data" / path.name).is_file()
        row, col = place_of(path.name)
        whole[row : row + mask.shape[0], col : col + mask.shape[1]] = mask
    np.testing.assert_array_equal(whole, truth(finished)[1])
    targets = json.loads((exported / "mask_targets.json").read_text())
    assert targets == {"1": "house", "2": "tree", "3": "grass", "4": "road"}


def test_labels_hold_every_thing(finished: Path, exported: Path) -> None:
    """labels.json is COCO's instances of the same images."""
    coco = COCO(str(exported / "labels.json"))
    images = [
        {
            "place": place_of(i["file_name"]),
            "segments": [
                (a["segment_id"], a["category_id"], coco.annToMask(a))
                for a in coco.loadAnns(coco.getAnnIds(imgIds=i["id"]))
            ],
        }
        for i in coco.loadImgs(coco.getImgIds())
    ]
    segments, classes = truth(finished)
    np.testing.assert_array_equal(joined(images)[0], np.where(np.isin(classes, [1, 2]), segments, 0))


SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
try:
    import load
    load.fo.list_datasets()
except Exception as e:
    print(json.dumps({"cannot": str(e)[:300]}))
    sys.exit()
import numpy as np

dataset = load.load("panoptile-test-" + str(__import__("os").getpid()))
images = []
for sample in dataset:
    found = []
    height, width = sample["classes"].get_mask().shape[:2]
    for d in (sample["segments"].detections if sample["segments"] else []):
        x, y, w, h = d.bounding_box
        mask = np.zeros((height, width), int)
        row, col = round(y * height), round(x * width)
        mask[row : row + d.mask.shape[0], col : col + d.mask.shape[1]] = d.mask
        found.append((int(d["segment_id"]), d.label, mask.tolist()))
    images.append({"name": sample.filename, "segments": found, "mask": sample["classes"].get_mask().tolist()})
targets = dataset.mask_targets["classes"]
dataset.delete()
print(json.dumps({"images": images, "targets": targets}))
"""


@pytest.mark.slow
def test_fiftyone_loads_it(finished: Path, exported: Path, tmp_path: Path) -> None:
    """load.py makes a dataset with the same instances and class masks. Needs FiftyOne's database to start."""
    python = python_with("fiftyone", "PANOPTILE_FIFTYONE_PYTHON")
    said = answer(python, SCRIPT, exported, timeout=600, FIFTYONE_DATABASE_DIR=str(tmp_path))
    if "cannot" in said:
        pytest.skip(f"FiftyOne's database does not start here: NOT read back by FiftyOne ({said['cannot']})")
    class_ids = {"house": 1, "tree": 2}
    images = [
        {
            "place": place_of(i["name"]),
            "segments": [(s, class_ids[c], np.array(m)) for s, c, m in i["segments"]],
        }
        for i in said["images"]
    ]
    segments, classes = truth(finished)
    np.testing.assert_array_equal(joined(images)[0], np.where(np.isin(classes, [1, 2]), segments, 0))
    whole = np.zeros(SHAPE, np.int64)
    for i in said["images"]:
        row, col = place_of(i["name"])
        mask = np.array(i["mask"])
        whole[row : row + mask.shape[0], col : col + mask.shape[1]] = mask
    np.testing.assert_array_equal(whole, classes)
    assert said["targets"] == {"1": "house", "2": "tree", "3": "grass", "4": "road"}
