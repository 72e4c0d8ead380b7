"""Which sources of a job are videos, and what they hold: the checks of a video before anything starts."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from panoptile.jobs.exits import invalid
from panoptile.jobs.spec import JobSpec
from panoptile.pipeline.frame_source import choose_backend, select_frames
from panoptile.pipeline.inputs import InputError, find_inputs, output_key, together
from panoptile.pipeline.remote_object import is_remote
from panoptile.pipeline.video_inputs import VIDEO_ENDINGS, LocalVideo, find_videos, index_input
from panoptile.pipeline.video_plan import VideoInfo, VideoPlan, default_unit_frames

VIDEO_OPTIONS = (
    "fps", "every", "start", "end", "frame_size", "sequence_fps", "decoder", "all_queries", "overlay",
)  # fmt: skip
RASTER_OPTIONS = (
    "tile",
    "overlap",
    "bands",
    "scale",
    "gsd",
    "nodata",
    "aoi",
    "raster",
    "vector",
    "compression",
    "max_pixels",
    "allow_drivers",
)
_NEGATED = ("raster", "vector")
"""Options that are on by default: a user who asks something of one has written ``--no-…``."""


def split_sources(spec: JobSpec, *, may_be_empty: bool = False) -> tuple[list[str], list[str]]:
    """(rasters, videos) that the sources name. Raises InputError, and ``JobError`` for options without effect.

    ``may_be_empty``: a folder or pattern that names nothing today is no error.
    """
    named = {
        "raster": (spec.sources, ()),
        "video": ((), spec.sources),
        "auto": (
            tuple(s for s in spec.sources if not _names_videos(s)),
            tuple(s for s in spec.sources if _names_videos(s)),
        ),
    }[spec.kind]
    wrong: list[InputError] = []
    rasters, videos = list[str](), list[str]()
    try:
        rasters = _rasters(named[0], spec.kind, may_be_empty) if named[0] else []
    except InputError as e:
        wrong.append(e)
    try:
        videos = find_videos(named[1], may_be_empty=may_be_empty) if named[1] else []
    except InputError as e:
        wrong.append(e)
    if wrong:
        raise together(wrong)
    _refuse_idle_options(spec, rasters or named[0], videos or named[1])
    return rasters, videos


def plan_video(spec: JobSpec, uri: str) -> VideoPlan:
    """Index one video and cut it. Raises InputError, ``OSError`` and ``StoreUnreachable``."""
    with LocalVideo(uri) as local:
        index = index_input(local.path, spec.sequence_fps)
        choice = choose_backend(local.path, index, spec.decoder)
        written_ns = local.written_ns
        if is_remote(uri) or index.container == "images":  # the time is that of a copy, or of one image
            written_ns = written_ns if is_remote(uri) else index.mtime_ns
            index = dataclasses.replace(index, mtime_ns=0)
    frames = select_frames(index, fps=spec.fps, every=spec.every, start_s=spec.start, end_s=spec.end)
    key, stem = output_key(uri)
    return VideoPlan(
        VideoInfo(uri, key, stem, index, choice, local.etag, written_ns),
        frames,
        default_unit_frames(len(frames)),
        spec.frame_size,
    )


def _names_videos(source: str) -> bool:
    return source.lower().endswith(VIDEO_ENDINGS)


def _rasters(sources: Sequence[str], kind: str, may_be_empty: bool) -> list[str]:
    try:
        return find_inputs(sources, may_be_empty=may_be_empty)
    except InputError as e:
        if kind == "auto" and "holds no raster" in str(e):
            gap = "\n" if "\n" in str(e) else " "
            raise InputError(f"{e}{gap}For a folder of videos or of numbered frames add --as video.") from e
        raise


def _refuse_idle_options(spec: JobSpec, rasters: Sequence[str], videos: Sequence[str]) -> None:
    """No option is silently ignored: one that asks something of a kind of input that is not there is an error."""
    for names, there, kind in (
        ((*VIDEO_OPTIONS, *spec.link_fields()), videos, "video"),
        (RASTER_OPTIONS, rasters, "raster"),
    ):
        if there:
            continue
        for name in names:
            if getattr(spec, name) != JobSpec.__dataclass_fields__[name].default:
                flag = f"--{'no-' if name in _NEGATED else ''}{name.replace('_', '-')}"
                raise invalid(
                    f"{flag} asks something of a {kind}, and no source is one: leave it out"
                    + (", or add --as video." if kind == "video" else ".")
                )
    if spec.sequence_fps is not None and not any(os.path.isdir(path) for path in videos):
        raise invalid(
            "--sequence-fps gives the times of a folder of numbered images, and no source is one: leave it out; "
            "--fps chooses frames of a video."
        )
