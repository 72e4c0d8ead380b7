"""Figures of a checkpoint on the scenes that were held out of its training, by the pipeline that users run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray

from panoptile.jobs.console import Console
from panoptile.jobs.prepare import prepare
from panoptile.jobs.segment import run_job
from panoptile.jobs.spec import JobSpec
from panoptile.pipeline.builtin_data import Sources, held_out_scenes
from panoptile.pipeline.builtin_labels import BUILDING, CROWN, GROUND, VEGETATION, read_boxes
from panoptile.pipeline.labelled_scene import IGNORED, LabelledScene
from panoptile.pipeline.object_scores import ObjectScores, boxes_of, match_boxes, match_masks

CROWN_BOX_IOU = 0.4
"""The IoU at which NEON crowns count as found, as in the benchmark's own papers."""


@dataclass(frozen=True, slots=True)
class SceneFigures:
    """What a checkpoint found on one held-out scene."""

    scene: str
    thing: str
    """The class that has hand-made labels there."""
    matching: str
    """What makes a prediction a hit."""
    objects: ObjectScores
    stuff_iou: dict[str, float]
    """IoU of each stuff class against the colour rule, over the pixels where that rule speaks."""

    def row(self) -> dict[str, object]:
        """The figures as JSON."""
        scores = self.objects
        row: dict[str, object] = {
            "scene": self.scene,
            "thing": self.thing,
            "matching": self.matching,
            **asdict(scores),
            "precision": scores.precision,
            "recall": scores.recall,
            "f1": scores.f1,
            "stuff_iou": self.stuff_iou,
        }
        return row | {"pq": scores.pq} if self.thing == "building" else row


def figures_fields(figures: list[SceneFigures]) -> dict[str, object]:
    """All figures as JSON: scene by scene, the crowns of all scenes together, and the mean IoU of stuff."""
    crowns = sum((f.objects for f in figures if f.thing != "building"), ObjectScores(0, 0, 0))
    ious = [iou for f in figures for iou in f.stuff_iou.values()]
    together = {"precision": crowns.precision, "recall": crowns.recall, "f1": crowns.f1}
    return {"scenes": [f.row() for f in figures], "crowns": together, "stuff_miou": sum(ious) / len(ious)}


def figures_text(figures: list[SceneFigures]) -> str:
    """A table of all figures."""
    lines = [
        f"{'scene':<40} {'objects':<34} {'PQ':>5} {'prec.':>6} {'recall':>6} {'F1':>5}  {'hits/missed/invented':<21} stuff IoU"
    ]
    for f in figures:
        o = f.objects
        pq = f"{o.pq:.3f}" if f.thing == "building" else "-"
        stuff = ", ".join(f"{name} {iou:.2f}" for name, iou in f.stuff_iou.items())
        counts = f"{o.hits}/{o.missed}/{o.invented}"
        what = f"{f.thing}, {f.matching}"
        lines.append(
            f"{f.scene[:40]:<40} {what:<34} {pq:>5} {o.precision:>6.3f} {o.recall:>6.3f} {o.f1:>5.3f}  {counts:<21} {stuff}"
        )
    crowns = sum((f.objects for f in figures if f.thing != "building"), ObjectScores(0, 0, 0))
    ious = [iou for f in figures for iou in f.stuff_iou.values()]
    lines.append(
        f"crowns of all scenes: precision {crowns.precision:.3f}, recall {crowns.recall:.3f}, F1 {crowns.f1:.3f}; "
        f"stuff mIoU {sum(ious) / len(ious):.3f} (against the colour rule)"
    )
    return "\n".join(lines)


def held_out_figures(
    checkpoint: Path, sources: Sources, *, scratch: Path, score: float | None = None
) -> list[SceneFigures]:
    """Segment each held-out scene with default options and compare; ``scratch`` gets inputs and outputs."""
    buildings, *crown_scenes = held_out_scenes(sources)
    found = [_building_figures(buildings, _segment(buildings, checkpoint, scratch, score))]
    for scene in crown_scenes:
        boxes = np.array(read_boxes(sources.neon / f"{scene.name}.xml"), np.int64)
        found.append(_crown_figures(scene, boxes, _segment(scene, checkpoint, scratch, score)))
    return found


Segmentation = tuple[NDArray[np.int32], NDArray[np.uint8]]
"""Segment ids and class ids (label id + 1), both (H, W)."""


def _segment(scene: LabelledScene, checkpoint: Path, scratch: Path, score: float | None) -> Segmentation:
    """Run a local job on the scene with tiles of 512 px that overlap by 128."""
    source = scratch / f"{scene.name}_held_out.tif"
    source.parent.mkdir(parents=True, exist_ok=True)
    _, height, width = scene.image.shape
    with rasterio.open(
        source, "w", driver="GTiff", height=height, width=width, count=3, dtype="uint8", photometric="rgb"
    ) as dataset:
        dataset.write(scene.image)
    out = scratch / f"{scene.name}_out"
    spec = JobSpec((str(source),), str(out), model=str(checkpoint), score=score, local=True, vector=False)
    run_job(prepare(spec), Console(as_json=False, quiet=True))
    arrays = []
    for kind in ("segments", "classes"):
        (path,) = (out / "rasters").glob(f"*/*.{kind}.tif")
        with rasterio.open(path) as dataset:
            arrays.append(dataset.read(1))
    return arrays[0].astype(np.int32), arrays[1].astype(np.uint8)


def _building_figures(scene: LabelledScene, segmentation: Segmentation) -> SceneFigures:
    ids, classes = segmentation
    truth = np.where(scene.labels == BUILDING, scene.ids, 0).astype(np.int32)
    predicted = np.where(classes == BUILDING + 1, ids, 0).astype(np.int32)
    return SceneFigures(
        scene.name, "building", "mask IoU > 0.5", match_masks(truth, predicted), _stuff_iou(scene, classes)
    )


def _crown_figures(
    scene: LabelledScene, boxes: NDArray[np.int64], segmentation: Segmentation
) -> SceneFigures:
    ids, classes = segmentation
    predicted = boxes_of(np.where(classes == CROWN + 1, ids, 0).astype(np.int32))
    scores = match_boxes(boxes, predicted, threshold=CROWN_BOX_IOU)
    return SceneFigures(
        scene.name, "tree crown", f"box IoU >= {CROWN_BOX_IOU}", scores, _stuff_iou(scene, classes)
    )


def _stuff_iou(scene: LabelledScene, classes: NDArray[np.uint8]) -> dict[str, float]:
    known = scene.labels != IGNORED
    figures = {}
    for name, label in (("vegetation", VEGETATION), ("ground", GROUND)):
        truth, predicted = known & (scene.labels == label), known & (classes == label + 1)
        figures[name] = float((truth & predicted).sum() / max(int((truth | predicted).sum()), 1))
    return figures
