"""The paper's rules on hand-made logits: one test for each of the eleven ways in which the reference differs.

Each case is small enough to be worked out by hand, and shows both results: what "original" must give, and that "hf"
gives something else. So a slip from one set of rules into the other fails here.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from panoptile.model import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor
from panoptile.model.fusion import FusionRules
from panoptile.model.image_settings import ImageSettings
from panoptile.model.postprocess import Semantics

SKY, PERSON, CAR = 0, 1, 2
PROCESSOR = Mask2FormerImageProcessor()


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def class_logits(*queries: tuple[int, float], labels: int = 3) -> Tensor:
    """(1, Q, K + 1) logits whose softmax gives each query its class with its probability, "no object" the rest."""
    rows = torch.full((len(queries), labels + 1), 1e-9)
    for row, (label, probability) in zip(rows, queries, strict=True):
        row[label] = probability
        row[labels] = 1 - probability + 1e-9
    return rows.log()[None]


def columns(*spans: tuple[int, int], width: int = 8, height: int = 8, inside: float = 0.99) -> Tensor:
    """(1, Q, h, w) mask logits: each query covers its columns with probability ``inside``."""
    masks = torch.full((1, len(spans), height, width), logit(0.01))
    for mask, (start, stop) in zip(masks[0], spans, strict=True):
        mask[:, start:stop] = logit(inside)
    return masks


def outputs(classes: Tensor, masks: Tensor) -> Any:
    return SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)


def panoptic(out: Any, semantics: Semantics, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = PROCESSOR.post_process_panoptic_segmentation(out, semantics=semantics, **options)[
        0
    ]
    return found


def instances(out: Any, semantics: Semantics, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = PROCESSOR.post_process_instance_segmentation(out, semantics=semantics, **options)[
        0
    ]
    return found


def test_1_ids_are_unique_after_a_fused_label() -> None:
    """Sky, person, sky, person with the sky fused: two persons with ids of their own, the sky once."""
    out = outputs(
        class_logits((SKY, 0.9), (PERSON, 0.9), (SKY, 0.9), (PERSON, 0.9)),
        columns((0, 2), (2, 4), (4, 6), (6, 8)),
    )
    ours = panoptic(out, "original", label_ids_to_fuse={SKY}, target_sizes=[(8, 8)])
    assert ours["segmentation"][0].tolist() == [1, 1, 2, 2, 1, 1, 3, 3]
    assert [(s["id"], s["label_id"]) for s in ours["segments_info"]] == [(1, SKY), (2, PERSON), (3, PERSON)]
    assert [s["was_fused"] for s in ours["segments_info"]] == [True, False, False]
    theirs = panoptic(out, "hf", label_ids_to_fuse={SKY}, target_sizes=[(8, 8)])
    assert [s["id"] for s in theirs["segments_info"]] == [1, 2, 1, 2]


def test_2_the_area_test_is_on_unweighted_probabilities() -> None:
    """A mask of probability 0.6 with a class of 0.7 (0.42 together) is a segment."""
    out = outputs(class_logits((CAR, 0.7)), columns((0, 8), inside=0.6))
    assert [s["label_id"] for s in panoptic(out, "original")["segments_info"]] == [CAR]
    assert bool((panoptic(out, "original")["segmentation"] == 1).all())
    assert panoptic(out, "hf")["segments_info"] == []


def test_3_pixels_outside_the_winners_mask_are_void() -> None:
    """A mask over half of the image leaves the other half void, though no other query claims it."""
    out = outputs(class_logits((CAR, 0.95)), columns((0, 4)))
    ours = panoptic(out, "original", target_sizes=[(32, 32)], overlap_mask_area_threshold=0.1)
    assert bool((ours["segmentation"][:, :16] == 1).all())
    assert bool((ours["segmentation"][:, 16:] == 0).all())
    theirs = panoptic(out, "hf", target_sizes=[(32, 32)], overlap_mask_area_threshold=0.1)
    assert bool((theirs["segmentation"] == 1).all())


def test_4_masks_keep_their_own_resolution_and_aspect() -> None:
    """Stripes of one mask pixel, 2,000 pixels wide, survive: nothing passes through a square of 384 pixels."""
    masks = torch.full((1, 1, 4, 500), logit(0.001))
    masks[..., ::2] = logit(0.999)
    out = outputs(class_logits((CAR, 0.99)), masks)
    size = [(16, 2000)]
    stripes = panoptic(out, "original", target_sizes=size, overlap_mask_area_threshold=0.1)["segmentation"][8]
    expected = ((torch.arange(2000) // 4) % 2 == 0).int()
    assert float((stripes == expected).float().mean()) > 0.99
    for found in (
        instances(out, "original", target_sizes=size)["segmentation"][8],
        PROCESSOR.post_process_instance_segmentation(
            out, target_sizes=size, semantics="original", return_binary_maps=True
        )[0]["segmentation"][0, 8],
    ):
        assert float((found == expected).float().mean()) > 0.99
    theirs = instances(out, "hf", target_sizes=size, threshold=0.1)["segmentation"][8]
    assert float(((theirs == 0).int() == expected).float().mean()) < 0.9


@pytest.mark.parametrize("kind", ["panoptic", "instance", "semantic"])
def test_5_the_padding_of_a_batch_is_cropped(kind: str) -> None:
    """An image in a padded batch gives the map that it gives alone, where its logits are the same."""
    alone = columns((0, 3), (3, 8), width=8)
    beside = torch.full((1, 2, 12, 16), logit(0.01))
    beside[:, :, :8, :8] = alone
    classes = class_logits((PERSON, 0.95), (CAR, 0.8))
    pixel_mask = torch.zeros(1, 48, 64, dtype=torch.int64)
    pixel_mask[:, :32, :32] = 1
    process = getattr(PROCESSOR, f"post_process_{kind}_segmentation")

    def run(masks: Tensor, **options: Any) -> Tensor:
        (found,) = process(outputs(classes, masks), target_sizes=[(64, 64)], **options)
        segmentation: Tensor = found if kind == "semantic" else found["segmentation"]
        return segmentation

    cropped, wanted = (
        run(beside, semantics="original", pixel_mask=pixel_mask),
        run(alone, semantics="original"),
    )
    assert (
        float((cropped == wanted).float().mean()) > 0.93
    )  # the border's last mask pixel blends with the padding
    assert float((run(beside) == run(alone)).float().mean()) < 0.7
    with pytest.raises(ValueError, match="pixel_mask"):
        run(beside, semantics="original", pixel_mask=pixel_mask[0])


def test_6_the_papers_sizes_are_a_setting_away() -> None:
    """A folder made for 384x384 takes the paper's sizes by override; padding comes after normalising, as zeros."""
    hub = Mask2FormerImageProcessor(size={"height": 384, "width": 384})
    paper = hub.with_settings(size={"shortest_edge": 800, "longest_edge": 1333}, size_divisor=0)
    assert paper.settings.target_size(480, 640) == (800, 1066)
    inputs = paper(
        np.full((480, 640, 3), 255, np.uint8), pad_size={"height": 800, "width": 1088}, return_tensors="pt"
    )
    assert not inputs.pixel_values[..., 1066:].any()
    assert bool((inputs.pixel_values[..., :1066] > 1).all())


