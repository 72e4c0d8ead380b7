"""From logits to maps with the paper's rules, on the surface that the reference library documents.

Unusual: masks are brought back to the image that was given in: logits to the padded input, its padding cropped, then to
the target, and only then through the sigmoid. Panoptic maps come from :mod:`panoptile.model.fusion`, as in the pipeline.

Letters: Q queries, K classes, N instances, H W pixels of the target, h w pixels of the mask logits.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from panoptile.model.fusion import Canvas, FusionRules, fuse_logits, resize_rows
from panoptile.model.outputs import SemanticSegmentation
from panoptile.model.rle import coco_counts

Size = tuple[int, int]

_CHUNK_ELEMENTS = 1 << 23
"""Resized mask values held at once (32 MB in fp32)."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the masks of one image lie: (height, width) each."""

    padded: Size
    """What the network saw."""
    valid: Size
    """The part of it that is not padding."""
    target: Size
    """The size that is asked for."""

    @property
    def is_crop(self) -> bool:
        """Whether the target is the valid part itself: then one resize is enough."""
        return self.target == self.valid

    @property
    def canvas(self) -> Canvas:
        """How masks become the target, after :meth:`uncropped`."""
        if self.is_crop:
            return Canvas(*self.target, *self.padded)
        return Canvas(*self.target, *self.target)

    def uncropped(self, logits_nhw: Tensor) -> Tensor:
        """Logits whose whole extent is the target; as they are where cropping comes last."""
        if self.is_crop or len(logits_nhw) == 0:
            return logits_nhw
        resized = F.interpolate(logits_nhw[None], size=self.padded, mode="bilinear", align_corners=False)[0]
        return resized[:, : self.valid[0], : self.valid[1]]


def panoptic(
    classes_QK: Tensor,
    masks_Qhw: Tensor,
    geometry: Geometry,
    *,
    threshold: float,
    mask_threshold: float,
    overlap_threshold: float,
    fused: Collection[int],
) -> dict[str, Any]:
    """Segmentation (H, W) int32, 0 where nothing is claimed, and the table of segments 1…n."""
    rules = FusionRules(
        label_ids_to_fuse=frozenset(fused),
        score_threshold=threshold,
        overlap_threshold=overlap_threshold,
        mask_threshold=mask_threshold,
    )
    scores, labels = classes_QK.softmax(-1).max(-1)
    kept = ((labels != classes_QK.shape[1] - 1) & (scores > threshold)).nonzero()[:, 0]
    masks_nhw = geometry.uncropped(masks_Qhw[kept])
    (found,) = fuse_logits(classes_QK[kept][None], masks_nhw[None], geometry.canvas, rules)
    segments = [
        {
            "id": i + 1,
            "label_id": int(label),
            "was_fused": int(label) in fused,
            "score": round(float(score), 6),
        }
        for i, (label, score) in enumerate(zip(found.label_ids, found.scores, strict=True))
    ]
    return {
        "segmentation": torch.from_numpy(found.labels).to(masks_Qhw.device),
        "segments_info": segments,
    }


def instance(
    classes_QK: Tensor,
    masks_Qhw: Tensor,
    geometry: Geometry,
    *,
    threshold: float,
    mask_threshold: float,
    things: Collection[int] | None,
    as_runs: bool,
    as_maps: bool,
) -> dict[str, Any]:
    """Instances by falling score, class score x mean probability of the mask, numbered 1…N.

    The map (H, W) int32 is 0 where there is none, and where masks overlap the better one is on top; ``as_maps`` gives
    each whole mask instead, (N, H, W), and ``as_runs`` its COCO counts.
    """
    queries, classes = classes_QK.shape[0], classes_QK.shape[1] - 1
    best, pairs = classes_QK.softmax(-1)[:, :-1].flatten().topk(queries)
    query_of_pair, label_of_pair = pairs.div(classes, rounding_mode="floor"), pairs % classes
    # The mask's mean probability is at most 1, so the class score alone rules out most pairs.
    possible = best >= threshold
    if things is not None:
        possible &= torch.isin(label_of_pair, torch.tensor(sorted(things), device=pairs.device))
    best, query_of_pair, label_of_pair = best[possible], query_of_pair[possible], label_of_pair[possible]
    masks, means = _whole_masks(masks_Qhw[query_of_pair], geometry, mask_threshold)
    scores = best * means
    order = scores.argsort(descending=True, stable=True)
    order = order[(scores[order] >= threshold) & masks.flatten(1).any(1)[order]]
    masks = masks[order]
    segments = [
        {"id": i + 1, "label_id": label, "was_fused": False, "score": round(score, 6)}
        for i, (label, score) in enumerate(
            zip(label_of_pair[order].tolist(), scores[order].tolist(), strict=True)
        )
    ]
    if as_maps:
        return {"segmentation": masks.float(), "segments_info": segments}
    if as_runs:
        return {"segmentation": [coco_counts(mask) for mask in masks], "segments_info": segments}
    painted = torch.zeros(geometry.target, dtype=torch.int32, device=masks.device)
    for i in range(len(masks) - 1, -1, -1):
        painted.masked_fill_(masks[i], i + 1)
    return {"segmentation": painted, "segments_info": segments}


def semantic(
    classes_QK: Tensor, masks_Qhw: Tensor, geometry: Geometry, *, with_scores: bool
) -> SemanticSegmentation:
    """The class (H, W) with the highest sum over queries of class x mask probability; masks at full size."""
    weights_QK = classes_QK.softmax(-1)[:, :-1]
    masks_Qhw, canvas = geometry.uncropped(masks_Qhw), geometry.canvas
    queries, classes = weights_QK.shape
    labels = torch.empty(geometry.target, dtype=torch.int64, device=masks_Qhw.device)
    scores = labels.new_empty((classes, *geometry.target), dtype=torch.float32) if with_scores else None
    rows = max(1, _CHUNK_ELEMENTS // (max(queries, classes) * canvas.padded_width))
    for top in range(0, canvas.height, rows):
        bottom = min(top + rows, canvas.height)
        inside_QrW = resize_rows(masks_Qhw, top, bottom, canvas).sigmoid()
        scores_KrW = torch.einsum("qk,qrw->krw", weights_QK, inside_QrW)
        labels[top:bottom] = scores_KrW.argmax(0)
        if scores is not None:
            scores[:, top:bottom] = scores_KrW
    return SemanticSegmentation(segmentation=labels, segmentation_scores=scores)


def _whole_masks(masks_nhw: Tensor, geometry: Geometry, mask_threshold: float) -> tuple[Tensor, Tensor]:
    """Masks (n, H, W) bool at the target's size, and the mean probability (n,) inside each."""
    canvas = geometry.canvas
    size = (canvas.padded_height, canvas.padded_width)
    least = torch.logit(torch.tensor(mask_threshold)).item()  # 0 for one half: the paper compares logits
    masks, means = [masks_nhw.new_zeros((0, *geometry.target), dtype=torch.bool)], [masks_nhw.new_zeros(0)]
    for part in torch.split(masks_nhw, max(1, _CHUNK_ELEMENTS // (size[0] * size[1]))):
        if len(part) == 0:
            break
        logits = F.interpolate(
            geometry.uncropped(part)[None], size=size, mode="bilinear", align_corners=False
        )
        logits = logits[0, :, : canvas.height, : canvas.width]
        inside, probability = logits > least, logits.sigmoid()
        masks.append(inside)
        means.append((probability * inside).flatten(1).sum(1) / (inside.flatten(1).sum(1) + 1e-6))
    return torch.cat(masks), torch.cat(means)
