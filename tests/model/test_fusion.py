"""Panoptic, instance and semantic fusion: hand-made cases and a plain implementation beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from panoptile.model import fusion
from panoptile.model.fusion import Canvas, FusionRules, Task, fuse_logits
from panoptile.model.panoptic_map import PanopticMap

SKY, PERSON, CAR = 0, 1, 2
RULES = FusionRules(
    thing_label_ids=frozenset({PERSON, CAR}), label_ids_to_fuse=frozenset({SKY}), score_threshold=0.5
)


def classes(*queries: tuple[int, float]) -> Tensor:
    """(1, Q, 4) class logits: each query has the given class with the given probability, the rest is no-object."""
    logits = torch.full((1, len(queries), 4), -30.0)
    for i, (label, probability) in enumerate(queries):
        logits[0, i, label] = np.log(probability)
        logits[0, i, 3] = np.log(1 - probability + 1e-12)
    return logits


def masks(*probabilities: list[list[float]]) -> Tensor:
    """(1, Q, H, W) mask logits of these probabilities."""
    p = torch.tensor(probabilities).clamp(1e-6, 1 - 1e-6)
    return (p / (1 - p)).log()[None]


def fuse(class_logits: Tensor, mask_logits: Tensor, rules: FusionRules = RULES) -> PanopticMap:
    """The map of one image whose masks have the tile's size already."""
    height, width = mask_logits.shape[-2:]
    return fuse_logits(class_logits, mask_logits, Canvas(height, width, height, width), rules)[0]


def test_pixels_that_no_mask_covers_are_void() -> None:
    """The winner's own probability must reach 0.5; elsewhere the map is 0 though someone wins."""
    result = fuse(classes((CAR, 0.9)), masks([[0.9, 0.9, 0.9, 0.4]]))
    assert result.labels.tolist() == [[1, 1, 1, 0]]
    assert result.label_ids.tolist() == [CAR]
    assert result.scores == pytest.approx([0.9], abs=1e-5)


def test_own_area_does_not_depend_on_the_class_score() -> None:
    """A mask of probability 0.6 with class score 0.7 covers its pixels, though 0.6 x 0.7 is below 0.5."""
    assert fuse(classes((CAR, 0.7)), masks([[0.6, 0.6]])).labels.tolist() == [[1, 1]]


def test_fused_stuff_keeps_ids_unique() -> None:
    """Sky, person, sky, person: sky is one segment, the two persons stay two, ids are 1…3 without reuse."""
    stripes = [[[0.9 if i == k else 0.05 for i in range(4)]] for k in range(4)]
    result = fuse(classes((SKY, 0.9), (PERSON, 0.8), (SKY, 0.7), (PERSON, 0.95)), masks(*stripes))
    assert result.labels.tolist() == [[1, 2, 1, 3]]
    assert result.label_ids.tolist() == [SKY, PERSON, PERSON]
    assert result.scores == pytest.approx([0.8, 0.8, 0.95], abs=1e-5)
    assert result.queries_used == 4


def test_a_mostly_hidden_mask_is_dropped_and_leaves_void() -> None:
    """A query that keeps less than 0.8 of its own mask gives no segment; its pixels are void."""
    front, behind = [[0.95, 0.95, 0.95, 0.05]], [[0.9, 0.9, 0.9, 0.9]]
    result = fuse(classes((CAR, 0.9), (PERSON, 0.6)), masks(front, behind))
    assert result.labels.tolist() == [[1, 1, 1, 0]]
    assert result.queries_used == 2
    kept = fuse(classes((CAR, 0.9), (PERSON, 0.6)), masks([[0.95, 0.05, 0.05, 0.05, 0.05]], [[0.9] * 5]))
    assert kept.labels.tolist() == [[1, 2, 2, 2, 2]], "4 of 5 pixels are exactly 0.8 and stay"


def test_of_equal_queries_the_first_wins() -> None:
    """A tie goes to the lower index, whatever the chunks are."""
    result = fuse(classes((CAR, 0.9), (PERSON, 0.9)), masks([[0.9, 0.9]], [[0.9, 0.9]]))
    assert result.label_ids.tolist() == [CAR]


