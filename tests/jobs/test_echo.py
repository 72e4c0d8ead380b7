"""Echo runs from file to file: what is published does not depend on how the raster was cut or run."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.jobs.runs import arrays, published, run, table, write_world
from tests.pipeline.worlds import TABLE, World, connected, make_world

from panoptile.pipeline.layout import commit_key
from panoptile.pipeline.plan import RasterPlan
from panoptile.pipeline.raster_info import NODATA_ID
from panoptile.pipeline.store_local import LocalStore

DEPENDS_ON_TILING = ["tile_ids", "merged_from", "score"]


def _same_result(a: Path, b: Path) -> None:
    for mine, theirs in zip(arrays(a), arrays(b), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    mine_table, their_table = (table(out).drop_columns(DEPENDS_ON_TILING) for out in (a, b))
    assert mine_table.num_rows > 0
    assert mine_table.equals(their_table)


@settings(max_examples=22)
@given(
    seed=st.integers(0, 10_000),
    height=st.integers(70, 420),
    width=st.integers(70, 420),
    tile=st.integers(64, 200),
    share=st.floats(0, 1),
    batch=st.integers(1, 4),
    workers=st.integers(1, 3),
    order=st.integers(0, 1000),
)
def test_tiled_run_equals_one_window_run(
    seed: int, height: int, width: int, tile: int, share: float, batch: int, workers: int, order: int
) -> None:
    """Any tiling, batch, worker count and order give the rasters and the table of one window."""
    overlap = 16 + round(share * (tile // 2 - 16))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        world = make_world(seed, height, width)
        files = write_world(world, root / "world")
        run(files, root / "tiled", tile=tile, overlap=overlap, batch=batch, workers=workers, shuffle=order)
        run(files, root / "whole", tile=max(height, width), overlap=0)
        _same_result(root / "tiled", root / "whole")
        segments, classes = arrays(root / "tiled")
        np.testing.assert_array_equal(segments == NODATA_ID, ~world.valid)
        np.testing.assert_array_equal(classes, np.where(world.valid, world.classes, 255))


def test_published_tree_is_the_same_for_every_batch_worker_count_and_order(tmp_path: Path) -> None:
    """For one tiling the published bytes depend on nothing but the job."""
    files = write_world(make_world(11, 300, 340), tmp_path / "world")
    trees = []
    for i, (batch, workers, order) in enumerate([(1, 1, None), (3, 2, 5), (4, 3, 6), (2, 1, 7)]):
        run(files, tmp_path / str(i), tile=80, overlap=24, batch=batch, workers=workers, shuffle=order)
        trees.append(published(tmp_path / str(i)))
    assert len(trees[0]) >= 5
    assert all(tree == trees[0] for tree in trees[1:])


def test_lost_units_are_redone_to_the_same_bytes(tmp_path: Path) -> None:
    """A run whose commits are partly gone continues and ends with the bytes of a calm run."""
    files = write_world(make_world(12, 300, 260), tmp_path / "world")
    calm, broken = tmp_path / "calm", tmp_path / "broken"
    run(files, calm, tile=80, overlap=24)
    run(files, broken, tile=80, overlap=24)
    store = LocalStore(broken)
    plan = RasterPlan.from_json(store.read_bytes(store.keys("_state/plan")[0]))
    units = list(plan.units())
    for unit in units[::3]:
        store.delete(commit_key(unit))
    store.delete("_SUCCESS.json")
    summary = run(files, broken, tile=80, overlap=24)
    assert summary.metrics["units_run"] == len(units[::3])
    assert published(broken) == published(calm)


def test_a_finished_job_starts_no_replica(tmp_path: Path) -> None:
    """The same command on a finished folder does nothing and says so."""
    files = write_world(make_world(13, 120, 130), tmp_path / "world")
    run(files, tmp_path / "out", tile=64, overlap=16)
    before = published(tmp_path / "out")
    again = run(files, tmp_path / "out", tile=64, overlap=16)
    assert again.already_done
    assert published(tmp_path / "out") == before


def test_more_than_65535_segments(tmp_path: Path) -> None:
    """Local and global ids go beyond 16 bits."""
    height = width = 560
    rows, cols = np.mgrid[:height, :width]
    labels = (rows // 2 * (width // 2) + cols // 2 + 1).astype(np.int64)
    classes = (rows // 2 + cols // 2) % 2 + 1
    world = World(connected(labels, classes), classes, np.ones((height, width), np.bool_), TABLE)
    files = write_world(world, tmp_path / "world")
    run(files, tmp_path / "tiled", tile=540, overlap=64)
    run(files, tmp_path / "whole", tile=560, overlap=0)
    _same_result(tmp_path / "tiled", tmp_path / "whole")
    assert table(tmp_path / "tiled").num_rows == (height // 2) * (width // 2) > 65_535


@pytest.mark.parametrize("local", [True, False])
def test_ray_and_local_publish_the_same_bytes(tmp_path: Path, local: bool, small_ray: None) -> None:
    """One worker without Ray and two Ray actors give byte-identical trees."""
    files = write_world(make_world(14, 260, 300), tmp_path / "world")
    run(files, tmp_path / "reference", tile=80, overlap=24)
    run(files, tmp_path / "other", tile=80, overlap=24, local=local, workers=2)
    assert published(tmp_path / "other") == published(tmp_path / "reference")
