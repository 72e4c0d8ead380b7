"""From logits to maps as transformers 5.23 does it, for those who need its results and not the paper's.

Unusual: it reproduces that library's choices where they differ from the paper (eleven of them, tested row by row in
``tests/model/test_postprocess_original.py``): masks go through a fixed 384x384 grid, fused labels disturb the numbering, nothing is
void, areas are taken from score-weighted masks. The results are the same bits, but no stack of full-size masks is built.

Letters: B batch, Q queries, K classes, H W pixels of the target, h w pixels of the mask logits.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from panoptile.model.exact_argmax import resize_chosen, weighted_argmax
from panoptile.model.outputs import SemanticSegmentation
from panoptile.model.rle import row_major_runs

Size = tuple[int, int]

_CHUNK = 16
"""Masks resized to the grid at once."""


def panoptic(
    classes_QK: Tensor,
    masks_Qhw: Tensor,
    *,
    threshold: float,
    mask_threshold: float,
    overlap_threshold: float,
    fused: Collection[int],
    grid: Size | None,
    size: Size | None,
) -> dict[str, Any]:
    """Segmentation (H, W) and table of one image; ``grid`` is the size that masks are brought to first."""
    scores, labels = classes_QK.softmax(-1).max(-1)
    kept = (labels.ne(classes_QK.shape[1] - 1) & (scores > threshold)).nonzero()[:, 0]
    grid = grid or (masks_Qhw.shape[1], masks_Qhw.shape[2])
    size = size or grid
    if len(kept) == 0:
        return {"segmentation": torch.full(size, -1.0), "segments_info": []}
    probabilities = _on_grid(masks_Qhw, kept, grid).sigmoid_()
    winners = weighted_argmax(probabilities, scores[kept], size, threshold=mask_threshold)
    # One copy to the host for all numbers; fp64 holds each of them exactly.
    ratio = winners.area / winners.reach
    columns = torch.stack(
        [c.double() for c in (labels[kept], scores[kept], winners.area, winners.reach, ratio)]
    )
    numbers = torch.zeros(len(kept), dtype=torch.int32)
    segments: list[dict[str, Any]] = []
    current, number_of_fused = 0, dict[int, int]()
    for k, (label, score, area, reach, share) in enumerate(columns.T.tolist()):
        if not (area > 0 and reach > 0 and share > overlap_threshold):
            continue
        label_id = int(label)
        # A fused label takes the count back to its own number, so the next segment may get one that is taken.
        current = number_of_fused.get(label_id, current + 1)
        if label_id in fused:
            number_of_fused[label_id] = current
        numbers[k] = current
        segments.append(
            {
                "id": current,
                "label_id": label_id,
                "was_fused": label_id in fused,
                "score": round(score, 6),
            }
        )
    return {"segmentation": _renumber(winners.winner, numbers), "segments_info": segments}


def instance(
    classes_QK: Tensor,
    masks_Qhw: Tensor,
    *,
    threshold: float,
    grid: Size | None,
    size: Size | None,
    as_runs: bool,
    as_maps: bool,
) -> dict[str, Any]:
    """Segmentation and table of one image: the Q best (query, class) pairs whose score reaches the threshold."""
    queries, classes = classes_QK.shape[0], classes_QK.shape[1] - 1
    grid = grid or (masks_Qhw.shape[1], masks_Qhw.shape[2])
    # Unsorted, as the reference has it: the order decides which of two overlapping masks is painted last.
    best, pairs = classes_QK.softmax(-1)[:, :-1].flatten().topk(queries, sorted=False)
    query_of_pair, label_of_pair = pairs.div(classes, rounding_mode="floor"), pairs % classes
    used, row_of_pair = torch.unique(query_of_pair, return_inverse=True)
    inside, mean = _inside_grid(masks_Qhw, used, grid)
    scores = (best * mean[row_of_pair]).tolist()
    segmentation = torch.full(size or grid, -1.0)
    segments: list[dict[str, Any]] = []
    maps = []
    for score, label, row in zip(scores, label_of_pair.tolist(), row_of_pair.tolist(), strict=True):
        if score < threshold:
            continue
        mask = inside[row : row + 1].float()
        if size is not None:
            mask = F.interpolate(mask[None], size=size, mode="nearest")[0]
        if not mask.any():
            continue
        segmentation[mask[0].to(segmentation.device) == 1] = len(segments)
        segments.append(
            {"id": len(segments), "label_id": label, "was_fused": False, "score": round(score, 6)}
        )
        if as_maps:
            maps.append(mask[0])
    if as_runs:
        runs = [row_major_runs(segmentation == i) for i in torch.unique(segmentation)]
        return {"segmentation": runs, "segments_info": segments}
    return {"segmentation": torch.stack(maps) if maps else segmentation, "segments_info": segments}


def semantic(
    classes_BQK: Tensor, masks_BQhw: Tensor, *, grid: Size | None, sizes: list[Size] | None, with_scores: bool
) -> list[SemanticSegmentation]:
    """Per image the class (H, W) with the highest sum over queries of class x mask probability."""
    if grid is not None:
        masks_BQhw = F.interpolate(masks_BQhw, size=grid, mode="bilinear", align_corners=False)
    weights_BQK = classes_BQK.softmax(dim=-1)[..., :-1]
    scores_BKhw = torch.einsum("bqk,bqhw->bkhw", weights_BQK, masks_BQhw.sigmoid())
    results = []
    for i, scores_Khw in enumerate(scores_BKhw):
        scores_KHW: Tensor | None = scores_Khw
        if sizes is not None and with_scores:
            scores_KHW = F.interpolate(scores_Khw[None], size=sizes[i], mode="bilinear", align_corners=False)[
                0
            ]
        if sizes is not None and not with_scores:
            ones = torch.ones(len(scores_Khw), device=scores_Khw.device)
            labels = weighted_argmax(scores_Khw, ones, sizes[i]).winner.long()
        else:
            labels = scores_KHW.argmax(dim=0)  # type: ignore[union-attr]
        results.append(
            SemanticSegmentation(segmentation=labels, segmentation_scores=scores_KHW if with_scores else None)
        )
    return results


def _on_grid(masks_Qhw: Tensor, chosen: Tensor, grid: Size) -> Tensor:
    """The chosen masks' logits at the grid's size, a copy."""
    if tuple(masks_Qhw.shape[1:]) == grid:
        return masks_Qhw[chosen]
    return resize_chosen(masks_Qhw, chosen, grid)


def _inside_grid(masks_Qhw: Tensor, chosen: Tensor, grid: Size) -> tuple[Tensor, Tensor]:
    """Which pixels of the grid (n, h, w) are inside each mask, and the mean probability (n,) there."""
    inside, means = [], []
    for part in torch.split(chosen, _CHUNK):
        logits = _on_grid(masks_Qhw, part, grid)
        covered = logits > 0
        flat = covered.flatten(1).float()
        means.append((logits.sigmoid().flatten(1) * flat).sum(1) / (flat.sum(1) + 1e-6))
        inside.append(covered)
    return torch.cat(inside), torch.cat(means)


def _renumber(index_HW: Tensor, numbers_n: Tensor) -> Tensor:
    """Numbers in place of indices, in the same memory, a few rows at a time."""
    numbers_n = numbers_n.to(index_HW.device)
    for rows in torch.split(index_HW, 64):
        rows.copy_(numbers_n[rows])
    return index_HW
