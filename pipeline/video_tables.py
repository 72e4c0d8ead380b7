"""The three tables of a video: masks (a row per frame and segment), tracks, frames. Their schemas, and reading them.

The areas of the masks of a frame, void with its track id 0 included, sum to the frame's pixels. Codes are COCO's, as
text. Nothing in the files depends on how the video was cut, nor on time: equal results have equal bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from panoptile.model.classes import ClassTable
from panoptile.pipeline.label_runs import decoded_labels
from panoptile.pipeline.parquet_read import open_parquet

ROW_GROUP_FRAMES = 128
"""Frames whose masks share a row group."""
VOID_NAME = "void"

MASKS = pa.schema(
    [
        ("frame", pa.int32()),
        ("pts", pa.int64()),
        ("time_s", pa.float64()),
        ("track_id", pa.int32()),
        ("class_id", pa.uint16()),
        ("class_name", pa.dictionary(pa.int16(), pa.string())),
        ("is_thing", pa.bool_()),
        ("score", pa.float32()),
        ("bbox", pa.list_(pa.float32())),
        ("area", pa.int32()),
        ("rle", pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])),
        ("frame_class_id", pa.uint16()),
    ]
)
"""``class_id`` is the track's by vote, ``frame_class_id`` what the network said of this frame; ``bbox`` is x, y, width,
height."""

TRACKS = pa.schema(
    [
        ("track_id", pa.int32()),
        ("class_id", pa.uint16()),
        ("class_name", pa.string()),
        ("is_thing", pa.bool_()),
        ("first_frame", pa.int32()),
        ("last_frame", pa.int32()),
        ("first_time_s", pa.float64()),
        ("last_time_s", pa.float64()),
        ("n_frames", pa.int32()),
        ("mean_score", pa.float32()),
        ("mean_area", pa.float32()),
        ("confirmed", pa.bool_()),
        ("class_votes", pa.list_(pa.struct([("class_id", pa.uint16()), ("weight", pa.float32())]))),
    ]
)

FRAMES = pa.schema(
    [
        ("frame", pa.int32()),
        ("pts", pa.int64()),
        ("time_s", pa.float64()),
        ("keyframe", pa.bool_()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("n_segments", pa.int32()),
        ("queries_used", pa.int32()),
        ("backend", pa.string()),
        ("backend_reason", pa.string()),
    ]
)
"""``status``: done; damaged (the decoder met an error); lost (it delivered no frame); failed (its unit did not get done)."""


@dataclass(frozen=True, slots=True, eq=False)
class MaskColumns:
    """Rows of ``masks.parquet`` before they become a table."""

    items: NDArray[np.int64]
    """Place of the row's frame among the frames of the run."""
    track_ids: NDArray[np.int32]
    frame_class_ids: NDArray[np.uint16]
    scores: NDArray[np.float32]
    boxes_xywh: NDArray[np.int32]
    areas: NDArray[np.int64]
    texts: pa.Array | pa.ChunkedArray


class ClassNames:
    """Names and kinds by published class id; 0 is void."""

    def __init__(self, classes: ClassTable) -> None:
        self.names = [VOID_NAME, *(c.name for c in classes)]
        self.is_thing = np.array([False, *(c.is_thing for c in classes)])


def mask_table(
    rows: MaskColumns,
    class_ids: NDArray[np.uint16],
    names: ClassNames,
    frames: NDArray[np.int64],
    pts: NDArray[np.int64],
    times_s: NDArray[np.float64],
    shape: tuple[int, int],
) -> pa.Table:
    """Rows as a table; ``class_ids`` (rows,) are the tracks', ``frames``, ``pts`` and ``times_s`` are by item."""
    n = len(rows.items)
    sizes = _lists(np.tile(np.array(shape, np.int32), (n, 1)))
    texts = rows.texts.combine_chunks() if isinstance(rows.texts, pa.ChunkedArray) else rows.texts
    columns = [
        pa.array(frames[rows.items].astype(np.int32)),
        pa.array(pts[rows.items]),
        pa.array(times_s[rows.items]),
        pa.array(rows.track_ids),
        pa.array(class_ids),
        pa.DictionaryArray.from_arrays(pa.array(class_ids.astype(np.int16)), pa.array(names.names)),
        pa.array(names.is_thing[class_ids]),
        pa.array(rows.scores),
        _lists(rows.boxes_xywh.astype(np.float32)),
        pa.array(rows.areas.astype(np.int32)),
        pa.StructArray.from_arrays([sizes, texts], ["size", "counts"]),
        pa.array(rows.frame_class_ids),
    ]
    return pa.Table.from_arrays(columns, schema=MASKS)


