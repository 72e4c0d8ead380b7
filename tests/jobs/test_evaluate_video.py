"""``panoptile eval`` and ``compare`` of videos: ground truth in every form, frames that only one side has."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from tests.jobs.test_evaluate import _eval
from typer.testing import CliRunner

from panoptile.jobs.cli import app
from panoptile.jobs.compare import compare
from panoptile.jobs.console import Console
from panoptile.jobs.evaluate import EvalOptions, evaluate
from panoptile.jobs.exits import JobError
from panoptile.jobs.ground_truth import TruthOptions
from panoptile.model.classes import ClassTable
from panoptile.pipeline import layout
from panoptile.pipeline.video_tables import ClassNames, MaskColumns, MaskWriter, mask_table

import pyarrow as pa  # isort: skip

TABLE = ClassTable.from_names(["car", "road"], {0})
CAR, ROAD, OTHER = 1, 2, 3
"""Tracks; OTHER is a second car."""
CLASS_OF = {0: 0, CAR: 1, ROAD: 2, OTHER: 1}


def _video(frames: int = 6) -> NDArray[np.int64]:
    """A car that drives over a road, (frames, 8, 20)."""
    labels = np.full((frames, 8, 20), ROAD)
    for t in range(frames):
        labels[t, 2:6, 2 * t : 2 * t + 6] = CAR
    return labels


def _write_run(out: Path, labels: NDArray[np.int64], *, first: int = 0, key: str = "clip-0123456789") -> Path:
    """A finished run over one video, as its published files are; frames count from ``first``."""
    folder = out / "video" / key
    folder.mkdir(parents=True)
    writer = MaskWriter(folder / "masks.parquet")
    numbers = first + np.arange(len(labels))
    for item, frame in enumerate(labels):
        tracks = np.unique(frame)
        masks = [coco_mask.encode(np.asfortranarray(frame == t, np.uint8)) for t in tracks]
        classes = np.array([CLASS_OF[int(t)] for t in tracks], np.uint16)
        rows = MaskColumns(
            np.full(len(tracks), item), tracks.astype(np.int32), classes,
            np.full(len(tracks), 0.9, np.float32), np.array([coco_mask.toBbox(m) for m in masks], np.int32),
            np.array([coco_mask.area(m) for m in masks], np.int64), pa.array([m["counts"].decode() for m in masks]),
        )  # fmt: skip
        shape = (frame.shape[0], frame.shape[1])
        table = mask_table(rows, classes, ClassNames(TABLE), numbers, numbers, numbers / 24.0, shape)
        writer.add(table, rows.items)
    writer.close()
    (out / layout.CLASSES).write_text(json.dumps(TABLE.to_json()))
    for part, content in (("plan", {"kind": "video"}), ("results", {})):
        (out / "_state" / part).mkdir(parents=True)
        (out / "_state" / part / f"{key}.json").write_text(json.dumps(content))
    (out / layout.SUCCESS).write_text("{}")
    return out


def test_perfect_tracks(tmp_path: Path) -> None:
    """A run against itself, as a run and as its table of masks: every figure is 100."""
    out = _write_run(tmp_path / "out", _video())
    (table,) = out.glob("video/*/masks.parquet")
    for result in (_eval(out, out), _eval(out, table, labels=str(out / layout.CLASSES))):
        assert result.video is not None
        vpq, stq = result.video
        assert (vpq.all, vpq.things, vpq.stuff, stq.stq, result.instances.ap) == (1, 1, 1, 1, 1)
        assert sorted(vpq.windows) == [1, 2, 4, 6]
        assert stq.tracks == 1


def _broken(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The car gets another id in the last third."""
    found = labels.copy()
    late = found[4:]
    late[late == CAR] = OTHER
    return found


def test_label_frames_and_youtube_vis(tmp_path: Path) -> None:
    """A track broken after 4 of 6 frames: AQ 5/9, tube PQ by hand, the same from frames, divisors and YouTube-VIS."""
    labels = _video()
    out = _write_run(tmp_path / "out", _broken(labels))
    frames, coded, vis = tmp_path / "frames", tmp_path / "coded", tmp_path / "vis.json"
    frames.mkdir()
    coded.mkdir()
    tracks = []
    for t, frame in enumerate(labels):
        car = frame == CAR
        Image.fromarray(np.where(car, 7, 0).astype(np.uint8)).save(frames / f"{t:04d}.png")
        values = np.where(car, 1000 + 7, 2000).astype(np.uint16)
        Image.fromarray(values).save(coded / f"frame{t}.png")
        code = coco_mask.encode(np.asfortranarray(car, np.uint8))
        tracks.append({"size": code["size"], "counts": code["counts"].decode()})
    document = {
        "videos": [{"id": 1, "height": 8, "width": 20, "file_names": [f"clip/{t}.jpg" for t in range(6)]}],
        "categories": [{"id": 5, "name": "car"}],
        "annotations": [{"id": 1, "video_id": 1, "category_id": 5, "iscrowd": 0, "segmentations": tracks}],
    }
    vis.write_text(json.dumps(document))
    (tmp_path / "table.json").write_text(json.dumps(TABLE.to_json()))
    results = [
        _eval(out, frames, class_name="car"),
        _eval(out, vis),
        _eval(out, coded, labels=str(tmp_path / "table.json"), divisor=1000),
    ]
    for result in results:
        assert result.video is not None
        vpq, stq = result.video
        assert stq.aq == pytest.approx((4 / 6) ** 2 + (2 / 6) ** 2)
        assert vpq.windows[1].things.pq == 1.0
        assert vpq.windows[6].things.pq == pytest.approx((4 / 6) / 1.5)
        assert result.panoptic.things.pq == pytest.approx((4 / 6) / 1.5)  # of whole tracks
    road = results[2].video
    assert road is not None
    assert road[0].stuff == 1.0


