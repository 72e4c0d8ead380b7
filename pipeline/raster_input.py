"""A raster as the worker sees it: tiles in, core labels and strips out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np

from panoptile.model.panoptic_map import PanopticMap
from panoptile.pipeline.fragment import PackedTile, empty_tile, encode_fragment, pack_tile, tile_fragment
from panoptile.pipeline.grid import Tile
from panoptile.pipeline.mosaic import MosaicSource, open_source
from panoptile.pipeline.plan import RasterPlan, Unit
from panoptile.pipeline.raster_source import RasterSource
from panoptile.pipeline.unit_input import InputContext, ItemRead, PackedItem


class RasterInput:
    """One raster, opened; any number of units may read it at once."""

    def __init__(self, plan: bytes, context: InputContext) -> None:
        self._plan = RasterPlan.from_json(plan)
        self._source = open_source(self._plan.info)
        self._context = context

    def begin(self, unit: Unit, items: Sequence[int]) -> RasterItems:
        return RasterItems(self._plan, self._source, self._context)

    def close(self) -> None:
        self._source.close()


class RasterItems:
    """Tiles of one unit; a tile stands for itself, so nothing is kept between them."""

    def __init__(self, plan: RasterPlan, source: RasterSource | MosaicSource, context: InputContext) -> None:
        self._side, self._grid, self._source, self._context = plan.tile, plan.grid, source, context
        self.readers = context.readers

    def read(self, item: int) -> ItemRead:
        """The tile as (C, T, T); ``valid`` keeps the window's own shape."""
        tile = self._grid.by_id(item)
        read = self._source.read(tile.window)
        height, width = read.valid.shape
        if (height, width) == (self._side, self._side) and read.valid.all():
            return ItemRead(tile, read.pixels, read.valid)
        pixels = np.empty((self._context.channels, self._side, self._side), np.uint8)
        pixels[:] = np.array(self._context.fill, np.uint8)[:, None, None]
        np.copyto(pixels[:, :height, :width], read.pixels, where=read.valid)
        return ItemRead(tile, pixels, read.valid)

    def encoding(self, item: int, read: ItemRead, panoptic: PanopticMap) -> Callable[[], PackedItem]:
        tile, valid = read.place, read.valid
        if not isinstance(tile, Tile) or valid is None:
            raise TypeError(f"A raster's item is a tile with its mask, got {read.place}.")
        return lambda: pack_tile(tile_fragment(self._grid, tile, panoptic, valid, self._context.classes))

    def empty(self, item: int, read: ItemRead) -> PackedItem:
        return empty_tile(item)

    def fragment(self, packed: Sequence[PackedItem]) -> bytes:
        return encode_fragment(cast("Sequence[PackedTile]", packed))

    def close(self) -> None:
        """The raster stays open for the next unit."""
