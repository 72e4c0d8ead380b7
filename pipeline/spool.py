"""Finished outlines on disk, readable in Hilbert order: what is sorted in memory is a key a row, never geometry.

A record is a header and every second vertex of each ring (the others follow, because rings turn at every vertex):
a quarter of the size of WKB.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from panoptile.pipeline.polygons import Ints, Outlines, offsets_of, ragged_index

_Word = TypeVar("_Word", np.int32, np.uint32, np.uint64)

_HEADER = 4
"""int32 words: segment id, part, rings, edges."""


class OutlineSpool:
    """Append batches, then read all of them once, sorted along a Hilbert curve; about 40 bytes of memory a row."""

    def __init__(self, path: Path, height: int, width: int) -> None:
        """``height`` and ``width`` are the raster's: the curve fills the square around it."""
        self._path = path
        self._bits = max(1, (2 * max(height, width)).bit_length())
        self._keys: list[NDArray[np.uint64]] = []
        self._ids: list[NDArray[np.uint32]] = []
        self._parts: list[NDArray[np.int32]] = []
        self._sizes: list[NDArray[np.uint32]] = []
        self._file = path.open("wb")
        self.rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    def add(self, outlines: Outlines, parts: NDArray[np.int32]) -> None:
        """Append ``P`` outlines with their part numbers (P,)."""
        if len(outlines) == 0:
            return
        boxes = outlines.boxes().astype(np.uint64)
        self._keys.append(hilbert_keys(boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3], self._bits))
        self._ids.append(outlines.ids)
        self._parts.append(parts)
        words, sizes = _records(outlines, parts)
        self._sizes.append(sizes.astype(np.uint32))
        words.tofile(self._file)
        self.rows += len(outlines)

    def batches(self, max_rows: int, max_bytes: int) -> Iterator[tuple[Outlines, NDArray[np.int32]]]:
        """All rows by (Hilbert key of the box's middle, id, part), in batches of at most so many rows and bytes.

        A batch holds at least one row. Nothing can be added afterwards.
        """
        self._file.flush()
        sizes = _drained(self._sizes, np.uint32)
        starts = offsets_of(4 * sizes.astype(np.int64))
        order = np.lexsort(
            (_drained(self._parts, np.int32), _drained(self._ids, np.uint32), _drained(self._keys, np.uint64))
        )
        with self._path.open("rb", buffering=0) as file:
            at = 0
            while at < len(order):
                stop = at + _fitting(sizes[order[at : at + max_rows]], max_bytes // 4)
                rows = order[at:stop]
                records = [
                    os.pread(file.fileno(), stop_byte - start, start)
                    for start, stop_byte in zip(starts[rows].tolist(), starts[rows + 1].tolist(), strict=True)
                ]
                yield _outlines(np.frombuffer(b"".join(records), np.int32), sizes[rows])
                at = stop


def _drained(chunks: list[NDArray[_Word]], dtype: type[_Word]) -> NDArray[_Word]:
    """All chunks in one array; the list is emptied, so that the peak is one column's."""
    whole = np.concatenate(chunks) if chunks else np.empty(0, dtype)
    chunks.clear()
    return whole


def _fitting(sizes: NDArray[np.uint32], words: int) -> int:
    """How many of the first ``sizes`` fit into ``words``; one at least."""
    return max(1, int(np.searchsorted(np.cumsum(sizes, dtype=np.int64), words, side="right")))


def _records(outlines: Outlines, parts: NDArray[np.int32]) -> tuple[NDArray[np.int32], Ints]:
    """The records of all parts in one array of words, and the words of each (P,)."""
    rings = np.diff(outlines.ring_offsets)
    edges = np.diff(outlines.part_edge_offsets)
    sizes = _HEADER + rings + 2 * edges
    starts = np.cumsum(sizes) - sizes
    words = np.empty(int(sizes.sum()), np.int32)
    words[starts] = outlines.ids.view(np.int32)
    words[starts + 1] = parts
    words[starts + 2] = rings
    words[starts + 3] = edges
    lengths = np.diff(outlines.edge_offsets)
    words[ragged_index(starts + _HEADER, rings)] = np.where(outlines.is_hole, -lengths, lengths)
    words[ragged_index(starts + _HEADER + rings, 2 * edges)] = outlines.starts_xy.ravel()
    return words, sizes


def _outlines(words: NDArray[np.int32], sizes: NDArray[np.uint32]) -> tuple[Outlines, NDArray[np.int32]]:
    """What ``_records`` stored."""
    starts = offsets_of(sizes.astype(np.int64))[:-1]
    rings, edges = words[starts + 2].astype(np.int64), words[starts + 3].astype(np.int64)
    lengths = words[ragged_index(starts + _HEADER, rings)].astype(np.int64)
    xy = words[ragged_index(starts + _HEADER + rings, 2 * edges)].reshape(-1, 2)
    outlines = Outlines(
        words[starts].view(np.uint32), offsets_of(rings), lengths < 0, offsets_of(np.abs(lengths)), xy
    )
    return outlines, words[starts + 1]


def hilbert_keys(x: NDArray[np.uint64], y: NDArray[np.uint64], bits: int) -> NDArray[np.uint64]:
    """Position (n,) along the Hilbert curve of 2^bits x 2^bits cells of the cells (x, y), each (n,).

    One bit of both coordinates a round, from the highest; the rest is turned as its quadrant of the curve is (Hilbert,
    "Ueber die stetige Abbildung einer Linie auf ein Flächenstück", Mathematische Annalen 38, 1891).
    """
    x, y = x.copy(), y.copy()
    keys = np.zeros(len(x), np.uint64)
    for bit in range(bits - 1, -1, -1):
        side, one = np.uint64(1 << bit), np.uint64(1)
        right, lower = (x >> np.uint64(bit)) & one, (y >> np.uint64(bit)) & one
        keys += side * side * ((np.uint64(3) * right) ^ lower)
        x, y = x & (side - one), y & (side - one)
        flip = (lower == 0) & (right == 1)
        x, y = np.where(flip, side - one - x, x), np.where(flip, side - one - y, y)
        swap = lower == 0
        x, y = np.where(swap, y, x), np.where(swap, x, y)
    return keys