def test_7_padding_to_a_multiple_of_32_does_not_stretch() -> None:
    """500x777 becomes 800x1243 and is padded to 800x1248, where the reference stretches it to that width."""
    stretched = ImageSettings().target_size(500, 777)
    exact = ImageSettings(size_divisor=0).target_size(500, 777)
    assert (stretched, exact) == ((800, 1248), (800, 1243))
    assert exact[1] / exact[0] == pytest.approx(777 / 500, rel=1e-3)


def test_8_the_papers_thresholds_are_the_pipelines() -> None:
    """The pipeline's rules are the paper's (0.8, 0.8, 0.5, stuff fused); the drop-in surface keeps 0.5 and no fusing."""
    rules = FusionRules()
    assert (rules.score_threshold, rules.overlap_threshold, rules.mask_threshold) == (0.8, 0.8, 0.5)
    out = outputs(class_logits((SKY, 0.7), (SKY, 0.9), (SKY, 0.9)), columns((0, 2), (2, 5), (5, 8)))
    ours = panoptic(out, "original", threshold=0.8, label_ids_to_fuse={SKY}, target_sizes=[(8, 8)])
    assert ours["segmentation"][0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    assert len(panoptic(out, "hf", target_sizes=[(8, 8)])["segments_info"]) == 3


def test_9_instances_are_sorted_filtered_and_painted_best_on_top() -> None:
    """Ids follow falling scores from 1, stuff can be left out, the better mask covers the other; 0 is background."""
    out = outputs(
        class_logits((CAR, 0.6), (PERSON, 0.95), (SKY, 0.9)), columns((0, 6), (4, 8), (0, 8), width=8)
    )
    ours = instances(out, "original", target_sizes=[(8, 8)], thing_label_ids={PERSON, CAR})
    assert [(s["id"], s["label_id"]) for s in ours["segments_info"]] == [(1, PERSON), (2, CAR)]
    assert ours["segmentation"][0].tolist() == [2, 2, 2, 2, 1, 1, 1, 1]
    assert ours["segmentation"].dtype == torch.int32
    assert ours["segments_info"][0]["score"] == pytest.approx(0.95 * 0.99, abs=0.01)
    theirs = instances(out, "hf", target_sizes=[(8, 8)])
    assert [s["id"] for s in theirs["segments_info"]] == [0, 1, 2]
    assert SKY in [s["label_id"] for s in theirs["segments_info"]]


def test_9_the_mask_threshold_counts() -> None:
    """A pixel of probability 0.6 is inside a mask at the threshold 0.5 and outside at 0.7; the reference ignores it."""
    out = outputs(class_logits((CAR, 0.99)), columns((0, 8), inside=0.6))
    assert len(instances(out, "original", mask_threshold=0.5)["segments_info"]) == 1
    assert instances(out, "original", mask_threshold=0.7)["segments_info"] == []
    assert len(instances(out, "hf", mask_threshold=0.7)["segments_info"]) == 1
    with pytest.raises(ValueError, match="no overlap threshold"):
        instances(out, "original", overlap_mask_area_threshold=0.5)


def test_10_run_lengths_are_cocos_one_for_each_segment() -> None:
    """One encoding per row of the table, counted down the columns, which pycocotools decodes to the mask."""
    coco = pytest.importorskip("pycocotools.mask")
    out = outputs(class_logits((CAR, 0.9), (PERSON, 0.8)), columns((1, 3), (0, 8), width=8, height=4))
    size = [(4, 8)]
    runs = instances(out, "original", target_sizes=size, return_coco_annotation=True)
    maps = instances(out, "original", target_sizes=size, return_binary_maps=True)
    assert len(runs["segmentation"]) == len(runs["segments_info"]) == 2
    assert runs["segmentation"] == [[4, 8, 20], [0, 32]]
    for counts, mask in zip(runs["segmentation"], maps["segmentation"], strict=True):
        encoded = coco.frPyObjects({"size": [4, 8], "counts": counts}, 4, 8)
        assert np.array_equal(coco.decode(encoded), mask.numpy())
    theirs = instances(out, "hf", target_sizes=size, return_coco_annotation=True)
    lonely = outputs(class_logits((CAR, 0.9)), columns((1, 3), width=8, height=4))
    alone = instances(lonely, "hf", target_sizes=size, return_coco_annotation=True)
    assert len(alone["segmentation"]) == 2 != len(alone["segments_info"])
    assert theirs["segmentation"] != runs["segmentation"]


def test_11_an_empty_result_has_the_type_and_shape_of_any_other() -> None:
    """Nothing found: int32 zeros of the target's size, no binary maps, no encodings."""
    out = outputs(class_logits((CAR, 0.3)), columns((0, 8)))
    size = [(5, 7)]
    for found in (
        panoptic(out, "original", target_sizes=size),
        instances(out, "original", target_sizes=size),
    ):
        assert found["segments_info"] == []
        assert found["segmentation"].dtype == torch.int32
        assert torch.equal(found["segmentation"], torch.zeros(5, 7, dtype=torch.int32))
    maps = instances(out, "original", target_sizes=size, return_binary_maps=True)
    assert maps["segmentation"].shape == (0, 5, 7)
    assert instances(out, "original", return_coco_annotation=True)["segmentation"] == []
    theirs = panoptic(out, "hf", target_sizes=size)["segmentation"]
    assert (theirs.dtype, float(theirs.max())) == (torch.float32, -1.0)


def test_semantic_masks_are_resized_before_the_sum() -> None:
    """Classes come from masks at full size, and so do the scores; the reference sums on its grid first."""
    out = outputs(class_logits((SKY, 0.9), (CAR, 0.9)), columns((0, 3), (3, 8)))
    (found,) = PROCESSOR.post_process_semantic_segmentation(
        out, [(64, 64)], return_segmentation_scores=True, semantics="original"
    )
    assert not isinstance(found, Tensor)
    resized = columns((0, 3), (3, 8))
    for size in ((32, 32), (64, 64)):  # the network's input, then the target
        resized = torch.nn.functional.interpolate(resized, size=size, mode="bilinear")
    weights = class_logits((SKY, 0.9), (CAR, 0.9)).softmax(-1)[0, :, :-1]
    expected = torch.einsum("qk,qhw->khw", weights, resized[0].sigmoid())
    torch.testing.assert_close(found.segmentation_scores, expected, rtol=0, atol=1e-5)
    (plain,) = PROCESSOR.post_process_semantic_segmentation(out, [(64, 64)], semantics="original")
    assert isinstance(plain, Tensor)
    assert torch.equal(plain, found.segmentation)
    assert torch.unique(plain[0]).tolist() == [SKY, CAR]


def test_without_sizes_the_map_is_that_of_the_input() -> None:
    """The network's own output goes in; without target sizes the maps have the size of the image inside the padding."""
    config = Mask2FormerConfig(
        backbone_config={"model_type": "resnet", "depths": [1, 1, 1, 1], "layer_type": "basic"},
        encoder_layers=1,
        decoder_layers=2,
        num_queries=5,
        num_labels=3,
    )
    network = Mask2FormerForUniversalSegmentation(config).eval()
    processor = PROCESSOR.with_settings(do_resize=False)
    inputs = processor(
        [np.zeros((60, 90, 3), np.uint8), np.zeros((64, 32, 3), np.uint8)], return_tensors="pt"
    )
    with torch.inference_mode():
        out = network(**inputs)
    for found in (
        processor.post_process_semantic_segmentation(
            out, semantics="original", pixel_mask=inputs["pixel_mask"]
        ),
        [
            item["segmentation"]
            for item in processor.post_process_panoptic_segmentation(
                out, threshold=0.0, semantics="original", pixel_mask=inputs["pixel_mask"]
            )
        ],
    ):
        assert [tuple(item.shape) for item in found] == [(60, 90), (64, 32)]
