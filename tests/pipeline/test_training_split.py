"""The hold-out: training and validation share no pixel, whatever is drawn."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from panoptile.pipeline.labelled_scene import FILL, IGNORED, LabelledScene, PixelWindow
from panoptile.pipeline.training_split import (
    block_windows,
    training_part,
    validation_windows,
    with_guard,
)
from panoptile.pipeline.training_windows import Augmentation, Placement, cut, draw_placement


@dataclass(frozen=True)
class Numbered:
    """An image whose every pixel is labelled with its own number: what a window shows tells where it looked."""

    shape: tuple[int, int]
    name: str = "numbered"
    seen: set[int] = field(default_factory=set)

    def crop(self, row: int, col: int, height: int, width: int) -> LabelledScene:
        rows, cols = np.mgrid[row : row + height, col : col + width]
        numbers = rows * self.shape[1] + cols
        image = np.full((3, height, width), 200, np.uint8)
        return LabelledScene(
            self.name, image, np.zeros((height, width), np.uint16), numbers.astype(np.int32) + 1
        )


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Numbered, tuple[PixelWindow, ...], int]:
    shape = draw(st.tuples(st.integers(20, 90), st.integers(20, 90)))
    block = draw(st.integers(8, 40))
    fraction = draw(st.floats(0.05, 0.6))
    windows = block_windows(shape, block=block, fraction=fraction, seed=draw(st.integers(0, 9)))
    return Numbered(shape), windows, draw(st.integers(0, 12))


@given(worlds(), st.integers(0, 1000), st.integers(8, 60))
def test_training_and_validation_share_no_pixel(
    world: tuple[Numbered, tuple[PixelWindow, ...], int], seed: int, extent: int
) -> None:
    """No pixel of a held-out block or its guard shows in any turned training window, and none other in validation."""
    source, windows, guard = world
    held, guarded = (np.zeros(source.shape, bool) for _ in range(2))
    for window in windows:
        for mask, (row, col, height, width) in (
            (held, window),
            (guarded, with_guard(window, guard, source.shape)),
        ):
            mask[row : row + height, col : col + width] = True
    part = training_part(source, windows, guard=guard)
    rng = np.random.default_rng(seed)
    for _ in range(4 if part is not None else 0):
        assert part is not None
        place = draw_placement(rng, source.shape, Augmentation((0.7, 1.4)), 16)
        scene = cut(part, place, size=16)
        numbers = scene.ids[scene.ids > 0] - 1
        assert not guarded.ravel()[numbers].any()
        assert (scene.labels[scene.ids == 0] == IGNORED).all()
    covered = np.zeros(source.shape, bool)
    for judge in validation_windows(source, windows, extent=extent):
        scene = judge.scene(extent)
        numbers = scene.ids[scene.ids > 0] - 1
        covered.ravel()[numbers] = True
    assert np.array_equal(covered, held)


def test_what_is_held_out_has_no_colour_either() -> None:
    """Blank pixels are grey, so that nothing of a held-out photograph leaks into training."""
    part = training_part(Numbered((40, 40)), [(0, 0, 20, 40)], guard=4)
    assert part is not None
    scene = cut(part, Placement(20, 20, 40), size=40)
    assert (scene.image[:, :24] == FILL).all()
    assert (scene.image[:, 24:] == 200).all()


def test_blocks_make_up_the_share_that_was_asked_for() -> None:
    """A tenth of 100 blocks are ten; one block alone is never held out, and of two never both."""
    assert len(block_windows((1000, 1000), block=100, fraction=0.1, seed=0)) == 10
    assert block_windows((100, 100), block=100, fraction=0.5, seed=0) == ()
    assert len(block_windows((100, 200), block=100, fraction=0.9, seed=0)) == 1
    assert block_windows((1000, 1000), block=100, fraction=0.0, seed=0) == ()
    first, again = (block_windows((900, 900), block=100, fraction=0.2, seed=s) for s in (1, 1))
    assert first == again


def test_an_image_that_is_wholly_held_out_trains_nothing() -> None:
    """Then there is no training part."""
    assert training_part(Numbered((40, 40)), [(0, 0, 40, 40)], guard=0) is None
    assert training_part(Numbered((40, 40)), [(0, 0, 30, 40)], guard=10) is None
