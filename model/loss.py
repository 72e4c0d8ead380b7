"""Training losses of Mask2Former: Hungarian matching on sampled points, then class, mask and dice losses.

After Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation" (2022), section 3.3 and
appendix. Everything is computed in fp32 from points, never from whole masks, and on every decoder layer. Two things
go beyond the paper: all layers of an image are sampled at once, and a pixel can be *ignored* for real, with weight 0
in the costs and in the losses (in the paper it is background).

Letters in shapes: ``B`` images, ``L`` decoder layers, ``Q`` queries, ``K`` classes (``K + 1`` logits, the last one
"no object"), ``N`` objects of one image, ``M`` matched masks, ``P`` points, ``H W`` pixels, ``h w`` mask pixels.
Points are (x, y) in 0…1, as ``grid_sample`` wants them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

RandomUniform = Callable[[tuple[int, int, int], torch.device], Tensor]
"""Makes points of a shape ``(masks, P, 2)`` in 0…1."""

Match = tuple[Tensor, Tensor]
"""Indices (queries, objects) of one layer of one image."""


@dataclass(frozen=True, slots=True)
class LossWeights:
    """Weights of the terms, alike in the matching costs and in the loss."""

    classes: float = 2.0
    mask: float = 5.0
    dice: float = 5.0
    no_object: float = 0.1
    """Weight of "no object" inside the cross-entropy, before its weighted mean."""


@dataclass(frozen=True, slots=True)
class PointSampling:
    """Where masks are compared."""

    points: int = 12_544
    oversampling: float = 3.0
    """Candidates for a point, among which the least certain ones are kept."""
    importance: float = 0.75
    """Share of the points that go where the prediction is least certain; the rest are uniform."""

    def __post_init__(self) -> None:
        if self.points < 1 or self.oversampling < 1 or not 0 <= self.importance <= 1:
            raise ValueError(
                f"Expected at least one point, oversampling >= 1 and importance in 0…1, got {self}."
            )


@dataclass(frozen=True, slots=True)
class ImageTargets:
    """What is true of one image."""

    masks: Tensor
    """(N, H, W), bool or 0/1; N may be 0."""
    class_labels: Tensor
    """int64 (N,)."""
    ignored: Tensor | None = None
    """bool (H, W): pixels that count neither for nor against a mask."""

    def __post_init__(self) -> None:
        if self.masks.ndim != 3 or self.class_labels.shape != self.masks.shape[:1]:
            raise ValueError(
                f"Expected masks (N, H, W) and N class labels, got {self.masks.shape = } "
                f"and {self.class_labels.shape = }."
            )


@dataclass(frozen=True, slots=True)
class LayerLosses:
    """Losses of every decoder layer, weighted and summed by :attr:`total`; each (L,), last layer last."""

    classes: Tensor
    mask: Tensor
    dice: Tensor
    weights: LossWeights

    @property
    def total(self) -> Tensor:
        """The scalar to minimise."""
        weights = self.weights
        return (weights.classes * self.classes + weights.mask * self.mask + weights.dice * self.dice).sum()


@dataclass(frozen=True, slots=True)
class LossTotals:
    """What the sums over queries and masks are divided by.

    They follow from the targets alone, so that batches that make one step together (accumulated, or on several
    GPUs) can be divided by the totals of all of them: their sum is then the loss of one large batch.
    """

    objects: float
    """Masks to find."""
    class_weight: float
    """Weights of all queries in the cross-entropy."""

    @classmethod
    def of(cls, targets: Sequence[ImageTargets], *, queries: int, no_object: float) -> LossTotals:
        """The totals of one batch; each image uses ``min(N, Q)`` queries, the others say "no object"."""
        counts = [len(target.class_labels) for target in targets]
        used = sum(min(count, queries) for count in counts)
        return cls(float(sum(counts)), used + no_object * (queries * len(counts) - used))

    def __add__(self, other: LossTotals) -> LossTotals:
        return LossTotals(self.objects + other.objects, self.class_weight + other.class_weight)


@dataclass(frozen=True, slots=True)
class QueryRoles:
    """Ties queries to places, or to a stuff class, so that an object meets the same query in each step.

    Matches that jump between look-alike queries are what makes the first thousands of steps of a set predictor slow
    (Li et al., "DN-DETR", 2022). The tie is a term of the matching cost alone: no loss, and nothing at inference.
    """

    places_P2: Tensor
    """Places (P, 2) of the first P queries, 0…1, x first."""
    stuff: tuple[int, ...]
    """Label ids of the queries after these, one each."""
    weight: float
    """Cost of a distance of the image's side between a query's place and the middle of its object."""

    def costs(self, targets: ImageTargets, *, queries: int) -> Tensor:
        """Cost (Q, N) of each pair of a query and an object."""
        height, width = targets.masks.shape[1:]
        masks_NHW = targets.masks.float()
        device = masks_NHW.device
        areas_N = masks_NHW.sum(dim=(1, 2)).clamp(min=1)
        x_N = (masks_NHW.sum(dim=1) @ ((torch.arange(width, device=device) + 0.5) / width)) / areas_N
        y_N = (masks_NHW.sum(dim=2) @ ((torch.arange(height, device=device) + 0.5) / height)) / areas_N
        foreign = 2.0 * self.weight  # more than any distance
        costs_QN = torch.full((queries, len(masks_NHW)), foreign, device=device)
        distances_PN = torch.cdist(self.places_P2.to(device), torch.stack([x_N, y_N], dim=1))
        costs_QN[: len(distances_PN)] = self.weight * distances_PN
        for i, label in enumerate(self.stuff):
            is_stuff_N = targets.class_labels == label
            costs_QN[:, is_stuff_N] = foreign
            costs_QN[len(distances_PN) + i, is_stuff_N] = 0.0
        return costs_QN


def uniform(shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Uniform points from torch's global generator."""
    return torch.rand(shape, device=device)


