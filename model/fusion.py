"""From the network's logits to one label map per image, with the paper's rules ("original" semantics).

Unusual: no (Q, H, W) array at full resolution is ever built. Masks are resized a few at a time and folded into a
running arg-max, everything on the logits' device; one small table per image is copied to the host, never one number
per segment. Ties go to the query with the lower index.

Letters: B batch, Q queries, K classes, H W pixels of the tile, h w pixels of the mask logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from panoptile.model.panoptic_map import PanopticMap

Task = Literal["panoptic", "instance", "semantic"]

_CHUNK_ELEMENTS = 1 << 23
"""Resized mask values held at once (32 MB in fp32)."""


@dataclass(frozen=True, slots=True)
class FusionRules:
    """What decides which queries become segments."""

    task: Task = "panoptic"
    thing_label_ids: frozenset[int] = frozenset()
    label_ids_to_fuse: frozenset[int] = frozenset()
    """Classes with at most one segment per image; by default the caller passes all stuff."""
    score_threshold: float = 0.8
    """A query needs a score above it. Panoptic: of its class. Instance: class score x mean probability of its mask.
    Semantic: a class needs a mean share of at least this over its pixels."""
    overlap_threshold: float = 0.8
    """A segment keeps at least this part of its own mask, or it is dropped and leaves void."""
    mask_threshold: float = 0.5
    """Probability from which a pixel belongs to a mask."""

    def __post_init__(self) -> None:
        for name in ("score_threshold", "overlap_threshold", "mask_threshold"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}.")


@dataclass(frozen=True, slots=True)
class Canvas:
    """Where the masks go: resized to the padded image, then cropped to the tile."""

    height: int
    width: int
    padded_height: int
    padded_width: int


class _Painted(NamedTuple):
    """The running arg-max after all queries of one image, n of them."""

    winner: Tensor
    """(H, W) int32 index of the query with the highest weighted probability; n where none has any."""
    inside: Tensor
    """(H, W) whether the winner's own mask covers the pixel."""
    own_area: Tensor
    """(n,) pixels of each query's own mask."""
    score: Tensor
    """(n,) the weight of each query, and the score of its segment."""


class _Row(NamedTuple):
    """One query that won pixels, on the host."""

    label_id: int
    score: float
    won: int
    """Pixels where it wins."""
    visible: int
    """Those of them that its own mask covers."""
    own_area: int
    query: int


def fuse_logits(
    class_logits: Tensor, mask_logits: Tensor, canvas: Canvas, rules: FusionRules
) -> list[PanopticMap]:
    """Maps of (canvas.height, canvas.width) for class logits (B, Q, K + 1) and mask logits (B, Q, h, w)."""
    fuse = {"panoptic": _panoptic, "instance": _instance, "semantic": _semantic}[rules.task]
    return [fuse(c.float(), m.float(), canvas, rules) for c, m in zip(class_logits, mask_logits, strict=True)]


def _panoptic(classes_QK: Tensor, masks_Qhw: Tensor, canvas: Canvas, rules: FusionRules) -> PanopticMap:
    """Section 3.4 of MaskFormer (Cheng et al., 2021): each pixel to the query with the highest class x mask."""
    scores, labels = classes_QK.softmax(-1).max(-1)
    no_object = classes_QK.shape[1] - 1
    kept = ((labels != no_object) & (scores > rules.score_threshold)).nonzero()[:, 0]
    if len(kept) == 0:
        return _empty(canvas)
    painted = _paint(masks_Qhw[kept], scores[kept], canvas, rules)
    return _assemble(painted, labels[kept], kept, rules, queries_used=len(kept))


def _instance(classes_QK: Tensor, masks_Qhw: Tensor, canvas: Canvas, rules: FusionRules) -> PanopticMap:
    """The paper's instances (class score x mean mask probability), made disjoint: the best-scored mask on top."""
    probabilities = classes_QK.softmax(-1)[:, :-1]
    things = torch.tensor(sorted(rules.thing_label_ids), device=classes_QK.device)
    if len(things) == 0:
        return _empty(canvas)
    scores, best = probabilities[:, things].max(-1)
    # The mask's mean probability is at most 1, so the class score alone rules out most queries.
    kept = (scores > rules.score_threshold).nonzero()[:, 0]
    if len(kept) == 0:
        return _empty(canvas)
    painted = _paint(masks_Qhw[kept], scores[kept], canvas, rules, whole_masks=True)
    used = int((painted.score > rules.score_threshold).sum())
    return _assemble(painted, things[best[kept]], kept, rules, queries_used=used)


