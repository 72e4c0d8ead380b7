"""Labels that nobody drew: crowns from boxes, vegetation and ground from colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from panoptile.pipeline.builtin_labels import GROUND, VEGETATION, crowns_from_boxes, read_boxes, stuff_labels
from panoptile.pipeline.labelled_scene import IGNORED


def test_colours_make_stuff() -> None:
    """Green is vegetation, grey is ground, what lies between and what is dark is ignored."""
    image = np.full((3, 40, 160), 120, np.uint8)
    image[:, :, 40:80] = np.array([80, 140, 70], np.uint8)[:, None, None]
    image[:, :, 80:120] = np.array([112, 120, 108], np.uint8)[:, None, None]
    image[:, :, 120:] = np.array([10, 30, 10], np.uint8)[:, None, None]
    labels = stuff_labels(image, gsd_m=0.3)
    assert [int(labels[20, col]) for col in (20, 60, 100, 140)] == [GROUND, VEGETATION, IGNORED, IGNORED]


def test_a_crown_is_its_ellipse_without_the_shadow() -> None:
    """The dark third of a box leaves the crown and becomes doubtful; overlapping crowns share out their pixels."""
    image = np.full((3, 60, 90), 120, np.uint8)
    image[:, 10:50, 40:60] = 30  # the shadow in the right third of the first box
    ids, doubtful = crowns_from_boxes(image, [(10, 10, 50, 50), (60, 20, 80, 40), (70, 20, 90, 40)])
    assert ids[30, 20] == 1
    assert ids[30, 48] == 0
    assert doubtful[30, 48]
    assert doubtful[11, 11]
    assert not doubtful[0, 0]
    assert (ids[30, 71], ids[30, 78]) == (2, 3)
    area = int((ids == 1).sum())
    assert 0.5 * np.pi * 400 <= area <= np.pi * 400


def test_boxes_are_read_and_empty_ones_dropped(tmp_path: Path) -> None:
    """PASCAL VOC boxes come in file order as left, top, right, bottom."""
    box = "<bndbox>\n<xmin>{}</xmin>\n <ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"
    path = tmp_path / "boxes.xml"
    path.write_text("<annotation>" + box.format(1, 2, 30, 40) + box.format(5, 5, 5, 9) + "</annotation>")
    assert read_boxes(path) == [(1, 2, 30, 40)]
