"""From inputs to work units: pure, and the same on every machine.

A unit is a run of consecutive tiles in row-major order: what a worker takes, commits and, after a crash,
redoes as a whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

from panoptile.pipeline.grid import Tile, TileGrid
from panoptile.pipeline.raster_info import RasterInfo

UNIT_TILES = 32
"""Most tiles in a unit."""
UNITS_WANTED = 16
"""A small raster is cut into about this many units, so that several workers share it."""


@dataclass(frozen=True, slots=True, order=True)
class Unit:
    """A run of tiles of one input."""

    key: str
    """The input's key."""
    first_tile: int
    """Row-major number of the first tile."""
    count: int

    @property
    def id(self) -> str:
        """Name of the unit in the store."""
        return f"{self.key}-t{self.first_tile:08d}n{self.count}"

    @property
    def tile_ids(self) -> range:
        return range(self.first_tile, self.first_tile + self.count)


@dataclass(frozen=True, slots=True)
class RasterPlan:
    """How one raster is cut: everything that a worker needs to know of it."""

    info: RasterInfo
    tile: int
    overlap: int

    def __post_init__(self) -> None:
        TileGrid(self.info.height, self.info.width, self.tile, self.overlap)

    @property
    def grid(self) -> TileGrid:
        return TileGrid(self.info.height, self.info.width, self.tile, self.overlap)

    @property
    def unit_tiles(self) -> int:
        return max(1, min(UNIT_TILES, -(-len(self.grid) // UNITS_WANTED)))

    def units(self) -> Iterator[Unit]:
        """All units, in row-major order of their first tile."""
        tiles, step = len(self.grid), self.unit_tiles
        for first in range(0, tiles, step):
            yield Unit(self.info.key, first, min(step, tiles - first))

    @property
    def unit_count(self) -> int:
        return -(-len(self.grid) // self.unit_tiles)

    def unit_of(self, tile_id: int) -> Unit:
        """The unit that holds a tile."""
        first = tile_id - tile_id % self.unit_tiles
        return Unit(self.info.key, first, min(self.unit_tiles, len(self.grid) - first))

    def tiles_of(self, unit: Unit) -> Iterator[tuple[int, Tile]]:
        """(row-major number, tile) of each tile of a unit."""
        grid = self.grid
        for tile_id in unit.tile_ids:
            yield tile_id, grid.by_id(tile_id)

    def to_json(self) -> bytes:
        return json.dumps(dataclasses.asdict(self), sort_keys=True, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> RasterPlan:
        fields = json.loads(data)
        info = fields["info"]
        for name in ("bands", "transform", "block_shape", "notes"):
            info[name] = tuple(info[name])
        info["scale"] = None if info["scale"] is None else tuple(info["scale"])
        return cls(RasterInfo(**info), fields["tile"], fields["overlap"])


def fingerprint(fields: dict[str, object]) -> str:
    """sha256 of the parameters that can change a pixel, as canonical JSON."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
