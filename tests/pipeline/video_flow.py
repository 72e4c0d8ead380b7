"""Runs a video from file to published tables inside one process, without the job around it."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tests.pipeline.moving_worlds import TABLE, MovingWorld, write_video

from panoptile.model.classes import ClassTable
from panoptile.pipeline.attempt import Attempt
from panoptile.pipeline.finish import FinishedInput
from panoptile.pipeline.frame_source import choose_backend, select_frames
from panoptile.pipeline.inputs import output_key
from panoptile.pipeline.layout import plan_key
from panoptile.pipeline.replica import ReplicaFactory
from panoptile.pipeline.stitch import NodeFilter
from panoptile.pipeline.store import Store, open_store
from panoptile.pipeline.video_echo import VideoEchoFactory
from panoptile.pipeline.video_finish import VideoProducts, finish_video
from panoptile.pipeline.video_index import index_video
from panoptile.pipeline.video_plan import VideoInfo, VideoPlan
from panoptile.pipeline.video_tables import read_masks
from panoptile.pipeline.worker import Worker, WorkerSpec


def write_truth(world: MovingWorld, folder: Path, noise: float = 0.0) -> VideoEchoFactory:
    """The world's arrays on disk, and an echo of them."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "labels.npy", world.labels)
    np.save(folder / "classes.npy", world.classes)
    return VideoEchoFactory(str(folder / "labels.npy"), str(folder / "classes.npy"), TABLE, noise)


def plan_video(path: Path, unit_frames: int, **selection: float) -> VideoPlan:
    """A plan of a local video with units of about so many frames."""
    index = index_video(str(path))
    key, stem = output_key(str(path))
    info = VideoInfo(str(path), key, stem, index, choose_backend(str(path), index))
    return VideoPlan(info, select_frames(index, **selection), unit_frames)  # type: ignore[arg-type]


def run_units(
    out: Path, plan: VideoPlan, factory: ReplicaFactory, *, order: int = 0, workers: int = 1, batch: int = 1
) -> Store:
    """Segment all units of a plan in a random order, dealt to some workers."""
    store = open_store(out)
    store.put_bytes(plan_key(plan.key), plan.to_json())
    units = list(plan.units())
    random.Random(order).shuffle(units)
    spec = WorkerSpec(str(out), factory, batch)
    for i in range(workers):
        worker = Worker(spec, f"worker-{i}")
        try:
            for unit in units[i::workers]:
                worker.run(Attempt(unit))
        finally:
            worker.close()
    return store


def finish(
    store: Store, plan: VideoPlan, classes: ClassTable = TABLE, products: VideoProducts | None = None
) -> FinishedInput:
    """Link and publish."""
    wanted = products or replace(VideoProducts(), preview=False)
    return finish_video(store, plan, classes, NodeFilter(), wanted)


def published_maps(out: Path, plan: VideoPlan) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """((F, H, W) track ids, (F,) frame numbers) of what was published."""
    frames = list(read_masks(out / "video" / plan.key / "masks.parquet"))
    return np.stack([f.labels() for f in frames]), np.array([f.frame for f in frames])


def video_of(world: MovingWorld, folder: Path, gop: int = 12) -> Path:
    """The world as a file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "clip.mp4"
    write_video(world, path, gop=gop)
    return path
