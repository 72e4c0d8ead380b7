"""Instance AP and mean IoU against other implementations on random label maps."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tests.pipeline.metric_cases import (
    Segmentation,
    compared,
    counted_in_blocks,
    counted_whole,
    jittered,
    random_segmentation,
)
from torchmetrics.classification import MulticlassJaccardIndex

from panoptile.pipeline.contingency import BACKGROUND
from panoptile.pipeline.instance_ap import InstanceAP
from panoptile.pipeline.overlaps import ScoredClass
from panoptile.pipeline.semantic_iou import SemanticIoU

CLASSES = [ScoredClass(i, f"class {i}", True) for i in (1, 2, 3)]


def _coco_rows(images: list[Segmentation]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for number, image in enumerate(images, start=1):
        for label, class_id in image.classes.items():
            code = coco_mask.encode(np.asfortranarray(image.labels == label, np.uint8))
            rows.append(
                {
                    "id": len(rows) + 1, "image_id": number, "category_id": class_id, "segmentation": code,
                    "area": int(coco_mask.area(code)), "bbox": coco_mask.toBbox(code).tolist(),
                    "iscrowd": int(label in image.crowds), "score": (image.scores or {}).get(label, 1.0),
                }
            )  # fmt: skip
    return rows


def _coco(images: list[Segmentation]) -> COCO:
    height, width = images[0].labels.shape
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i + 1, "height": height, "width": width} for i in range(len(images))],
        "annotations": _coco_rows(images),
        "categories": [{"id": c.class_id, "name": c.name} for c in CLASSES],
    }
    coco.createIndex()
    return coco


@pytest.mark.parametrize("seed", range(12))
def test_random_maps_equal_pycocotools(seed: int) -> None:
    """AP of random maps, crowds and lost objects among them, equals COCO's at all thresholds and classes."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(4):
        truth = random_segmentation(rng, (40, 40), 3, 16)
        found = jittered(rng, truth)
        labels = np.where(truth.labels == 0, BACKGROUND, truth.labels)  # COCO's instances know no void
        crowds = frozenset(k for k in truth.classes if k % 5 == 0)
        pairs.append((Segmentation(labels, truth.classes, crowds), found))
    score = InstanceAP(CLASSES, max_found=100)
    for truth, found in pairs:
        score.add(compared(truth, found, counted_in_blocks))
    result = score.result()
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_coco([t for t, _ in pairs]), _coco([f for _, f in pairs]), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert result.ap == pytest.approx(evaluation.stats[0], abs=1e-12)
    assert result.ap50 == pytest.approx(evaluation.stats[1], abs=1e-12)
    assert result.ap75 == pytest.approx(evaluation.stats[2], abs=1e-12)
    per_class = evaluation.eval["precision"][:, :, :, 0, -1].mean(axis=1).T  # (classes, thresholds)
    assert np.allclose(result.table, per_class, atol=1e-12)


def test_of_two_halves_the_better_score_takes_the_object() -> None:
    """At an IoU of exactly 1/2 one object has two candidates, and one of them is wrong."""
    truth = Segmentation(np.array([[1, 1, 1, 1]]), {1: 1})
    found = Segmentation(np.array([[5, 5, 6, 6]]), {5: 1, 6: 1}, scores={5: 0.2, 6: 0.9})
    score = InstanceAP(CLASSES)
    score.add(compared(truth, found))
    assert score.result().table[0].tolist() == [1.0] + [0.0] * 9
    assert np.isnan(score.result().table[1:]).all()


@pytest.mark.parametrize("seed", range(4))
def test_mean_iou_equals_torchmetrics(seed: int) -> None:
    """IoU of each class of random maps without void equals torchmetrics'; blocks and whole agree bitwise."""
    rng = np.random.default_rng(seed)
    truth, found = (random_segmentation(rng, (60, 70), 3, 25) for _ in range(2))
    for image in (truth, found):  # one class for what would be void
        image.labels[image.labels == 0] = 99
        image.classes[99] = 3
    whole, blocks = SemanticIoU(CLASSES), SemanticIoU(CLASSES)
    whole.add(counted_whole(truth.labels, found.labels), truth.table(), found.table())
    blocks.add(counted_in_blocks(truth.labels, found.labels), truth.table(), found.table())
    assert np.array_equal(whole.result().confusion, blocks.result().confusion)
    maps = [torch.tensor(np.vectorize(i.classes.get)(i.labels) - 1) for i in (found, truth)]
    expected = MulticlassJaccardIndex(num_classes=3, average="none")(*maps).numpy()
    assert np.allclose(whole.result().per_class, expected, atol=1e-6)  # it divides in single precision
    assert whole.result().mean == pytest.approx(float(expected.mean()), abs=1e-6)


def test_void_background_and_unclaimed_pixels() -> None:
    """Void is left out; what is claimed on background is wrong; what is unclaimed is missed."""
    truth = np.array([[0, 0, -1, -1, 1, 1, 1, 1]])
    found = np.array([[1, 0, 1, 0, 1, 1, 0, 0]])
    table = Segmentation(found, {1: 1}).table()
    score = SemanticIoU(CLASSES)
    score.add(counted_whole(truth, found), table, table)
    result = score.result()
    assert result.per_class[0] == 2 / 5
    assert result.mean == 2 / 5  # classes on neither side are not averaged
    assert result.confusion.sum() == 6
    assert result.accuracy == 0.5
