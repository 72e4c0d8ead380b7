"""CVAT for images 1.1, read back from its documentation, and by Datumaro."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.jobs.exported import SIDE, answer, finished, joined, place_of, python_with, truth
from tests.jobs.test_export_coco import DATUMARO

from panoptile.jobs.export import export_to
from panoptile.jobs.export_cvat import row_runs
from panoptile.jobs.xml_text import xml_text

__all__ = ["finished"]  # a fixture


@pytest.fixture(scope="module")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("cvat") / "x"
    export_to(str(finished), "cvat", str(target), (), SIDE)
    return target


def drawn(mask: ET.Element, image: ET.Element) -> NDArray[np.bool_]:
    """A mask as CVAT's documentation has it: runs of 0 and 1 in turn along the rows of its box."""
    counts = [int(n) for n in mask.attrib["rle"].split(",")]
    x, y, width, height = (int(mask.attrib[n]) for n in ("left", "top", "width", "height"))
    box = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width)
    whole = np.zeros((int(image.attrib["height"]), int(image.attrib["width"])), np.bool_)
    whole[y : y + height, x : x + width] = box
    return whole


def test_masks_are_the_raster_holes_and_all(finished: Path, exported: Path) -> None:
    """All masks together give the raster again, with classes; labels are declared, images are there."""
    root = ET.parse(exported / "annotations.xml").getroot()
    labels = [e.text for e in root.findall("meta/task/labels/label/name")]
    assert labels == ["house", "tree", "grass", "road"]
    elements = root.findall("image")
    assert root.findtext("meta/task/size") == str(len(elements))
    assert root.findtext("version") == "1.1"
    images = []
    for number, image in enumerate(elements):
        assert image.attrib["id"] == str(number)
        assert (exported / "images" / image.attrib["name"]).is_file()
        found = [
            (
                int(m.findtext("attribute[@name='segment_id']") or 0),
                labels.index(m.attrib["label"]) + 1,
                drawn(m, image),
            )
            for m in image.findall("mask")
        ]
        images.append({"place": place_of(image.attrib["name"]), "segments": found})
    segments, classes = truth(finished)
    np.testing.assert_array_equal(joined(images)[0], segments)
    np.testing.assert_array_equal(joined(images)[1], classes)


def test_runs_begin_with_zeros() -> None:
    """A mask that begins with ones has a first run of length 0."""
    assert row_runs(np.array([[True, True, False], [False, True, True]])).tolist() == [0, 2, 2, 2]
    assert row_runs(np.array([[False, True]])).tolist() == [1, 1]
    assert row_runs(np.array([[True]])).tolist() == [0, 1]


def test_names_cannot_break_the_xml() -> None:
    """Markup is escaped by the writer, and characters that XML does not know are replaced."""
    name = 'a<b>&"\x00\x1b\ud800é'
    element = ET.Element("x", label=xml_text(name))
    assert (
        ET.fromstring(ET.tostring(element, encoding="utf-8")).attrib["label"] == 'a<b>&"\ufffd\ufffd\ufffdé'
    )


@pytest.mark.slow
def test_datumaro_finds_and_reads_it(finished: Path, exported: Path) -> None:
    """Datumaro detects the layout by itself and reads the same masks."""
    said = answer(python_with("datumaro", "PANOPTILE_DATUMARO_PYTHON"), DATUMARO, exported)
    assert said["formats"] == ["cvat"]
    class_ids = {"house": 1, "tree": 2, "grass": 3, "road": 4}
    images = [
        {
            "place": place_of(i["name"]),
            "segments": [(s, class_ids[c], np.array(m)) for s, c, m in i["segments"]],
        }
        for i in said["images"]
    ]
    segments, classes = truth(finished)
    np.testing.assert_array_equal(joined(images)[0], segments)
    np.testing.assert_array_equal(joined(images)[1], classes)
