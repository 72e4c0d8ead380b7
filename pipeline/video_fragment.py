"""What a unit of frames leaves in the store: masks as COCO codes, a table of segments, overlaps in time. Immutable.

The codes are the label maps, losslessly, and what is published in the end: no later pass has to look at pixels but
for the one pair of frames at a unit's border, whose small grey views are kept for that. Segments of a frame are numbered
1…n by their first pixels in scan order, so nothing depends on the order of a network's queries. Embeddings are half
precision.

Letters: N segments of a frame, P of the frame before, C channels, Q queries, K classes.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from panoptile.model.classes import ClassTable
from panoptile.model.panoptic_map import PanopticMap, QueryStates
from panoptile.pipeline.camera_motion import NO_SHIFT, moved_iou, picture_shift, view_step
from panoptile.pipeline.frame_segments import HISTOGRAM_BINS, FrameLook
from panoptile.pipeline.label_runs import LabelRuns, coded_labels, common_pixels

FrameStatus = Literal["done", "damaged", "lost"]
"""``damaged``: the decoder met an error in it or in a frame that it builds on; ``lost``: it delivered none."""

_ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # a fixed time, or equal content would have other bytes each time


@dataclass(frozen=True, slots=True, eq=False)
class SegmentRows:
    """Segments of one or more frames in columns; class 0 is void, which has a row wherever it has pixels."""

    class_ids: NDArray[np.uint16]
    scores: NDArray[np.float32]
    areas: NDArray[np.int64]
    boxes_xywh: NDArray[np.int32]
    """(N, 4)"""
    queries: NDArray[np.int32]
    """-1 where no single query is behind the segment."""
    embeddings: NDArray[np.float16]
    """(N, C); C may be 0."""
    texts: list[str]
    """COCO ``counts`` over the whole frame."""

    def __len__(self) -> int:
        return len(self.class_ids)


@dataclass(frozen=True, slots=True, eq=False)
class PackedFrame:
    """One frame's part of a fragment: what a worker holds until the unit is done."""

    item: int
    status: FrameStatus
    reason: str
    """Of a frame that is damaged or lost."""
    pixels: int
    queries_used: int
    rows: SegmentRows | None
    """None for a lost frame."""
    local_ids: NDArray[np.int64] | None
    """Row of each of the replica's own segment numbers, from 1; 0 for those without pixels."""
    overlap: NDArray[np.int64] | None
    """(P', N') common pixels in the replica's own numbers; None where the frame before was not seen with this one."""
    moved_iou: NDArray[np.float32] | None
    """(P', N') IoU, the frame before moved as the whole picture has; None where the picture stands still."""
    look: FrameLook | None
    states: QueryStates | None = None

    @property
    def segments(self) -> int:
        return 0 if self.rows is None else int(np.count_nonzero(self.rows.class_ids))

    @property
    def is_empty(self) -> bool:
        return self.rows is None


def lost_frame(item: int, reason: str) -> PackedFrame:
    """The part of a frame that could not be decoded."""
    return PackedFrame(item, "lost", reason, 0, 0, None, None, None, None, None)


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """One frame as the worker saw it."""

    panoptic: PanopticMap
    """The map as the network saw the frame, perhaps padded, perhaps smaller than the frame."""
    look: FrameLook


def pack_frame(
    item: int,
    seen: Seen,
    before: Seen | None,
    shape: tuple[int, int],
    classes: ClassTable,
    reason: str = "",
) -> PackedFrame:
    """Cut a replica's map into what linking and publishing need.

    Args:
        before: the frame before; None where it is not at hand.
        shape: (height, width) of the frame: the codes are made at this size.
        reason: what was wrong with the frame where it is damaged; empty: nothing.
    """
    panoptic = seen.panoptic
    labels = fitted(panoptic.labels, shape)
    runs, n = LabelRuns.of(labels), len(panoptic.label_ids)
    if runs.ids.min() < 0 or runs.ids.max() > n:
        raise ValueError(f"The replica's map names segments outside its table of {n} rows.")
    if n and not 0 <= panoptic.label_ids.min() <= panoptic.label_ids.max() < len(classes):
        raise ValueError(
            f"The replica names class {panoptic.label_ids.max()}, but there are {len(classes)} classes."
        )
    overlap, iou = None, None
    if before is not None:
        earlier, p = fitted(before.panoptic.labels, shape), len(before.panoptic.label_ids)
        overlap = common_pixels(LabelRuns.of(earlier), runs, p, n)
        shift = picture_shift(before.look.view, seen.look.view, view_step(*shape))
        if shift != NO_SHIFT:
            iou = moved_iou(earlier, runs, p, n, shift)
    first = runs.first_pixels(n)
    first[0] = -1
    order = np.argsort(np.where(first < 0, labels.size, first), kind="stable")[: np.count_nonzero(first >= 0)]
    local_ids = np.zeros(n + 1, np.int64)
    local_ids[order] = np.arange(1, len(order) + 1)
    return PackedFrame(
        item,
        "damaged" if reason else "done",
        reason,
        labels.size,
        panoptic.queries_used,
        _rows(panoptic, labels, runs, order),
        local_ids[1:],
        overlap,
        iou,
        seen.look,
        panoptic.states,
    )


