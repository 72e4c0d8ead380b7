"""A replica that returns a label raster's own crop: it proves the pipeline around any network.

``--model echo:LABELS.tif[,CLASSES.tif]``. Local ids are shuffled per tile, as a network's queries would be,
so only stitching can make objects whole again. The shuffle depends on the tile's place alone: the same tile
gives the same map in every batch, worker and attempt.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from panoptile.model.classes import ClassTable
from panoptile.model.panoptic_map import PanopticMap
from panoptile.pipeline.raster_file import open_raster
from panoptile.pipeline.replica import TileBatch
from panoptile.pipeline.segments import blocks
from panoptile.pipeline.window import Window

import rasterio  # isort: skip  (after raster_file, which sets GDAL's environment)
from rasterio.windows import Window as RasterioWindow  # isort: skip


@dataclass(frozen=True, slots=True)
class EchoFactory:
    """Opens the label raster inside the worker."""

    labels_path: str
    classes_path: str | None = None
    classes: ClassTable | None = None
    """None: one thing class, or all values of the class raster as things."""

    def __call__(self) -> EchoReplica:
        return EchoReplica(self)

    def class_table(self) -> ClassTable:
        """The classes of this echo; reads the class raster once where no table is given."""
        if self.classes is not None:
            return self.classes
        if self.classes_path is None:
            return ClassTable.from_names(["thing"], {0})
        highest = 1
        with open_raster(self.classes_path) as src:
            for w in blocks(src.height, src.width, 2048):
                values = src.read(1, window=_rasterio(w), masked=True)
                highest = max(highest, int(values.max()) if values.count() else 1)
        return ClassTable.from_names([f"class {i}" for i in range(1, highest + 1)], set(range(highest)))

    def check(self, height: int, width: int) -> None:
        """Raise ``ValueError`` unless both rasters have the size of the input."""
        for path in filter(None, (self.labels_path, self.classes_path)):
            with open_raster(path) as src:
                shape, dtype = (src.height, src.width), np.dtype(src.dtypes[0])
            if shape != (height, width):
                raise ValueError(
                    f"The echo raster {path} has {shape[0]}x{shape[1]} pixels, the input {height}x{width}: "
                    "they must lie on the same grid."
                )
            if not np.issubdtype(dtype, np.integer):
                raise ValueError(f"The echo raster {path} holds {dtype}; labels must be integers.")


class EchoReplica:
    """Answers with the truth, in shuffled local ids."""

    max_queries = 0
    fill = (0, 0, 0)

    def __init__(self, factory: EchoFactory) -> None:
        self.classes = factory.class_table()
        self._labels = open_raster(factory.labels_path)
        self._classes = open_raster(factory.classes_path) if factory.classes_path else None
        self._lock = threading.Lock()

    def segment(self, batch: TileBatch) -> Sequence[PanopticMap]:
        side = batch.pixels.shape[-1]
        return [self._echo(tile.window, side) for tile in batch.tiles]

    def _echo(self, window: Window, side: int) -> PanopticMap:
        with self._lock:
            truth = _read(self._labels, window)
            classes = None if self._classes is None else _read(self._classes, window)
        rng = np.random.default_rng([window.row, window.col])
        return echo_map(truth, classes, side, rng)


def echo_map(
    truth: NDArray[np.int64], classes: NDArray[np.int64] | None, side: int, rng: np.random.Generator
) -> PanopticMap:
    """The truth as a replica would give it: ids 1…n in random order, padded to ``side``; 0 stays void."""
    ids, first, compact = np.unique(truth, return_index=True, return_inverse=True)
    order = np.zeros(len(ids), np.int32)
    named = ids != 0
    n = int(np.count_nonzero(named))
    order[named] = rng.permutation(n) + 1
    labels = np.zeros((side, side), np.int32)
    labels[: truth.shape[0], : truth.shape[1]] = order[compact].reshape(truth.shape)
    label_ids = np.zeros(n, np.int32)
    if classes is not None:
        label_ids[order[named] - 1] = classes.ravel()[first[named]] - 1
    return PanopticMap(labels, label_ids, np.ones(n, np.float32), n)


def _read(src: rasterio.DatasetReader, window: Window) -> NDArray[np.int64]:
    """Labels of a window; nodata counts as void."""
    band = src.read(1, window=_rasterio(window))
    labels: NDArray[np.int64] = band.astype(np.int64)
    if src.nodata is not None:
        labels[band == src.nodata] = 0
    return labels


def _rasterio(window: Window) -> RasterioWindow:
    return RasterioWindow(window.col, window.row, window.width, window.height)
