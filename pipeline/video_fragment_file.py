"""Reads what ``video_fragment.py`` wrote: the frames of a unit, their segments as linking wants them, and all rows.

Tables are read when asked for, and only the columns that are needed: linking never decompresses a mask.

Letters: N segments of a frame, C channels of an embedding, Q queries, K classes.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from panoptile.model.panoptic_map import QueryStates
from panoptile.pipeline.camera_motion import view_step
from panoptile.pipeline.frame_segments import HISTOGRAM_BINS, FrameSegments
from panoptile.pipeline.video_fragment import FrameStatus, SegmentRows


@dataclass(frozen=True, slots=True)
class StoredFrame:
    """What a fragment says of one frame, but for its segments."""

    item: int
    status: FrameStatus
    reason: str
    first_row: int
    """Of the frame's rows in the unit's table."""
    rows: int
    queries_used: int
    has_overlap: bool
    has_moved: bool
    """Whether there are overlaps with the frame before, moved as the whole picture has."""


@dataclass(slots=True)
class VideoFragment:
    """A unit's fragment, opened; tables are read when asked for."""

    frames: list[StoredFrame]
    shape: tuple[int, int]
    _archive: zipfile.ZipFile
    _histograms: NDArray[np.float32]
    _views: dict[int, bytes]
    _cache: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def opened(cls, stream: BinaryIO) -> VideoFragment:
        """Read the list of frames. Raises ``OSError`` or ``ValueError`` for what is no fragment of a video."""
        try:
            archive = zipfile.ZipFile(stream)
            table = _read(archive, "frames.arrow")
        except (zipfile.BadZipFile, KeyError, pa.ArrowInvalid) as e:
            raise ValueError(f"This is no fragment of a video: {e}.") from e
        first = np.concatenate([[0], np.cumsum(table["rows"].to_numpy())]).tolist()
        columns = table.drop_columns(["histogram"]).to_pylist()
        views = {r["item"]: r["view"] for r in columns if r["view"] is not None}
        frames = [
            StoredFrame(
                r["item"],
                r["status"],
                r["reason"],
                first[i],
                r["rows"],
                r["queries_used"],
                r["has_overlap"],
                r["has_moved"],
            )
            for i, r in enumerate(columns)
        ]
        histograms = table["histogram"].combine_chunks().flatten().to_numpy().reshape(-1, HISTOGRAM_BINS)
        metadata: Mapping[bytes, bytes] = table.schema.metadata or {}
        return cls(frames, (int(metadata[b"height"]), int(metadata[b"width"])), archive, histograms, views)

    def segments(self) -> Iterator[tuple[StoredFrame, FrameSegments]]:
        """What linking needs of each frame that was seen, without void; ``time_s`` is 0, the plan knows it."""
        table = self._table("segments.arrow", ("class_id", "score", "area", "query", "embedding"))
        class_ids, scores = table["class_id"].to_numpy(), table["score"].to_numpy()
        areas, queries = table["area"].to_numpy().astype(np.int64), table["query"].to_numpy()
        embeddings = _embeddings(table["embedding"].combine_chunks())
        overlaps, moved = self._pairs("overlaps.arrow", "pixels"), self._pairs("moved.arrow", "iou")
        states = self._states()
        before = 0
        for i, frame in enumerate(self.frames):
            if frame.status == "lost":
                continue
            rows = slice(frame.first_row, frame.first_row + frame.rows)
            n = int(np.count_nonzero(class_ids[rows]))
            rows = slice(frame.first_row, frame.first_row + n)
            yield (
                frame,
                FrameSegments(
                    0.0,
                    class_ids[rows],
                    scores[rows],
                    areas[rows],
                    embeddings[rows],
                    _dense(overlaps.get(frame.item), (before, n), np.int64) if frame.has_overlap else None,
                    self._histograms[i],
                    states.get(frame.item),
                    queries[rows],
                    _dense(moved.get(frame.item), (before, n), np.float32) if frame.has_moved else None,
                ),
            )
            before = n

    def rows(self) -> SegmentRows:
        """All rows of the unit, void too."""
        t = self._table(
            "segments.arrow", ("class_id", "score", "area", "x", "y", "w", "h", "query", "counts")
        )
        boxes = np.stack([t[name].to_numpy() for name in ("x", "y", "w", "h")], axis=1)
        return SegmentRows(
            t["class_id"].to_numpy(),
            t["score"].to_numpy(),
            t["area"].to_numpy().astype(np.int64),
            boxes,
            t["query"].to_numpy(),
            np.zeros((len(t), 0), np.float16),
            t["counts"].to_pylist(),
        )

    def texts(self, frame: StoredFrame) -> list[str]:
        """The codes of the segments of one frame, without void."""
        table = self._table("segments.arrow", ("class_id", "counts")).slice(frame.first_row, frame.rows)
        n = int(np.count_nonzero(table["class_id"].to_numpy()))
        texts: list[str] = table["counts"].slice(0, n).to_pylist()
        return texts

    def view(self, frame: StoredFrame) -> NDArray[np.uint8] | None:
        """The small grey picture of a frame that was not seen together with both its neighbours; else None."""
        data = self._views.get(frame.item)
        step = view_step(*self.shape)
        shape = self.shape[0] // step, self.shape[1] // step
        return None if data is None else np.frombuffer(data, np.uint8).reshape(shape)

    def has_states(self) -> bool:
        return "states.arrow" in self._archive.namelist()

    def close(self) -> None:
        self._archive.close()

    def _table(self, member: str, columns: tuple[str, ...]) -> pa.Table:
        key = f"{member}:{','.join(columns)}"
        if key not in self._cache:
            self._cache[key] = _read(self._archive, member, columns)
        return self._cache[key]

    def _pairs(self, member: str, value: str) -> dict[int, tuple[Any, Any, Any]]:
        table = _read(self._archive, member)
        items, before = table["item"].to_numpy(), table["before"].to_numpy()
        now, values = table["now"].to_numpy(), table[value].to_numpy()
        present, first = np.unique(items, return_index=True)
        ends = np.append(first, len(items))[1:]
        return {
            int(item): (before[a:b], now[a:b], values[a:b])
            for item, a, b in zip(present, first, ends, strict=True)
        }

    def _states(self) -> dict[int, QueryStates]:
        if not self.has_states():
            return {}
        table = _read(self._archive, "states.arrow")
        shape = {k.decode(): int(v) for k, v in (table.schema.metadata or {}).items()}
        return {
            row["item"]: QueryStates(
                np.frombuffer(row["embeddings"], np.float16).reshape(shape["queries"], shape["channels"]),
                np.frombuffer(row["logits"], np.float16).reshape(shape["queries"], shape["logits"]),
            )
            for row in table.to_pylist()
        }


