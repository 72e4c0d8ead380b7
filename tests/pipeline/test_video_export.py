"""Exports of tracks: other tools' formats hold the very masks and ids that were published."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco
from tests.pipeline.moving_worlds import TABLE, make_world
from tests.pipeline.video_flow import finish, plan_video, published_maps, run_units, video_of, write_truth

from panoptile.pipeline.video_export import write_panoptic_video, write_ytvis


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """(folder of the tables, (F, H, W) published track ids) of every second frame of a small video."""
    root = tmp_path_factory.mktemp("export")
    world = make_world(31, frames=24, hide_s=0.4)
    plan = plan_video(video_of(world, root), 8, every=2)
    finish(run_units(root / "out", plan, write_truth(world, root)), plan)
    return root / "out" / "video" / plan.key, published_maps(root / "out", plan)[0]


def test_ytvis_holds_every_thing_in_every_frame(published: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    """One annotation per track of things, one code or null per frame, categories of things alone."""
    folder, maps = published
    tables = [folder / f"{name}.parquet" for name in ("masks", "tracks", "frames")]
    count = write_ytvis(tmp_path / "ytvis.json", "clip", tables[0], tables[1], tables[2], TABLE)
    document = json.loads((tmp_path / "ytvis.json").read_text())
    rows = {r["track_id"]: r for r in pq.read_table(tables[1]).to_pylist() if r["is_thing"]}
    assert count == len(document["annotations"]) == len(rows) > 0
    assert document["videos"][0]["length"] == len(maps) == 12
    assert [c["name"] for c in document["categories"]] == ["box", "disc"]
    for annotation in document["annotations"]:
        assert annotation["category_id"] == rows[annotation["id"]]["class_id"]
        for t, rle in enumerate(annotation["segmentations"]):
            here = maps[t] == annotation["id"]
            assert (rle is None) == (not here.any())
            if rle is not None:
                np.testing.assert_array_equal(coco.decode({**rle, "counts": rle["counts"].encode()}), here)
                assert annotation["areas"][t] == here.sum()


def test_panoptic_video_pictures_are_the_published_maps(
    published: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    """Colours decode to track ids; segments_info lists each segment of a frame once with its area, box and class."""
    folder, maps = published
    count = write_panoptic_video(tmp_path, "clip", folder / "masks.parquet", TABLE)
    document = json.loads((tmp_path / "panoptic.json").read_text())
    (video,) = document["annotations"]
    assert count == len(video["annotations"]) == 12
    for t, annotation in enumerate(video["annotations"]):
        rgb = np.asarray(Image.open(tmp_path / "panomasksRGB" / "clip" / annotation["file_name"])).astype(int)
        ids = rgb[..., 0] + 256 * rgb[..., 1] + 65_536 * rgb[..., 2]
        np.testing.assert_array_equal(ids, maps[t])
        infos = {info["id"]: info for info in annotation["segments_info"]}
        assert set(infos) == set(np.unique(ids[ids > 0]).tolist())
        for track, info in infos.items():
            rows, cols = np.nonzero(ids == track)
            assert info["area"] == len(rows)
            assert info["bbox"] == [cols.min(), rows.min(), np.ptp(cols) + 1, np.ptp(rows) + 1]