def test_frames_that_one_side_lacks_are_not_compared(tmp_path: Path) -> None:
    """A run that starts at frame 2 is compared on frames 2 to 5; without a common frame, exit 2."""
    labels = _video()
    whole = _write_run(tmp_path / "whole", labels)
    late = _write_run(tmp_path / "late", labels[2:], first=2)
    result = _eval(late, whole)
    assert result.pixels == 4 * 8 * 20
    assert any("only the ground truth has were left out" in note for note in result.notes)
    assert result.video is not None
    assert result.video[0].all == 1.0
    assert sorted(result.video[0].windows) == [1, 2, 4]
    compared = compare(str(whole), str(late), Console(quiet=True))
    assert any("only one of the two runs has were left out" in note for note in compared.notes)
    other = _write_run(tmp_path / "other", labels, first=100)
    with pytest.raises(JobError, match="no frame in common"):
        _eval(other, whole)


def test_youtube_vis_of_every_nth_frame_is_compared_in_its_place(tmp_path: Path) -> None:
    """``frame_numbers``, which our export writes, says which frames of the file a document holds."""
    labels = _video()
    out = _write_run(tmp_path / "out", labels)
    tracks = []
    for frame in (0, 2, 4):
        code = coco_mask.encode(np.asfortranarray(labels[frame] == CAR, np.uint8))
        tracks.append({"size": code["size"], "counts": code["counts"].decode()})
    video = {"id": 1, "height": 8, "width": 20, "file_names": [f"clip/{t}" for t in (0, 2, 4)]}
    document = {
        "videos": [{**video, "frame_numbers": [0, 2, 4]}],
        "categories": [{"id": 5, "name": "car"}],
        "annotations": [{"id": 1, "video_id": 1, "category_id": 5, "iscrowd": 0, "segmentations": tracks}],
    }
    vis = tmp_path / "vis.json"
    vis.write_text(json.dumps(document))
    result = _eval(out, vis)
    assert result.pixels == 3 * 8 * 20
    assert result.panoptic.things.pq == 1.0
    assert any("only the result has" in note for note in result.notes)
    document["videos"] = [{**video, "frame_numbers": [0, 4, 2]}]
    vis.write_text(json.dumps(document))
    with pytest.raises(JobError, match="frame_numbers must ascend"):
        _eval(out, vis)


def _vis(mask: object, *, frames: int = 1, width: int = 20, category: int = 5) -> str:
    """A YouTube-VIS document with one car, the same mask in each of ``frames``."""
    return json.dumps(
        {
            "videos": [
                {"id": 1, "height": 8, "width": width, "file_names": [f"clip/{t}" for t in range(frames)]}
            ],
            "categories": [{"id": 5, "name": "car"}],
            "annotations": [
                {"id": 9, "video_id": 1, "category_id": category, "segmentations": [mask] * frames}
            ],
        }
    )


