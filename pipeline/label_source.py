"""Where labels to be compared come from: windows of label maps, and what their labels mean.

Labels are whole numbers of 64 bits. Sources without a table of segments code class and object into the label itself:
``class id << 40 | object``, so that one pass over the pixels is enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from panoptile.pipeline.contingency import BACKGROUND, VOID, Labels
from panoptile.pipeline.inputs import InputError, shown
from panoptile.pipeline.overlaps import UNSCORED, SegmentLabels
from panoptile.pipeline.raster_file import check_file, open_raster, read_window
from panoptile.pipeline.raster_info import NODATA_ID
from panoptile.pipeline.window import Window

OBJECT_BITS = 40
"""Low bits of a coded label, which hold the object."""
Unlabelled = Literal["background", "void"]
"""What pixels without a label are: known to hold none of the classes, or not known."""


class LabelSource(Protocol):
    """A label map of any size."""

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width), pixels."""
        ...

    def read(self, window: Window) -> Labels:
        """(H, W) labels of a window. Raises ``RasterReadError`` where the file is damaged."""
        ...

    def describe(self, labels: Labels) -> SegmentLabels:
        """The class, crowd and score of segments (ascending, no ``VOID`` or ``BACKGROUND``)."""
        ...

    def close(self) -> None: ...


def code(class_ids: NDArray[np.integer], objects: NDArray[np.integer]) -> Labels:
    """Labels that say their class; ``VOID`` where the class is ``UNSCORED`` and the object 0."""
    coded: Labels = (class_ids.astype(np.int64) << OBJECT_BITS) | objects.astype(np.int64)
    return coded


def decode(labels: Labels, things: frozenset[int]) -> SegmentLabels:
    """What coded labels mean; a thing without an object number is a crowd: its objects are not told apart."""
    class_ids = labels >> OBJECT_BITS
    objects = labels & ((1 << OBJECT_BITS) - 1)
    return SegmentLabels.of(labels, class_ids, crowd=(objects == 0) & np.isin(class_ids, list(things)))


@dataclass(frozen=True, slots=True)
class ArrayLabels:
    """A label map in memory, with a table."""

    labels: Labels
    """(H, W)"""
    table: SegmentLabels

    @property
    def shape(self) -> tuple[int, int]:
        return self.labels.shape[0], self.labels.shape[1]

    def read(self, window: Window) -> Labels:
        return self.labels[window.row : window.stop_row, window.col : window.stop_col]

    def describe(self, labels: Labels) -> SegmentLabels:
        return self.table.take(labels)

    def close(self) -> None:
        """Nothing is open."""


class SegmentRaster:
    """A published ``segments.tif`` with its table; pixels without input are void, ``unclaimed`` is the label of 0.

    Segments of one ``stuff`` class (scored ids) have one label, the lowest: stuff is judged as one, however it is parted.
    """

    def __init__(
        self,
        path: Path,
        table: SegmentLabels,
        *,
        unclaimed: int = VOID,
        stuff: frozenset[int] = frozenset(),
    ) -> None:
        self._path, self._table, self._unclaimed = str(path), table, unclaimed
        self._dataset = open_raster(self._path)
        self._labels = _as_one(table, stuff)

    @property
    def shape(self) -> tuple[int, int]:
        return self._dataset.height, self._dataset.width

    def read(self, window: Window) -> Labels:
        ids = read_window(self._dataset, self._path, window, [1])[0]
        labels: Labels = ids.astype(np.int64)
        if self._labels is not None:
            known = ids < len(self._labels)  # what the table does not describe is found out by describe()
            labels[known] = self._labels[ids[known]]
        if self._unclaimed != VOID:
            labels[ids == 0] = self._unclaimed
        labels[ids == NODATA_ID] = VOID
        return labels

    def describe(self, labels: Labels) -> SegmentLabels:
        return self._table.take(labels)

    def close(self) -> None:
        self._dataset.close()


