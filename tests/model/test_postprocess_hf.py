"""``semantics="hf"`` against transformers' own post-processing: the same maps, tables, types, on random logits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from panoptile.model import exact_argmax
from panoptile.model.exact_argmax import weighted_argmax
from panoptile.model.outputs import SemanticSegmentation
from panoptile.model.postprocess import (
    post_process_instance_segmentation,
    post_process_panoptic_segmentation,
    post_process_semantic_segmentation,
)

SIZES = [(200, 301), (512, 130)]


def some_outputs(queries: int = 20, labels: int = 6, *, seed: int = 0, confident: float = 6.0) -> Any:
    """Logits of two images with blobs for masks; ``confident`` scales the class logits."""
    generator = torch.Generator().manual_seed(seed)
    coarse = 5 * torch.randn(2, queries, 7, 9, generator=generator)
    masks = F.interpolate(coarse, size=(48, 56), mode="bicubic")
    classes = confident * torch.randn(2, queries, labels + 1, generator=generator)
    return SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)


def reference(kind: str = "Mask2Former") -> Any:
    transformers = pytest.importorskip("transformers")
    return getattr(transformers, f"{kind}ImageProcessorPil")()


def assert_same(got: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Equal tables; equal maps, with type and device."""
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a["segments_info"] == b["segments_info"]
        if isinstance(b["segmentation"], list):
            assert a["segmentation"] == b["segmentation"]
        else:
            assert a["segmentation"].dtype == b["segmentation"].dtype
            assert torch.equal(a["segmentation"], b["segmentation"])


PANOPTIC: dict[str, dict[str, Any]] = {
    "defaults": {},
    "resized": {"target_sizes": SIZES},
    "enlarged": {"target_sizes": [(1500, 700), (640, 1100)]},
    "fused": {"target_sizes": SIZES, "label_ids_to_fuse": {0, 2, 4}, "threshold": 0.2},
    "all fused, all kept": {"label_ids_to_fuse": {0, 1, 2, 3, 4, 5}, "threshold": 0.0, "mask_threshold": 0.1},
    "no overlap rule": {"threshold": 0.1, "overlap_mask_area_threshold": 0.0, "mask_threshold": 0.05},
    "nothing found": {"threshold": 0.9999999, "target_sizes": SIZES},
    "nothing found, no size": {"threshold": 0.9999999},
}


@pytest.mark.parametrize("case", PANOPTIC)
@pytest.mark.parametrize("queries", [1, 3, 40])
def test_panoptic_is_the_reference_bit_for_bit(case: str, queries: int) -> None:
    """Maps and tables are equal for few and many queries, fused labels, small and large targets, empty results."""
    outputs = some_outputs(queries, seed=queries)
    expected = reference().post_process_panoptic_segmentation(outputs, **PANOPTIC[case])
    assert_same(post_process_panoptic_segmentation(outputs, **PANOPTIC[case]), expected)


@pytest.mark.parametrize("seed", range(3))
def test_panoptic_numbers_repeat_where_the_reference_repeats_them(seed: int) -> None:
    """With many segments of fused and other labels the same ids are given twice, in the same places."""
    outputs = some_outputs(100, 4, seed=seed, confident=9.0)
    options: dict[str, Any] = {
        "label_ids_to_fuse": {0, 1},
        "threshold": 0.3,
        "overlap_mask_area_threshold": 0.0,
        "target_sizes": [(90, 411), (300, 200)],
    }
    expected = reference().post_process_panoptic_segmentation(outputs, **options)
    assert_same(post_process_panoptic_segmentation(outputs, **options), expected)
    assert len(expected[0]["segments_info"]) > 10


INSTANCE: dict[str, dict[str, Any]] = {
    "defaults": {},
    "resized": {"target_sizes": SIZES, "threshold": 0.2},
    "runs": {"threshold": 0.1, "return_coco_annotation": True},
    "runs, resized": {"threshold": 0.1, "target_sizes": SIZES, "return_coco_annotation": True},
    "maps": {"threshold": 0.1, "return_binary_maps": True, "target_sizes": SIZES},
    "vanishing masks": {"threshold": 0.0, "target_sizes": [(2, 3), (1, 1)]},
    "nothing found": {"threshold": 1.1, "target_sizes": SIZES, "return_binary_maps": True},
    "nothing found, runs": {"threshold": 1.1, "return_coco_annotation": True},
}


@pytest.mark.parametrize("case", INSTANCE)
@pytest.mark.parametrize("queries", [1, 3, 30])
def test_instances_are_the_reference_bit_for_bit(case: str, queries: int) -> None:
    """Maps, runs, binary maps and tables are equal, the paint order of an unsorted top-k included."""
    outputs = some_outputs(queries, seed=queries)
    expected = reference().post_process_instance_segmentation(outputs, **INSTANCE[case])
    assert_same(post_process_instance_segmentation(outputs, **INSTANCE[case]), expected)


