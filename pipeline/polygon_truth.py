"""Ground truth as polygons, drawn block by block on the grid of the raster that is judged.

A pixel belongs to the polygon that holds its middle; of overlapping polygons the smaller one lies on top. Memory is that
of the outlines.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import shapely
from numpy.typing import NDArray

from panoptile.pipeline import gdal_env
from panoptile.pipeline.contingency import BACKGROUND, VOID, Labels
from panoptile.pipeline.inputs import InputError, shown
from panoptile.pipeline.label_source import Unlabelled, code, decode
from panoptile.pipeline.overlaps import UNSCORED, SegmentLabels
from panoptile.pipeline.polygon_file import PolygonFile
from panoptile.pipeline.raster_info import RasterInfo
from panoptile.pipeline.window import Window

gdal_env.configure()  # before rasterio

# isort: split
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.features import rasterize
from rasterio.transform import Affine
from rasterio.warp import transform as transform_points


class PolygonTruth:
    """Polygons as a label source; polygon ``i`` of the file is object ``i + 1``, a stuff class one segment."""

    def __init__(
        self,
        file: PolygonFile,
        info: RasterInfo,
        class_ids: Mapping[str | None, int],
        things: frozenset[int],
        *,
        ignored: frozenset[str] = frozenset(),
        unlabelled: Unlabelled = "background",
    ) -> None:
        """``class_ids`` gives the scored class id of each value of the class column (None: without a column).

        Polygons whose value is in ``ignored`` are void. Raises InputError for polygons that do not meet the raster,
        and for a CRS that cannot be brought to the raster's.
        """
        self._info, self._things = info, things
        self._rest = BACKGROUND if unlabelled == "background" else VOID
        values = file.classes or (None,) * len(file.geometries)
        polygonal = np.isin(shapely.get_type_id(file.geometries), (3, 6)) & ~shapely.is_empty(file.geometries)
        rows = np.flatnonzero(polygonal)
        scored = np.array([class_ids.get(values[i], UNSCORED) for i in rows], np.int64)
        void = np.array([values[i] in ignored for i in rows], np.bool_)
        objects = np.where(np.isin(scored, list(things)), rows + 1, 0)
        labels = np.where(scored == UNSCORED, self._rest, code(scored, objects))
        labels[void] = VOID
        shapes = shapely.make_valid(_on_grid(file, file.geometries[rows], info))
        order = np.argsort(-shapely.area(shapes), kind="stable")
        self._shapes, self._labels = shapes[order], labels[order]
        self._tree = shapely.STRtree(self._shapes)
        if not len(self._tree.query(shapely.box(0, 0, info.width, info.height))):
            raise InputError(
                f"No polygon of {shown(file.path)} meets {shown(info.uri)}: check the CRS and the order of coordinates."
            )

    @property
    def shape(self) -> tuple[int, int]:
        return self._info.height, self._info.width

    def read(self, window: Window) -> Labels:
        labels = np.full(window.shape, self._rest, np.int64)
        box = shapely.box(window.col, window.row, window.stop_col, window.stop_row)
        inside = np.sort(self._tree.query(box))
        if len(inside):
            drawn = rasterize(
                [(shape, i + 1) for i, shape in enumerate(self._shapes[inside])],
                out_shape=window.shape,
                transform=Affine.translation(window.col, window.row),
                dtype="int32",
            )
            covered = drawn > 0
            labels[covered] = self._labels[inside[drawn[covered] - 1]]
        return labels

    def describe(self, labels: Labels) -> SegmentLabels:
        return decode(labels, self._things)

    def close(self) -> None:
        """Nothing is open."""


def _on_grid(file: PolygonFile, shapes: NDArray[np.object_], info: RasterInfo) -> NDArray[np.object_]:
    """Outlines in pixels (x = column, y = row) of the raster. Only vertices are transformed."""
    to_pixels = ~Affine(*info.transform)
    source = None if file.crs is None else CRS.from_user_input(file.crs)
    target = None if info.crs_wkt is None else CRS.from_wkt(info.crs_wkt)

    def place(points: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = points[:, 0], points[:, 1]
        if source is not None and target is not None and source != target:
            x, y = (np.asarray(v) for v in transform_points(source, target, x, y))
        return np.stack(
            [
                to_pixels.a * x + to_pixels.b * y + to_pixels.c,
                to_pixels.d * x + to_pixels.e * y + to_pixels.f,
            ],
            axis=1,
        )

    try:
        return np.atleast_1d(shapely.transform(shapely.force_2d(shapes), place))
    except RasterioError as e:
        raise InputError(f"{shown(file.path)} cannot be brought to the CRS of {shown(info.uri)}: {e}.") from e
