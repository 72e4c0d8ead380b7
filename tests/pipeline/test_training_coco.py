"""COCO panoptic and instance annotations as training images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.jobs.training_worlds import NAMES, world, write_coco

from panoptile.pipeline.inputs import InputError
from panoptile.pipeline.label_report import LabelReport
from panoptile.pipeline.labelled_scene import BACKGROUND, IGNORED
from panoptile.pipeline.training_coco import CocoImage, coco_images, decode_outline, read_coco

LABELS = {i + 1: i for i in range(len(NAMES))}


def images_of(path: Path, change: Any = None) -> tuple[list[CocoImage], LabelReport]:
    if change is not None:
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))
    file = read_coco(str(path))
    return coco_images(file, label_of_category=LABELS, images=path.parent, masks=path.parent / "panoptic")


def test_a_panoptic_folder_gives_its_own_pixels(tmp_path: Path) -> None:
    """Labels and objects of each image equal the world's; stuff has no object."""
    worlds = [world(0), world(1)]
    images, report = images_of(write_coco(tmp_path, worlds, panoptic=True))
    assert report.problems.total() == 0
    for image, truth in zip(images, worlds, strict=True):
        part = image.crop(0, 0, 64, 64)
        assert np.array_equal(part.image, truth.image)
        assert np.array_equal(part.labels, truth.labels)
        assert np.array_equal(part.ids > 0, truth.ids > 0)
        assert len(np.unique(part.ids)) == len(np.unique(truth.ids))


def test_instances_leave_the_rest_as_background(tmp_path: Path) -> None:
    """Run-length codes give the objects; what none covers is background."""
    truth = world(0)
    (image,), report = images_of(write_coco(tmp_path, [truth], panoptic=False))
    part = image.crop(0, 0, 64, 64)
    assert (report.found, report.used) == (4, 4)
    assert np.array_equal(part.ids > 0, truth.ids > 0)
    assert np.array_equal(part.labels[truth.ids > 0], truth.labels[truth.ids > 0])
    assert (part.labels[truth.ids == 0] == BACKGROUND).all()


def test_outlines_come_in_three_spellings() -> None:
    """Polygons, plain counts and compressed codes of one rectangle give one mask."""
    expected = np.zeros((8, 10), bool)
    expected[2:6, 3:7] = True
    from pycocotools import mask as coco_mask

    code = coco_mask.encode(np.asfortranarray(expected.astype(np.uint8)))
    flat = expected.T.ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    for outline in (
        [[3, 2, 7, 2, 7, 6, 3, 6]],
        {"size": [8, 10], "counts": counts},
        {"size": [8, 10], "counts": code["counts"].decode()},
    ):
        assert np.array_equal(decode_outline(outline, 8, 10), expected)


def test_crowds_and_open_pixels_are_ignored(tmp_path: Path) -> None:
    """A crowd, and in panoptic images what no segment claims, count neither way."""
    truth = world(0)

    def make_crowd(data: Any) -> None:
        infos = data["annotations"][0]["segments_info"]
        infos[0]["iscrowd"] = 1
        data["annotations"][0]["segments_info"] = [i for i in infos if i["id"] < 300]

    (image,), _ = images_of(write_coco(tmp_path, [truth], panoptic=True), make_crowd)
    part = image.crop(0, 0, 64, 64)
    assert (part.labels[truth.ids == 0] == IGNORED).all()
    assert (part.labels[truth.ids == 1] == IGNORED).all()
    assert (part.ids[truth.ids == 1] == 0).all()
    assert (part.labels[truth.ids > 1] < len(NAMES)).all()


def test_panoptic_defects_are_counted(tmp_path: Path) -> None:
    """Unknown categories, images and label images that are missing, and ids on one side only."""
    path = write_coco(tmp_path, [world(i) for i in range(4)], panoptic=True)

    def damage(data: Any) -> None:
        first, second, third, _ = data["annotations"]
        first["segments_info"][0]["category_id"] = 99
        second["image_id"] = 77
        third["file_name"] = "nowhere.png"
        data["images"][3]["file_name"] = "lost.png"

    images, report = images_of(path, damage)
    assert len(images) == 1
    assert dict(report.problems) == {
        "labels have an unknown class": 1,
        "label images belong to no image": 1,
        "label images are missing": 1,
        "images are missing": 1,
        "segments are in the label image but not in the file": 1,
    }


def test_instance_defects_are_counted(tmp_path: Path) -> None:
    """Outlines that are empty, too short, outside, of another size or unreadable, by kind."""
    path = write_coco(tmp_path, [world(i) for i in range(2)], panoptic=False)

    def damage(data: Any) -> None:
        rows = data["annotations"]
        rows[0]["segmentation"] = []
        rows[1]["segmentation"] = [[1, 1, 2, 2]]
        rows[2]["segmentation"] = [[100, 100, 120, 100, 120, 120]]
        rows[3]["segmentation"] = {"size": [5, 5], "counts": "04"}
        rows[4]["segmentation"] = [[1, 2, 3]]
        rows[5]["category_id"] = 12

    images, report = images_of(path, damage)
    assert len(images) == 1
    assert (report.found, report.used) == (8, 2)
    assert sum(report.problems.values()) == 6
    assert len(report.problems) == 6


def test_what_is_no_coco_file_is_refused(tmp_path: Path) -> None:
    """Broken JSON, or JSON of something else, is one sentence."""
    for text in ("{", "[]", '{"images": []}'):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(InputError, match="is no COCO annotation file"):
            read_coco(str(tmp_path / "a.json"))
