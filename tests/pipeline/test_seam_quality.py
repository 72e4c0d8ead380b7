"""Seam figures: known values, hand-made seams, and the same numbers whatever the blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.pipeline.metric_cases import Segmentation, coco_sample
from tests.pipeline.worlds import echo_run, make_world

from panoptile.pipeline.grid import TileGrid
from panoptile.pipeline.raster_info import NODATA_ID
from panoptile.pipeline.seam_quality import SeamCounter, SeamQuality, Seams, WatchedLabels
from panoptile.pipeline.segments import blocks
from panoptile.pipeline.window import Window


def _counted(
    labels: NDArray[np.integer],
    seams: Seams,
    *,
    side: int = 10_000,
    classes: list[int] | None = None,
    things: bool = True,
) -> SeamQuality:
    """Of a label map whose ids are 1…N, all of class 1 unless ``classes`` says otherwise."""
    ids = np.asarray(labels).astype(np.uint32)
    count = int(ids[ids != NODATA_ID].max(initial=0))
    class_ids = np.array(classes or [1] * count, np.uint16)
    counter = SeamCounter(seams, class_ids, np.full(len(class_ids), things))
    for w in blocks(ids.shape[0], ids.shape[1], side):
        counter.add(ids[w.row : w.stop_row, w.col : w.stop_col], w)
    return counter.result()


def _every(step: int, shape: tuple[int, ...]) -> Seams:
    return Seams(*(np.arange(step, size, step) for size in shape))


def _numbered(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape)


def _cut(image: Segmentation, things: set[int], step: int) -> NDArray[np.int64]:
    """Each thing cut along a grid, stuff whole."""
    rows, cols = np.indices(image.labels.shape)
    cut = np.isin(image.labels, [k for k, v in image.classes.items() if v in things])
    return np.where(cut, image.labels * 10_000 + rows // step * 100 + cols // step + 1, image.labels)


@pytest.mark.parametrize(("step", "truth", "unstitched"), [(256, 1.53, 20.60), (128, 0.97, 12.64)])
def test_published_figures_of_the_coco_sample(
    data_dir: Path, step: int, truth: float, unstitched: float
) -> None:
    """The truth crosses a grid as it crosses any line; things cut at the grid show it twenty and thirteen times."""
    images, classes = coco_sample(data_dir)
    things = {c.class_id for c in classes if c.is_thing}
    whole, cut = SeamQuality(), SeamQuality()
    for image in images:
        seams = _every(step, image.labels.shape)
        whole += _counted(_numbered(image.labels), seams, side=100)
        cut += _counted(_numbered(_cut(image, things, step)), seams, side=100)
    assert whole.discontinuity == pytest.approx(truth, abs=0.005)
    assert cut.discontinuity == pytest.approx(unstitched, abs=0.005)
    assert cut.cut_share > 5 * whole.cut_share


def test_counts_of_one_seam() -> None:
    """A column at 20 of 40: 30 pairs on it, of which 12 change; elsewhere only the line at 4 changes."""
    labels = np.ones((30, 40), int)
    labels[:, :4] = 2
    labels[:12, 20:] = 3
    quality = _counted(labels, Seams(np.zeros(0, int), np.array([20])))
    assert (quality.seam_pairs, quality.seam_changes) == (30, 12)
    assert (quality.other_pairs, quality.other_changes) == (30 * (11 + 11), 30)
    assert quality.discontinuity == pytest.approx((12 / 30) / (1 / 22))
    assert (quality.things, quality.cut_things) == (3, 2)
    assert quality.cut_share == pytest.approx(1000 * 2 / 3)


def test_cuts_need_length_straightness_and_one_class() -> None:
    """Seven pixels along a seam are no cut, eight are; another class, stuff and missing input never are."""
    seams = Seams(np.array([10]), np.zeros(0, int))

    def cut(width: int, **options: object) -> int:
        labels = np.zeros((20, 40), int)
        labels[2:10, 5 : 5 + width] = 1
        labels[10:18, 5 : 5 + width] = 2
        return _counted(labels, seams, **options).cut_things  # type: ignore[arg-type]

    assert (cut(7), cut(8)) == (0, 2)
    assert cut(20, classes=[1, 2]) == 0
    assert cut(20, things=False) == 0
    labels = np.full((20, 40), NODATA_ID)
    labels[:10] = 1
    missing = _counted(labels, seams)
    assert (missing.cut_things, missing.seam_pairs, missing.discontinuity) == (0, 0, None)


@pytest.mark.parametrize("side", [7, 10, 33])
def test_blocks_do_not_matter(side: int) -> None:
    """Blocks of any size, with seams inside them and on their borders, give the counts of the whole."""
    world = make_world(3, 150, 170)
    ids = np.where(world.valid, _numbered(world.labels), NODATA_ID)
    seams = Seams(np.array([20, 63, 70]), np.array([9, 30, 33, 99]))
    assert _counted(ids, seams, side=side) == _counted(ids, seams)


def test_a_stitched_world_is_whole_and_an_unstitched_one_is_not(tmp_path: Path) -> None:
    """What was stitched changes on seams no oftener than its truth; each tile by itself shows its seams."""
    world = make_world(5, 300, 340, wedge=False)
    stitched, _ = echo_run(world, 96, 32, tmp_path)
    grid = TileGrid(300, 340, 96, 32)
    tiles = np.zeros(world.labels.shape, np.int64)
    for number, tile in enumerate(grid):
        core = tile.core
        tiles[core.row : core.stop_row, core.col : core.stop_col] = number
    seams = Seams.of(grid)
    assert seams.rows.tolist() == sorted({t.core.row for t in grid} - {0})
    truth = _counted(_numbered(world.labels), seams)
    ours = _counted(stitched, seams)
    assert (ours.seam_changes, ours.seam_pairs) == (truth.seam_changes, truth.seam_pairs)
    alone = _counted(_numbered(world.labels * 1000 + tiles), seams)
    assert ours.discontinuity is not None
    assert alone.discontinuity is not None
    assert alone.discontinuity > 5 * ours.discontinuity


def test_a_watched_reader_counts_what_it_reads(tmp_path: Path) -> None:
    """Labels pass through unchanged, and are counted in the blocks in which they were asked for."""
    world = make_world(6, 120, 130)
    stitched, joined = echo_run(world, 64, 16, tmp_path)

    class Whole:
        def read(self, window: Window) -> NDArray[np.uint32]:
            return stitched[window.row : window.stop_row, window.col : window.stop_col]

    grid = TileGrid(120, 130, 64, 16)
    watched = WatchedLabels(Whole(), grid, joined.segments, frozenset({1, 2}))
    for w in blocks(120, 130, 50):
        assert np.array_equal(watched.read(w), Whole().read(w))
    quality = watched.quality()
    assert quality.things == np.count_nonzero(joined.segments.class_ids <= 2)
    assert quality.seam_pairs > 0
    assert quality.cut_things <= quality.things