def test_no_object_and_weak_queries_are_ignored() -> None:
    """Below the score threshold, or of the class no-object, nothing is claimed: all void, int32, no segment."""
    result = fuse(classes((CAR, 0.4), (PERSON, 0.3)), masks([[0.9, 0.9]], [[0.9, 0.9]]))
    assert result.labels.dtype == np.int32
    assert not result.labels.any()
    assert result.label_ids.shape == (0,)
    assert result.queries_used == 0


def test_padding_is_cropped_before_it_counts() -> None:
    """A mask that lies in the padding has no area, and the masks keep the padded image's scale."""
    logits = torch.full((1, 2, 2, 2), -8.0)
    logits[0, 0, :, 0] = 8.0  # left half of the padded image
    logits[0, 1, :, 1] = 8.0  # right half: all but 1 column is padding
    result = fuse_logits(classes((CAR, 0.9), (PERSON, 0.9)), logits, Canvas(8, 4, 8, 8), RULES)[0]
    assert result.labels.shape == (8, 4)
    assert result.label_ids.tolist() == [CAR]
    assert (result.labels == 1).all()


def test_instances_are_things_only_and_the_best_is_on_top() -> None:
    """Stuff gives no instance; of two overlapping masks the one with the higher score takes the shared pixels."""
    rules = FusionRules("instance", RULES.thing_label_ids, RULES.label_ids_to_fuse, score_threshold=0.5)
    a, b = [[0.9] * 6 + [0.1] * 4], [[0.1] * 5 + [0.9] * 5]
    result = fuse(classes((CAR, 0.7), (PERSON, 0.95), (SKY, 0.99)), masks(a, b, [[0.9] * 10]), rules)
    assert result.labels.tolist() == [[1] * 5 + [2] * 5]
    assert result.label_ids.tolist() == [CAR, PERSON]
    assert result.scores == pytest.approx([0.63, 0.855], abs=1e-3)


def test_instance_duplicates_are_dropped() -> None:
    """A second mask over the same object keeps too little of itself; uncovered pixels stay void."""
    rules = FusionRules("instance", RULES.thing_label_ids, frozenset(), score_threshold=0.5)
    result = fuse(classes((CAR, 0.8), (CAR, 0.9)), masks([[0.9, 0.9, 0.1]], [[0.9, 0.9, 0.1]]), rules)
    assert result.labels.tolist() == [[1, 1, 0]]
    assert result.scores == pytest.approx([0.81], abs=1e-3)


def test_semantic_has_no_void_and_one_segment_per_class() -> None:
    """Each pixel takes the class with the highest sum over the queries; two queries of a class add up."""
    rules = FusionRules("semantic", score_threshold=0.0)
    result = fuse(
        classes((SKY, 0.9), (CAR, 0.5), (CAR, 0.5)),
        masks([[0.9, 0.6, 0.1]], [[0.1, 0.8, 0.1]], [[0.1, 0.8, 0.2]]),
        rules,
    )
    assert result.label_ids.tolist() == [SKY, CAR]
    assert result.labels.tolist() == [[1, 2, 2]]
    assert ((result.scores > 0.5) & (result.scores < 1)).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), task=st.sampled_from(["panoptic", "instance", "semantic"]))