def sample_points(maps_MChw: Tensor, points_MP2: Tensor, *, nearest: bool = False) -> Tensor:
    """Values (M, C, P) of maps (M, C, h, w) at points (M, P, 2); outside the map the value is 0."""
    mode = "nearest" if nearest else "bilinear"
    grid_MP12 = 2.0 * points_MP2[:, :, None] - 1.0
    return F.grid_sample(maps_MChw, grid_MP12, mode=mode, align_corners=False)[..., 0]


# --- matching ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def match_image(
    class_logits_LQK: Tensor,
    mask_logits_LQhw: Tensor,
    targets: ImageTargets,
    *,
    weights: LossWeights,
    points: int,
    random_uniform: RandomUniform = uniform,
    roles: QueryRoles | None = None,
) -> list[Match]:
    """Per layer, indices (queries, objects) of the assignment of least cost, in ascending order of the objects.

    Objects and queries are used once each: with more objects than queries some objects stay unmatched. All layers and both sides are compared on one set of ``points`` points.
    """
    layers = class_logits_LQK.shape[0]
    device = class_logits_LQK.device
    if targets.masks.shape[0] == 0:
        nothing = torch.zeros(0, dtype=torch.int64, device=device)
        return [(nothing, nothing)] * layers
    points_1P2 = random_uniform((1, points, 2), device)
    predicted_LQP = sample_points(mask_logits_LQhw.float().flatten(0, 1)[None], points_1P2)[0]
    predicted_LQP = predicted_LQP.view(*mask_logits_LQhw.shape[:2], points)
    true_NP = sample_points(targets.masks[None].float(), points_1P2)[0]
    counted_P = _counted(targets, points_1P2)[0]
    cost_LQN = (
        weights.mask * _mask_costs(predicted_LQP, true_NP, counted_P)
        - weights.classes * class_logits_LQK.float().softmax(dim=-1)[:, :, targets.class_labels]
        + weights.dice * _dice_costs(predicted_LQP, true_NP, counted_P)
    )
    if roles is not None:
        cost_LQN = cost_LQN + roles.costs(targets, queries=cost_LQN.shape[1])
    # An overflow in a diverging run must not end in "cost matrix is infeasible", far from its cause.
    finite_LQN = torch.nan_to_num(cost_LQN, nan=1e10, posinf=1e10, neginf=-1e10).cpu().numpy()
    matches = [linear_sum_assignment(cost_QN.T) for cost_QN in finite_LQN]
    return [
        (torch.as_tensor(queries, device=device), torch.as_tensor(objects, device=device))
        for objects, queries in matches
    ]


def _counted(targets: ImageTargets, points_MP2: Tensor) -> Tensor:
    """1.0 at points (M, P) that count, 0.0 at ignored ones."""
    if targets.ignored is None:
        return torch.ones(points_MP2.shape[:2], device=points_MP2.device)
    counted_11HW = (~targets.ignored)[None, None].float()
    maps = counted_11HW.expand(points_MP2.shape[0], -1, -1, -1)
    return sample_points(maps, points_MP2, nearest=True)[:, 0]


def _mask_costs(logits_LQP: Tensor, true_NP: Tensor, counted_P: Tensor) -> Tensor:
    """Mean binary cross-entropy (L, Q, N) of each query with each object over the points that count."""
    share_P = counted_P / counted_P.sum().clamp(min=1)  # before the products, so that nothing overflows
    if_true_LQP = F.softplus(-logits_LQP) * share_P
    if_false_LQP = F.softplus(logits_LQP) * share_P
    return if_true_LQP @ true_NP.T + if_false_LQP @ (1 - true_NP).T