def test_youtube_vis_masks_in_every_form(tmp_path: Path) -> None:
    """Run-length codes as text and as counts, and polygons, are the same mask."""
    labels = np.full((1, 8, 20), ROAD)
    labels[0, 2:6, 3:9] = CAR
    out, vis = _write_run(tmp_path / "out", labels), tmp_path / "vis.json"
    code = coco_mask.encode(np.asfortranarray(labels[0] == CAR, np.uint8))
    starts = np.flatnonzero(np.diff((labels[0] == CAR).ravel(order="F"), prepend=False))
    counts = np.diff(starts, prepend=0, append=160).tolist()
    for mask in (
        {"size": [8, 20], "counts": code["counts"].decode()},
        {"size": [8, 20], "counts": counts},
        [[3, 2, 9, 2, 9, 6, 3, 6]],
        [[3, 2, 9, 2, 9, 4, 3, 4], [3, 4, 9, 4, 9, 6, 3, 6]],
    ):
        vis.write_text(_vis(mask))
        result = _eval(out, vis)
        assert result.panoptic.things.pq == 1.0, mask


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        ({"size": [8, 21], "counts": [168]}, "8x21 pixels, the video 8x20"),
        ({"size": [8, 20], "counts": [5, 5]}, "sum to 10, not to 160"),
        ({"size": [8, 20], "counts": [-5, 165]}, "annotation 9 in frame 0"),
        ({"size": [8, 20], "counts": "zz@@"}, "annotation 9 in frame 0"),
        ({"size": [8, 20]}, "'counts'"),
        ({"size": [], "counts": [160]}, "annotation 9 in frame 0"),
        ([[1, 2, 3]], "even number of coordinates"),
        ([3], "annotation 9 in frame 0"),
        ("text", "annotation 9 in frame 0"),
    ],
)
def test_youtube_vis_masks_that_cannot_be_used(tmp_path: Path, mask: object, sentence: str) -> None:
    """Exit 2 and a sentence that names the annotation and the frame."""
    out, vis = _write_run(tmp_path / "out", _video()), tmp_path / "vis.json"
    vis.write_text(_vis(mask))
    with pytest.raises(JobError, match=sentence):
        _eval(out, vis)


def test_youtube_vis_documents_that_cannot_be_used(tmp_path: Path) -> None:
    """Frames too large for any memory, and a category that is not there, are refused before anything is compared."""
    out, vis = _write_run(tmp_path / "out", _video()), tmp_path / "vis.json"
    vis.write_text(_vis(None, width=10**12))
    with pytest.raises(JobError, match="frames of 8x1000000000000"):
        _eval(out, vis)
    vis.write_text(_vis(None, category=6))
    with pytest.raises(JobError, match="names no category 6"):
        _eval(out, vis)


def test_compare_two_runs_over_a_video(tmp_path: Path) -> None:
    """A broken track: the long part matches its whole, the rest appeared; places on the ground are refused."""
    old = _write_run(tmp_path / "old", _video())
    new = _write_run(tmp_path / "new", _broken(_video()))
    result = compare(str(old), str(new), Console(quiet=True))
    assert result.changes["old"]["split"] == 1
    assert result.things("new") == 2
    assert result.ratio == 2.0
    with pytest.raises(JobError, match="no place on the ground"):
        compare(str(old), str(new), Console(quiet=True), geojson=str(tmp_path / "x.geojson"))


def test_videos_of_one_name_are_not_mixed_up(tmp_path: Path) -> None:
    """Two cameras whose files have one name: each is compared with itself, as the truth too; where no file is the same,
    the name alone is no answer."""
    keys = ("clip-0000000001", "clip-0000000002")
    sides = {}
    for side, shown in (
        ("old", keys),
        ("new", keys[::-1]),
        ("moved", ("clip-000000000a", "clip-000000000b")),
    ):
        for key in shown:
            labels = _video() if key in (keys[0], "clip-000000000a") else np.flip(_video(), 2).copy()
            sides[side] = tmp_path / side
            _write_run(sides[side] / key, labels, key=key)
        folders = [sides[side] / key for key in shown]
        for part in ("video", "_state/plan", "_state/results"):
            (sides[side] / part).mkdir(parents=True)
            for folder in folders:
                for found in (folder / part).iterdir():
                    found.rename(sides[side] / part / found.name)
        for name in (layout.CLASSES, layout.SUCCESS):
            (folders[0] / name).rename(sides[side] / name)
    assert compare(str(sides["old"]), str(sides["new"]), Console(quiet=True)).panoptic.all.pq == 1.0
    assert _eval(sides["old"], sides["new"]).panoptic.all.pq == 1.0
    for judge in (
        lambda: compare(str(sides["old"]), str(sides["moved"]), Console(quiet=True)),
        lambda: _eval(sides["old"], sides["moved"]),
    ):
        with pytest.raises(JobError, match="Several inputs are called clip"):
            judge()


def test_options_that_mean_nothing_for_videos(tmp_path: Path) -> None:
    """A window, polygons and label frames of several classes without a divisor are refused."""
    out = _write_run(tmp_path / "out", _video())
    with pytest.raises(JobError, match="videos are compared whole"):
        evaluate(str(out), EvalOptions(TruthOptions(str(out)), window="0,0,2,2"), Console(quiet=True))
    (tmp_path / "frames").mkdir()
    with pytest.raises(JobError, match="--divisor"):
        _eval(out, tmp_path / "frames", labels=str(out / layout.CLASSES))
    with pytest.raises(JobError, match="holds no label rasters"):
        _eval(out, tmp_path / "frames", class_name="car")
    text = CliRunner().invoke(app, ["eval", str(out), "--gt", str(out)])
    assert "VPQ      100.00" in text.stdout
    assert "STQ      100.00" in text.stdout
