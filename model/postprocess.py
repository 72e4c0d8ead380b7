"""From the network's output to semantic, instance and panoptic maps, by the documented functions.

Unusual: two sets of rules. ``"hf"`` gives what transformers 5.23 gives, bit for bit; ``"original"`` what the paper's
authors give. The second needs to know which part of a padded batch is image, so it takes the ``pixel_mask`` of the
preprocessing.

Letters: B batch, Q queries, K classes, N instances, H W pixels of the target.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Any, Literal

from torch import Tensor

from panoptile.model import postprocess_hf as hf
from panoptile.model import postprocess_original as original
from panoptile.model.outputs import SemanticSegmentation
from panoptile.model.postprocess_original import Geometry

log = logging.getLogger(__name__)

Semantics = Literal["original", "hf"]
Size = tuple[int, int]

HF_GRID: Size = (384, 384)
"""Size to which the reference brings every Mask2Former mask first; MaskFormer's stay as they are."""
_STRIDE = 4
_HF_OVERLAP = 0.8


def post_process_semantic_segmentation(
    outputs: Any,
    target_sizes: Sequence[Size] | Tensor | None = None,
    return_segmentation_scores: bool = False,
    *,
    semantics: Semantics = "hf",
    pixel_mask: Tensor | None = None,
    grid: Size | None = HF_GRID,
) -> list[Tensor] | list[SemanticSegmentation]:
    """Per image the label ids (H, W), or with their scores (K, H, W) as fields of one object.

    ``target_sizes`` are B (height, width); without them "hf" gives maps of 384x384 and "original" maps of the image
    inside the padding. Raises ``ValueError`` if there are not as many sizes as images.
    """
    classes, masks, sizes = _checked(outputs, target_sizes, semantics)
    if semantics == "hf":
        found = hf.semantic(classes, masks, grid=grid, sizes=sizes, with_scores=return_segmentation_scores)
    else:
        found = [
            original.semantic(c, m, g, with_scores=return_segmentation_scores)
            for c, m, g in zip(classes, masks, _geometries(masks, sizes, pixel_mask), strict=True)
        ]
    return found if return_segmentation_scores else [item.segmentation for item in found]


def post_process_instance_segmentation(
    outputs: Any,
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
    overlap_mask_area_threshold: float = 0.8,
    target_sizes: Sequence[Size] | Tensor | None = None,
    return_coco_annotation: bool | None = False,
    return_binary_maps: bool | None = False,
    *,
    semantics: Semantics = "hf",
    thing_label_ids: Collection[int] | None = None,
    pixel_mask: Tensor | None = None,
    grid: Size | None = HF_GRID,
) -> list[dict[str, Any]]:
    """Per image a map with its ``segments_info``: ``id``, ``label_id``, ``was_fused``, ``score``.

    The map is (H, W), or a list of run-length encodings, or (N, H, W) binary maps, which may overlap. "hf" uses neither
    of the two mask thresholds, as the reference; "original" uses ``mask_threshold``, has no use for an overlap
    threshold, and can leave out classes that are not things.
    """
    if return_coco_annotation and return_binary_maps:
        raise ValueError("Ask for either return_coco_annotation or return_binary_maps, not for both.")
    classes, masks, sizes = _checked(outputs, target_sizes, semantics)
    form = {"as_runs": bool(return_coco_annotation), "as_maps": bool(return_binary_maps)}
    if semantics == "hf":
        if thing_label_ids is not None:
            raise ValueError(
                'thing_label_ids belong to semantics="original"; the reference has no such filter.'
            )
        return [
            hf.instance(c, m, threshold=threshold, grid=grid, size=sizes[i] if sizes else None, **form)
            for i, (c, m) in enumerate(zip(classes, masks, strict=True))
        ]
    if overlap_mask_area_threshold != _HF_OVERLAP:
        raise ValueError(
            f"The paper's instances have no overlap threshold, got {overlap_mask_area_threshold = }."
        )
    return [
        original.instance(
            c, m, g, threshold=threshold, mask_threshold=mask_threshold, things=thing_label_ids, **form
        )
        for c, m, g in zip(classes, masks, _geometries(masks, sizes, pixel_mask), strict=True)
    ]


def post_process_panoptic_segmentation(
    outputs: Any,
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
    overlap_mask_area_threshold: float = 0.8,
    label_ids_to_fuse: Collection[int] | None = None,
    target_sizes: Sequence[Size] | Tensor | None = None,
    *,
    semantics: Semantics = "hf",
    pixel_mask: Tensor | None = None,
    grid: Size | None = HF_GRID,
) -> list[dict[str, Any]]:
    """Per image a map (H, W) of segment ids with its ``segments_info``: ``id``, ``label_id``, ``was_fused``, ``score``.

    Classes of ``label_ids_to_fuse`` (usually all stuff) get one segment each; without it nothing is fused.
    """
    if label_ids_to_fuse is None:
        log.info("label_ids_to_fuse is not set: no segments are fused.")
    classes, masks, sizes = _checked(outputs, target_sizes, semantics)
    rules: dict[str, Any] = {
        "threshold": threshold,
        "mask_threshold": mask_threshold,
        "overlap_threshold": overlap_mask_area_threshold,
        "fused": frozenset(label_ids_to_fuse or ()),
    }
    if semantics == "hf":
        return [
            hf.panoptic(c, m, grid=grid, size=sizes[i] if sizes else None, **rules)
            for i, (c, m) in enumerate(zip(classes, masks, strict=True))
        ]
    return [
        original.panoptic(c, m, g, **rules)
        for c, m, g in zip(classes, masks, _geometries(masks, sizes, pixel_mask), strict=True)
    ]


def _checked(
    outputs: Any, target_sizes: Sequence[Size] | Tensor | None, semantics: str
) -> tuple[Tensor, Tensor, list[Size] | None]:
    """Logits in fp32 and the sizes as pairs of integers."""
    if semantics not in ("original", "hf"):
        raise ValueError(f'semantics must be "original" or "hf", got {semantics!r}.')
    classes, masks = outputs.class_queries_logits.detach(), outputs.masks_queries_logits.detach()
    if target_sizes is None:
        return classes.float(), masks.float(), None
    sizes = [(int(height), int(width)) for height, width in target_sizes]
    if len(sizes) != len(classes):
        raise ValueError(f"Expected one target size per image, got {len(sizes)} for {len(classes)} images.")
    return classes.float(), masks.float(), sizes


def _geometries(masks_BQhw: Tensor, sizes: list[Size] | None, pixel_mask: Tensor | None) -> list[Geometry]:
    """Without a ``pixel_mask`` (B, height, width) the network's input is taken to have no padding."""
    batch, _, height, width = masks_BQhw.shape
    padded: Size = (height * _STRIDE, width * _STRIDE)
    valid = [padded] * batch
    if pixel_mask is not None:
        if pixel_mask.ndim != 3 or len(pixel_mask) != batch:
            raise ValueError(
                f"Expected a pixel_mask (B, H, W) for {batch} images, got {tuple(pixel_mask.shape)}."
            )
        padded = (pixel_mask.shape[1], pixel_mask.shape[2])
        inside = pixel_mask.bool()
        heights, widths = inside.any(2).sum(1).tolist(), inside.any(1).sum(1).tolist()
        valid = list(zip(heights, widths, strict=True))
    return [Geometry(padded, v, s) for v, s in zip(valid, sizes or valid, strict=True)]