@pytest.mark.parametrize("labels", [1, 3, 7])
@pytest.mark.parametrize("sizes", [None, SIZES, [(900, 777), (33, 1)]], ids=["grid", "near", "far"])
def test_semantic_is_the_reference_bit_for_bit(labels: int, sizes: list[tuple[int, int]] | None) -> None:
    """Classes and class scores are equal, with and without the scores."""
    outputs = some_outputs(12, labels, seed=labels)
    processor = reference()
    expected = processor.post_process_semantic_segmentation(outputs, sizes, return_segmentation_scores=True)
    plain = post_process_semantic_segmentation(outputs, sizes)
    scored = post_process_semantic_segmentation(outputs, sizes, return_segmentation_scores=True)
    for labels_only, with_scores, wanted in zip(plain, scored, expected, strict=True):
        assert isinstance(labels_only, Tensor)
        assert torch.equal(labels_only, wanted.segmentation)
        assert isinstance(with_scores, SemanticSegmentation)
        assert with_scores.segmentation_scores is not None
        assert torch.equal(with_scores.segmentation, wanted.segmentation)
        assert torch.equal(with_scores.segmentation_scores, wanted.segmentation_scores)


def test_maskformer_works_on_the_masks_as_they_are() -> None:
    """Without the fixed grid the results are those of transformers' MaskFormer processor."""
    outputs, processor = some_outputs(15), reference("MaskFormer")
    for sizes in (None, SIZES):
        assert_same(
            post_process_panoptic_segmentation(outputs, threshold=0.3, target_sizes=sizes, grid=None),
            processor.post_process_panoptic_segmentation(outputs, threshold=0.3, target_sizes=sizes),
        )
        assert_same(
            post_process_instance_segmentation(outputs, threshold=0.3, target_sizes=sizes, grid=None),
            processor.post_process_instance_segmentation(outputs, threshold=0.3, target_sizes=sizes),
        )
        for a, b in zip(
            post_process_semantic_segmentation(outputs, sizes, grid=None),
            processor.post_process_semantic_segmentation(outputs, sizes),
            strict=True,
        ):
            assert isinstance(a, Tensor)
            assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["noise", "blobs", "equal", "flat"])
@pytest.mark.parametrize(
    ("source", "size"),
    [
        ((96, 96), (300, 333)),
        ((384, 384), (517, 600)),
        ((9, 7), (3, 40000)),
        ((5, 3), (77, 1)),
        ((40, 40), (13, 9)),
        ((64, 64), (64, 64)),
    ],
)
@pytest.mark.parametrize("count", [1, 3, 9])
def test_the_pruned_arg_max_is_exact(
    kind: str, source: tuple[int, int], size: tuple[int, int], count: int
) -> None:
    """Winners, ties and areas equal those of all maps resized and stacked; pruning and tiling change no bit."""
    generator = torch.Generator().manual_seed(count)
    maps = torch.rand(count, *source, generator=generator)
    if kind == "blobs":
        coarse = 5 * torch.randn(1, count, 5, 4, generator=generator)
        maps = F.interpolate(coarse, size=source, mode="bicubic")[0].sigmoid()
    elif kind == "equal":
        maps = (maps[:1] > 0.5).float().expand(count, -1, -1).contiguous()
    elif kind == "flat":
        maps = torch.full_like(maps, 0.5)
    weights = torch.rand(count, generator=generator) if kind in ("noise", "blobs") else torch.ones(count)
    stacked = F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]
    weighted = stacked * weights[:, None, None]
    for got in (
        weighted_argmax(maps, weights, size, threshold=0.4),
        exact_argmax._running(maps, weights, size, 0.4),
    ):
        assert torch.equal(got.winner, weighted.argmax(0).int())
        assert torch.equal(got.area, torch.bincount(weighted.argmax(0).flatten(), minlength=count))
        assert torch.equal(got.reach, (weighted >= 0.4).flatten(1).sum(1))


def test_the_pruned_version_is_the_one_that_ran() -> None:
    """torch's resizing on this processor is one that the pruned version reproduces, so the test above is about it."""
    if exact_argmax._combine(torch.device("cpu")) is None:
        pytest.skip("torch resizes in another way here: maps are resized whole, pruning is NOT tested")
    size = (300, 400)
    pruned = exact_argmax._tiled(torch.rand(5, 40, 40), torch.ones(5), size, 0.4)
    assert pruned.area.sum() == size[0] * size[1]


def test_wrong_requests_are_refused() -> None:
    """Both forms at once, sizes for another number of images, unknown rules: an error says what is wrong."""
    outputs = some_outputs(4)
    with pytest.raises(ValueError, match="not for both"):
        post_process_instance_segmentation(outputs, return_coco_annotation=True, return_binary_maps=True)
    with pytest.raises(ValueError, match="got 1 for 2 images"):
        post_process_panoptic_segmentation(outputs, target_sizes=[(3, 3)])
    with pytest.raises(ValueError, match="'paper'"):
        post_process_semantic_segmentation(outputs, semantics="paper")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='semantics="original"'):
        post_process_instance_segmentation(outputs, thing_label_ids=[1])
