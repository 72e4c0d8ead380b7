"""Training windows and the labels behind them, on scenes of a few thousand pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from panoptile.pipeline.builtin_labels import BUILDING, CROWN, GROUND
from panoptile.pipeline.labelled_scene import FILL, IGNORED, LabelledScene
from panoptile.pipeline.training_windows import Augmentation, Placement, WindowSampler, cut, window_of_scene


def some_scene() -> LabelledScene:
    """Ground with a 20 px building, a crown whose colour names its place, and an unknown strip."""
    labels = np.full((96, 128), GROUND, np.uint16)
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
        window = sampler(augmentation=Augmentation((0.6, 1.0), rotate=i % 2 == 0)).window(i, size=48)
        for mask, label in zip(window.masks, window.class_labels.tolist(), strict=True):
            if label in (BUILDING, CROWN):
                red, green = (float(window.image[band][mask].float().mean()) for band in (0, 1))
                assert (red > green) == (label == BUILDING)
                seen.add(label)
    assert seen == {BUILDING, CROWN}


def test_every_pixel_is_claimed_once_or_ignored() -> None:
    """Masks and ignored pixels of a window partition it; objects too small to ask for become ignored."""
    scene = cut(some_scene().crop(0, 32, 96, 96), Placement(48, 48, 96), size=48)
    for minimum in (1, 250):
        window = window_of_scene(scene, min_object_px=minimum)
        claims = window.masks.sum(dim=0) + window.ignored
        assert bool((claims == 1).all())
    assert CROWN not in window.class_labels.tolist()


def test_a_part_set_aside_is_ignored_and_blank() -> None:
    """Nothing of a window that is set aside for validation is left: no label, no object, no colour."""
    scene = some_scene().without(0, 0, 40, 60)
    assert (scene.labels[:40, :60] == IGNORED).all()
    assert set(np.unique(scene.ids)) == {0, 2}
    assert (scene.image[:, :40, :60] == FILL).all()
    assert some_scene().image[0].max() == 250


def test_arrays_that_disagree_are_refused() -> None:
    """A scene whose labels have another size than its image cannot be made."""
    scene = some_scene()
    with pytest.raises(ValueError, match="disagree"):
        LabelledScene("bad", scene.image, scene.labels[:50], scene.ids, 0.1)


def test_a_window_at_the_scenes_own_scale_is_a_crop() -> None:
    """Without scale and turn, pixels and labels of a window are the scene's own, to the bit."""
    scene = some_scene()
    window = cut(scene, Placement(row=40, col=50, extent=48), size=48)
    crop = scene.crop(16, 26, 48, 48)
    assert np.array_equal(window.image, crop.image)
    assert np.array_equal(window.labels, crop.labels)
    assert np.array_equal(window.ids, crop.ids)


def test_quarter_turns_and_flips_are_exact() -> None:
    """Four quarter turns and a flip give numpy's own turned and flipped arrays."""
    scene = some_scene()
    crop = scene.crop(16, 26, 48, 48)
    for quarters in range(4):
        place = Placement(row=40, col=50, extent=48, angle=quarters * np.pi / 2)
        assert np.array_equal(cut(scene, place, size=48).ids, np.rot90(crop.ids, quarters))
        assert np.array_equal(cut(scene, place, size=48).image, np.rot90(crop.image, quarters, axes=(1, 2)))
    flipped = cut(scene, Placement(row=40, col=50, extent=48, flip=True), size=48)
    assert np.array_equal(flipped.ids, crop.ids[:, ::-1])


def test_what_lies_outside_the_image_is_blank_and_ignored() -> None:
    """Corners of a turned window that poke out of the image have no label and no colour."""
    window = cut(some_scene(), Placement(row=48, col=48, extent=96, angle=np.pi / 4), size=96)
    for row, col in ((0, 0), (95, 0), (95, 95)):  # the fourth one is inside
        assert window.labels[row, col] == IGNORED
        assert (window.image[:, row, col] == FILL).all()
    assert window.labels[48, 48] != IGNORED