def _paint(
    masks_nhw: Tensor, scores_n: Tensor, canvas: Canvas, rules: FusionRules, *, whole_masks: bool = False
) -> _Painted:
    """Running arg-max over the masks. Weight: score x probability of the pixel.

    With ``whole_masks`` the weight is one number per mask, score x its mean probability, and 0 outside the mask.
    """
    size, device = (canvas.height, canvas.width), masks_nhw.device
    best = torch.full(size, -1.0, device=device)
    winner = torch.full(size, len(masks_nhw), dtype=torch.int32, device=device)
    inside = torch.zeros(size, dtype=torch.bool, device=device)
    areas, scores = [], []
    for k, probability in enumerate(_resized_probabilities(masks_nhw, canvas)):
        covered = probability >= rules.mask_threshold
        areas.append(covered.sum())
        score = scores_n[k]
        if whole_masks:
            score = score * (probability * covered).sum() / (areas[-1] + 1e-6)
            weight = torch.where(covered & (score > rules.score_threshold), score, -1.0)
        else:
            weight = probability * score
        scores.append(score)
        better = weight > best  # strictly: of equals the first query wins
        torch.maximum(best, weight, out=best)
        winner.masked_fill_(better, k)
        inside = torch.where(better, covered, inside)
    return _Painted(winner, inside, torch.stack(areas), torch.stack(scores))


