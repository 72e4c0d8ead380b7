"""The segments of one input after stitching: row ``i`` is segment id ``i + 1``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from panoptile.pipeline.window import Window


@dataclass(frozen=True, slots=True)
class SegmentTable:
    """Attributes of ``N`` segments in columns; about 40 bytes a segment."""

    class_ids: NDArray[np.uint16]
    """(N,) published class id: the model's label id + 1."""
    scores: NDArray[np.float32]
    """(N,) area-weighted mean score of the merged segments, 0-1."""
    areas: NDArray[np.int64]
    """(N,) owned pixels; always positive."""
    at_edge: NDArray[np.bool_]
    """(N,) touches the raster's edge or a nodata pixel."""
    merged_from: NDArray[np.int32]
    """(N,) how many tiles' segments with owned pixels were merged."""
    tile_offsets: NDArray[np.int64]
    """(N + 1,) where each segment's tiles start in ``tile_ids``."""
    tile_ids: NDArray[np.int32]
    """Row-major numbers of the tiles that own pixels of the segment, ascending per segment."""
    suspects: int
    """Components that join two segments of one tile: possible over-merges."""

    def __len__(self) -> int:
        return len(self.class_ids)


class LabelReader(Protocol):
    """Reads stitched labels of one raster."""

    def read(self, window: Window) -> NDArray[np.uint32]:
        """Segment ids of ``window``: 0 void, ``NODATA_ID`` where there is no input."""
        ...


def blocks(height: int, width: int, side: int) -> Iterator[Window]:
    """The fixed output grid: blocks of ``side`` pixels from the origin, row-major, clipped to the raster."""
    for row in range(0, height, side):
        for col in range(0, width, side):
            yield Window.span(row, col, min(row + side, height), min(col + side, width))
