"""From inputs to work units: pure, and the same on every machine.

A unit is a run of consecutive items of one input, the tiles of a raster in row-major order or the frames of a
video in time: what a worker takes, commits and, after a crash, redoes as a whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from panoptile.pipeline.grid import Tile, TileGrid
from panoptile.pipeline.raster_info import RasterInfo, Sheet

MOST_TILES = 32
"""Of a unit."""
UNITS_WANTED = 128
"""A raster is cut into up to this many units before these grow: at the end of a run a worker waits for the others for
half a unit, so that eight share a raster without losing more than a few per cent."""
FEW_TILES, FEW_UNITS = 4, 16
"""Below this many tiles a unit costs more commits than it is worth, but for a raster that would have fewer units."""

WRITTEN = "written_ns"
"""The field of a stored plan that says when an object was written: told to users, no part of what the input is."""


def unit_tiles(tiles: int) -> int:
    """Tiles of a unit of a raster with so many: a power of two, so that no batch of 2, 4, 8, … is padded."""
    wanted = max(-(-tiles // UNITS_WANTED), min(FEW_TILES, -(-tiles // FEW_UNITS)))
    return min(MOST_TILES, 1 << (wanted - 1).bit_length())


@dataclass(frozen=True, slots=True, order=True)
class Unit:
    """A run of items of one input."""

    key: str
    """The input's key."""
    first: int
    """Number of the first item: a tile's row-major number, or a frame's place in the run's selection."""
    count: int

    @property
    def id(self) -> str:
        """Name of the unit in the store."""
        return f"{self.key}-t{self.first:08d}n{self.count}"

    @property
    def items(self) -> range:
        """Numbers of the unit's items."""
        return range(self.first, self.first + self.count)


class InputPlan(Protocol):
    """How one input is cut into units, whatever its kind; stored as JSON and read by every worker."""

    @property
    def kind(self) -> str:
        """``raster`` or ``video``: decides how the input is opened, joined and published."""
        ...

    @property
    def key(self) -> str:
        """The input's name in the store."""
        ...

    @property
    def uri(self) -> str:
        """Where the input lies."""
        ...

    @property
    def unit_count(self) -> int: ...

    @property
    def item_count(self) -> int:
        """Tiles of a raster, frames of a video."""
        ...

    @property
    def pixels(self) -> int:
        """Of the raster, or of all frames together."""
        ...

    def units(self) -> Iterator[Unit]:
        """All units, in the order of their items."""
        ...

    def to_json(self) -> bytes: ...


def kind_of(plan: bytes) -> str:
    """The kind of a stored plan: its field ``kind``, ``raster`` where it has none. Raises ``ValueError``."""
    fields = json.loads(plan)
    if not isinstance(fields, dict):
        raise ValueError("A stored plan must be a JSON object.")  # noqa: TRY004  (bad content, not a bad call)
    return str(fields.get("kind", "raster"))


@dataclass(frozen=True, slots=True)
class RasterPlan:
    """How one raster is cut: everything that a worker needs to know of it."""

    info: RasterInfo
    tile: int
    overlap: int

    def __post_init__(self) -> None:
        TileGrid(self.info.height, self.info.width, self.tile, self.overlap)

    @property
    def kind(self) -> str:
        return "raster"

    @property
    def key(self) -> str:
        return self.info.key

    @property
    def uri(self) -> str:
        return self.info.uri

    @property
    def grid(self) -> TileGrid:
        return TileGrid(self.info.height, self.info.width, self.tile, self.overlap)

    @property
    def item_count(self) -> int:
        return len(self.grid)

    @property
    def pixels(self) -> int:
        return self.info.height * self.info.width

    @property
    def unit_tiles(self) -> int:
        return unit_tiles(len(self.grid))

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
        for tile_id in unit.items:
            yield tile_id, grid.by_id(tile_id)

    def to_json(self) -> bytes:
        fields = dataclasses.asdict(self, dict_factory=_without_unknown_time)
        return json.dumps(fields, sort_keys=True, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> RasterPlan:
        fields = json.loads(data)
        return cls(_info_from_json(fields["info"]), fields["tile"], fields["overlap"])


def _without_unknown_time(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Plans of local files stay, byte for byte, what they were before objects had a time."""
    return {name: value for name, value in pairs if name != WRITTEN or value}


def without(fields: Any, *names: str) -> Any:
    """The JSON value ``fields`` without the members of these names, at any depth."""
    if isinstance(fields, dict):
        return {k: without(v, *names) for k, v in fields.items() if k not in names}
    if isinstance(fields, list):
        return [without(v, *names) for v in fields]
    return fields


def _info_from_json(info: dict[str, Any]) -> RasterInfo:
    for name in ("bands", "transform", "block_shape", "notes"):
        info[name] = tuple(info[name])
    info["scale"] = None if info["scale"] is None else tuple(info["scale"])
    sheets = info.pop("sheets", ())
    return RasterInfo(
        **info, sheets=tuple(Sheet(s["row"], s["col"], _info_from_json(s["info"])) for s in sheets)
    )


def fingerprint(fields: dict[str, object]) -> str:
    """sha256 of the parameters that can change a pixel, as canonical JSON."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