def _dense(
    pairs: tuple[Any, Any, Any] | None, shape: tuple[int, int], dtype: type[np.generic]
) -> NDArray[Any]:
    """(P, N) from (row, column, value) of the pairs that overlap."""
    dense = np.zeros(shape, dtype)
    if pairs is not None:
        before, now, values = pairs
        dense[before, now] = values
    return dense


def _read(archive: zipfile.ZipFile, member: str, columns: tuple[str, ...] = ()) -> pa.Table:
    data = pa.BufferReader(archive.read(member))
    with pa.ipc.open_file(data) as reader:
        if not columns:
            return reader.read_all()
        included = [reader.schema.get_field_index(c) for c in columns]
    with pa.ipc.open_file(data, options=pa.ipc.IpcReadOptions(included_fields=included)) as reader:
        return reader.read_all().select(list(columns))


def _embeddings(column: pa.FixedSizeBinaryArray) -> NDArray[np.float16]:
    """(rows, C)"""
    width = column.type.byte_width
    if width == 0 or len(column) == 0:
        return np.zeros((len(column), width // 2), np.float16)
    data = column.buffers()[1].to_pybytes()[column.offset * width : (column.offset + len(column)) * width]
    return np.frombuffer(data, np.float16).reshape(len(column), width // 2)
