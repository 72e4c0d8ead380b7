"""Connected regions of stuff as segments: what a labelling of the whole raster gives, for any tiling and block size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from tests.jobs.runs import arrays, published, run, table, write_world
from tests.pipeline.worlds import TABLE, World, make_world

from panoptile.pipeline import publish, regions
from panoptile.pipeline.grid import TileGrid
from panoptile.pipeline.raster_info import NODATA_ID
from panoptile.pipeline.regions import split_regions
from panoptile.pipeline.segments import SegmentTable
from panoptile.pipeline.window import Window

CLASSES = np.array([1, 3, 4], np.uint16)
"""Of segments 1, 2 and 3: a thing, and two kinds of stuff."""


@dataclass(frozen=True)
class Whole:
    """A label map in memory."""

    labels: NDArray[np.uint32]

    def read(self, window: Window) -> NDArray[np.uint32]:
        return self.labels[window.row : window.stop_row, window.col : window.stop_col]


def segment_table(labels: NDArray[np.uint32], grid: TileGrid) -> SegmentTable:
    tiles = [
        [grid.tile_id(t.row, t.col) for t in grid if (labels[core(t.core)] == i).any()] for i in (1, 2, 3)
    ]
    return SegmentTable(
        CLASSES,
        np.array([0.25, 0.5, 0.75], np.float32),
        np.array([(labels == i).sum() for i in (1, 2, 3)], np.int64),
        np.zeros(3, np.bool_),
        np.array([len(t) for t in tiles], np.int32),
        np.concatenate([[0], np.cumsum([len(t) for t in tiles])]).astype(np.int64),
        np.array([n for t in tiles for n in t], np.int32),
        0,
    )


def core(window: Window) -> tuple[slice, slice]:
    return slice(window.row, window.stop_row), slice(window.col, window.stop_col)


def expected(labels: NDArray[np.uint32], split: set[int], min_area: int) -> NDArray[np.uint32]:
    """Every region by a labelling of the whole map, numbered by first pixels."""
    pieces = []
    for i in (1, 2, 3):
        found, count = ndimage.label(labels == i) if i in split else ((labels == i).astype(int), 1)
        pieces += [found == n for n in range(1, count + 1)]
    pieces = [p for p in pieces if p.any()]
    kept = [p for p in pieces if p.sum() >= min_area or not np.isin(labels[p][0], list(split))]
    kept.sort(key=lambda p: int(np.flatnonzero(p)[0]))
    out = np.where(labels == NODATA_ID, np.uint32(NODATA_ID), np.uint32(0))
    for number, piece in enumerate(kept, 1):
        out[piece] = number
    return out


@given(
    seed=st.integers(0, 10**6),
    height=st.integers(20, 90),
    width=st.integers(20, 90),
    grain=st.integers(1, 9),
    block=st.integers(7, 100),
    min_area=st.sampled_from([0, 5]),
    split=st.sets(st.sampled_from([2, 3]), min_size=1),
)
@settings(max_examples=60)
def test_regions_are_those_of_the_whole_map(
    seed: int, height: int, width: int, grain: int, block: int, min_area: int, split: set[int]
) -> None:
    """Ids, areas, edges and owning tiles equal what the whole map says, whatever the blocks are."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice(
        [0, 1, 2, 3, NODATA_ID], (height // grain + 1, width // grain + 1), p=[0.1, 0.2, 0.3, 0.3, 0.1]
    )
    labels = coarse.repeat(grain, 0).repeat(grain, 1)[:height, :width].astype(np.uint32)
    grid = TileGrid(height, width, 32, 8)
    before = segment_table(labels, grid)
    chosen = frozenset(int(CLASSES[i - 1]) for i in split)
    with mock.patch.object(regions, "BLOCK", block):
        reader, after = split_regions(Whole(labels), before, grid, chosen, min_area)
        whole = reader.read(Window(0, 0, height, width))
        part = Window(height // 3, width // 4, height // 2, width // 2)
        np.testing.assert_array_equal(reader.read(part), whole[core(part)])
    np.testing.assert_array_equal(whole, expected(labels, split, min_area))
    unseen = np.pad(labels == NODATA_ID, 1, constant_values=True)
    beside = ndimage.binary_dilation(unseen)[1:-1, 1:-1]
    for number in range(1, len(after) + 1):
        mask = whole == number
        old = int(labels[mask][0])
        assert after.areas[number - 1] == mask.sum()
        assert after.class_ids[number - 1] == CLASSES[old - 1]
        assert after.scores[number - 1] == before.scores[old - 1]
        owners = after.tile_ids[after.tile_offsets[number - 1] : after.tile_offsets[number]]
        assert owners.tolist() == [grid.tile_id(t.row, t.col) for t in grid if mask[core(t.core)].any()]
        if old in split:
            assert after.at_edge[number - 1] == beside[mask].any()
            assert after.merged_from[number - 1] == len(owners)
    assert len(after) == (whole[whole != NODATA_ID]).max(initial=0)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(12, 300, 260)


def test_a_run_publishes_regions(world: World, tmp_path: Path) -> None:
    """Rasters and table hold one segment per region, the same for two tilings but for what names the tiles."""
    files = write_world(world, tmp_path / "world")
    run(files, tmp_path / "a", tile=96, overlap=24, regions=("grass",))
    run(files, tmp_path / "b", tile=140, overlap=40, regions=("grass",))
    ids, class_ids = arrays(tmp_path / "a")
    np.testing.assert_array_equal(ids, arrays(tmp_path / "b")[0])
    grass = class_ids == TABLE.by_name("grass").class_id
    _, count = ndimage.label(grass)
    assert len(np.unique(ids[grass])) == count > 1
    rows = table(tmp_path / "a").to_pylist()
    of_grass = [row for row in rows if row["class_name"] == "grass"]
    assert sorted(row["segment_id"] for row in of_grass) == sorted(np.unique(ids[grass]))
    assert all(row["part"] == 0 and not row["is_thing"] for row in of_grass)
    for row in of_grass:
        assert row["area_px"] == (ids == row["segment_id"]).sum()
    assert {row["segment_id"] for row in rows} == set(np.unique(ids)) - {0, NODATA_ID}
    run(files, tmp_path / "c", tile=96, overlap=24, regions=("grass",), workers=2)
    assert published(tmp_path / "a") == published(tmp_path / "c")


def test_large_regions_are_cut_as_stuff_is(world: World, tmp_path: Path) -> None:
    """Above the size of a block of stuff a region has a row for each, so that no outline of any size is held."""
    files = write_world(world, tmp_path / "world")
    with mock.patch.object(publish, "WHOLE_PIXELS", 400):
        run(files, tmp_path / "a", tile=96, overlap=24, regions=("all",))
    rows = table(tmp_path / "a").to_pylist()
    ids = arrays(tmp_path / "a")[0]
    areas: dict[int, int] = {}
    for row in rows:
        areas[row["segment_id"]] = areas.get(row["segment_id"], 0) + row["area_px"]
    assert areas == {i: int((ids == i).sum()) for i in areas}
