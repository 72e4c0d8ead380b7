"""The motion of the whole picture: found where it is plain, not made up elsewhere, and used to link what stands still."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from tests.pipeline.moving_worlds import MovingWorld, same_partition
from tests.pipeline.video_flow import finish, plan_video, published_maps, run_units, video_of, write_truth

from panoptile.model.panoptic_map import PanopticMap
from panoptile.pipeline.camera_motion import NO_SHIFT, VIEW_SIDE, grey_view, moved, picture_shift, view_step
from panoptile.pipeline.link_options import LinkOptions
from panoptile.pipeline.replica import ReplicaFactory, TileBatch
from panoptile.pipeline.video_echo import VideoEchoFactory, VideoEchoReplica
from panoptile.pipeline.video_finish import VideoProducts


def ground(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    """(height, width, 3) a picture with structure of all sizes."""
    rng = np.random.default_rng(seed)
    scales = (1, 4, 16)
    layers = [gaussian_filter(rng.normal(size=(height, width)), s) * s for s in scales]
    total = np.sum(layers, axis=0)
    grey = 128 + 40 * total / max(1e-9, total.std())
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def shift_between(before: NDArray[np.uint8], now: NDArray[np.uint8]) -> tuple[int, int]:
    return picture_shift(grey_view(before), grey_view(now), view_step(*now.shape[:2]))


@settings(max_examples=15)
@given(
    seed=st.integers(0, 100),
    size=st.sampled_from([(90, 120), (270, 200), (300, 480)]),
    part=st.tuples(st.floats(-0.4, 0.4), st.floats(-0.4, 0.4)),
)
def test_a_shift_is_found_to_a_pixel_of_the_view(
    seed: int, size: tuple[int, int], part: tuple[float, float]
) -> None:
    """What moves by up to 40 % of its sides is found to within one pixel of the view; less than half of one is none."""
    height, width = size
    down, right = round(part[0] * height), round(part[1] * width)
    big = ground(seed, 2 * height, 2 * width)
    top, left = height // 2, width // 2
    before = big[top : top + height, left : left + width]
    now = big[top - down : top - down + height, left - right : left - right + width]
    step = view_step(height, width)
    found = shift_between(before, now)
    if max(abs(down), abs(right)) < 0.4 * step:
        assert found == NO_SHIFT
    elif max(abs(down), abs(right)) > 0.6 * step:
        assert np.abs(np.subtract(found, (down, right))).max() <= step


@pytest.mark.parametrize(
    ("before", "now"),
    [
        pytest.param(ground(1, 90, 120), ground(1, 90, 120), id="stands still"),
        pytest.param(ground(1, 90, 120), ground(2, 90, 120), id="another scene"),
        pytest.param(ground(1, 90, 120), ground(1, 90, 120)[::-1, ::-1].copy(), id="turned"),
        pytest.param(np.full((90, 120, 3), 7, np.uint8), np.full((90, 120, 3), 7, np.uint8), id="one colour"),
        pytest.param(ground(1, 90, 120), np.zeros((90, 120, 3), np.uint8), id="faded to black"),
        pytest.param(ground(1, 4, 4000), np.roll(ground(1, 4, 4000), 400, 1), id="strip"),
        pytest.param(ground(1, 1, 1), ground(2, 1, 1), id="one pixel"),
    ],
)
def test_no_shift_is_made_up(before: NDArray[np.uint8], now: NDArray[np.uint8]) -> None:
    """A picture that stands still, changes altogether or has no structure has not moved."""
    assert shift_between(before, now) == NO_SHIFT


def test_noise_does_not_hide_a_shift() -> None:
    """A shift is found through the noise of a sensor and a change of brightness."""
    big, rng = ground(3, 300, 400), np.random.default_rng(0)
    before, now = big[20:260, 20:340].astype(int), big[8:248, 30:350].astype(int)
    noisy = [
        np.clip(x + rng.normal(0, 6, x.shape) + y, 0, 255).astype(np.uint8)
        for x, y in ((before, 0), (now, 5))
    ]
    assert np.abs(np.subtract(shift_between(*noisy), (12, -10))).max() <= 1


@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    shift=st.tuples(st.integers(-10, 10), st.integers(-10, 10)),
)
def test_a_map_is_moved_pixel_by_pixel(height: int, width: int, shift: tuple[int, int]) -> None:
    """Each pixel goes by the shift, what leaves the frame is gone, what comes in is not known."""
    labels = np.arange(1, height * width + 1).reshape(height, width)
    expected = np.full_like(labels, -7)
    for r in range(height):
        for c in range(width):
            y, x = r + shift[0], c + shift[1]
            if 0 <= y < height and 0 <= x < width:
                expected[y, x] = labels[r, c]
    np.testing.assert_array_equal(moved(labels, shift, -7), expected)


@pytest.mark.parametrize(
    "size", [(360, 640), (1080, 1920), (1200, 3840), (64, 48), (1, 1), (193, 10), (5, 999)]
)
def test_views_are_small_and_of_the_size_that_is_promised(size: tuple[int, int]) -> None:
    """A view has one pixel for each whole square of ``view_step`` pixels, its mean, and no more than VIEW_SIDE."""
    step = view_step(*size)
    view = grey_view(ground(4, *size))
    assert view.shape == (size[0] // step, size[1] // step)
    assert max(view.shape) <= VIEW_SIDE
    if step == 1:
        np.testing.assert_array_equal(view, ground(4, *size)[..., 0])


def test_the_fly_over_moves_as_it_was_made() -> None:
    """Frame i of the clip shows the raster 4.5 rows and 7.5 columns on per frame: found to a pixel at any stride."""
    data = os.environ.get("PANOPTILE_TEST_DATA")
    if data is None:
        pytest.skip(
            "PANOPTILE_TEST_DATA does not name the test data: the motion of a real clip is NOT checked"
        )
    with av.open(str(Path(data) / "video/banepa_flyover_24fps.mp4")) as clip:
        frames = [np.asarray(f.to_ndarray(format="rgb24"), np.uint8) for f in clip.decode(video=0)]
    for stride in (1, 2, 5, 10, 20):
        seen = frames[::stride]
        for i in range(1, len(seen)):
            found = shift_between(seen[i - 1], seen[i])
            assert np.abs(np.subtract(found, (-4.5 * stride, -7.5 * stride))).max() <= 1.0


# --- linking -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BlindEcho:
    """An echo whose queries know nothing: segments are linked by overlap alone."""

    echo: VideoEchoFactory

    def __call__(self) -> BlindReplica:
        return BlindReplica(self.echo())


class BlindReplica:
    def __init__(self, echo: VideoEchoReplica) -> None:
        self._echo = echo
        self.classes, self.max_queries, self.fill = echo.classes, echo.max_queries, echo.fill

    def segment(self, batch: TileBatch) -> Sequence[PanopticMap]:
        return [replace(found, embeddings=None) for found in self._echo.segment(batch)]


def flight(
    frames: int = 24, height: int = 72, width: int = 96, speed: tuple[int, int] = (5, 9)
) -> MovingWorld:
    """A flight over boxes of 6 x 6 pixels that all stand still: each leaves its own place within a frame."""
    rng = np.random.default_rng(7)
    labels = np.full((height + frames * speed[0], width + frames * speed[1]), 901, np.int32)
    number = 0
    for row in range(3, labels.shape[0] - 9, 12):
        for col in range(3, labels.shape[1] - 9, 12):
            if rng.random() < 0.7:
                number += 1
                r, c = row + int(rng.integers(5)), col + int(rng.integers(5))
                labels[r : r + 6, c : c + 6] = number
    seen = np.stack(
        [
            labels[t * speed[0] : t * speed[0] + height, t * speed[1] : t * speed[1] + width]
            for t in range(frames)
        ]
    )
    return MovingWorld(seen, np.where(seen == 901, 3, 1).astype(np.uint8), 10)


def test_what_stands_still_under_a_moving_camera_keeps_its_track(tmp_path: Path) -> None:
    """By overlap alone every box is one track; without the motion of the picture hardly any is."""
    world = flight()
    plan = plan_video(video_of(world, tmp_path), 7)
    store = run_units(tmp_path / "out", plan, BlindEcho(write_truth(world, tmp_path)))
    wrong = {}
    for motion in (True, False):
        products = replace(VideoProducts(link=LinkOptions(camera_motion=motion, min_hits=1)), preview=False)
        finish(store, plan, products=products)
        maps, numbers = published_maps(tmp_path / "out", plan)
        _, complaints = same_partition(world.labels[numbers], maps)
        wrong[motion] = len(complaints)
    assert wrong[True] == 0
    assert wrong[False] > 50


def test_motion_across_units_is_that_within_them(tmp_path: Path) -> None:
    """However the flight is cut into units, the published bytes are the same: borders see the motion as workers do."""
    world = flight()
    path, factory = video_of(world, tmp_path), BlindEcho(write_truth(world, tmp_path))
    trees = []
    for unit_frames in (24, 5, 1):
        plan = plan_video(path, unit_frames)
        store = run_units(tmp_path / str(unit_frames), plan, factory)
        finished = finish(store, plan, products=VideoProducts(preview=False))
        trees.append({a.key: a.sha256 for a in finished.assets})
    assert trees[1] == trees[0]
    assert trees[2] == trees[0]


def _typed(factory: BlindEcho) -> ReplicaFactory:
    return factory  # the test's echo is a replica like any other: checked by mypy
