"""Label Studio's tasks, read back from the documented bits, and by Label Studio's own decoder."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.jobs.exported import SIDE, answer, finished, joined, place_of, python_with, truth

from panoptile.jobs.brush_rle import LONGEST_RUN, brush_rle
from panoptile.jobs.export import export_to

__all__ = ["finished"]  # a fixture

CLASS_IDS = {"house": 1, "tree": 2, "grass": 3, "road": 4}


@pytest.fixture(scope="module")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("labelstudio") / "x"
    export_to(str(finished), "labelstudio", str(target), (), SIDE)
    return target


def decoded(rle: list[int]) -> NDArray[np.uint8]:
    """The values of a stream, bit by bit as rle-pack's documentation has it."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    at = 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    total, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        repeat, count = take(1), take(sizes[take(2)]) + 1
        values += [take(word)] * count if repeat else [take(word) for _ in range(count)]
    return np.array(values, np.uint8)


def coded(mask: NDArray[np.bool_]) -> list[int]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.ravel().astype(int), [0]])))
    return brush_rle(edges[::2], edges[1::2] - edges[::2], mask.size)


@given(st.lists(st.booleans(), min_size=1, max_size=90))
def test_any_mask_comes_back(pixels: list[bool]) -> None:
    """Four equal channels a pixel, 255 inside and 0 outside."""
    mask = np.array(pixels)
    np.testing.assert_array_equal(decoded(coded(mask)), np.repeat(np.where(mask, 255, 0), 4))


def test_runs_longer_than_a_counter_are_split() -> None:
    """A run of every counter's size, and of more than the largest."""
    for length in (4, 5, 64, 65, 1024, 1025, LONGEST_RUN // 4, LONGEST_RUN // 4 + 1, LONGEST_RUN):
        mask = np.zeros(length + 3, np.bool_)
        mask[1 : 1 + length] = True
        np.testing.assert_array_equal(decoded(coded(mask)), np.repeat(np.where(mask, 255, 0), 4))


def tasks_of(folder: Path) -> list[dict]:  # type: ignore[type-arg]
    tasks: list[dict] = json.loads((folder / "tasks.json").read_text())  # type: ignore[type-arg]
    return tasks


def test_regions_are_the_raster(finished: Path, exported: Path) -> None:
    """All brush masks together give the raster again, with classes and segment ids."""
    images = []
    for task in tasks_of(exported):
        image = unquote(task["data"]["image"])
        assert image.startswith("/data/local-files/?d=x/images/")
        assert (exported.parent / image.split("?d=")[1]).is_file()
        [prediction] = task["predictions"]
        found = []
        for region in prediction["result"]:
            assert region["value"]["format"] == "rle"
            shape = region["original_height"], region["original_width"], 4
            [label], [note] = region["value"]["brushlabels"], region["meta"]["text"]
            mask = decoded(region["value"]["rle"]).reshape(shape)[..., 3] > 0
            found.append((int(note.removeprefix("segment_id=")), CLASS_IDS[label], mask))
        images.append({"place": place_of(image), "segments": found})
    segments, classes = truth(finished)
    np.testing.assert_array_equal(joined(images)[0], segments)
    np.testing.assert_array_equal(joined(images)[1], classes)


def test_tasks_fit_the_labelling_interface(exported: Path) -> None:
    """Names, types and labels of the regions are those of label_config.xml; ids are unique."""
    view = ET.parse(exported / "label_config.xml").getroot()
    [image], [brush] = view.findall("Image"), view.findall("BrushLabels")
    labels = {e.attrib["value"] for e in brush.findall("Label")}
    regions = [r for t in tasks_of(exported) for r in t["predictions"][0]["result"]]
    assert image.attrib["value"] == "$image"
    assert len({r["id"] for r in regions}) == len(regions)
    for r in regions:
        assert (r["from_name"], r["to_name"], r["type"]) == (
            brush.attrib["name"],
            image.attrib["name"],
            "brushlabels",
        )
        assert set(r["value"]["brushlabels"]) <= labels
    assert "`x/images`" in (exported / "README.md").read_text()


SCRIPT = """
import json, sys
from label_studio_sdk.converter.brush import decode_rle
from label_studio_sdk.label_interface import LabelInterface

folder = sys.argv[1]
config = open(folder + "/label_config.xml", encoding="utf-8").read()
interface = LabelInterface(config)
interface.validate()
tasks = json.load(open(folder + "/tasks.json", encoding="utf-8"))
images, wrong = [], []
for task in tasks:
    wrong += [p for p in task["predictions"] if not interface.validate_prediction(p)]
    found = [
        (r["meta"]["text"][0].split("=")[1], r["value"]["brushlabels"][0],
         (decode_rle(r["value"]["rle"]).reshape(r["original_height"], r["original_width"], 4)[..., 3] > 0).astype(int).tolist())
        for r in task["predictions"][0]["result"]
    ]
    images.append({"name": task["data"]["image"], "segments": found})
print(json.dumps({"images": images, "wrong": len(wrong)}))
"""


@pytest.mark.slow
def test_label_studio_reads_it(finished: Path, exported: Path) -> None:
    """Label Studio's SDK takes interface and predictions as valid and decodes the same masks."""
    python = python_with("label_studio_sdk", "PANOPTILE_LABELSTUDIO_PYTHON")
    said = answer(python, SCRIPT, exported, timeout=600)
    assert said["wrong"] == 0
    images = [
        {
            "place": place_of(i["name"]),
            "segments": [(int(s), CLASS_IDS[c], np.array(m)) for s, c, m in i["segments"]],
        }
        for i in said["images"]
    ]
    segments, classes = truth(finished)
    np.testing.assert_array_equal(joined(images)[0], segments)
    np.testing.assert_array_equal(joined(images)[1], classes)
