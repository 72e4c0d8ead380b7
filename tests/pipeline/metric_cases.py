"""Ground truths and predictions whose figures are known, and the plain ways to score arrays."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from panoptile.pipeline.contingency import Contingency, PairCounter
from panoptile.pipeline.overlaps import Overlaps, ScoredClass, SegmentLabels, overlaps
from panoptile.pipeline.panoptic_quality import PanopticQuality, PanopticScores

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Segmentation:
    """A label map and what its labels mean."""

    labels: Labels
    classes: dict[int, int]
    crowds: frozenset[int] = frozenset()
    scores: dict[int, float] | None = None

    def table(self) -> SegmentLabels:
        ids = sorted(self.classes)
        scores = self.scores or {}
        return SegmentLabels.of(
            np.array(ids, np.int64),
            np.array([self.classes[i] for i in ids], np.int64),
            crowd=np.array([i in self.crowds for i in ids], np.bool_),
            scores=np.array([scores.get(i, 1.0) for i in ids]),
        )


Count = Callable[[Labels, Labels], Contingency]


def counted_whole(truth: Labels, found: Labels) -> Contingency:
    """All pixels at once."""
    counter = PairCounter()
    counter.add(truth, found)
    return counter.result()


def counted_in_blocks(truth: Labels, found: Labels) -> Contingency:
    """Blocks of 37 x 53 px from the last to the first."""
    counter = PairCounter()
    blocks = [(r, c) for r in range(0, truth.shape[0], 37) for c in range(0, truth.shape[1], 53)]
    for r, c in reversed(blocks):
        counter.add(truth[r : r + 37, c : c + 53], found[r : r + 37, c : c + 53])
    return counter.result()


def compared(truth: Segmentation, found: Segmentation, count: Count = counted_whole) -> Overlaps:
    return overlaps(count(truth.labels, found.labels), truth.table(), found.table())


def quality(
    pairs: Iterable[tuple[Segmentation, Segmentation]],
    classes: Iterable[ScoredClass],
    count: Count = counted_whole,
    *,
    modified: bool = False,
) -> PanopticScores:
    """Panoptic quality over images."""
    total = PanopticQuality(tuple(classes), modified=modified)
    for truth, found in pairs:
        total.add(compared(truth, found, count))
    return total.result()


def coco_sample(data: Path) -> tuple[list[Segmentation], list[ScoredClass]]:
    """The two images of the COCO panoptic sample."""
    folder = data / "metrics" / "panoptic_sample"
    document = json.loads((folder / "panoptic_examples.json").read_text())
    images = []
    for annotation in document["annotations"]:
        with Image.open(folder / "panoptic_examples" / annotation["file_name"]) as picture:
            rgb = np.asarray(picture.convert("RGB")).astype(np.int64)
        infos = annotation["segments_info"]
        images.append(
            Segmentation(
                rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2],
                {s["id"]: s["category_id"] for s in infos},
                frozenset(s["id"] for s in infos if s["iscrowd"]),
            )
        )
    classes = [ScoredClass(c["id"], c["name"], bool(c["isthing"])) for c in document["categories"]]
    return images, classes


def deeplab_image(data: Path, name: str, truth_classes: dict[int, int]) -> tuple[Segmentation, Segmentation]:
    """One image of DeepLab2's evaluation test data (Apache-2.0), class 0 being ignored."""
    folder = data / "metrics" / "deeplab2_testdata"
    truth_name = f"{name}_gt_instance.png" if name == "team" else f"{name}_gt.png"
    instances = _grey(folder / truth_name)
    truth = Segmentation(instances, {v: c for v, c in truth_classes.items() if c})
    with Image.open(folder / f"{name}_pred_class.png") as picture:
        rgb = np.asarray(picture.convert("RGB")).astype(np.int64)
    colors = {
        (0, 0, 255): 1,
        (255, 0, 0): 2,
        (0, 255, 0): 3,
        (255, 0, 255): 4,
        (0, 255, 255): 5,
        (255, 255, 0): 6,
    }
    labels = np.zeros(instances.shape, np.int64)
    for color, class_id in colors.items():
        labels[(rgb == color).all(axis=2)] = class_id
    labels = np.where(labels > 0, labels * 256 + _grey(folder / f"{name}_pred_instance.png"), 0)
    found = Segmentation(labels, {int(v): int(v) // 256 for v in np.unique(labels) if v})
    return truth, found


def _grey(path: Path) -> Labels:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("L")).astype(np.int64)


def random_segmentation(
    rng: np.random.Generator, shape: tuple[int, int], classes: int, count: int
) -> Segmentation:
    """Random rectangles over each other, label 0 left where none lies; each label has a class from 1 on."""
    labels = np.zeros(shape, np.int64)
    for label in range(1, count + 1):
        r, c = (int(rng.integers(0, side)) for side in shape)
        h, w = (int(v) for v in rng.integers(2, max(3, shape[0] // 2), 2))
        labels[r : r + h, c : c + w] = label
    ids = [int(v) for v in np.unique(labels) if v]
    return Segmentation(
        labels,
        {i: int(rng.integers(1, classes + 1)) for i in ids},
        scores={i: float(s) for i, s in zip(ids, rng.permutation(len(ids)) / max(len(ids), 1), strict=True)},
    )


def jittered(
    rng: np.random.Generator, of: Segmentation, *, drop: float = 0.2, swap: float = 0.1
) -> Segmentation:
    """A prediction for ``of``: shifted by a few pixels, some segments lost, some of another class."""
    labels = np.roll(of.labels, tuple(int(v) for v in rng.integers(-2, 3, 2)), axis=(0, 1))
    high = max(of.classes.values(), default=1)
    classes = {}
    for label, class_id in of.classes.items():
        if rng.random() < drop:
            labels[labels == label] = 0
        classes[label] = int(rng.integers(1, high + 1)) if rng.random() < swap else class_id
    ids = [int(v) for v in np.unique(labels) if v]
    scores = {i: float(s) for i, s in zip(ids, rng.permutation(len(ids)) / max(len(ids), 1), strict=True)}
    return Segmentation(labels, {i: classes[i] for i in ids}, scores=scores)


def write_coco(folder: Path, images: Iterable[Segmentation], classes: Iterable[ScoredClass]) -> Path:
    """Images as COCO panoptic: ``<folder>.json`` beside the folder of PNGs; returns the JSON's path."""
    folder.mkdir()
    annotations, records = [], []
    for number, image in enumerate(images, start=1):
        name = f"{number:06d}.png"
        codes = np.stack([image.labels >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)
        Image.fromarray(codes).save(folder / name)
        infos = []
        for label in (int(v) for v in np.unique(image.labels) if v):
            rows, cols = np.nonzero(image.labels == label)
            box = [int(cols.min()), int(rows.min()), int(np.ptp(cols)) + 1, int(np.ptp(rows)) + 1]
            infos.append(
                {
                    "id": label, "category_id": image.classes[label], "area": len(rows), "bbox": box,
                    "iscrowd": int(label in image.crowds),
                }
            )  # fmt: skip
        annotations.append({"image_id": number, "file_name": name, "segments_info": infos})
        height, width = image.labels.shape
        records.append({"id": number, "file_name": f"{number:06d}.jpg", "height": height, "width": width})
    categories = [{"id": c.class_id, "name": c.name, "isthing": int(c.is_thing)} for c in classes]
    path = folder.with_suffix(".json")
    path.write_text(json.dumps({"images": records, "annotations": annotations, "categories": categories}))
    return path
