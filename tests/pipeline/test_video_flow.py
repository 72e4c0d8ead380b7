"""Videos from file to published tables with an echo of the truth: nothing depends on how the video was cut or run."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco
from tests.pipeline.moving_worlds import TABLE, expected_ids, make_world, same_partition
from tests.pipeline.video_flow import finish, plan_video, published_maps, run_units, video_of, write_truth

from panoptile.pipeline.layout import commit_key
from panoptile.pipeline.link_options import LinkOptions
from panoptile.pipeline.stitch import NodeFilter
from panoptile.pipeline.video_finish import VideoProducts, finish_video
from panoptile.pipeline.video_fragment_file import VideoFragment
from panoptile.pipeline.video_plan import VideoPlan


@settings(max_examples=15, phases=(Phase.explicit, Phase.reuse, Phase.generate))  # shrinking takes minutes
@given(
    seed=st.integers(0, 10_000),
    unit_frames=st.integers(1, 50),
    gop=st.integers(1, 45),
    order=st.integers(0, 1000),
    workers=st.integers(1, 3),
    batch=st.integers(1, 4),
    every=st.sampled_from([None, 2, 3]),
)
def test_tracks_equal_the_truth(
    seed: int, unit_frames: int, gop: int, order: int, workers: int, batch: int, every: int | None
) -> None:
    """Any unit length, key frames, order, workers and batch: objects that hide for less than the age limit keep
    their id, new ones get new ids, no id is used twice, and nothing breaks at a unit's border."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        world = make_world(seed, hide_s=0.7)
        plan = plan_video(
            video_of(world, root, gop), unit_frames, **({} if every is None else {"every": every})
        )
        factory = write_truth(world, root, noise=0.3)
        store = run_units(root / "out", plan, factory, order=order, workers=workers, batch=batch)
        finish(store, plan, products=replace(VideoProducts(link=LinkOptions(max_age=1.0)), preview=False))
        maps, numbers = published_maps(root / "out", plan)
        np.testing.assert_array_equal(numbers, plan.frames)
        _, complaints = same_partition(expected_ids(world, numbers, 1.0), maps)
        assert complaints == []


@pytest.mark.parametrize(
    ("hidden", "max_age", "tracks"), [(8, 1.0, 1), (9, 1.0, 1), (10, 1.0, 2), (3, 0.2, 2)]
)
def test_an_object_keeps_its_id_up_to_the_age_limit(
    tmp_path: Path, hidden: int, max_age: float, tracks: int
) -> None:
    """Hidden for ``hidden`` frames at 10 frames/s, an object comes back with its id if it was unseen for no more than
    the limit, else with a new one."""
    world = make_world(0, objects=1)
    labels, classes = world.labels.copy(), world.classes.copy()
    labels[labels == 1], classes[classes <= 2] = 901, 3
    labels[:, 20:28, 20:28], classes[:, 20:28, 20:28] = 1, 1
    labels[10 : 10 + hidden, 20:28, 20:28], classes[10 : 10 + hidden, 20:28, 20:28] = 901, 3
    world = replace(world, labels=labels, classes=classes)
    plan = plan_video(video_of(world, tmp_path), 7)
    store = run_units(tmp_path / "out", plan, write_truth(world, tmp_path))
    finish(store, plan, products=replace(VideoProducts(link=LinkOptions(max_age=max_age)), preview=False))
    table = pq.read_table(tmp_path / "out" / "video" / plan.key / "tracks.parquet").to_pylist()
    assert sum(row["is_thing"] for row in table) == tracks


def test_published_bytes_do_not_depend_on_how_the_video_was_cut(tmp_path: Path) -> None:
    """Other unit lengths, orders, workers and batches publish the very same files, overlay included."""
    world = make_world(5, hide_s=0.5)
    path, factory = video_of(world, tmp_path), write_truth(world, tmp_path)
    trees = []
    for i, (unit_frames, workers, batch) in enumerate([(40, 1, 1), (7, 2, 3), (1, 1, 2)]):
        plan = plan_video(path, unit_frames)
        store = run_units(tmp_path / str(i), plan, factory, order=i, workers=workers, batch=batch)
        products = VideoProducts(overlay=True, preview=False)
        finished = finish(store, plan, products=products)
        trees.append({a.key: a.sha256 for a in finished.assets})
        on_disk = (tmp_path / str(i) / "video" / plan.key / "masks.parquet").read_bytes()
        assert hashlib.sha256(on_disk).hexdigest() == trees[-1][f"video/{plan.key}/masks.parquet"]
    assert len(trees[0]) == 4
    assert trees[1] == trees[0]
    assert trees[2] == trees[0]


