"""Fusion of a whole batch on a GPU without asking it for anything in between.

Unusual: shapes never depend on values, so nothing waits for the device and the whole of it fits into a CUDA graph.
Queries below the threshold take part with weight -1 instead of being taken out, and the numbering of segments is
arithmetic on (B, Q) tables. The rules are those of ``fusion.py``, which does the same image by image and plainly, and
is what a CPU runs.

Letters: B batch, Q queries, K classes, H W pixels of the tile, h w pixels of the mask logits, c queries of a chunk,
R rows of the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from panoptile.model.constants import constant
from panoptile.model.fusion import Canvas, FusionRules, resize_rows

_CHUNK_ELEMENTS = 1 << 26
"""Resized mask values held at once (256 MB in fp32, some five times that with what is made of them)."""
_BAND_ELEMENTS = 1 << 25
COLUMNS = ("number", "label", "score", "visible", "used")
"""Number of the segment (0: none), its label, score, visible pixels, and how many used queries the row stands for."""


class Fused(NamedTuple):
    """The batch as it comes back."""

    labels_BHW: Tensor
    """int32; 0 is void."""
    table_BR5: Tensor
    """fp64 of :data:`COLUMNS`, a row per query; with the task "semantic" a row per class."""


class _Queries(NamedTuple):
    """What the class logits say of each query."""

    labels_BQ: Tensor
    scores_BQ: Tensor
    kept_BQ: Tensor
    num_labels: int
    """With the one for no object."""


class _Painted(NamedTuple):
    """The running arg-max after all queries."""

    winner_BHW: Tensor
    """int64 index of the query with the highest weight; Q where none has any."""
    inside_BHW: Tensor
    own_area_BQ: Tensor
    scores_BQ: Tensor


def fuse_batch(class_logits: Tensor, mask_logits: Tensor, canvas: Canvas, rules: FusionRules) -> Fused:
    """Maps and tables for class logits (B, Q, K + 1) and mask logits (B, Q, h, w), on their device."""
    classes, masks = class_logits.float(), mask_logits.float()
    if rules.task == "semantic":
        return _semantic(classes, masks, canvas, rules)
    queries = _panoptic(classes, rules) if rules.task == "panoptic" else _instance(classes, rules)
    return _assemble(_paint(masks, queries, canvas, rules), queries, rules)


def _panoptic(classes_BQK: Tensor, rules: FusionRules) -> _Queries:
    scores, labels = classes_BQK.softmax(-1).max(-1)
    count = classes_BQK.shape[-1]
    return _Queries(labels, scores, (labels != count - 1) & (scores > rules.score_threshold), count)


def _instance(classes_BQK: Tensor, rules: FusionRules) -> _Queries:
    count = classes_BQK.shape[-1]
    is_thing = _membership(rules.thing_label_ids, count, classes_BQK.device)
    scores, labels = classes_BQK.softmax(-1).masked_fill(~is_thing, -1.0).max(-1)
    return _Queries(labels, scores, scores > rules.score_threshold, count)


def _paint(masks_BQhw: Tensor, queries: _Queries, canvas: Canvas, rules: FusionRules) -> _Painted:
    """Running arg-max by chunks of queries; strictly greater, so of equals the first query wins."""
    batch, count, device = *masks_BQhw.shape[:2], masks_BQhw.device
    size = (batch, canvas.height, canvas.width)
    best = torch.full(size, -1.0, device=device)
    winner = torch.full(size, count, dtype=torch.int64, device=device)
    inside = torch.zeros(size, dtype=torch.bool, device=device)
    areas, all_scores = [], []
    for start, probability in _resized_probabilities(masks_BQhw, canvas):
        part = slice(start, start + probability.shape[1])
        covered = probability >= rules.mask_threshold
        area = covered.sum((2, 3))
        scores, kept = queries.scores_BQ[:, part], queries.kept_BQ[:, part, None, None]
        if rules.task == "instance":  # one weight per mask: its class score x its mean probability
            scores = scores * (probability * covered).sum((2, 3)) / (area + 1e-6)
            weight = torch.where(
                kept & covered & (scores > rules.score_threshold)[..., None, None],
                scores[..., None, None],
                -1.0,
            )
        else:
            weight = torch.where(kept, probability * scores[..., None, None], -1.0)
        top, k = weight.max(1)
        better = top > best
        best = torch.maximum(best, top)
        winner = torch.where(better, k + start, winner)
        inside = torch.where(better, covered.gather(1, k[:, None])[:, 0], inside)
        areas.append(area)
        all_scores.append(scores)
    return _Painted(winner, inside, torch.cat(areas, 1), torch.cat(all_scores, 1))


def _resized_probabilities(masks_BQhw: Tensor, canvas: Canvas) -> Iterator[tuple[int, Tensor]]:
    """First query and probabilities (B, c, H, W) of each chunk; the *logits* are resized, and the padding cropped."""
    size = (canvas.padded_height, canvas.padded_width)
    chunk = max(1, _CHUNK_ELEMENTS // (len(masks_BQhw) * size[0] * size[1]))
    for start in range(0, masks_BQhw.shape[1], chunk):
        masks = masks_BQhw[:, start : start + chunk]
        logits = F.interpolate(masks, size=size, mode="bilinear", align_corners=False)
        yield start, logits.sigmoid_()[..., : canvas.height, : canvas.width]


def _assemble(painted: _Painted, queries: _Queries, rules: FusionRules) -> Fused:
    """The table is fp64 because that holds each of its numbers exactly."""
    labels = queries.labels_BQ
    batch, count = labels.shape
    cells = painted.winner_BHW * 2 + painted.inside_BHW
    pixels = _counts(cells.flatten(1), 2 * count + 2).view(batch, count + 1, 2)[:, :count]
    won, visible = pixels.sum(-1), pixels[..., 1]
    shown = won.double() / painted.own_area_BQ.double()
    valid = queries.kept_BQ & (visible > 0) & (shown >= rules.overlap_threshold)
    number = _numbers(valid, labels, queries.num_labels, rules)
    lut = F.pad(number, (0, 1))  # the last entry: no query
    found = lut.gather(1, painted.winner_BHW.flatten(1)).view_as(painted.winner_BHW)
    used = queries.kept_BQ
    if rules.task == "instance":
        used = used & (painted.scores_BQ > rules.score_threshold)
    columns = (number, labels, painted.scores_BQ, visible, used)
    return Fused((found * painted.inside_BHW).int(), _table(columns))


def _numbers(valid_BQ: Tensor, labels_BQ: Tensor, labels: int, rules: FusionRules) -> Tensor:
    """1…N in the queries' order, 0 for those that are no segment; fused classes share their first query's number.

    ``labels``: how many there are, with the one for no object.
    """
    fused_BQ = _membership(rules.label_ids_to_fuse, labels, labels_BQ.device)[labels_BQ]
    same_BQQ = (labels_BQ[:, :, None] == labels_BQ[:, None, :]) & valid_BQ[:, None, :]
    own = torch.arange(labels_BQ.shape[1], device=labels_BQ.device).expand_as(labels_BQ)
    leader = torch.where(fused_BQ, same_BQQ.int().argmax(-1), own)
    order = (valid_BQ & (leader == own)).long().cumsum(1)
    return order.gather(1, leader) * valid_BQ


def _semantic(classes_BQK: Tensor, masks_BQhw: Tensor, canvas: Canvas, rules: FusionRules) -> Fused:
    probabilities = classes_BQK.softmax(-1)
    count = probabilities.shape[-1] - 1
    used = (probabilities.argmax(-1) != count).sum(1)
    images = [_semantic_image(p[:, :-1], m, canvas) for p, m in zip(probabilities, masks_BQhw, strict=True)]
    winner_BHW, area_BK, share_BK = (torch.stack(parts) for parts in zip(*images, strict=True))
    mean_share = share_BK / area_BK.clamp(min=1)
    present = (area_BK > 0) & (mean_share >= rules.score_threshold)
    number = present.long().cumsum(1) * present
    labels = number.gather(1, winner_BHW.flatten(1)).view_as(winner_BHW).int()
    own = torch.arange(count, device=number.device).expand_as(number)
    used_BK = (own == 0) * used[:, None]
    return Fused(labels, _table((number, own, mean_share, area_BK, used_BK)))


def _table(columns_BR: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([c.double() for c in columns_BR], dim=-1)


def _semantic_image(
    probabilities_QK: Tensor, masks_Qhw: Tensor, canvas: Canvas
) -> tuple[Tensor, Tensor, Tensor]:
    """Winning class (H, W) int64, its pixels (K,) and the sum over them of its share of all classes (K,) fp64."""
    queries, classes = probabilities_QK.shape
    winners = []
    area = torch.zeros(classes, dtype=torch.int64, device=masks_Qhw.device)
    shares = torch.zeros(classes, dtype=torch.float64, device=masks_Qhw.device)
    rows = max(1, _BAND_ELEMENTS // (max(queries, classes) * canvas.padded_width))
    for top in range(0, canvas.height, rows):
        masks_QrW = resize_rows(masks_Qhw, top, min(top + rows, canvas.height), canvas).sigmoid()
        scores_KrW = torch.einsum("qk,qrw->krw", probabilities_QK, masks_QrW)
        best, label = scores_KrW.max(0)
        share = best / scores_KrW.sum(0).clamp(min=1e-12)
        winners.append(label)
        area += _counts(label.flatten()[None], classes)[0]
        shares.scatter_add_(0, label.flatten(), share.flatten().double())
    return torch.cat(winners), area, shares


def _counts(values_BN: Tensor, count: int) -> Tensor:
    """(B, count) how often 0…count-1 occur in each row. ``bincount`` would wait for the device to tell the maximum."""
    zeros = torch.zeros((len(values_BN), count), dtype=torch.int64, device=values_BN.device)
    one = torch.ones((), dtype=torch.int64, device=values_BN.device)
    return zeros.scatter_add_(1, values_BN, one.expand_as(values_BN))


@constant(maxsize=16)
def _membership(ids: frozenset[int], count: int, device: torch.device) -> Tensor:
    """(count,) whether each label is in ``ids``."""
    return torch.tensor([label in ids for label in range(count)], device=device)
