"""COCO panoptic, read back by our own reader, and by Datumaro."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.jobs.exported import SIDE, answer, finished, joined, place_of, python_with, truth
from tests.jobs.test_export_coco import DATUMARO

from panoptile.jobs.console import Console
from panoptile.jobs.evaluate import EvalOptions, evaluate
from panoptile.jobs.export import export_to
from panoptile.jobs.export_coco_panoptic import as_rgb
from panoptile.jobs.ground_truth import TruthOptions

__all__ = ["finished"]  # a fixture


@pytest.fixture(scope="module")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("panoptic") / "x"
    export_to(str(finished), "coco-panoptic", str(target), (), SIDE)
    return target


def test_colours_and_table_are_the_raster(finished: Path, exported: Path) -> None:
    """R + 256 G + 256² B of each PNG with segments_info gives the raster again; black is void or no input."""
    document = json.loads((exported / "annotations/panoptic_default.json").read_text())
    names = {i["id"]: i["file_name"] for i in document["images"]}
    images = []
    for annotation in document["annotations"]:
        assert names[annotation["image_id"]] == annotation["file_name"]
        path = exported / "annotations/panoptic_default" / annotation["file_name"]
        red, green, blue = np.moveaxis(np.asarray(Image.open(path)).astype(np.int64), -1, 0)
        ids = red + 256 * green + 256**2 * blue
        assert set(np.unique(ids)) - {0} == {s["id"] for s in annotation["segments_info"]}
        found = []
        for s in annotation["segments_info"]:
            mask = ids == s["id"]
            rows, cols = np.nonzero(mask)
            assert s["area"] == len(rows)
            assert s["bbox"] == [cols.min(), rows.min(), np.ptp(cols) + 1, np.ptp(rows) + 1]
            found.append((s["segment_id"], s["category_id"], mask))
        images.append({"place": place_of(annotation["file_name"]), "segments": found})
    segments, classes = truth(finished)
    np.testing.assert_array_equal(joined(images)[0], segments)
    np.testing.assert_array_equal(joined(images)[1], classes)
    assert [(c["name"], c["isthing"]) for c in document["categories"]] == [
        ("house", 1), ("tree", 1), ("grass", 0), ("road", 0),
    ]  # fmt: skip


def test_eval_reads_it_with_pq_100_against_itself(exported: Path) -> None:
    """The folder is ground truth and prediction of panoptile eval."""
    folder = str(exported)
    result = evaluate(folder, EvalOptions(TruthOptions(folder)), Console(quiet=True))
    assert result.panoptic.all.pq == pytest.approx(1.0)
    assert len(result.names) == len(list((exported / "images").iterdir()))


def test_ids_take_all_three_bytes() -> None:
    """The colour of an id is its three low bytes, up to the largest that fits."""
    ids = np.array([[0, 1, 255, 256, 65_536, 16_777_215]])
    assert as_rgb(ids)[0].tolist() == [
        [0, 0, 0],
        [1, 0, 0],
        [255, 0, 0],
        [0, 1, 0],
        [0, 0, 1],
        [255, 255, 255],
    ]


@pytest.mark.slow
def test_datumaro_finds_and_reads_it(finished: Path, exported: Path) -> None:
    """Datumaro detects the layout by itself and reads every mask with its class."""
    said = answer(python_with("datumaro", "PANOPTILE_DATUMARO_PYTHON"), DATUMARO, exported)
    assert said["formats"] == ["coco_panoptic"]
    # Datumaro keeps of a segment its local id, class and mask; the raster's ids are in the JSON
    class_ids = {"house": 1, "tree": 2, "grass": 3, "road": 4}
    images = [
        {
            "place": place_of(i["name"]),
            "segments": [(s, class_ids[c], np.array(m)) for s, c, m in i["segments"]],
        }
        for i in said["images"]
    ]
    segments, classes = truth(finished)
    np.testing.assert_array_equal(joined(images)[1], classes)
    np.testing.assert_array_equal(joined(images)[0], segments)
