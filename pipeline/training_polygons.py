"""Polygons as training labels of a raster: checked, brought onto its grid, drawn window by window.

A pixel belongs to the polygon that holds its middle; where polygons overlap, the smaller one lies on top.

Letters in shapes: ``N`` polygons, ``H W`` pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import shapely
from numpy.typing import NDArray

from panoptile.pipeline import gdal_env
from panoptile.pipeline.inputs import InputError
from panoptile.pipeline.label_report import LabelReport
from panoptile.pipeline.labelled_scene import BACKGROUND, IGNORED
from panoptile.pipeline.polygon_file import PolygonFile
from panoptile.pipeline.raster_info import RasterInfo

gdal_env.configure()  # before rasterio

# isort: split
from rasterio._err import CPLE_BaseError  # what rasterio.warp.transform raises; it has no public name
from rasterio.crs import CRS
from rasterio.features import rasterize
from rasterio.transform import Affine
from rasterio.warp import transform as transform_points

Unlabelled = Literal["background", "ignore"]

_OVERLAP = 0.1
"""Share of the smaller polygon from which two count as overlapping."""


@dataclass(frozen=True, slots=True)
class PolygonClasses:
    """What the class values of a file mean."""

    labels: Mapping[str, int]
    """Label id by class value."""
    things: frozenset[int]
    """Label ids of countable classes."""
    ignored: frozenset[str] = frozenset()
    """Class values whose pixels are ignored."""
    default: str | None = None
    """The class of all polygons of a file without a class column."""


@dataclass(slots=True)
class PolygonLabels:
    """Polygons on the pixel grid of one raster."""

    polygons: NDArray[np.object_]
    """(N,) in pixels (x = column, y = row), the largest first."""
    labels: NDArray[np.uint16]
    """(N,) label id, or ``IGNORED``."""
    is_thing: NDArray[np.bool_]
    unlabelled: Unlabelled
    _tree: shapely.STRtree | None = field(default=None, repr=False)

    def read(
        self, row: int, col: int, height: int, width: int
    ) -> tuple[NDArray[np.uint16], NDArray[np.int32]]:
        """Labels and object ids (H, W) of a window."""
        if self._tree is None:
            self._tree = shapely.STRtree(self.polygons)
        found = np.sort(self._tree.query(shapely.box(col, row, col + width, row + height)))
        rest = BACKGROUND if self.unlabelled == "background" else IGNORED
        index = np.zeros((height, width), np.int32)
        if len(found):
            # Drawn in order, so what comes later (the smaller polygon) lies on top.
            index = rasterize(
                [(self.polygons[i], int(i) + 1) for i in found],
                out_shape=(height, width),
                transform=Affine.translation(col, row),
                dtype="int32",
            )
        labels = np.concatenate([np.array([rest], np.uint16), self.labels])[index]
        ids = np.concatenate([[0], np.where(self.is_thing, np.arange(1, len(self.labels) + 1), 0)])[index]
        return labels, ids.astype(np.int32)

    def __getstate__(self) -> tuple[object, ...]:
        return self.polygons, self.labels, self.is_thing, self.unlabelled

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.polygons, self.labels, self.is_thing, self.unlabelled = state  # type: ignore[assignment]
        self._tree = None


class PolygonChecks:
    """The polygons of one file that can be used, and what is wrong with the others."""

    def __init__(self, source: PolygonFile, classes: PolygonClasses) -> None:
        self.source = source
        self.report = LabelReport(found=len(source.geometries))
        kept = self._polygonal(np.arange(len(source.geometries)))
        self._index, self._labels = self._with_class(kept, classes)
        self._things = classes.things
        self._inside = np.zeros(len(self._index), np.bool_)

    def _polygonal(self, index: NDArray[np.intp]) -> NDArray[np.intp]:
        """Rows with an area; invalid outlines are repaired where an area is left."""
        shapes, name = self.source.geometries, self.source.path
        usable = []
        for i in index:
            shape = shapes[i]
            if shape is None or shape.is_empty:
                self.report.bad("labels have no geometry", f"{name}, feature {i + 1}")
                continue
            if not shape.is_valid:
                shape = shapely.make_valid(shape)
                if shapely.area(shape) == 0:
                    self.report.bad("labels have an invalid outline without area", f"{name}, feature {i + 1}")
                    continue
                self.report.bad("labels had an invalid outline and were repaired", f"{name}, feature {i + 1}")
            parts = [p for p in shapely.get_parts(shape) if p.geom_type.endswith("Polygon") and p.area > 0]
            if not parts:
                self.report.bad("labels are no polygons", f"{name}, feature {i + 1}: {shape.geom_type}")
                continue
            shapes[i] = shapely.union_all(parts) if len(parts) > 1 else parts[0]
            usable.append(i)
        return np.array(usable, np.intp)

    def _with_class(
        self, index: NDArray[np.intp], classes: PolygonClasses
    ) -> tuple[NDArray[np.intp], NDArray[np.uint16]]:
        kept, labels = [], []
        for i in index:
            value = classes.default if self.source.classes is None else self.source.classes[i]
            if value in classes.ignored:
                kept.append(i)
                labels.append(IGNORED)
            elif value is not None and value in classes.labels:
                kept.append(i)
                labels.append(classes.labels[value])
            else:
                problem = "labels have no class" if value is None else "labels have an unknown class"
                self.report.bad(problem, f"{self.source.path}, feature {i + 1}: {value!r}")
        return np.array(kept, np.intp), np.array(labels, np.uint16)

    def on_raster(self, raster: RasterInfo, *, unlabelled: Unlabelled) -> PolygonLabels:
        """The polygons that meet a raster, on its grid; remembers which ones met any."""
        shapes = to_pixels(self.source.geometries[self._index], self.source.crs, raster)
        frame = shapely.box(0, 0, raster.width, raster.height)
        meets = shapely.intersects(shapes, frame) if len(shapes) else np.zeros(0, np.bool_)
        self._inside |= meets
        order = np.argsort(-shapely.area(shapes[meets]), kind="stable")
        polygons, labels = shapes[meets][order], self._labels[meets][order]
        self._count_overlaps(polygons, raster)
        is_thing = np.isin(labels, sorted(self._things)) & (labels != IGNORED)
        return PolygonLabels(polygons, labels, is_thing, unlabelled)

    def _count_overlaps(self, polygons: NDArray[np.object_], raster: RasterInfo) -> None:
        if len(polygons) < 2:
            return
        first, second = shapely.STRtree(polygons).query(polygons, predicate="intersects")
        pairs = first < second  # the second one is the smaller
        shared = shapely.area(shapely.intersection(polygons[first[pairs]], polygons[second[pairs]]))
        smaller = np.minimum(shapely.area(polygons[first[pairs]]), shapely.area(polygons[second[pairs]]))
        count = len(np.unique(second[pairs][shared > _OVERLAP * smaller]))
        self.report.bad(
            "labels overlap larger ones by more than a tenth (the smaller one counts there)",
            raster.uri,
            count,
        )

    def finish(self) -> LabelReport:
        """The report, once all rasters have been asked for."""
        outside = int((~self._inside).sum())
        if outside:
            first = int(self._index[int(np.argmin(self._inside))]) + 1
            self.report.bad(
                "labels lie outside of every raster", f"{self.source.path}, feature {first}", outside
            )
        self.report.used = int(self._inside.sum())
        return self.report


_NOWHERE = 1e12
"""Coordinate of points that no map shows, such as metres that are declared as degrees."""


def _reproject(
    x: NDArray[np.float64], y: NDArray[np.float64], crs: CRS, target: CRS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points in another CRS; what cannot be a place on earth ends up nowhere."""
    # PROJ gives up on all points at the first latitude above 90°.
    known = np.isfinite(x) & np.isfinite(y)
    if crs.is_geographic:
        known &= (abs(x) <= 360) & (abs(y) <= 90)
    moved = np.full((2, len(x)), _NOWHERE)
    if known.any():
        try:
            moved[:, known] = transform_points(crs, target, x[known], y[known])[:2]
        except CPLE_BaseError as e:
            raise InputError(f"The labels cannot be brought into the raster's CRS: {e}.") from e
    moved[~np.isfinite(moved)] = _NOWHERE
    return moved[0], moved[1]


def to_pixels(
    shapes: NDArray[np.object_] | Sequence[object], crs: CRS | None, raster: RasterInfo
) -> NDArray[np.object_]:
    """Geometries in pixels of a raster: x = column, y = row. Only vertices are transformed.

    Without a CRS on either side the coordinates are taken as the raster's own.
    """
    a, b, c, d, e, f = raster.transform
    inverse = ~Affine(a, b, c, d, e, f)
    target = None if raster.crs_wkt is None else CRS.from_wkt(raster.crs_wkt)

    def place(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = xy[:, 0], xy[:, 1]
        if crs is not None and target is not None and crs != target:
            x, y = _reproject(x, y, crs, target)
        return np.column_stack(
            [inverse.a * x + inverse.b * y + inverse.c, inverse.d * x + inverse.e * y + inverse.f]
        )

    moved = shapely.transform(np.asarray(shapes, object), place)
    result: NDArray[np.object_] = np.atleast_1d(moved)
    return result
