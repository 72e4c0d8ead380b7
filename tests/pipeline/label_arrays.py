"""Label rasters in memory, with the values that the publishing sweep takes beside them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.crs import CRS

from panoptile.model.classes import ClassTable
from panoptile.pipeline.publish import Published, publish_raster
from panoptile.pipeline.raster_info import NODATA_ID, RasterInfo
from panoptile.pipeline.segments import SegmentTable
from panoptile.pipeline.window import Window

CLASSES = ClassTable.from_names(["house", "tree", "ground"], {0, 1})
GROUND = 3
NORTH_UP = (0.5, 0.0, 300_000.0, 0.0, -0.5, 3_000_000.0)


@dataclass(frozen=True)
class LabelArray:
    """A ``LabelReader`` over an array that counts how often each pixel was read."""

    values: NDArray[np.uint32]
    reads: NDArray[np.int64]

    @classmethod
    def of(cls, values: NDArray[np.uint32]) -> LabelArray:
        return cls(values, np.zeros(values.shape, np.int64))

    def read(self, window: Window) -> NDArray[np.uint32]:
        at = window.slices(Window(0, 0, *self.values.shape))
        self.reads[at] += 1
        return self.values[at]


def raster_info(
    height: int,
    width: int,
    *,
    epsg: int | None = 32645,
    transform: tuple[float, float, float, float, float, float] = NORTH_UP,
    georeferenced: bool = True,
    uri: str = "scenes/town.tif",
) -> RasterInfo:
    return RasterInfo(
        uri=uri, key="town-0123456789", stem="town", height=height, width=width, bands=(1, 2, 3), dtype="uint8",
        transform=transform if georeferenced else (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        crs_wkt=None if epsg is None else CRS.from_epsg(epsg).to_wkt(), georeferenced=georeferenced,
        native_height=height, native_width=width, block_shape=(512, 512), resampled=False, nodata=None, scale=None,
        size_bytes=1, mtime_ns=1,
    )  # fmt: skip


def dense(labels: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The same raster with ids 1…N in ascending order of the old ones."""
    ids = np.unique(labels)
    ids = ids[(ids != 0) & (ids != NODATA_ID)]
    out = np.searchsorted(np.concatenate([[0], ids]), labels).astype(np.uint32)
    out[labels == NODATA_ID] = NODATA_ID
    return out


def segment_table(labels: NDArray[np.uint32], class_ids: NDArray[np.integer] | None = None) -> SegmentTable:
    """Attributes of the dense raster ``labels``, those that no pixel decides made up; classes 1, 2, 3, 1, 2 …"""
    counts = np.bincount(labels[labels != NODATA_ID], minlength=1)[1:].astype(np.int64)
    n = len(counts)
    numbers = np.arange(n)
    tiles = numbers % 3 + 1
    return SegmentTable(
        class_ids=(numbers % 3 + 1 if class_ids is None else np.asarray(class_ids)).astype(np.uint16),
        scores=(numbers % 100 / 100).astype(np.float32),
        areas=counts,
        at_edge=numbers % 2 == 0,
        merged_from=tiles.astype(np.int32),
        tile_offsets=np.concatenate([[0], np.cumsum(tiles)]),
        tile_ids=np.concatenate([np.arange(t) for t in tiles]).astype(np.int32)
        if n
        else np.empty(0, np.int32),
        suspects=0,
    )


def publish(
    labels: NDArray[np.uint32], folder: Path, info: RasterInfo | None = None, **how: object
) -> Published:
    """Publish a dense label raster into a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    info = info or raster_info(*labels.shape)
    table = segment_table(labels)
    return publish_raster(
        LabelArray.of(labels),
        info,
        table,
        CLASSES,
        folder,
        tags={"LAYOUT": "1"},
        **how,  # type: ignore[arg-type]
    )


@st.composite
def label_rasters(draw: st.DrawFn, *, max_side: int = 40) -> NDArray[np.uint32]:
    """Rasters of few ids, so that pieces touch at corners, enclose others, and come in many parts; void and nodata."""
    height, width = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ids = draw(st.integers(1, 6))
    grain = draw(st.integers(1, 5))
    coarse = rng.integers(0, ids + 1, (height // grain + 1, width // grain + 1)).astype(np.uint32)
    labels = coarse.repeat(grain, 0).repeat(grain, 1)[:height, :width]
    noise = rng.random(labels.shape) < draw(st.sampled_from([0.0, 0.02, 0.3]))
    labels = np.where(noise, rng.integers(0, ids + 1, labels.shape), labels).astype(np.uint32)
    labels[rng.random(labels.shape) < draw(st.sampled_from([0.0, 0.1]))] = NODATA_ID
    return dense(labels)


def voronoi(seed: int, height: int, width: int, cells: int) -> NDArray[np.uint32]:
    """A raster tessellated by ``cells`` random sites, with a void strip and a nodata corner; ids are dense."""
    from scipy.spatial import cKDTree

    rng = np.random.default_rng(seed)
    tree = cKDTree(rng.random((cells, 2)) * [height, width])
    labels = np.empty((height, width), np.uint32)
    for row in range(0, height, 256):
        rows, cols = np.mgrid[row : min(row + 256, height), :width]
        labels[row : row + 256] = (
            tree.query(np.stack([rows, cols], -1).reshape(-1, 2))[1].reshape(-1, width) + 1
        )
    labels[height // 3 : height // 3 + 3] = 0
    labels[: height // 8, : width // 8] = NODATA_ID
    return dense(labels)
