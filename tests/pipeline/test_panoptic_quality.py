"""Panoptic quality: published cases to their last digit, and other implementations on random inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hotcoco.panoptic import PanopticEval
from hypothesis import given
from hypothesis import strategies as st
from tests.pipeline.metric_cases import (
    Count,
    Segmentation,
    coco_sample,
    counted_in_blocks,
    counted_whole,
    deeplab_image,
    jittered,
    quality,
    random_segmentation,
    write_coco,
)
from torchmetrics.detection import ModifiedPanopticQuality
from torchmetrics.detection import PanopticQuality as Reference

from panoptile.pipeline.overlaps import ScoredClass
from panoptile.pipeline.panoptic_quality import GroupQuality

both_ways = pytest.mark.parametrize("count", [counted_whole, counted_in_blocks])
DIGITS = 1e-10
"""Figures of the cases are published with ten digits, in per cent."""


def _percent(group: GroupQuality) -> float:
    return 100 * group.pq


def _without_crowds(image: Segmentation) -> Segmentation:
    labels = np.where(np.isin(image.labels, list(image.crowds)), 0, image.labels)
    return Segmentation(labels, {k: v for k, v in image.classes.items() if k not in image.crowds})


def _present(image: Segmentation, labels: np.ndarray) -> Segmentation:
    return Segmentation(labels, {int(v): image.classes[int(v)] for v in np.unique(labels) if v})


def _shifted(image: Segmentation) -> Segmentation:
    labels = np.zeros_like(image.labels)
    labels[4:, 4:] = image.labels[:-4, :-4]
    return _present(image, labels)


def _cut(image: Segmentation, things: set[int]) -> Segmentation:
    """Each thing cut along a 256-px grid, stuff whole."""
    rows, cols = np.indices(image.labels.shape)
    cell = (rows // 256) * 16 + cols // 256
    thing = np.isin(image.labels, [k for k, v in image.classes.items() if v in things])
    labels = np.where(thing, image.labels * 1000 + cell + 1, image.labels)
    classes = {
        int(v): image.classes[int(v) // 1000 if int(v) not in image.classes else int(v)]
        for v in np.unique(labels)
        if v
    }
    return Segmentation(labels, classes)


def _large_only(image: Segmentation) -> Segmentation:
    ids, areas = np.unique(image.labels, return_counts=True)
    return _present(image, np.where(np.isin(image.labels, ids[areas < 1000]), 0, image.labels))


def _semantic(image: Segmentation) -> Segmentation:
    """Segments of a class fused into one segment."""
    labels = np.zeros_like(image.labels)
    for label, class_id in image.classes.items():
        labels[image.labels == label] = class_id
    return Segmentation(labels, {int(v): int(v) for v in np.unique(labels) if v})


@both_ways
def test_coco_sample_identity(data_dir: Path, count: Count) -> None:
    """A1, A2: the truth against itself is 100, whether its crowds are predicted or voided."""
    images, classes = coco_sample(data_dir)
    for found in (images, [_without_crowds(i) for i in images]):
        scores = quality(zip(images, found, strict=True), classes, count)
        assert [_percent(g) for g in (scores.all, scores.things, scores.stuff)] == [100.0, 100.0, 100.0]
        assert (scores.all.matched, scores.all.invented, scores.all.missed) == (47, 0, 0)
        assert (scores.all.classes, scores.things.classes, scores.stuff.classes) == (8, 4, 4)


CASES = {
    "A3": (61.1721877411, 42.2304953533, 80.1138801288, (37, 10, 10)),
    "A5": (85.1113890240, 70.2227780479, 100.0, (46, 38, 1)),
    "A7": (83.9772727273, 67.9545454545, 100.0, (36, 0, 11)),
    "A8": (68.9594208718, 37.9188417436, 100.0, (9, 3, 38)),
}


@both_ways
@pytest.mark.parametrize("case", CASES)
def test_coco_sample_cases(data_dir: Path, count: Count, case: str) -> None:
    """A3 shifted by 4 px, A5 cut at a grid, A7 without small segments, A8 semantic only: ten published digits."""
    images, classes = coco_sample(data_dir)
    things = {c.class_id for c in classes if c.is_thing}
    images_found = []
    for image in map(_without_crowds, images):
        if case == "A3":
            images_found.append(_shifted(image))
        elif case == "A5":
            images_found.append(_cut(image, things))
        elif case == "A7":
            images_found.append(_large_only(image))
        else:
            images_found.append(_semantic(image))
    scores = quality(zip(images, images_found, strict=True), classes, count)
    *expected, counts = CASES[case]
    found = [_percent(g) for g in (scores.all, scores.things, scores.stuff)]
    assert found == pytest.approx(expected, abs=DIGITS)
    assert (scores.all.matched, scores.all.invented, scores.all.missed) == counts
    if case == "A3":
        assert 100 * scores.all.sq == pytest.approx(65.4446851641, abs=DIGITS)
        assert 100 * scores.all.rq == pytest.approx(81.2062937063, abs=DIGITS)


@both_ways
def test_rectangles_of_known_overlap(count: Count) -> None:
    """B: three things and a wall of 80 x 60 px whose IoU are 351/449, 45/55 and 3576/4324."""
    classes = [ScoredClass(i + 1, n, i < 3) for i, n in enumerate(("person", "cat", "dog", "wall"))]

    def painted(rectangles: list[tuple[int, int, int, int]]) -> np.ndarray:
        labels = np.full((60, 80), 4, np.int64)
        for number, (left, top, width, height) in enumerate(rectangles, start=1):
            labels[top : top + height, left : left + width] = number
        return labels

    meaning = {1: 1, 2: 1, 3: 3, 4: 4}
    truth = Segmentation(painted([(10, 10, 10, 40), (30, 10, 10, 40), (50, 10, 10, 5)]), meaning)
    found = Segmentation(painted([(11, 11, 10, 40), (38, 10, 10, 40), (51, 10, 10, 5)]), meaning)
    scores = quality([(truth, found)], classes, count)
    figures = [100 * v for g in (scores.all, scores.things, scores.stuff) for v in (g.pq, g.sq, g.rq)]
    expected = [67.86874803219071, 80.89770126158936, 83.33333333333333, 60.45252075318891, 79.9959505972869, 75.0,
                82.70120259019427, 82.70120259019427, 100.0]  # fmt: skip
    assert figures == pytest.approx(expected, abs=1e-12)


TEAM = {0: 0, 47: 1, 97: 1, 133: 1, 150: 1, 174: 1, 198: 2, 215: 1, 244: 1, 255: 1}


@both_ways
def test_deeplab_images(data_dir: Path, count: Count) -> None:
    """C: one image of two classes, and three images of six, to the ten digits known."""
    classes = [ScoredClass(i, f"class {i}", i in (1, 2, 4, 6)) for i in range(1, 7)]
    team = deeplab_image(data_dir, "team", TEAM)
    alone = quality([team], classes, count).all
    assert (alone.pq, alone.sq, alone.rq) == pytest.approx(
        (0.6215628666, 0.6466498693, 0.9666666667), abs=DIGITS
    )
    assert (alone.matched / 2, alone.missed / 2, alone.invented / 2) == (4, 0.5, 0)
    bird = deeplab_image(data_dir, "bird", {92: 5, 176: 3, 255: 4})
    cat = deeplab_image(data_dir, "cat", {0: 0, 255: 6})
    three = quality([bird, cat, team], classes, count).all
    assert (three.pq, three.sq, three.rq) == pytest.approx(
        (0.7685550312, 0.7769173654, 0.9888888889), abs=DIGITS
    )


def _from_colors(maps: list[list[list[int]]]) -> Segmentation:
    """A map of (class, instance) pixels; classes get ids from 1 on, stuff has one segment a class."""
    pixels = np.array(maps, np.int64)
    labels = 100 * (pixels[..., 0] + 1) + np.where(pixels[..., 0] < 6, pixels[..., 1], 0)
    return Segmentation(labels, {int(v): int(v) // 100 for v in np.unique(labels)})


def test_the_documented_example_of_torchmetrics() -> None:
    """D: two things and two stuff classes, one of them never found; and the modified figure."""
    found = _from_colors(
        [
            [[6, 0], [0, 0], [6, 0], [6, 0]],
            [[0, 0], [0, 0], [6, 0], [0, 1]],
            [[0, 0], [0, 0], [6, 0], [0, 1]],
            [[0, 0], [7, 0], [6, 0], [1, 0]],
            [[0, 0], [7, 0], [7, 0], [7, 0]],
        ]
    )
    truth = _from_colors(
        [
            [[6, 0], [0, 1], [6, 0], [0, 1]],
            [[0, 1], [0, 1], [6, 0], [0, 1]],
            [[0, 1], [0, 1], [6, 0], [1, 0]],
            [[0, 1], [7, 0], [1, 0], [1, 0]],
            [[0, 1], [7, 0], [7, 0], [7, 0]],
        ]
    )
    classes = [ScoredClass(v + 1, f"class {v}", v < 6) for v in (0, 1, 6, 7)]
    scores = quality([(truth, found)], classes)
    assert scores.all.pq == pytest.approx(
        0.5462963073341935, abs=1e-7
    )  # the reference adds in single precision
    rows = [(q.pq, q.sq, q.rq) for _, q in scores.per_class]
    expected = [(0.5185185, 0.7777778, 0.6666667), (0, 0, 0), (0.6666667, 0.6666667, 1), (1, 1, 1)]
    assert np.allclose(rows, expected, atol=1e-7)


def test_modified_quality_scores_stuff_without_a_threshold() -> None:
    """D: Porzi et al.'s figure for stuff that overlaps by less than half."""
    found = np.array([[[0, 0], [0, 1], [6, 0], [7, 0], [0, 2], [1, 0]]])
    truth = np.array([[[0, 1], [0, 0], [6, 0], [7, 0], [6, 0], [255, 0]]])
    reference = ModifiedPanopticQuality(things={0, 1}, stuffs={6, 7})
    expected = float(reference(torch.tensor(found), torch.tensor(truth)))
    assert expected == pytest.approx(0.7666666706, abs=1e-9)

    def segmentation(pixels: np.ndarray) -> Segmentation:
        labels = np.where(pixels[..., 0] == 255, 0, 100 * (pixels[..., 0] + 1) + pixels[..., 1])
        return Segmentation(labels, {int(v): int(v) // 100 for v in np.unique(labels) if v})

    classes = [ScoredClass(v + 1, f"class {v}", v < 6) for v in (0, 1, 6, 7)]
    scores = quality([(segmentation(truth), segmentation(found))], classes, modified=True)
    assert scores.all.pq == pytest.approx(expected, abs=1e-7)


def _fused(image: Segmentation, class_id: int, *, with_void: bool = False) -> Segmentation:
    """All segments of a class as one."""
    members = [k for k, v in image.classes.items() if v == class_id] + [0] * with_void
    return Segmentation(
        np.where(np.isin(image.labels, members), 10**7, image.labels), {**image.classes, 10**7: class_id}
    )


def _coded(image: Segmentation) -> torch.Tensor:
    """(1, H, W, 2) class and instance of each pixel, as torchmetrics reads them."""
    classes = np.zeros_like(image.labels)
    for label, class_id in image.classes.items():
        classes[image.labels == label] = class_id
    return torch.tensor(np.stack([classes, image.labels], axis=-1)[None])


@pytest.mark.parametrize("seed", range(6))
def test_random_maps_equal_torchmetrics(seed: int) -> None:
    """Random images with void, swapped classes and lost segments give torchmetrics' figures for every class."""
    rng = np.random.default_rng(seed)
    pairs = []
    reference = Reference(
        things={1, 2},
        stuffs={3},
        allow_unknown_preds_category=True,
        return_per_class=True,
        return_sq_and_rq=True,
    )
    for _ in range(2):
        truth = _fused(random_segmentation(rng, (24, 31), 3, 9), 3)
        found = jittered(rng, truth)
        fused = _fused(found, 3, with_void=True)  # it takes what is void in a prediction out of unions
        pairs.append((truth, fused))
        reference.update(_coded(fused), _coded(truth))
    expected = reference.compute()
    classes = [ScoredClass(1, "a", True), ScoredClass(2, "b", True), ScoredClass(3, "c", False)]
    rows = [(q.pq, q.sq, q.rq) for _, q in quality(pairs, classes).per_class]
    assert np.allclose(rows, expected.numpy(), atol=1e-5)  # the reference adds in single precision


@pytest.mark.parametrize("seed", range(12))
def test_random_maps_equal_hotcoco(seed: int, tmp_path: Path) -> None:
    """Random images with void, crowds, swapped classes and lost segments give the COCO evaluator's figures."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(3):
        truth = random_segmentation(rng, (40, 50), 3, 14)
        # the COCO evaluator looks at one crowd of each class only
        crowds = {c: label for label, c in truth.classes.items() if label % 4 == 0}
        truth = Segmentation(truth.labels, truth.classes, frozenset(crowds.values()))
        pairs.append((truth, jittered(rng, truth)))
    classes = [ScoredClass(i, f"class {i}", i < 3) for i in (1, 2, 3)]
    paths = [
        write_coco(tmp_path / name, images, classes)
        for name, images in zip("tf", zip(*pairs, strict=True), strict=True)
    ]
    evaluation = PanopticEval(*map(str, paths))
    evaluation.run()
    expected = evaluation.results()
    scores = quality(pairs, classes)
    for group, name in ((scores.all, "All"), (scores.things, "Things"), (scores.stuff, "Stuff")):
        assert (group.pq, group.sq, group.rq) == pytest.approx(
            [expected[name][k] for k in ("pq", "sq", "rq")], abs=1e-12
        )


@given(st.integers(0, 2**32 - 1))
def test_blocks_and_whole_agree_to_the_last_digit(seed: int) -> None:
    """Counting block by block, in any order, gives bitwise the figures of the whole image."""
    rng = np.random.default_rng(seed)
    truth = random_segmentation(rng, (120, 150), 3, 30)
    found = jittered(rng, truth)
    classes = [ScoredClass(i, f"class {i}", i < 3) for i in (1, 2, 3)]
    assert quality([(truth, found)], classes) == quality([(truth, found)], classes, counted_in_blocks)


def test_half_an_overlap_is_no_match() -> None:
    """IoU of exactly 1/2 leaves the object missed and the prediction invented."""
    truth = Segmentation(np.array([[1, 1, 0, 0]]) + 4, {5: 1, 4: 2})
    found = Segmentation(np.array([[1, 0, 0, 0]]) + 4, {5: 1, 4: 2})
    scores = quality([(truth, found)], [ScoredClass(1, "a", True), ScoredClass(2, "b", False)])
    assert [q.matched for _, q in scores.per_class] == [0, 1]
    assert scores.things.pq == 0.0


def test_predictions_on_void_and_crowds_are_no_errors() -> None:
    """More than half on void or on a crowd of the class: ignored; half: an error. Void leaves the union."""
    classes = [ScoredClass(1, "a", True), ScoredClass(2, "b", True)]
    truth = Segmentation(np.array([[0, 0, 0, 7, 9, 9, 9, 8, 8, 8]]), {7: 1, 9: 1, 8: 2}, frozenset({9}))
    mostly_void = Segmentation(np.array([[3, 3, 3, 3, 4, 4, 4, 5, 5, 5]]), {3: 2, 4: 1, 5: 2})
    scores = quality([(truth, mostly_void)], classes)
    assert [(q.matched, q.invented, q.missed) for _, q in scores.per_class] == [(0, 0, 1), (1, 0, 0)]
    on_other_crowd = Segmentation(np.array([[0, 0, 0, 7, 4, 4, 4, 5, 5, 5]]), {7: 1, 4: 2, 5: 2})
    assert quality([(truth, on_other_crowd)], classes).per_class[1][1].invented == 1
    over_void = Segmentation(np.array([[0, 0, 3, 3, 0, 0, 0, 8, 8, 8]]), {3: 1, 8: 2})
    assert quality([(truth, over_void)], classes).per_class[0][1].sq == 1.0


def test_a_label_without_a_description_is_named() -> None:
    """A label map and its table that disagree are refused, not guessed."""
    truth = Segmentation(np.array([[1, 2]]), {1: 1})
    with pytest.raises(ValueError, match="holds segment 2, which its table does not describe"):
        quality([(truth, truth)], [ScoredClass(1, "a", True)])