def test_the_tables_say_what_the_maps_say(tmp_path: Path) -> None:
    """Areas of a frame sum to its pixels, void included; boxes, areas and codes agree with pycocotools; tracks count
    their masks; frames name the decoder and their times."""
    world = make_world(8, hide_s=0.4)
    plan = plan_video(video_of(world, tmp_path), 9)
    finish(run_units(tmp_path / "out", plan, write_truth(world, tmp_path)), plan)
    folder = tmp_path / "out" / "video" / plan.key
    masks, tracks, frames = (
        pq.read_table(folder / f"{name}.parquet").to_pylist() for name in ("masks", "tracks", "frames")
    )
    height, width = world.labels.shape[1:]
    by_frame: dict[int, int] = {}
    for row in masks:
        by_frame[row["frame"]] = by_frame.get(row["frame"], 0) + row["area"]
        rle = {"size": row["rle"]["size"], "counts": row["rle"]["counts"].encode()}
        assert row["area"] == coco.area(rle)
        assert row["bbox"] == coco.toBbox(rle).tolist()
        assert (row["track_id"] == 0) == (row["class_name"] == "void")
    assert by_frame == dict.fromkeys(range(40), height * width)
    for track in tracks:
        own = [row for row in masks if row["track_id"] == track["track_id"]]
        assert track["n_frames"] == len(own)
        assert (track["first_frame"], track["last_frame"]) == (own[0]["frame"], own[-1]["frame"])
        assert {row["class_id"] for row in own} == {track["class_id"]}
        assert track["confirmed"] == (not track["is_thing"] or len(own) >= 3)
    assert [f["time_s"] for f in frames] == pytest.approx([i / 10 for i in range(40)])
    assert [f["keyframe"] for f in frames] == [i % 12 == 0 for i in range(40)]
    assert {f["backend"] for f in frames} <= {"decord", "pyav"}
    assert all(f["backend_reason"] for f in frames)
    assert [f["n_segments"] for f in frames] == [
        sum(row["frame"] == i and row["track_id"] > 0 for row in masks) for i in range(40)
    ]


def test_unwanted_classes_and_small_masks_become_void(tmp_path: Path) -> None:
    """A class filter and a smallest area leave the other masks as they were, and areas still sum to the frame."""
    world = make_world(9)
    plan = plan_video(video_of(world, tmp_path), 20)
    store = run_units(tmp_path / "out", plan, write_truth(world, tmp_path))
    keep = NodeFilter(frozenset({1, 3}), 30)
    finish_video(store, plan, TABLE, keep, replace(VideoProducts(), preview=False))
    maps, _ = published_maps(tmp_path / "out", plan)
    areas = pq.read_table(tmp_path / "out" / "video" / plan.key / "masks.parquet").to_pandas()
    assert (areas.groupby("frame").area.sum() == world.labels[0].size).all()
    assert set(areas[areas.track_id > 0].class_id) == {1, 3}
    wanted = np.isin(world.classes, (1, 3))
    for t, frame in enumerate(world.labels):
        ids, counts = np.unique(frame, return_counts=True)
        wanted[t] &= np.isin(frame, ids[counts >= 30])
    np.testing.assert_array_equal(maps > 0, wanted)


def test_a_missing_unit_leaves_a_gap_and_a_record(tmp_path: Path) -> None:
    """Frames of a unit that is not committed have no masks and status failed; tracks go on behind the gap."""
    world = make_world(10)
    plan = plan_video(video_of(world, tmp_path), 8)
    store = run_units(tmp_path / "out", plan, write_truth(world, tmp_path))
    gone = list(plan.units())[1]
    store.delete(commit_key(gone))
    finished = finish(
        store, plan, products=replace(VideoProducts(link=LinkOptions(max_age=5)), preview=False)
    )
    assert finished.missing_units == (gone,)
    maps, numbers = published_maps(tmp_path / "out", plan)
    assert set(range(40)) - set(numbers.tolist()) == set(gone.items)
    _, complaints = same_partition(world.labels[numbers], maps)
    assert complaints == []
    frames = pq.read_table(tmp_path / "out" / "video" / plan.key / "frames.parquet").to_pylist()
    assert {f["frame"] for f in frames if f["status"] == "failed"} == set(gone.items)