def _dice_costs(logits_LQP: Tensor, true_NP: Tensor, counted_P: Tensor) -> Tensor:
    """``1 - (2|A ∩ B| + 1) / (|A| + |B| + 1)`` (L, Q, N), areas in points that count."""
    inside_LQP = logits_LQP.sigmoid() * counted_P
    true_NP = true_NP * counted_P
    overlap_LQN = inside_LQP @ true_NP.T
    areas_LQN = inside_LQP.sum(dim=-1)[:, :, None] + true_NP.sum(dim=-1)
    return 1 - (2 * overlap_LQN + 1) / (areas_LQN + 1)


# --- losses ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def uncertain_points(
    logits_Mhw: Tensor,
    targets: ImageTargets,
    sampling: PointSampling,
    random_uniform: RandomUniform = uniform,
) -> Tensor:
    """Points (M, P, 2), most of them where a mask's logit is nearest 0, the rest uniform (PointRend, section 3.1).

    Ignored candidates are taken last.
    """
    masks = logits_Mhw.shape[0]
    candidates = int(sampling.points * sampling.oversampling)
    uncertain = int(sampling.importance * sampling.points)
    tried_MC2 = random_uniform((masks, candidates, 2), logits_Mhw.device)
    certainty_MC = sample_points(logits_Mhw[:, None], tried_MC2)[:, 0].abs()
    if targets.ignored is not None:
        certainty_MC = certainty_MC.masked_fill(_counted(targets, tried_MC2) == 0, torch.inf)
    chosen_MU = certainty_MC.topk(uncertain, dim=1, largest=False).indices
    chosen_MU2 = tried_MC2.gather(1, chosen_MU[:, :, None].expand(-1, -1, 2))
    if uncertain == sampling.points:
        return chosen_MU2
    rest_MR2 = random_uniform((masks, sampling.points - uncertain, 2), logits_Mhw.device)
    return torch.cat([chosen_MU2, rest_MR2], dim=1)


def mask_losses(logits_MP: Tensor, true_MP: Tensor, counted_MP: Tensor) -> Tensor:
    """Mean binary cross-entropy (M,) over the points that count; 0 where none does."""
    losses_MP = F.binary_cross_entropy_with_logits(logits_MP, true_MP, reduction="none")
    return (losses_MP * counted_MP).sum(dim=1) / counted_MP.sum(dim=1).clamp(min=1)


def dice_losses(logits_MP: Tensor, true_MP: Tensor, counted_MP: Tensor) -> Tensor:
    """Dice loss (M,) with 1 added above and below, over the points that count."""
    inside_MP = logits_MP.sigmoid() * counted_MP
    true_MP = true_MP * counted_MP
    overlap_M = (inside_MP * true_MP).sum(dim=1)
    return 1 - (2 * overlap_M + 1) / (inside_MP.sum(dim=1) + true_MP.sum(dim=1) + 1)


def _true_at_points(masks_NHW: Tensor, found: list[Tensor], points_MP2: Tensor) -> Tensor:
    """Values (M, P) of the matched objects at each one's points; ``found`` holds one layer's objects each."""
    layers, objects = len(found), masks_NHW.shape[0]
    if any(len(objects_of_layer) < objects for objects_of_layer in found):
        return sample_points(masks_NHW[torch.cat(found)][:, None].float(), points_MP2)[:, 0]
    # Every layer has all objects in order, so each full-size mask is read once for all layers, not copied L times.
    points = points_MP2.shape[1]
    points_NLP2 = points_MP2.view(layers, objects, points, 2).transpose(0, 1)
    values = sample_points(masks_NHW[:, None].float(), points_NLP2.flatten(1, 2))[:, 0]
    return values.view(objects, layers, points).transpose(0, 1).flatten(0, 1)


