"""Tracks of videos in the formats of other tools: where the files of each video go."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from panoptile.jobs.exits import invalid
from panoptile.jobs.finished_run import FinishedRun, open_run
from panoptile.jobs.new_folder import new_folder
from panoptile.jobs.state import store_errors
from panoptile.pipeline.video_export import write_panoptic_video, write_ytvis

VIDEO_FORMATS = ("coco-panoptic-video", "ytvis")


def export_videos(
    out: str, to: str, output: Path, names: tuple[str, ...], say: Callable[[str], None]
) -> list[str]:
    """Write the videos of a finished run; returns what was written.

    ``output`` becomes a folder: with ``ytvis`` one JSON for each video, named by its key; with ``coco-panoptic-video``
    the dataset of the only video, or a folder with one for each.

    Raises:
        JobError: exit 2 where OUT holds no videos, or ``output`` is there already.
    """
    if names:
        raise invalid(f"--classes does not go with --to {to}: all tracks are written.")
    with tempfile.TemporaryDirectory(prefix="panoptile-") as scratch:
        run = open_run(out, Path(scratch))
        if not run.videos:
            raise invalid(f"{out} holds no videos, which {to} is for: export coco-panoptic or coco.")
        if run.rasters:
            say(f"{len(run.rasters)} rasters are left out: export them as coco-panoptic, coco or gpkg.")
        with store_errors(str(output)), new_folder(output) as folder:
            for key in run.videos:
                _write(run, key, to, folder)
    return [str(output)]


def _write(run: FinishedRun, key: str, to: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="panoptile-") as scratch:
        tables = []
        for name in ("masks", "tracks", "frames"):
            place = Path(scratch) / name
            place.mkdir()
            tables.append(run.store.local_copy(f"video/{key}/{name}.parquet", place))
        masks, tracks, frames = tables
        if to == "ytvis":
            write_ytvis(folder / f"{key}.json", key, masks, tracks, frames, run.classes)
            return
        own = folder if len(run.videos) == 1 else folder / key
        own.mkdir(exist_ok=True)
        try:
            write_panoptic_video(own, key, masks, run.classes)
        except ValueError as e:
            raise invalid(f"{key}: {e}") from e
