"""A label map as runs of equal labels: areas, boxes, first pixels, overlaps and COCO codes without a mask per segment.

A map of a few hundred thousand pixels has a few thousand runs, so what is counted on runs costs next to nothing; the
pixels are compared twice, along the rows and along the columns (the order of COCO's codes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from panoptile.pipeline.polygons import offsets_of
from panoptile.pipeline.rle import packed_text


@dataclass(frozen=True, slots=True, eq=False)
class LabelRuns:
    """The runs of one label map in scan order."""

    shape: tuple[int, int]
    starts: NDArray[np.int64]
    """(R,) flat index of the first pixel of each run."""
    ids: NDArray[np.int64]
    """(R,) its label."""

    @classmethod
    def of(cls, labels: NDArray[np.integer]) -> LabelRuns:
        """Runs of ``labels`` (H, W), labels from 0."""
        starts, ids = _runs(labels.ravel())
        return cls((labels.shape[0], labels.shape[1]), starts, ids)

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.starts, append=self.shape[0] * self.shape[1])

    def areas(self, n: int) -> NDArray[np.int64]:
        """(n + 1,) pixels of each label."""
        return np.bincount(self.ids, weights=self.lengths, minlength=n + 1).astype(np.int64)

    def first_pixels(self, n: int) -> NDArray[np.int64]:
        """(n + 1,) flat index of the first pixel of each label; -1 for none."""
        first = np.full(n + 1, -1, np.int64)
        first[self.ids[::-1]] = self.starts[::-1]  # the last assignment wins
        return first

    def renamed(self, table: NDArray[np.int64]) -> LabelRuns:
        """With ``table[id]`` in place of each id; neighbours that become equal stay two runs."""
        return LabelRuns(self.shape, self.starts, table[self.ids])

    def to_labels(self) -> NDArray[np.int64]:
        """The map (H, W)."""
        return np.repeat(self.ids, self.lengths).reshape(self.shape)


def common_pixels(before: LabelRuns, now: LabelRuns, p: int, n: int) -> NDArray[np.int64]:
    """(p, n) pixels that label i + 1 of ``before`` shares with label j + 1 of ``now``."""
    return pair_table(before, now, p, n)[1:, 1:]


def pair_table(before: LabelRuns, now: LabelRuns, p: int, n: int) -> NDArray[np.int64]:
    """(p + 1, n + 1) pixels that each label 0…p of ``before`` shares with each label 0…n of ``now``."""
    if before.shape != now.shape:
        raise ValueError(f"Expected maps of one shape: {before.shape=} {now.shape=}.")
    cuts = np.union1d(before.starts, now.starts)
    a = before.ids[np.searchsorted(before.starts, cuts, side="right") - 1]
    b = now.ids[np.searchsorted(now.starts, cuts, side="right") - 1]
    lengths = np.diff(cuts, append=now.shape[0] * now.shape[1])
    pairs = np.bincount(a * (n + 1) + b, weights=lengths, minlength=(p + 1) * (n + 1))
    return pairs.reshape(p + 1, n + 1).astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class CodedLabels:
    """COCO codes and boxes of the labels 0…n of a map; a label without pixels has an empty text and box."""

    texts: list[str]
    """COCO ``counts`` over the whole map."""
    boxes_xywh: NDArray[np.int32]
    """(n + 1, 4)"""


def coded_labels(labels: NDArray[np.integer], runs: LabelRuns, n: int) -> CodedLabels:
    """Codes of all labels 0…n of ``labels`` (H, W); ``runs`` are its runs along the rows."""
    height, width = runs.shape
    starts, ids = _runs(np.ascontiguousarray(labels.T).ravel())
    ends = np.append(starts[1:], height * width)
    boxes = _boxes(runs, starts, ends, ids, n)
    order = np.argsort(ids, kind="stable")
    per_label = np.bincount(ids, minlength=n + 1)
    switches = np.stack([starts[order], ends[order]], axis=1).ravel()
    per_switch = 2 * per_label
    last = np.cumsum(per_switch) - 1
    present = per_label > 0
    open_end = np.zeros(n + 1, np.bool_)
    open_end[present] = switches[last[present]] < height * width
    stops = np.insert(switches, (last + 1)[open_end], height * width)
    per_count = per_switch + open_end
    counts = np.diff(stops, prepend=0)
    first = (np.cumsum(per_count) - per_count)[present]
    counts[first] = stops[first]
    text, lengths = packed_text(counts, offsets_of(per_count))
    at = offsets_of(lengths)
    whole = text.tobytes().decode("ascii")
    return CodedLabels([whole[at[i] : at[i + 1]] for i in range(n + 1)], boxes)


def _boxes(
    runs: LabelRuns, starts: NDArray[np.int64], ends: NDArray[np.int64], ids: NDArray[np.int64], n: int
) -> NDArray[np.int32]:
    """(n + 1, 4) x, y, width, height, from the runs along the rows and (starts, ends, ids) along the columns."""
    height, width = runs.shape
    low_x, low_y = np.full(n + 1, width, np.int64), np.full(n + 1, height, np.int64)
    high_x, high_y = np.zeros(n + 1, np.int64), np.zeros(n + 1, np.int64)
    np.minimum.at(low_x, ids, starts // height)
    np.maximum.at(high_x, ids, (ends - 1) // height + 1)
    np.minimum.at(low_y, runs.ids, runs.starts // width)
    np.maximum.at(high_y, runs.ids, (runs.starts + runs.lengths - 1) // width + 1)
    boxes = np.stack([low_x, low_y, high_x - low_x, high_y - low_y], axis=1)
    boxes[high_x == 0] = 0
    return boxes.astype(np.int32)


def _runs(flat: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    return starts, flat[starts].astype(np.int64)


def column_runs(texts: Sequence[str], shape: tuple[int, int]) -> LabelRuns:
    """The runs of the map in which label i + 1 is what ``texts[i]`` codes, 0 elsewhere, down its columns.

    The order of COCO's codes, so nothing is drawn: the runs are those of the transposed map (W, H). Two maps in this
    order have the same common pixels as in scan order. The masks must not overlap.
    """
    height, width = shape
    ends_of = [np.cumsum(_counts(text)) for text in texts]
    starts = [ends[: len(ends) // 2 * 2 : 2] for ends in ends_of]
    stops = [ends[1::2] for ends in ends_of]
    ids = np.repeat(np.arange(1, len(texts) + 1), [len(s) for s in starts])
    empty = np.zeros(0, np.int64)
    begin, end = np.concatenate([empty, *starts]), np.concatenate([empty, *stops])
    places = np.concatenate([[0], end[end < height * width], begin])
    labels = np.concatenate([np.zeros(len(places) - len(begin), np.int64), ids])
    order = np.argsort(
        places, kind="stable"
    )  # where one mask ends and another begins, the beginning comes last
    places, labels = places[order], labels[order]
    last = np.append(places[1:] != places[:-1], True)
    return LabelRuns((width, height), places[last], labels[last])


def _counts(text: str) -> NDArray[np.int64]:
    """The run lengths in a COCO text (see ``rle.py`` for its form)."""
    groups = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    last = np.flatnonzero((groups & 32) == 0)
    first = np.append(0, last[:-1] + 1) if len(last) else last
    shift = 5 * (np.arange(len(groups)) - np.repeat(first, last - first + 1))
    values = np.add.reduceat((groups & 31) << shift, first) if len(first) else groups[:0]
    values -= np.where(groups[last] & 16, np.int64(1) << (shift[last] + 5), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def decoded_labels(texts: Sequence[str], shape: tuple[int, int]) -> NDArray[np.uint16]:
    """(H, W) map in which label i + 1 is what ``texts[i]`` codes; 0 elsewhere. The masks must not overlap."""
    if len(texts) > 0xFFFF:
        raise ValueError(f"At most 65,535 masks fit into one map, got {len(texts)}.")
    runs = column_runs(texts, shape)
    columns = np.repeat(runs.ids.astype(np.uint16), runs.lengths).reshape(runs.shape)
    return np.ascontiguousarray(columns.T)


def merged_text(texts: list[str], shape: tuple[int, int]) -> str:
    """The code of the union of some masks."""
    from pycocotools import mask as coco

    merged = coco.merge([{"size": list(shape), "counts": t.encode("ascii")} for t in texts])
    text: str = merged["counts"].decode("ascii")
    return text
