"""Rasters of any size as training images, with labels from polygons or from label rasters.

Nothing is read before it is asked for, and a pixel without input is grey and ignored. Objects can be sent to other
processes: each opens its own files.

Letters in shapes: ``H W`` pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from panoptile.pipeline import gdal_env
from panoptile.pipeline.inputs import InputError, shown
from panoptile.pipeline.label_report import LabelReport
from panoptile.pipeline.labelled_scene import BACKGROUND, FILL, IGNORED, LabelledScene
from panoptile.pipeline.raster_file import open_raster, read_window
from panoptile.pipeline.raster_info import RasterInfo
from panoptile.pipeline.raster_source import RasterSource
from panoptile.pipeline.training_polygons import Unlabelled
from panoptile.pipeline.window import Window

gdal_env.configure()  # before rasterio

# isort: split
import rasterio

_CHECK_SIDE = 2048
"""Side of the windows in which label rasters are counted."""


class LabelReader(Protocol):
    """Labels on the grid of one raster."""

    def read(
        self, row: int, col: int, height: int, width: int
    ) -> tuple[NDArray[np.uint16], NDArray[np.int32]]:
        """Label ids (``IGNORED``, ``BACKGROUND`` included) and object ids (H, W) of a window."""


@dataclass(slots=True)
class LabelledRaster:
    """One raster with its labels."""

    info: RasterInfo
    labels: LabelReader
    gsd_m: float | None = None
    _source: RasterSource | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return self.info.uri

    @property
    def shape(self) -> tuple[int, int]:
        return self.info.height, self.info.width

    def crop(self, row: int, col: int, height: int, width: int) -> LabelledScene:
        """The part inside a window."""
        if self._source is None:
            self._source = RasterSource(self.info)
        tile = self._source.read(Window(row, col, height, width))
        labels, ids = self.labels.read(row, col, height, width)
        image = np.where(tile.valid, tile.pixels, np.uint8(FILL))
        return LabelledScene(
            self.name,
            image,
            np.where(tile.valid, labels, np.uint16(IGNORED)),
            np.where(tile.valid, ids, np.int32(0)),
            self.gsd_m,
        )

    def __getstate__(self) -> tuple[object, ...]:
        return self.info, self.labels, self.gsd_m

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.info, self.labels, self.gsd_m = state  # type: ignore[assignment]
        self._source = None


@dataclass(slots=True)
class RasterLabels:
    """Labels from an instance raster, a class raster, or both, of the image's own size."""

    instances: str | None
    """Object ids; 0 and the declared nodata value are none. Nodata is ignored."""
    classes: str | None
    """Class values; nodata is ignored, a value that ``label_of_value`` does not know too, 0 is unlabelled."""
    label_of_value: Mapping[int, int]
    """Label id by class value; without a class raster, the one of value 1 is every object's."""
    things: frozenset[int]
    """Label ids of countable classes."""
    unlabelled: Unlabelled
    image: RasterInfo
    _open: dict[str, rasterio.DatasetReader] = field(default_factory=dict, repr=False)

    def read(
        self, row: int, col: int, height: int, width: int
    ) -> tuple[NDArray[np.uint16], NDArray[np.int32]]:
        """Labels and object ids (H, W) of a window of the image's working grid."""
        window = Window(row, col, height, width)
        rest = np.uint16(BACKGROUND if self.unlabelled == "background" else IGNORED)
        ids, no_id = np.zeros(window.shape, np.int64), np.zeros(window.shape, np.bool_)
        if self.instances is not None:
            ids, no_id = self._values(self.instances, window)
        if self.classes is None:
            labels = np.where(ids > 0, np.uint16(self.label_of_value[1]), rest)
            unknown = no_id
        else:
            values, no_class = self._values(self.classes, window)
            labels = np.full(window.shape, IGNORED, np.uint16)
            for value, label in self.label_of_value.items():
                labels[values == value] = label
            labels[values == 0] = rest
            unknown = no_class | no_id
        labels[unknown] = IGNORED
        is_thing = np.isin(labels, sorted(self.things))
        if self.instances is not None:
            labels[is_thing & (ids == 0)] = IGNORED  # a thing that nobody told apart
        return labels, np.where(is_thing, ids, 0).astype(np.int32)

    def _values(self, path: str, window: Window) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Values of the pixels in the middle of each of the window's, and where they are nodata."""
        dataset = self._open.get(path)
        if dataset is None:
            dataset = self._open[path] = open_raster(path)
        image = self.image
        rows = _native(np.arange(window.row, window.stop_row), image.height, image.native_height)
        cols = _native(np.arange(window.col, window.stop_col), image.width, image.native_width)
        around = Window.span(int(rows[0]), int(cols[0]), int(rows[-1]) + 1, int(cols[-1]) + 1)
        values = read_window(dataset, path, around, [1], None)[0].astype(np.int64)
        values = values[np.ix_(rows - rows[0], cols - cols[0])]
        if dataset.nodata is None:
            return values, np.zeros(window.shape, np.bool_)
        missing = values == int(dataset.nodata)
        return np.where(missing, 0, values), missing

    def __getstate__(self) -> tuple[object, ...]:
        return (
            self.instances,
            self.classes,
            dict(self.label_of_value),
            self.things,
            self.unlabelled,
            self.image,
        )

    def __setstate__(self, state: tuple[object, ...]) -> None:
        (
            self.instances,
            self.classes,
            self.label_of_value,
            self.things,
            self.unlabelled,
            self.image,
        ) = state  # type: ignore[assignment]
        self._open = {}