def fitted(labels: NDArray[np.int32], shape: tuple[int, int]) -> NDArray[np.int32]:
    """A map at the frame's ``shape``: a larger map is padded and is cropped, a smaller one enlarged (nearest)."""
    height, width = shape
    if labels.shape[0] >= height and labels.shape[1] >= width:
        return labels[:height, :width]
    rows = (np.arange(height) * 2 + 1) * labels.shape[0] // (2 * height)
    cols = (np.arange(width) * 2 + 1) * labels.shape[1] // (2 * width)
    enlarged: NDArray[np.int32] = labels[rows[:, None], cols[None]]
    return enlarged


def _rows(
    panoptic: PanopticMap, labels: NDArray[np.int32], runs: LabelRuns, order: NDArray[np.int64]
) -> SegmentRows:
    """Rows of the segments in ``order`` (the replica's numbers), then of void where it has pixels."""
    n = len(panoptic.label_ids)
    areas, coded = runs.areas(n), coded_labels(labels, runs, n)
    chosen = np.append(order, 0) if areas[0] else order
    of_map = np.maximum(chosen - 1, 0)
    void = chosen == 0

    def column(values: NDArray[Any], missing: int) -> NDArray[Any]:
        if n == 0:
            return np.full(len(chosen), missing, values.dtype)
        return np.where(void, np.asarray(missing, values.dtype), values[of_map])

    queries = panoptic.queries if panoptic.queries is not None else np.full(n, -1, np.int32)
    embeddings = panoptic.embeddings if panoptic.embeddings is not None else np.zeros((n, 0), np.float16)
    kept = np.zeros((len(chosen), embeddings.shape[1]), np.float16)
    kept[~void] = embeddings[chosen[~void] - 1]
    return SegmentRows(
        column((panoptic.label_ids + 1).astype(np.uint16), 0),
        column(panoptic.scores.astype(np.float32), 0),
        areas[chosen],
        coded.boxes_xywh[chosen],
        column(queries.astype(np.int32), -1),
        kept,
        [coded.texts[i] for i in chosen],
    )


# --- bytes ---------------------------------------------------------------------------------------------


def encode_frames(frames: Sequence[PackedFrame], shape: tuple[int, int]) -> bytes:
    """The bytes of a unit's fragment: equal content gives equal bytes."""
    ordered = sorted(frames, key=lambda f: f.item)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "frames.arrow", _frame_table(ordered, shape))
        _add(archive, "segments.arrow", _segment_table(ordered))
        _add(archive, "overlaps.arrow", _overlap_table(ordered))
        _add(archive, "moved.arrow", _moved_table(ordered))
        if any(f.states is not None for f in ordered):
            _add(archive, "states.arrow", _state_table(ordered))
    return buffer.getvalue()


def _frame_table(frames: Sequence[PackedFrame], shape: tuple[int, int]) -> pa.Table:
    items = {f.item for f in frames if f.rows is not None}
    after = {f.item for f in frames if f.overlap is not None and f.item - 1 in items}
    histograms = np.zeros((len(frames), HISTOGRAM_BINS), np.float32)
    for i, f in enumerate(frames):
        if f.look is not None:
            histograms[i] = f.look.histogram
    return pa.table(
        {
            "item": pa.array([f.item for f in frames], pa.int32()),
            "status": pa.array([f.status for f in frames], pa.string()),
            "reason": pa.array([f.reason for f in frames], pa.string()),
            "rows": pa.array([0 if f.rows is None else len(f.rows) for f in frames], pa.int32()),
            "queries_used": pa.array([f.queries_used for f in frames], pa.int32()),
            "has_overlap": pa.array([f.item in after for f in frames]),
            "has_moved": pa.array([f.item in after and f.moved_iou is not None for f in frames]),
            "view": pa.array([_lone_view(f, after) for f in frames], pa.binary()),
            "histogram": pa.FixedSizeListArray.from_arrays(pa.array(histograms.ravel()), HISTOGRAM_BINS),
        },
        metadata={"height": str(shape[0]), "width": str(shape[1])},
    )


