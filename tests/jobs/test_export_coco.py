"""COCO's instances, read back by pycocotools and by Datumaro."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from tests.jobs.exported import SIDE, answer, finished, joined, place_of, python_with, truth

from panoptile.jobs.export import export_to

__all__ = ["finished"]  # a fixture


@pytest.fixture(scope="module")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("coco") / "x"
    assert export_to(str(finished), "coco", str(target), (), SIDE) == [str(target)]
    return target


def test_pycocotools_reads_every_thing(finished: Path, exported: Path) -> None:
    """All masks together are the raster's things, pixel by pixel, with their ids and classes."""
    coco = COCO(str(exported / "annotations/instances_default.json"))
    images = []
    for image in coco.loadImgs(coco.getImgIds()):
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        found = [(a["segment_id"], a["category_id"], coco.annToMask(a)) for a in annotations]
        images.append({"place": place_of(image["file_name"]), "segments": found})
    segments, classes = truth(finished)
    things = np.isin(classes, [1, 2])
    got_segments, got_classes = joined(images)
    np.testing.assert_array_equal(got_segments, np.where(things, segments, 0))
    np.testing.assert_array_equal(got_classes, np.where(things, classes, 0))
    assert {c["name"] for c in coco.loadCats(coco.getCatIds())} == {"house", "tree"}


def test_boxes_areas_and_parts_fit_the_masks(exported: Path) -> None:
    """Box and area are the mask's; an object that the cut divides has one segment_id in several images."""
    coco = COCO(str(exported / "annotations/instances_default.json"))
    places: dict[int, set[int]] = {}
    for a in coco.loadAnns(coco.getAnnIds()):
        rows, cols = np.nonzero(coco.annToMask(a))
        x, y = cols.min(), rows.min()
        assert a["bbox"] == [x, y, cols.max() + 1 - x, rows.max() + 1 - y]
        assert a["area"] == len(rows)
        assert a["iscrowd"] == 0
        assert 0 <= a["score"] <= 1
        assert a["attributes"] == {"segment_id": a["segment_id"]}
        assert a["image_id"] not in places.setdefault(a["segment_id"], set())
        places[a["segment_id"]].add(a["image_id"])
    assert max(map(len, places.values())) > 1


def test_chosen_classes_alone(finished: Path, tmp_path: Path) -> None:
    """--classes keeps what it names, in annotations and categories."""
    export_to(str(finished), "coco", str(tmp_path / "x"), ("house",), SIDE)
    document = json.loads((tmp_path / "x/annotations/instances_default.json").read_text())
    assert [c["name"] for c in document["categories"]] == ["house"]
    assert {a["category_id"] for a in document["annotations"]} == {1}


def test_the_same_result_gives_the_same_bytes(finished: Path, exported: Path, tmp_path: Path) -> None:
    """An export can be compared and cached."""
    export_to(str(finished), "coco", str(tmp_path / "x"), (), SIDE)
    for path in exported.rglob("*.*"):
        assert (tmp_path / "x" / path.relative_to(exported)).read_bytes() == path.read_bytes()


DATUMARO = """
import json, sys
import numpy as np
from datumaro import Dataset
from datumaro.components.environment import Environment
from datumaro.components.annotation import AnnotationType

path = sys.argv[1]
formats = Environment().detect_dataset(path)
data = Dataset.import_from(path, formats[0])
names = [c.name for c in data.categories()[AnnotationType.label].items]
images = []
for item in data:
    found = [
        (int(a.attributes["segment_id"]), names[a.label], np.asarray(a.image).astype(int).tolist())
        for a in item.annotations
        if a.type == AnnotationType.mask
    ]
    images.append({"name": item.id, "shape": item.media.data.shape, "segments": found})
print(json.dumps({"formats": formats, "images": images}))
"""
"""Prints the format that Datumaro finds by itself, and the masks that it reads."""


@pytest.mark.slow
def test_datumaro_finds_and_reads_it(finished: Path, exported: Path) -> None:
    """Datumaro, CVAT's library of formats, detects the layout and reads the same masks."""
    said = answer(python_with("datumaro", "PANOPTILE_DATUMARO_PYTHON"), DATUMARO, exported)
    assert said["formats"] == ["coco_instances"]
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