class Mask2FormerCriterion(nn.Module):
    """The loss of a batch over all decoder layers."""

    empty_weight: Tensor

    def __init__(
        self,
        *,
        num_labels: int,
        weights: LossWeights | None = None,
        sampling: PointSampling | None = None,
        random_uniform: RandomUniform = uniform,
        roles: QueryRoles | None = None,
    ) -> None:
        super().__init__()
        self.weights = weights or LossWeights()
        self.sampling = sampling or PointSampling()
        self.random_uniform = random_uniform
        self.roles = roles
        empty_weight = torch.ones(num_labels + 1)
        empty_weight[-1] = self.weights.no_object
        # Rebuilt from the configuration, so checkpoints need not hold it.
        self.register_buffer("empty_weight", empty_weight, persistent=False)

    def forward(
        self,
        class_logits: Sequence[Tensor],
        mask_logits: Sequence[Tensor],
        targets: Sequence[ImageTargets],
        totals: LossTotals | None = None,
    ) -> LayerLosses:
        """Losses of L layers: ``class_logits`` L × (B, Q, K + 1), ``mask_logits`` L × (B, Q, h, w), B targets.

        Each layer is matched on its own. Masks are averaged over the objects of the batch (at least 1), or of
        ``totals`` where the batch is a part of a larger one.
        """
        class_logits_LBQK = torch.stack([logits.float() for logits in class_logits])
        mask_logits_LBQhw = torch.stack([logits.float() for logits in mask_logits])
        if class_logits_LBQK.shape[1] != len(targets):
            raise ValueError(
                f"Expected one target per image, got {class_logits_LBQK.shape = } and {len(targets)} targets."
            )
        self._check_labels(targets)
        matches = [
            match_image(
                class_logits_LBQK[:, b],
                mask_logits_LBQhw[:, b],
                target,
                weights=self.weights,
                points=self.sampling.points,
                random_uniform=self.random_uniform,
                roles=self.roles,
            )
            for b, target in enumerate(targets)
        ]
        if totals is None:
            totals = self.totals(targets, queries=class_logits_LBQK.shape[2])
        mask_L, dice_L = self._mask_terms(mask_logits_LBQhw, targets, matches, totals)
        return LayerLosses(
            self._class_term(class_logits_LBQK, targets, matches, totals), mask_L, dice_L, self.weights
        )

    def totals(self, targets: Sequence[ImageTargets], *, queries: int) -> LossTotals:
        """What the losses of a batch are divided by."""
        return LossTotals.of(targets, queries=queries, no_object=self.weights.no_object)

    def _class_term(
        self,
        logits_LBQK: Tensor,
        targets: Sequence[ImageTargets],
        matches: list[list[Match]],
        totals: LossTotals,
    ) -> Tensor:
        """Weighted mean cross-entropy (L,) of all queries; those without an object are to say "no object"."""
        layers, images, queries, classes = logits_LBQK.shape
        true_LBQ = torch.full((layers, images, queries), classes - 1, device=logits_LBQK.device)
        for b, target in enumerate(targets):
            for layer, (matched, found) in enumerate(matches[b]):
                true_LBQ[layer, b, matched] = target.class_labels[found]
        losses_LN = F.cross_entropy(
            logits_LBQK.flatten(0, 2), true_LBQ.flatten(), weight=self.empty_weight, reduction="none"
        ).view(layers, -1)
        return losses_LN.sum(dim=1) / totals.class_weight

    def _mask_terms(
        self,
        logits_LBQhw: Tensor,
        targets: Sequence[ImageTargets],
        matches: list[list[Match]],
        totals: LossTotals,
    ) -> tuple[Tensor, Tensor]:
        """Mask and dice losses (L,) of the matched masks; all layers of an image in one sampling."""
        layers, images, queries = logits_LBQhw.shape[:3]
        device = logits_LBQhw.device
        chosen = [
            torch.cat(
                [(layer * images + b) * queries + matched for layer, (matched, _) in enumerate(of_image)]
            )
            for b, of_image in enumerate(matches)
        ]
        # One selection for the whole batch: each one's backward pass fills a tensor of the size of all masks.
        logits_Mhw = logits_LBQhw.flatten(0, 2).index_select(0, torch.cat(chosen))
        layer_of_M = torch.cat(chosen).div(images * queries, rounding_mode="floor")
        predicted, true, counted = [], [], []
        for target, of_image, logits in zip(
            targets, matches, torch.split(logits_Mhw, [len(c) for c in chosen]), strict=True
        ):
            if len(logits):
                points_MP2 = uncertain_points(logits.detach(), target, self.sampling, self.random_uniform)
                predicted.append(sample_points(logits[:, None], points_MP2)[:, 0])
                true.append(_true_at_points(target.masks, [found for _, found in of_image], points_MP2))
                counted.append(_counted(target, points_MP2))
        zeros_L = logits_Mhw.sum() * 0.0 + torch.zeros(
            layers, device=device
        )  # an empty batch has a gradient too
        if not predicted:
            return zeros_L, zeros_L
        at_points = torch.cat(predicted), torch.cat(true), torch.cat(counted)
        objects = max(totals.objects, 1.0)
        return (
            zeros_L.index_add(0, layer_of_M, mask_losses(*at_points)) / objects,
            zeros_L.index_add(0, layer_of_M, dice_losses(*at_points)) / objects,
        )

    def _check_labels(self, targets: Sequence[ImageTargets]) -> None:
        known = len(self.empty_weight) - 1
        for b, target in enumerate(targets):
            labels = target.class_labels
            if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < known:
                raise ValueError(
                    f"Image {b} has class labels {sorted(set(labels.tolist()))}; the model knows 0…{known - 1}."
                )