def _segment_table(frames: Sequence[PackedFrame]) -> pa.Table:
    rows = [f.rows for f in frames if f.rows is not None]
    channels = max((r.embeddings.shape[1] for r in rows), default=0)
    empty = np.zeros((0, channels), np.float16)
    embeddings = np.concatenate([empty, *(_widened(r.embeddings, channels) for r in rows)])
    boxes = np.concatenate([np.zeros((0, 4), np.int32), *(r.boxes_xywh for r in rows)])

    def joined(name: str, dtype: Any) -> NDArray[Any]:
        return np.concatenate([np.zeros(0, dtype), *(getattr(r, name).astype(dtype) for r in rows)])

    return pa.table(
        {
            "class_id": pa.array(joined("class_ids", np.uint16)),
            "score": pa.array(joined("scores", np.float32)),
            "area": pa.array(joined("areas", np.int32)),
            **{name: pa.array(boxes[:, i]) for i, name in enumerate(("x", "y", "w", "h"))},
            "query": pa.array(joined("queries", np.int32)),
            "counts": pa.array([t for r in rows for t in r.texts], pa.string()),
            "embedding": pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(2 * channels), len(embeddings), [None, pa.py_buffer(embeddings.tobytes())]
            ),
        }
    )


def _widened(embeddings: NDArray[np.float16], channels: int) -> NDArray[np.float16]:
    if embeddings.shape[1] == channels:
        return embeddings
    if embeddings.size:
        raise ValueError(f"Embeddings of one unit have {embeddings.shape[1]} and {channels} channels.")
    return np.zeros((len(embeddings), channels), np.float16)


def _lone_view(frame: PackedFrame, after: set[int]) -> bytes | None:
    """The view of a frame that was not seen together with its neighbours: whoever links them compares it."""
    if frame.look is None or (frame.item in after and frame.item + 1 in after):
        return None
    return frame.look.view.tobytes()


def _overlap_table(frames: Sequence[PackedFrame]) -> pa.Table:
    """Common pixels of rows of successive frames, both numbered in the frame's own rows, from 0."""
    return _pair_table(frames, [f.overlap for f in frames], "pixels", np.dtype(np.int32))


def _moved_table(frames: Sequence[PackedFrame]) -> pa.Table:
    """IoU of rows of successive frames where the picture has moved, numbered likewise."""
    return _pair_table(frames, [f.moved_iou for f in frames], "iou", np.dtype(np.float32))


def _pair_table(
    frames: Sequence[PackedFrame],
    matrices: Sequence[NDArray[Any] | None],
    value: str,
    dtype: np.dtype[Any],
) -> pa.Table:
    """The entries that are not 0 of one matrix (P', N') per frame."""
    by_item = {f.item: f for f in frames}
    types = {
        "item": np.dtype(np.int32),
        "before": np.dtype(np.int32),
        "now": np.dtype(np.int32),
        value: dtype,
    }
    columns: dict[str, list[NDArray[Any]]] = {name: [np.zeros(0, kind)] for name, kind in types.items()}
    for f, matrix in zip(frames, matrices, strict=True):
        earlier = by_item.get(f.item - 1)
        if matrix is None or earlier is None or earlier.local_ids is None or f.local_ids is None:
            continue
        p, n = np.nonzero(matrix)
        before, now = earlier.local_ids[p] - 1, f.local_ids[n] - 1
        order = np.lexsort((now, before))
        found = (np.full(len(p), f.item), before[order], now[order], matrix[p, n][order])
        for (name, kind), column in zip(types.items(), found, strict=True):
            columns[name].append(column.astype(kind))
    return pa.table({name: np.concatenate(parts) for name, parts in columns.items()})


def _state_table(frames: Sequence[PackedFrame]) -> pa.Table:
    kept = [(f.item, f.states) for f in frames if f.states is not None]
    shape = {
        "queries": str(kept[0][1].embeddings.shape[0]),
        "channels": str(kept[0][1].embeddings.shape[1]),
        "logits": str(kept[0][1].logits.shape[1]),
    }
    return pa.table(
        {
            "item": pa.array([item for item, _ in kept], pa.int32()),
            "embeddings": pa.array([s.embeddings.tobytes() for _, s in kept], pa.binary()),
            "logits": pa.array([s.logits.tobytes() for _, s in kept], pa.binary()),
        },
        metadata=shape,
    )


def _add(archive: zipfile.ZipFile, name: str, table: pa.Table) -> None:
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table.combine_chunks())
    archive.writestr(zipfile.ZipInfo(name, _ZIP_TIME), sink.getvalue())