def test_frames_in_which_nothing_is_found_are_void(tmp_path: Path) -> None:
    """Empty frames, some in a row, inside units and at their borders, have one row of void; tracks go on behind them."""
    world = make_world(14, frames=24)
    labels, classes = world.labels.copy(), world.classes.copy()
    for t in (0, 5, 6, 11, 12, 23):
        labels[t], classes[t] = 0, 0
    world = replace(world, labels=labels, classes=classes)
    plan = plan_video(video_of(world, tmp_path), 12)
    finish(run_units(tmp_path / "out", plan, write_truth(world, tmp_path)), plan)
    maps, numbers = published_maps(tmp_path / "out", plan)
    assert numbers.tolist() == list(range(24))
    assert same_partition(expected_ids(world, numbers, 1.0), maps)[1] == []


def test_a_damaged_fragment_is_withdrawn(tmp_path: Path) -> None:
    """A fragment that is not what was committed is never published: its commit goes, and the unit is redone."""
    world = make_world(11, frames=16)
    plan = plan_video(video_of(world, tmp_path), 8)
    factory = write_truth(world, tmp_path)
    store = run_units(tmp_path / "out", plan, factory)
    (victim, *_) = sorted((tmp_path / "out" / "_state" / "data").glob("*.frag"))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 0xFF
    victim.write_bytes(data)
    with pytest.raises(ValueError, match="not what was committed"):
        finish(store, plan)
    store = run_units(tmp_path / "out", plan, factory)
    finish(store, plan)
    maps, _ = published_maps(tmp_path / "out", plan)
    assert same_partition(world.labels, maps)[1] == []


def test_a_fragment_is_the_same_for_any_order_of_the_queries(tmp_path: Path) -> None:
    """Segments are numbered by their first pixels and overlaps follow: two shuffles give one fragment's tables."""
    world = make_world(12, frames=6)
    plan = plan_video(video_of(world, tmp_path), 6)
    store = run_units(tmp_path / "out", plan, write_truth(world, tmp_path))
    (unit,) = plan.units()
    (path,) = (tmp_path / "out" / "_state" / "data").glob("*.frag")
    with path.open("rb") as stream:
        fragment = VideoFragment.opened(stream)
        frames = list(fragment.segments())
        texts = [fragment.texts(frame) for frame, _ in frames]
    assert store.exists(commit_key(unit))
    for t, (_, segments) in enumerate(frames):
        first = [int(np.flatnonzero(_decoded(text, world.labels[t].shape).ravel())[0]) for text in texts[t]]
        assert first == sorted(first)
        if t:
            masks = [[_decoded(x, world.labels[t].shape) for x in texts[i]] for i in (t - 1, t)]
            expected = [[int((a & b).sum()) for b in masks[1]] for a in masks[0]]
            np.testing.assert_array_equal(segments.overlap, expected)


def _decoded(text: str, shape: tuple[int, ...]) -> np.ndarray:
    decoded: np.ndarray = coco.decode({"size": list(shape), "counts": text.encode()})
    return decoded.astype(bool)


@given(
    count=st.integers(1, 400), gop=st.integers(1, 300), wanted=st.integers(1, 150), every=st.integers(1, 4)
)
def test_units_cover_the_frames_and_start_at_keys(count: int, gop: int, wanted: int, every: int) -> None:
    """Units cover all frames in order, once; none is longer than 2.5 times what is wanted, none but a lone one is
    shorter than half; where key frames are as near as half a unit, every unit starts at one."""
    from panoptile.pipeline.video_plan import unit_cuts

    frames = np.arange(0, count * every, every)
    keys = np.arange(0, count * every, gop)
    cuts = unit_cuts(frames, keys, wanted)
    assert cuts[0] == 0
    assert cuts[-1] == count
    lengths = np.diff(cuts)
    assert lengths.min() >= min(count, max(1, wanted // 2))
    assert lengths.max() <= max(2.5 * wanted + 1, wanted + 1)
    if every == 1 and gop <= wanted // 2 and len(lengths) > 1:
        assert set(cuts[:-1]) <= set(keys.tolist())


def test_a_plan_travels_as_json(tmp_path: Path) -> None:
    """A plan read back has the same frames, units and bytes, for frames taken at an uneven rate too."""
    world = make_world(13)
    path = video_of(world, tmp_path)
    plan = plan_video(path, 11, fps=7.0, start_s=0.35)
    assert len(set(np.diff(plan.frames).tolist())) == 2
    again = VideoPlan.from_json(plan.to_json())
    np.testing.assert_array_equal(again.frames, plan.frames)
    assert list(again.units()) == list(plan.units())
    assert again.to_json() == plan.to_json()
