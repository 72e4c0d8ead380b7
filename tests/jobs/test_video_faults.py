"""Videos under fire: broken files, frames that fail, kills at named places. What is good is published, the rest is said."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.jobs.kill_loop import Job, kill_loop, s3_bucket
from tests.jobs.kill_loop import tree as published_tree
from tests.pipeline.moving_worlds import (
    TABLE,
    MovingWorld,
    expected_ids,
    make_world,
    same_partition,
    write_video,
)
from tests.pipeline.video_flow import finish, plan_video, published_maps, run_units, video_of, write_truth

from panoptile.jobs.console import Console
from panoptile.jobs.exits import Exit, JobError
from panoptile.jobs.prepare import prepare
from panoptile.jobs.segment import run_job
from panoptile.jobs.spec import JobSpec
from panoptile.model.panoptic_map import PanopticMap
from panoptile.pipeline.attempt import Attempt
from panoptile.pipeline.layout import plan_key
from panoptile.pipeline.replica import TileBatch
from panoptile.pipeline.store import open_store
from panoptile.pipeline.video_echo import VideoEchoFactory, VideoEchoReplica
from panoptile.pipeline.video_link import VideoFragments
from panoptile.pipeline.worker import Worker, WorkerSpec


def _faststart(world: MovingWorld, path: Path) -> bytes:
    """The world as an MP4 whose index comes first, so that a cut file still opens."""
    plain = path.with_suffix(".plain.mp4")
    write_video(world, plain, gop=10)
    with av.open(str(plain)) as source, av.open(str(path), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return path.read_bytes()


def test_a_truncated_video_gives_its_good_frames(tmp_path: Path) -> None:
    """Frames before the cut are published at their own times with the right masks; the rest is on record; no frame is
    shown twice."""
    world = make_world(41, hide_s=0.4)
    path = tmp_path / "cut.mp4"
    data = _faststart(world, path)
    path.write_bytes(data[: len(data) * 2 // 3])
    plan = plan_video(path, 8)
    store = run_units(tmp_path / "out", plan, write_truth(world, tmp_path))
    finished = finish(store, plan)
    maps, numbers = published_maps(tmp_path / "out", plan)
    assert 5 < len(numbers) < 40
    assert len(set(numbers.tolist())) == len(numbers)
    assert same_partition(expected_ids(world, numbers, 1.0), maps)[1] == []
    frames = pq.read_table(tmp_path / "out" / "video" / plan.key / "frames.parquet").to_pylist()
    lost = [f for f in frames if f["status"] == "lost"]
    assert finished.empty_tiles == len(lost)
    assert len(numbers) + len(lost) == len(frames)
    assert lost or plan.info.index.problems
    assert all(f["reason"] for f in lost)


def test_flipped_bytes_are_told_frame_by_frame(tmp_path: Path) -> None:
    """Bytes overwritten in the middle of a file: the run ends well, frames that the decoder calls broken are marked,
    and frames before the damage are done."""
    world = make_world(42)
    path = tmp_path / "flipped.mp4"
    data = bytearray(_faststart(world, path))
    middle = len(data) // 2
    data[middle : middle + 300] = bytes(np.random.default_rng(0).integers(0, 256, 300, dtype=np.uint8))
    path.write_bytes(data)
    plan = plan_video(path, 8)
    finish(run_units(tmp_path / "out", plan, write_truth(world, tmp_path)), plan)
    frames = pq.read_table(tmp_path / "out" / "video" / plan.key / "frames.parquet").to_pylist()
    by_status = {
        s: [f["frame"] for f in frames if f["status"] == s] for s in ("done", "damaged", "lost", "failed")
    }
    assert by_status["failed"] == []
    assert len(by_status["done"]) >= 10
    assert by_status["damaged"] or by_status["lost"]
    assert all(f["reason"] for f in frames if f["status"] != "done")
    masks = pq.read_table(tmp_path / "out" / "video" / plan.key / "masks.parquet").to_pandas()
    assert (masks.groupby("frame").area.sum() == world.labels[0].size).all()
    assert set(masks.frame) == {*by_status["done"], *by_status["damaged"]}


@dataclasses.dataclass(frozen=True)
class _Choking:
    """An echo that fails on some frames, whatever else is in the batch."""

    echo: VideoEchoFactory
    on: frozenset[int]

    def __call__(self) -> _ChokingReplica:
        return _ChokingReplica(self)


class _ChokingReplica(VideoEchoReplica):
    def __init__(self, factory: _Choking) -> None:
        super().__init__(factory.echo)
        self._on = factory.on

    def segment(self, batch: TileBatch) -> Sequence[PanopticMap]:
        bad = [frame.number for frame in batch.frames if frame.number in self._on]
        if bad:
            raise RuntimeError(f"choked on frame {bad[0]}")
        return super().segment(batch)


def test_frames_that_fail_are_left_out_and_tracks_go_on(tmp_path: Path) -> None:
    """A frame that the model cannot do is failed, its neighbours are done, also in its batch; overlaps over the gap
    are not invented, and tracks keep their ids."""
    world = make_world(43, hide_s=0.3)
    bad = frozenset({5, 6, 17})
    plan = plan_video(video_of(world, tmp_path), 10)
    store = open_store(tmp_path / "out")
    store.put_bytes(plan_key(plan.key), plan.to_json())
    worker = Worker(WorkerSpec(str(tmp_path / "out"), _Choking(write_truth(world, tmp_path), bad), batch=4))
    try:
        for unit in plan.units():
            worker.run(Attempt(unit, tolerant=True))
    finally:
        worker.close()
    finished = finish(store, plan)
    assert finished.failed_tiles == len(bad)
    maps, numbers = published_maps(tmp_path / "out", plan)
    assert set(range(40)) - set(numbers.tolist()) == bad
    assert same_partition(expected_ids(world, numbers, 1.0), maps)[1] == []
    with_overlap = {
        frame.item
        for _, fragment in VideoFragments(store, plan)
        if fragment is not None
        for frame, segments in fragment.segments()
        if segments.overlap is not None
    }
    assert not with_overlap & {5, 6, 7, 17, 18}


def test_videos_that_cannot_be_opened_are_refused_or_left_out(tmp_path: Path) -> None:
    """An empty file, a text, a playlist and a file cut before its index, all named .mp4: exit 2 names each; with
    --skip-invalid the good video is done, and the exit code is 3."""
    world = make_world(44, frames=12)
    good = video_of(world, tmp_path / "good")
    bad = {
        "empty.mp4": b"",
        "text.mp4": b"not a video\n" * 50,
        "playlist.mp4": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        "cut.mp4": good.read_bytes()[:200],
    }
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
    echo = write_truth(world, tmp_path)
    table = tmp_path / "table.json"
    table.write_text(json.dumps(TABLE.to_json()))
    spec = JobSpec(
        (str(good), *(str(tmp_path / name) for name in bad)),
        "memory://video-poison",
        model=f"echo:{echo.labels_path},{echo.classes_path}",
        labels=str(table),
        local=True,
        workers=1,
        max_failures="4",
    )
    with pytest.raises(JobError) as refused:
        prepare(spec)
    assert refused.value.code is Exit.INVALID
    assert all(name in str(refused.value) for name in bad)
    summary = run_job(prepare(dataclasses.replace(spec, skip_invalid=True)), Console(quiet=True))
    assert summary.exit is Exit.QUARANTINED
    (done,) = summary.inputs
    assert done.plan.uri == str(good)
    assert done.segments == len(np.unique(world.labels)) - 1


def _kill(job: Job, place: str, kills: int, ray_kills: int = 0) -> None:
    """Kill so often under ``place``; nothing may be lost, doubled or torn."""
    figures = kill_loop(job, {place: kills}, 10, seed=4, ray_kills=ray_kills)
    print(json.dumps(figures.to_json(), indent=1))
    assert figures.problems == []
    assert (figures.lost, figures.doubled, figures.torn) == (0, 0, 0)
    assert figures.killed == kills + ray_kills


def _video_job(source: str, echo: VideoEchoFactory, folder: Path) -> Job:
    """The video at ``source``, and the published tree of a calm run over it."""
    table = folder / "table.json"
    table.write_text(json.dumps(TABLE.to_json()))
    model = f"echo:{echo.labels_path},{echo.classes_path}"
    out = f"memory://calm-{folder.name}"
    run_job(
        prepare(JobSpec((source,), out, model=model, labels=str(table), local=True, workers=1)),
        Console(quiet=True),
    )
    return Job(
        (source, "--model", model, "--labels", str(table), "--workers", "1"),
        {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"},
        published_tree(open_store(out)),
    )


@pytest.mark.slow
def test_kills_on_a_video(tmp_path: Path) -> None:
    """Drivers and workers of a video job are killed at named places and random times, with Ray and without: lost 0,
    doubled 0, torn 0, the bytes of a calm run."""
    world = make_world(45, frames=130, hide_s=0.4)
    path, echo = video_of(world, tmp_path), write_truth(world, tmp_path)
    _kill(_video_job(str(path), echo, tmp_path), str(tmp_path / "runs"), 10, ray_kills=3)


@pytest.mark.slow
def test_kills_on_a_video_in_an_object_store(tmp_path: Path) -> None:
    """The same with source and OUT on S3: what a killed run has done is found again, not done again."""
    world = make_world(46, frames=130, hide_s=0.4)
    path, echo = video_of(world, tmp_path), write_truth(world, tmp_path)
    with s3_bucket() as bucket:
        open_store(f"{bucket}/in").put_bytes("clip.mp4", path.read_bytes())
        _kill(_video_job(f"{bucket}/in/clip.mp4", echo, tmp_path), f"{bucket}/runs", 7)