def _native(index: NDArray[np.intp], size: int, native: int) -> NDArray[np.intp]:
    """Pixels of the file in the middle of pixels of the working grid."""
    return np.minimum(((index + 0.5) * native / size).astype(np.intp), native - 1)


def count_values(path: str) -> dict[int, int]:
    """Pixels by value of the first band, without nodata. Raises InputError for other than whole numbers."""
    with open_raster(path) as dataset:
        if np.dtype(dataset.dtypes[0]).kind not in "ui":
            raise InputError(
                f"{shown(path)} holds {dataset.dtypes[0]} values: a label raster holds whole numbers."
            )
        counts: dict[int, int] = {}
        for row in range(0, dataset.height, _CHECK_SIDE):
            for col in range(0, dataset.width, _CHECK_SIDE):
                window = Window.span(
                    row,
                    col,
                    min(row + _CHECK_SIDE, dataset.height),
                    min(col + _CHECK_SIDE, dataset.width),
                )
                values, pixels = np.unique(read_window(dataset, path, window, [1], None), return_counts=True)
                for value, count in zip(values.tolist(), pixels.tolist(), strict=True):
                    counts[value] = counts.get(value, 0) + count
        if dataset.nodata is not None:
            counts.pop(int(dataset.nodata), None)
    return counts


def check_label_raster(path: str, image: RasterInfo) -> None:
    """Raise InputError where a label raster does not lie on its image's grid."""
    with open_raster(path) as dataset:
        size = dataset.height, dataset.width
        crs = dataset.crs
        a, _, c, _, _, f = (float(v) for v in tuple(dataset.transform)[:6])
    if size != (image.native_height, image.native_width):
        raise InputError(
            f"{shown(path)} has {size[1]}x{size[0]} pixels, its image {shown(image.uri)} "
            f"{image.native_width}x{image.native_height}: labels must lie on the image's grid."
        )
    if crs is None or image.crs_wkt is None or not image.georeferenced:
        return
    if crs != rasterio.crs.CRS.from_wkt(image.crs_wkt):
        raise InputError(f"{shown(path)} has another CRS than its image {shown(image.uri)}.")
    ia, _, ic, _, _, jf = image.transform
    scale = image.native_width / image.width
    if max(abs(c - ic), abs(f - jf)) > abs(a) / 2 or abs(a - ia / scale) > abs(a) / 100:
        raise InputError(
            f"{shown(path)} lies elsewhere than its image {shown(image.uri)}: labels must lie on the image's grid "
            f"(origins {c:g}, {f:g} and {ic:g}, {jf:g})."
        )


def raster_report(
    labels: RasterLabels, *, class_values: Mapping[int, int] | None, objects: int | None
) -> LabelReport:
    """What is wrong with the labels of one raster, from the counts of its values."""
    report = LabelReport()
    where = labels.classes or labels.instances or ""
    if objects is not None:
        report.found += objects
        report.used += objects
        if objects == 0:
            report.bad("label rasters hold no object", where)
    if class_values is not None:
        known = {v: n for v, n in class_values.items() if v in labels.label_of_value}
        unknown = [v for v in class_values if v not in labels.label_of_value and v != 0]
        report.found += len(known) + len(unknown)
        report.used += len(known)
        for value in unknown:
            report.bad("class values are unknown", f"{where}: {value}")
        if not known:
            report.bad("label rasters hold no known class", where)
    return report