def _lists(values: NDArray[np.generic]) -> pa.ListArray:
    """(n, k) values as n lists of k."""
    n, k = values.shape
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * k)
    return pa.ListArray.from_arrays(offsets, pa.array(values.ravel()))


class MaskWriter:
    """Writes ``masks.parquet`` in row groups of ``ROW_GROUP_FRAMES`` frames, however the rows come."""

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, MASKS, compression="zstd")
        self._group = 0
        self._parts: list[pa.Table] = []

    def add(self, table: pa.Table, items: NDArray[np.int64]) -> None:
        """Append rows; ``items`` (rows,) must not decrease, here or from call to call."""
        groups = items // ROW_GROUP_FRAMES
        edges = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(groups)]
        for start, stop in itertools.pairwise(edges):
            if start == stop:
                continue
            if groups[start] != self._group:
                self._flush()
                self._group = int(groups[start])
            self._parts.append(table.slice(start, stop - start))

    def close(self) -> None:
        """Write what is left."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._parts:
            whole = pa.concat_tables(self._parts).combine_chunks()
            self._writer.write_table(whole, row_group_size=len(whole))
            self._parts = []


@dataclass(frozen=True, slots=True, eq=False)
class FrameMasks:
    """The published masks of one frame, void left out, ascending by track."""

    frame: int
    time_s: float
    shape: tuple[int, int]
    track_ids: NDArray[np.int32]
    class_ids: NDArray[np.uint16]
    is_thing: NDArray[np.bool_]
    texts: list[str]

    def labels(self) -> NDArray[np.int32]:
        """(H, W) track ids; 0 is void."""
        return np.append(np.int32(0), self.track_ids)[decoded_labels(self.texts, self.shape)]

    def class_map(self) -> NDArray[np.uint16]:
        """(H, W) class ids; 0 is void."""
        return np.append(np.uint16(0), self.class_ids)[decoded_labels(self.texts, self.shape)]


def read_masks(path: Path, only: Collection[int] | None = None) -> Iterator[FrameMasks]:
    """All frames of a ``masks.parquet``, or those of ``only``; one row group is in memory at a time."""
    wanted = ["frame", "time_s", "track_id", "class_id", "is_thing", "rle"]
    with open_parquet(path) as file:
        for group in range(file.num_row_groups):
            if only is not None and not _may_hold(file.metadata.row_group(group), only):
                continue
            table = file.read_row_group(group, columns=wanted, use_threads=False)
            frames = table["frame"].to_numpy()
            starts = np.flatnonzero(np.diff(frames, prepend=-1)).tolist()
            for start, stop in zip(starts, [*starts[1:], len(frames)], strict=True):
                if only is None or int(frames[start]) in only:
                    yield _frame_masks(table.slice(start, stop - start))


def _may_hold(group: pq.RowGroupMetaData, frames: Collection[int]) -> bool:
    statistics = group.column(0).statistics
    return statistics is None or any(statistics.min <= frame <= statistics.max for frame in frames)


def _frame_masks(table: pa.Table) -> FrameMasks:
    ids = table["track_id"].to_numpy()
    rles = table["rle"].combine_chunks()
    size = rles.field("size")[0].as_py()
    kept = np.flatnonzero(ids)
    texts = rles.field("counts").to_pylist()
    return FrameMasks(
        int(table["frame"][0].as_py()),
        float(table["time_s"][0].as_py()),
        (size[0], size[1]),
        ids[kept].astype(np.int32),
        table["class_id"].to_numpy()[kept],
        table["is_thing"].to_numpy()[kept],
        [texts[i] for i in kept],
    )