def test_fusion_equals_the_plain_method(seed: int, task: Task) -> None:
    """Running arg-max in chunks gives what whole (Q, H, W) arrays give, on random logits with padding."""
    g = torch.Generator().manual_seed(seed)
    class_logits = torch.randn(1, 12, 4, generator=g) * 3
    coarse = torch.randn(1, 12, 3, 3, generator=g) * 8
    mask_logits = F.interpolate(coarse, size=(8, 12), mode="bilinear")
    rules = FusionRules(
        task, RULES.thing_label_ids, RULES.label_ids_to_fuse, 0.4 if task != "semantic" else 0.0
    )
    got = fuse_logits(class_logits, mask_logits, Canvas(29, 45, 32, 48), rules)[0]
    expected = _plain(class_logits[0], mask_logits[0], Canvas(29, 45, 32, 48), rules)
    if task == "semantic":
        # Rows are resized in bands, which rounds differently where two classes are equal.
        assert (got.labels != expected).mean() < 0.002
    else:
        assert np.array_equal(got.labels, expected)
    assert got.labels.max(initial=0) <= len(got.label_ids)


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_chunks_do_not_change_the_result(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks resized one at a time, or rows one by one, give the same map as all at once."""
    g = torch.Generator().manual_seed(3)
    class_logits, mask_logits = (
        torch.randn(2, 9, 4, generator=g) * 3,
        torch.randn(2, 9, 8, 8, generator=g) * 4,
    )
    rules = FusionRules(
        task, RULES.thing_label_ids, RULES.label_ids_to_fuse, 0.3 if task != "semantic" else 0.0
    )
    whole = fuse_logits(class_logits, mask_logits, Canvas(31, 30, 32, 32), rules)
    monkeypatch.setattr(fusion, "_CHUNK_ELEMENTS", 1)
    for a, b in zip(
        whole, fuse_logits(class_logits, mask_logits, Canvas(31, 30, 32, 32), rules), strict=True
    ):
        assert np.array_equal(a.labels, b.labels)
        assert np.allclose(a.scores, b.scores)


def test_bands_of_rows_are_resized_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A band of rows equals the same rows of F.interpolate."""
    logits = torch.randn(3, 7, 9, generator=torch.Generator().manual_seed(0))
    whole = F.interpolate(logits[None], size=(28, 36), mode="bilinear", align_corners=False)[0]
    for top, bottom in ((0, 28), (0, 1), (5, 17), (27, 28)):
        band = fusion.resize_rows(logits, top, bottom, Canvas(28, 33, 28, 36))
        assert torch.allclose(band, whole[:, top:bottom, :33], atol=1e-5)


def test_thresholds_outside_0_to_1_are_refused() -> None:
    """A threshold of 80 (a percentage, say) is an error."""
    with pytest.raises(ValueError, match="score_threshold must be between 0 and 1, got 80"):
        FusionRules(score_threshold=80)


def _plain(
    class_logits: Tensor, mask_logits: Tensor, canvas: Canvas, rules: FusionRules
) -> NDArray[np.int32]:
    """The label map, by the textbook: everything at full size, one query after the other."""
    size = (canvas.padded_height, canvas.padded_width)
    full = F.interpolate(mask_logits[None], size=size, mode="bilinear", align_corners=False)[0]
    p = full[:, : canvas.height, : canvas.width].sigmoid()
    probabilities = class_logits.softmax(-1)
    if rules.task == "semantic":
        label = torch.einsum("qk,qhw->khw", probabilities[:, :-1], p).argmax(0)
        present = sorted(set(label.flatten().tolist()))
        return (np.searchsorted(present, label.numpy()) + 1).astype(np.int32)
    scores, labels = probabilities.max(-1)
    if rules.task == "instance":
        things = sorted(rules.thing_label_ids)
        scores, best = probabilities[:, things].max(-1)
        labels = torch.tensor(things)[best]
        inside = p >= 0.5
        scores = scores * (p * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)
        weight = torch.where(inside, scores[:, None, None], -1.0)
    else:
        weight = p * scores[:, None, None]
    keep = (scores > rules.score_threshold) & (labels != 3)
    result = np.zeros((canvas.height, canvas.width), dtype=np.int32)
    if not keep.any():
        return result
    p, weight, labels = p[keep], weight[keep], labels[keep]
    winner = weight.argmax(0)
    winner[weight.max(0).values < 0] = -1
    number = 0
    memory: dict[int, int] = {}
    for k, label in enumerate(labels.tolist()):
        own, won = p[k] >= 0.5, winner == k
        visible = own & won
        if not visible.any() or won.sum() / own.sum() < rules.overlap_threshold:
            continue
        if label in memory:
            result[visible.numpy()] = memory[label]
            continue
        number += 1
        if label in rules.label_ids_to_fuse:
            memory[label] = number
        result[visible.numpy()] = number
    return result
