"""Training windows and the labels behind them, on scenes of a few thousand pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from panoptile.pipeline.training_windows import (
    BUILDING,
    CROWN,
    GROUND,
    IGNORED,
    VEGETATION,
    LabelledScene,
    WindowSampler,
    crowns_from_boxes,
    read_boxes,
    stuff_labels,
    window_of_scene,
)


def some_scene() -> LabelledScene:
    """Ground with a 20 px building, a crown whose colour names its place, and an unknown strip."""
    labels = np.full((96, 128), GROUND, np.uint8)
    ids = np.zeros((96, 128), np.int32)
    labels[10:30, 20:40], ids[10:30, 20:40] = BUILDING, 1
    labels[50:70, 80:110], ids[50:70, 80:110] = CROWN, 2
    labels[:, 120:] = IGNORED
    image = np.full((3, 96, 128), 100, np.uint8)
    image[0, ids == 1] = 250
    image[1, ids == 2] = 250
    return LabelledScene("world", image, labels, ids, 0.1)


def sampler(**options: object) -> WindowSampler:
    return WindowSampler((some_scene(),), (1.0,), **options)  # type: ignore[arg-type]


def test_a_window_is_a_function_of_seed_and_number() -> None:
    """The same number gives the same pixels and targets in a new process' sampler; another number or seed does not."""
    first, again = sampler().window(7, size=48), sampler().window(7, size=48)
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.masks, again.masks)
    assert not torch.equal(first.image, sampler().window(8, size=48).image)
    assert not torch.equal(first.image, sampler(seed=1).window(7, size=48).image)


def test_targets_stay_on_their_objects() -> None:
    """Through scale, turns and flips a building's mask lies on the red pixels and a crown's on the green ones."""
    seen = set()
    for i in range(30):
        window = sampler(scale_range=(0.6, 1.0)).window(i, size=48)
        for mask, label in zip(window.masks, window.class_labels.tolist(), strict=True):
            if label in (BUILDING, CROWN):
                red, green = (float(window.image[band][mask].float().mean()) for band in (0, 1))
                assert (red > green) == (label == BUILDING)
                seen.add(label)
    assert seen == {BUILDING, CROWN}


def test_every_pixel_is_claimed_once_or_ignored() -> None:
    """Masks and ignored pixels of a window partition it; objects too small to ask for become ignored."""
    for minimum in (1, 250):
        window = window_of_scene(some_scene().crop(0, 32, 96, 96), size=48, min_object_px=minimum)
        claims = window.masks.sum(dim=0) + window.ignored
        assert bool((claims == 1).all())
    assert CROWN not in window.class_labels.tolist()


def test_a_part_set_aside_is_ignored_and_black() -> None:
    """Nothing of a window that is set aside for validation is left: no label, no object, no colour."""
    scene = some_scene().without(0, 0, 40, 60)
    assert (scene.labels[:40, :60] == IGNORED).all()
    assert set(np.unique(scene.ids)) == {0, 2}
    assert scene.image[:, :40, :60].max() == 0
    assert some_scene().image[0].max() == 250


def test_colours_make_stuff() -> None:
    """Green is vegetation, grey is ground, what lies between and what is dark is ignored."""
    image = np.full((3, 40, 160), 120, np.uint8)
    image[:, :, 40:80] = np.array([80, 140, 70], np.uint8)[:, None, None]
    image[:, :, 80:120] = np.array([112, 120, 108], np.uint8)[:, None, None]
    image[:, :, 120:] = np.array([10, 30, 10], np.uint8)[:, None, None]
    labels = stuff_labels(image, gsd_m=0.3)
    assert [int(labels[20, col]) for col in (20, 60, 100, 140)] == [GROUND, VEGETATION, IGNORED, IGNORED]


def test_a_crown_is_its_ellipse_without_the_shadow() -> None:
    """The dark third of a box leaves the crown and becomes doubtful; overlapping crowns share out their pixels."""
    image = np.full((3, 60, 90), 120, np.uint8)
    image[:, 10:50, 40:60] = 30  # the shadow in the right third of the first box
    ids, doubtful = crowns_from_boxes(image, [(10, 10, 50, 50), (60, 20, 80, 40), (70, 20, 90, 40)])
    assert ids[30, 20] == 1
    assert ids[30, 48] == 0
    assert doubtful[30, 48]
    assert doubtful[11, 11]
    assert not doubtful[0, 0]
    assert (ids[30, 71], ids[30, 78]) == (2, 3)
    area = int((ids == 1).sum())
    assert 0.5 * np.pi * 400 <= area <= np.pi * 400


def test_boxes_are_read_and_empty_ones_dropped(tmp_path: Path) -> None:
    """PASCAL VOC boxes come in file order as left, top, right, bottom."""
    box = "<bndbox>\n<xmin>{}</xmin>\n <ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"
    path = tmp_path / "boxes.xml"
    path.write_text("<annotation>" + box.format(1, 2, 30, 40) + box.format(5, 5, 5, 9) + "</annotation>")
    assert read_boxes(path) == [(1, 2, 30, 40)]


def test_arrays_that_disagree_are_refused() -> None:
    """A scene whose labels have another size than its image cannot be made."""
    scene = some_scene()
    with pytest.raises(ValueError, match="disagree"):
        LabelledScene("bad", scene.image, scene.labels[:50], scene.ids, 0.1)