def _as_one(table: SegmentLabels, stuff: frozenset[int]) -> Labels | None:
    """The label of each segment id, where segments of one stuff class share one; None where none do."""
    labels = np.arange(int(table.labels.max(initial=0)) + 1)
    for class_id in stuff:
        members = table.labels[table.class_ids == class_id]
        labels[members] = members.min(initial=len(labels))
    return None if np.array_equal(labels, np.arange(len(labels))) else labels


@dataclass(frozen=True, slots=True)
class LabelMeaning:
    """How the values of label rasters are read."""

    class_ids: Mapping[int, int]
    """Scored class id by value of the class raster, or of ``value // divisor``."""
    things: frozenset[int]
    """Scored class ids that are countable."""
    single: int | None = None
    """The class of every object, where no value says one."""
    divisor: int | None = None
    """A raster of ``class value * divisor + object``."""
    ignored: frozenset[int] = field(default=frozenset())
    """Values that are neither right nor wrong: of the class raster where there is one, else of the only raster."""
    unlabelled: Unlabelled = "background"
    """What 0 is."""


class LabelRaster:
    """Ground truth as rasters: of objects, of classes, of both, or of class and object in one number.

    A class raster alone cannot tell objects apart: its things become crowds, which count for mean IoU only.
    """

    def __init__(self, meaning: LabelMeaning, *, objects: str | None, classes: str | None) -> None:
        """``objects`` and ``classes`` are paths. Raises InputError for what is no whole raster of integers."""
        self._meaning = meaning
        self._decides = "objects" if classes is None else "classes"
        self._rasters = {}
        for name, path in (("objects", objects), ("classes", classes)):
            if path is not None:
                check_file(path)
                self._rasters[name] = (path, open_raster(path))
        for path, dataset in self._rasters.values():
            if not np.issubdtype(np.dtype(dataset.dtypes[0]), np.integer):
                raise InputError(f"{shown(path)} holds {dataset.dtypes[0]} values: labels must be integers.")
        shapes = {(d.height, d.width) for _, d in self._rasters.values()}
        if len(shapes) != 1:
            raise InputError(
                f"{shown(str(objects))} and {shown(str(classes))} differ in size: {sorted(shapes)}."
            )

    @property
    def shape(self) -> tuple[int, int]:
        dataset = next(iter(self._rasters.values()))[1]
        return dataset.height, dataset.width

    def read(self, window: Window) -> Labels:
        meaning = self._meaning
        values, void = {}, np.zeros(window.shape, np.bool_)
        for name, (path, dataset) in self._rasters.items():
            band = read_window(dataset, path, window, [1])[0]
            nodata = dataset.nodata
            if nodata is not None and nodata != 0:
                void |= band == nodata
            values[name] = band.astype(np.int64)
            if meaning.ignored and name == self._decides:
                void |= np.isin(band, list(meaning.ignored))
        if "classes" in values:
            class_ids = _mapped(values["classes"], meaning.class_ids)
            objects = values.get("objects", np.zeros(window.shape, np.int64))
        elif meaning.divisor is not None:
            class_ids = _mapped(values["objects"] // meaning.divisor, meaning.class_ids)
            objects = values["objects"] % meaning.divisor
        else:
            objects = values["objects"]
            class_ids = np.where(objects != 0, meaning.single or UNSCORED, UNSCORED)
        countable = np.isin(class_ids, list(meaning.things))
        labels = code(class_ids, np.where(countable, objects, 0))
        labels[class_ids == UNSCORED] = BACKGROUND if meaning.unlabelled == "background" else VOID
        labels[void] = VOID
        return labels

    def describe(self, labels: Labels) -> SegmentLabels:
        return decode(labels, self._meaning.things)

    def close(self) -> None:
        for _, dataset in self._rasters.values():
            dataset.close()


def _mapped(values: Labels, mapping: Mapping[int, int]) -> NDArray[np.int64]:
    """Scored class ids of values; ``UNSCORED`` for those without one."""
    unique, index = np.unique(values, return_inverse=True)
    found = np.array([mapping.get(int(v), UNSCORED) for v in unique], np.int64)
    result: NDArray[np.int64] = found[index].reshape(values.shape)
    return result
