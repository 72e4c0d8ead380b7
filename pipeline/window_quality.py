"""Panoptic quality of a network on validation windows, by the pipeline's own fusion."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from panoptile.model.classes import ClassTable
from panoptile.model.fusion import Canvas, FusionRules, fuse_logits
from panoptile.model.panoptic_map import PanopticMap
from panoptile.pipeline.contingency import BACKGROUND as NO_SEGMENT
from panoptile.pipeline.contingency import VOID, PairCounter
from panoptile.pipeline.labelled_scene import BACKGROUND, IGNORED, LabelledScene
from panoptile.pipeline.overlaps import Overlaps, ScoredClass, SegmentLabels, overlaps
from panoptile.pipeline.training_split import ValidationWindow


def scored_classes(classes: ClassTable) -> list[ScoredClass]:
    """The classes as the scores know them."""
    return [ScoredClass(c.class_id, c.name, c.is_thing) for c in classes]


@torch.no_grad()
def window_overlaps(
    network: nn.Module,
    windows: Sequence[ValidationWindow],
    *,
    size: int,
    pixels: Callable[[Tensor], Tensor],
    rules: FusionRules,
    device: torch.device,
) -> list[Overlaps]:
    """Truth and prediction of each window; ``pixels`` normalises uint8 (1, C, H, W)."""
    canvas = Canvas(size, size, size, size)
    found = []
    for window in windows:
        scene = window.scene(size)
        image = pixels(torch.from_numpy(scene.image)[None]).to(device)
        outputs = network(image)
        (panoptic,) = fuse_logits(outputs.class_queries_logits, outputs.masks_queries_logits, canvas, rules)
        found.append(scene_overlaps(scene, panoptic))
    return found


def scene_overlaps(scene: LabelledScene, panoptic: PanopticMap) -> Overlaps:
    """Segments of a labelled scene and of a prediction with the pixels that they share."""
    stuff_from = int(scene.ids.max(initial=0)) + 1
    truth = np.where(scene.ids > 0, scene.ids.astype(np.int64), stuff_from + scene.labels.astype(np.int64))
    truth[scene.labels == IGNORED] = VOID
    truth[scene.labels == BACKGROUND] = NO_SEGMENT
    numbers, first = np.unique(truth, return_index=True)
    keep = (numbers != VOID) & (numbers != NO_SEGMENT)
    class_ids = scene.labels.ravel()[first[keep]].astype(np.int64) + 1
    pairs = PairCounter()
    pairs.add(truth, panoptic.labels)
    return overlaps(
        pairs.result(),
        SegmentLabels.of(numbers[keep], class_ids),
        SegmentLabels.of(
            np.arange(1, len(panoptic.label_ids) + 1), panoptic.label_ids + 1, scores=panoptic.scores
        ),
    )