def _resized_probabilities(masks_nhw: Tensor, canvas: Canvas) -> Iterator[Tensor]:
    """Each mask's probabilities (H, W); the *logits* are resized, a chunk at a time, and the padding cropped."""
    size = (canvas.padded_height, canvas.padded_width)
    chunk = max(1, _CHUNK_ELEMENTS // (size[0] * size[1]))
    for masks in torch.split(masks_nhw, chunk):
        logits = F.interpolate(masks[None], size=size, mode="bilinear", align_corners=False)[0]
        yield from logits.sigmoid_()[:, : canvas.height, : canvas.width]


def _assemble(
    painted: _Painted, labels_n: Tensor, queries_n: Tensor, rules: FusionRules, *, queries_used: int
) -> PanopticMap:
    """Drop what is too hidden, fuse what belongs together, number the rest 1…N in the queries' order."""
    rows = _rows(painted, labels_n, queries_n)
    number_of_row = np.zeros(len(rows) + 1, dtype=np.int32)  # the last entry: no query
    segments: list[list[_Row]] = []
    fused: dict[int, int] = {}
    for i, row in enumerate(rows):
        if row.visible == 0 or row.won / row.own_area < rules.overlap_threshold:
            continue
        number = fused.get(row.label_id, len(segments) + 1)
        if number > len(segments):
            segments.append([])
        if row.label_id in rules.label_ids_to_fuse:
            fused[row.label_id] = number
        segments[number - 1].append(row)
        number_of_row[i] = number
    lut = torch.from_numpy(number_of_row).to(painted.winner.device)
    labels = lut[painted.winner] * painted.inside
    return PanopticMap(
        labels=labels.cpu().numpy(),
        label_ids=np.array([rows[0].label_id for rows in segments], dtype=np.int32),
        scores=np.array([_mean_score(rows) for rows in segments], dtype=np.float32),
        queries_used=queries_used,
        queries=np.array([max(rows, key=_visible).query for rows in segments], dtype=np.int32),
    )


def _rows(painted: _Painted, labels_n: Tensor, queries_n: Tensor) -> list[_Row]:
    """The table of the queries, brought to the host in one copy."""
    count = len(labels_n)
    pixels = torch.bincount((painted.winner * 2 + painted.inside).flatten(), minlength=2 * count + 2)
    pixels = pixels.view(count + 1, 2)[:count]
    columns = [labels_n, painted.score, pixels.sum(1), pixels[:, 1], painted.own_area, queries_n]
    # fp64 holds each of these exactly: pixel counts stay below 2^53.
    table: NDArray[np.float64] = torch.stack([c.double() for c in columns], dim=1).cpu().numpy()
    return [
        _Row(int(label), float(s), int(won), int(visible), int(own), int(query))
        for label, s, won, visible, own, query in table
    ]


def _visible(row: _Row) -> int:
    return row.visible


def _mean_score(rows: list[_Row]) -> float:
    """Score of a segment: its queries' scores, weighted by their visible pixels."""
    return sum(r.score * r.visible for r in rows) / sum(r.visible for r in rows)


def _semantic(classes_QK: Tensor, masks_Qhw: Tensor, canvas: Canvas, rules: FusionRules) -> PanopticMap:
    """Each pixel to the class with the highest sum over queries of class x mask probability; no void.

    The score of a class is the mean, over its pixels, of its share in the sum of all classes.
    """
    probabilities = classes_QK.softmax(-1)
    queries, classes = probabilities.shape[0], probabilities.shape[1] - 1
    device = classes_QK.device
    winner = torch.empty((canvas.height, canvas.width), dtype=torch.int32, device=device)
    area, share_sum = torch.zeros((2, classes), dtype=torch.float64, device=device)
    rows = max(1, _CHUNK_ELEMENTS // (max(queries, classes) * canvas.padded_width))
    for top in range(0, canvas.height, rows):
        bottom = min(top + rows, canvas.height)
        masks_QrW = resize_rows(masks_Qhw, top, bottom, canvas).sigmoid()
        scores_KrW = torch.einsum("qk,qrw->krw", probabilities[:, :-1], masks_QrW)
        best, label = scores_KrW.max(0)
        share = best / scores_KrW.sum(0).clamp(min=1e-12)
        winner[top:bottom] = label
        area += torch.bincount(label.flatten(), minlength=classes)
        share_sum += torch.bincount(label.flatten(), weights=share.flatten().double(), minlength=classes)
    areas, mean_share = torch.stack([area, share_sum / area.clamp(min=1)]).cpu().numpy()
    present = np.flatnonzero((areas > 0) & (mean_share >= rules.score_threshold))
    number_of_class = np.zeros(classes, dtype=np.int32)
    number_of_class[present] = np.arange(1, len(present) + 1)
    return PanopticMap(
        labels=torch.from_numpy(number_of_class).to(device)[winner].cpu().numpy(),
        label_ids=present.astype(np.int32),
        scores=mean_share[present].astype(np.float32),
        queries_used=int((probabilities.argmax(-1) != classes).sum()),
    )


def resize_rows(masks_Qhw: Tensor, top: int, bottom: int, canvas: Canvas) -> Tensor:
    """Rows ``top…bottom`` of the masks as bilinearly resized to the padded size, cropped to the tile's width.

    Equal to the same rows of ``F.interpolate(…, align_corners=False)`` up to rounding.
    """
    height = masks_Qhw.shape[1]
    position = (torch.arange(top, bottom, device=masks_Qhw.device) + 0.5) * (
        height / canvas.padded_height
    ) - 0.5
    position = position.clamp(min=0)
    above = position.floor().long().clamp(max=height - 1)
    below = (above + 1).clamp(max=height - 1)
    weight = (position - above)[:, None]
    lines = masks_Qhw[:, above] * (1 - weight) + masks_Qhw[:, below] * weight
    size = (bottom - top, canvas.padded_width)
    resized = F.interpolate(lines[None], size=size, mode="bilinear", align_corners=False)[0]
    return resized[:, :, : canvas.width]


def _empty(canvas: Canvas) -> PanopticMap:
    """All void: no query passed."""
    return PanopticMap(
        labels=np.zeros((canvas.height, canvas.width), dtype=np.int32),
        label_ids=np.zeros(0, dtype=np.int32),
        scores=np.zeros(0, dtype=np.float32),
        queries_used=0,
        queries=np.zeros(0, dtype=np.int32),
    )
