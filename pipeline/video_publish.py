"""The tables of one linked video: fragments and track ids, read once more in time, become three Parquet files.

Masks of one track in one frame (stuff that was not fused) are united, what is filtered out becomes void, and the
areas of a frame always sum to its pixels. No pixel is looked at: codes are passed on as they are, or united.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from panoptile.model.classes import ClassTable
from panoptile.pipeline.label_runs import merged_text
from panoptile.pipeline.stitch import NodeFilter
from panoptile.pipeline.tracks import Tracks
from panoptile.pipeline.video_fragment import SegmentRows
from panoptile.pipeline.video_fragment_file import VideoFragment
from panoptile.pipeline.video_link import LinkedVideo, VideoFragments
from panoptile.pipeline.video_plan import VideoPlan
from panoptile.pipeline.video_tables import (
    FRAMES,
    TRACKS,
    ClassNames,
    MaskColumns,
    MaskWriter,
    mask_table,
)

_ROWS_AT_ONCE = 50_000


@dataclass(frozen=True, slots=True)
class PublishedVideo:
    """Files of one video in a local folder, and what was counted."""

    masks: Path
    tracks: Path
    frames: Path
    summary: TrackSummary
    lost_frames: int
    """Frames that the decoder did not deliver."""
    failed_frames: int
    """Frames whose unit, or they themselves, could not be done."""


def publish_video(
    fragments: VideoFragments,
    linked: LinkedVideo,
    classes: ClassTable,
    keep: NodeFilter,
    min_hits: int,
    scratch: Path,
) -> PublishedVideo:
    """Write ``masks.parquet``, ``tracks.parquet`` and ``frames.parquet`` into the folder ``scratch``.

    ``keep`` filters by the track's class and by the pixels of a mask; things seen in fewer than ``min_hits`` frames
    are not confirmed. Memory is that of one unit's rows and of some numbers a track.
    """
    plan, names = fragments.plan, ClassNames(classes)
    summary = TrackSummary(linked.tracks)
    statuses = _FrameStatuses(plan)
    shape = plan.info.height, plan.info.width
    writer = MaskWriter(scratch / "masks.parquet")
    with linked.ids.open("rb") as ids:
        for _, fragment in fragments:
            if fragment is None:
                continue
            rows = _unit_rows(fragment, ids)
            if len(rows.items):
                rows = _united(_filtered(rows, linked.tracks, keep), shape)
                track_classes = linked.tracks.class_ids[rows.track_ids]
                table = mask_table(rows, track_classes, names, plan.frames, plan.pts, plan.times_s, shape)
                writer.add(table, rows.items)
                summary.add(rows)
            statuses.add(fragment, rows)
    writer.close()
    summary.write(scratch / "tracks.parquet", plan, names, min_hits)
    statuses.write(scratch / "frames.parquet", linked.queries_used)
    return PublishedVideo(
        scratch / "masks.parquet",
        scratch / "tracks.parquet",
        scratch / "frames.parquet",
        summary,
        statuses.count("lost"),
        statuses.count("failed"),
    )


def _unit_rows(fragment: VideoFragment, ids: object) -> MaskColumns:
    """All rows of a unit with their track ids, ordered by frame and track; void has track 0."""
    rows: SegmentRows = fragment.rows()
    track_ids = np.zeros(len(rows), np.int32)
    named = rows.class_ids > 0
    track_ids[named] = np.fromfile(ids, np.int32, int(np.count_nonzero(named)))  # type: ignore[call-overload]
    per_frame = np.array([f.rows for f in fragment.frames], np.int64)
    items = np.repeat(np.array([f.item for f in fragment.frames], np.int64), per_frame)
    order = np.lexsort((track_ids, items))
    return MaskColumns(
        items[order],
        track_ids[order],
        rows.class_ids[order],
        rows.scores[order],
        rows.boxes_xywh[order],
        rows.areas[order],
        pa.array(rows.texts, pa.string()).take(pa.array(order)),
    )


def _filtered(rows: MaskColumns, tracks: Tracks, keep: NodeFilter) -> MaskColumns:
    """What is not wanted becomes void: track 0, united with the void of its frame later on."""
    if keep.class_ids is None and keep.min_area <= 1:
        return rows
    wanted = rows.track_ids > 0
    if keep.class_ids is not None:
        wanted &= np.isin(tracks.class_ids[rows.track_ids], list(keep.class_ids))
    wanted &= rows.areas >= keep.min_area
    track_ids = np.where(wanted, rows.track_ids, 0).astype(np.int32)
    order = np.lexsort((track_ids, rows.items))
    return MaskColumns(
        rows.items,  # already ascending: the order within a frame alone changes
        track_ids[order],
        np.where(wanted, rows.frame_class_ids, 0).astype(np.uint16)[order],
        np.where(wanted, rows.scores, 0).astype(np.float32)[order],
        rows.boxes_xywh[order],
        rows.areas[order],
        rows.texts.take(pa.array(order)),
    )


def _united(rows: MaskColumns, shape: tuple[int, int]) -> MaskColumns:
    """One row per frame and track: masks of the same track in one frame are united."""
    fresh = np.ones(len(rows.items), np.bool_)
    fresh[1:] = (np.diff(rows.items) > 0) | (np.diff(rows.track_ids) > 0)
    if fresh.all():
        return rows
    starts = np.flatnonzero(fresh)
    ends = np.append(starts[1:], len(fresh))
    areas = np.add.reduceat(rows.areas, starts)
    scores = np.add.reduceat(rows.scores.astype(np.float64) * rows.areas, starts) / areas
    low = np.minimum.reduceat(rows.boxes_xywh[:, :2], starts, axis=0)
    high = np.maximum.reduceat(rows.boxes_xywh[:, :2] + rows.boxes_xywh[:, 2:], starts, axis=0)
    texts = rows.texts.take(pa.array(starts)).to_pylist()
    for i in np.flatnonzero(ends - starts > 1):
        texts[i] = merged_text(rows.texts.slice(starts[i], ends[i] - starts[i]).to_pylist(), shape)
    return MaskColumns(
        rows.items[starts],
        rows.track_ids[starts],
        rows.frame_class_ids[starts],
        np.where(ends - starts > 1, scores, rows.scores[starts]).astype(np.float32),
        np.concatenate([low, high - low], axis=1).astype(np.int32),
        areas,
        pa.array(texts, pa.string()),
    )


class TrackSummary:
    """Counts the published masks of each track; about 60 bytes a track."""

    def __init__(self, tracks: Tracks) -> None:
        size = len(tracks.class_ids)
        self._tracks = tracks
        self.frames = np.zeros(size, np.int64)
        self.pixels = np.zeros(size, np.int64)
        self._scores = np.zeros(size)
        self._first = np.full(size, np.iinfo(np.int64).max)
        self._last = np.full(size, -1, np.int64)

    def add(self, rows: MaskColumns) -> None:
        """Count the rows of some frames."""
        named = rows.track_ids > 0
        ids, items = rows.track_ids[named], rows.items[named]
        np.add.at(self.frames, ids, 1)
        np.add.at(self.pixels, ids, rows.areas[named])
        np.add.at(self._scores, ids, rows.scores[named].astype(np.float64))
        np.minimum.at(self._first, ids, items)
        np.maximum.at(self._last, ids, items)

    @property
    def ids(self) -> NDArray[np.int64]:
        """Ids of the published tracks, ascending."""
        return np.flatnonzero(self.frames)

    @property
    def class_ids(self) -> NDArray[np.uint16]:
        """Of each id."""
        return self._tracks.class_ids

    def write(self, path: Path, plan: VideoPlan, names: ClassNames, min_hits: int) -> None:
        """Write ``tracks.parquet``, ascending by id."""
        with pq.ParquetWriter(path, TRACKS, compression="zstd") as writer:
            if not len(self.ids):
                writer.write_table(TRACKS.empty_table())
            for start in range(0, len(self.ids), _ROWS_AT_ONCE):
                table = self._table(self.ids[start : start + _ROWS_AT_ONCE], plan, names, min_hits)
                writer.write_table(table, row_group_size=_ROWS_AT_ONCE)

    def _table(self, ids: NDArray[np.int64], plan: VideoPlan, names: ClassNames, min_hits: int) -> pa.Table:
        class_ids, frames = self.class_ids[ids], self.frames[ids]
        first, last = self._first[ids], self._last[ids]
        is_thing = names.is_thing[class_ids]
        votes = [
            [{"class_id": c, "weight": w} for c, w in self._tracks.votes[track]] for track in ids.tolist()
        ]
        columns = {
            "track_id": ids,
            "class_id": class_ids,
            "class_name": [names.names[c] for c in class_ids],
            "is_thing": is_thing,
            "first_frame": plan.frames[first],
            "last_frame": plan.frames[last],
            "first_time_s": plan.times_s[first],
            "last_time_s": plan.times_s[last],
            "n_frames": frames,
            "mean_score": (self._scores[ids] / frames).astype(np.float32),
            "mean_area": (self.pixels[ids] / frames).astype(np.float32),
            "confirmed": ~is_thing | (self._tracks.hits[ids] >= min_hits),
            "class_votes": votes,
        }
        return pa.Table.from_arrays([pa.array(columns[f.name], f.type) for f in TRACKS], schema=TRACKS)


class _FrameStatuses:
    """What became of each frame of the plan."""

    def __init__(self, plan: VideoPlan) -> None:
        self._plan = plan
        self._status = np.full(len(plan.frames), "failed", object)
        self._reason = np.full(len(plan.frames), "", object)
        self._segments = np.zeros(len(plan.frames), np.int64)

    def add(self, fragment: VideoFragment, rows: MaskColumns) -> None:
        for frame in fragment.frames:
            self._status[frame.item], self._reason[frame.item] = frame.status, frame.reason
        np.add.at(self._segments, rows.items[rows.track_ids > 0], 1)

    def count(self, status: str) -> int:
        return int(np.count_nonzero(self._status == status))

    def write(self, path: Path, queries_used: NDArray[np.int32]) -> None:
        """Write ``frames.parquet``."""
        with pq.ParquetWriter(path, FRAMES, compression="zstd") as writer:
            for rows in self._slices():
                plan, choice = self._plan, self._plan.info.choice
                n = rows.stop - rows.start
                columns = {
                    "frame": plan.frames[rows],
                    "pts": plan.pts[rows],
                    "time_s": plan.times_s[rows],
                    "keyframe": plan.is_key[rows],
                    "status": self._status[rows],
                    "reason": self._reason[rows],
                    "n_segments": self._segments[rows],
                    "queries_used": np.maximum(queries_used[rows], 0),
                    "backend": [choice.backend] * n,
                    "backend_reason": [choice.reason] * n,
                }
                arrays = [pa.array(columns[f.name], f.type) for f in FRAMES]
                writer.write_table(pa.Table.from_arrays(arrays, schema=FRAMES), row_group_size=n)

    def _slices(self) -> Iterator[slice]:
        for start in range(0, len(self._plan.frames), _ROWS_AT_ONCE):
            yield slice(start, min(start + _ROWS_AT_ONCE, len(self._plan.frames)))
