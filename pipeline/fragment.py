"""What a unit leaves in the store: core labels, strips of the overlaps, a segment table. Immutable.

A fragment is a zip of zstd-compressed members, so that one strip or one core can be read without the rest.
Ids in it are local to a tile: 0 void, 1…n segments, the largest value of the type where there is no input.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from panoptile.model.classes import ClassTable
from panoptile.model.panoptic_map import PanopticMap
from panoptile.pipeline.grid import Tile, TileGrid
from panoptile.pipeline.raster_info import NODATA_ID
from panoptile.pipeline.window import Window

Side = Literal["north", "south", "west", "east"]
SIDES: tuple[tuple[Side, int, int], ...] = (
    ("north", -1, 0),
    ("south", 1, 0),
    ("west", 0, -1),
    ("east", 0, 1),
)
NO_PIXEL = -1
"""First pixel of a segment that owns none."""

_ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # a fixed time, or equal content would have other bytes each time


@dataclass(frozen=True, slots=True)
class NodeColumns:
    """Segments of tiles, one row each, in columns; what stitching knows of a segment."""

    class_ids: NDArray[np.uint16]
    """Published class id: the model's label id + 1."""
    scores: NDArray[np.float32]
    areas: NDArray[np.int32]
    """Owned pixels; 0 where the segment lies in the overlap alone."""
    first_pixels: NDArray[np.int64]
    """Raster-wide number row * width + col of the first owned pixel; ``NO_PIXEL`` where none is owned."""
    at_edge: NDArray[np.bool_]
    """An owned pixel touches the raster's edge or a pixel without input."""

    def __len__(self) -> int:
        return len(self.class_ids)

    @classmethod
    def concatenate(cls, parts: Sequence[NodeColumns]) -> NodeColumns:
        return cls(
            *(
                np.concatenate([np.empty(0, dtype), *(getattr(p, name) for p in parts)]).astype(
                    dtype, copy=False
                )
                for name, dtype in _COLUMNS.items()
            )
        )


_COLUMNS: Mapping[str, type[np.generic]] = {
    "class_ids": np.uint16,
    "scores": np.float32,
    "areas": np.int32,
    "first_pixels": np.int64,
    "at_edge": np.bool_,
}


@dataclass(frozen=True, slots=True)
class TileFragment:
    """One tile's part of a fragment."""

    tile_id: int
    core: NDArray[np.unsignedinteger]
    strips: Mapping[Side, NDArray[np.unsignedinteger]]
    """Overlap bands with the four neighbours, as :meth:`TileGrid.band` gives them."""
    nodes: NodeColumns
    queries_used: int


@dataclass(frozen=True, slots=True)
class PackedTile:
    """A tile's part of a fragment with its arrays compressed: what a worker holds until the unit is done."""

    tile_id: int
    itemsize: int
    """Bytes per label, 2 or 4; 0 for a tile without input."""
    pixels: int
    """Owned pixels; 0 for a tile without input."""
    members: Mapping[str, bytes]
    nodes: NodeColumns
    queries_used: int

    @property
    def segments(self) -> int:
        return len(self.nodes)

    @property
    def is_empty(self) -> bool:
        return self.itemsize == 0


def empty_tile(tile_id: int) -> PackedTile:
    """A tile without input: skipped, all nodata."""
    return PackedTile(tile_id, 0, 0, {}, NodeColumns.concatenate([]), 0)


def pack_tile(tile: TileFragment) -> PackedTile:
    """Compress the arrays of a tile."""
    members = {"core": _compress(tile.core)}
    members.update((side, _compress(strip)) for side, strip in tile.strips.items())
    return PackedTile(
        tile.tile_id, tile.core.itemsize, tile.core.size, members, tile.nodes, tile.queries_used
    )


def tile_fragment(
    grid: TileGrid,
    tile: Tile,
    panoptic: PanopticMap,
    valid: NDArray[np.bool_],
    classes: ClassTable,
) -> TileFragment:
    """Cut a replica's map into what stitching needs.

    ``panoptic`` is the map of the padded tile, ``valid`` (h, w) tells which pixels of the window have input.
    Pixels without input become nodata, segments that lose all pixels disappear, ids are made dense.
    """
    height, width = tile.window.shape
    window_labels = panoptic.labels[:height, :width]
    n = len(panoptic.label_ids)
    if window_labels.min(initial=0) < 0 or window_labels.max(initial=0) > n:
        raise ValueError(f"The replica's map names segments outside its table of {n} rows.")
    kept = np.bincount(window_labels[valid], minlength=n + 1)[1:] > 0
    dtype: type[np.unsignedinteger] = np.uint16 if np.count_nonzero(kept) < 0xFFFF else np.uint32
    dense = np.zeros(n + 1, dtype)
    dense[1:][kept] = np.arange(1, np.count_nonzero(kept) + 1, dtype=dtype)
    labels: NDArray[np.unsignedinteger] = dense[window_labels]
    labels[~valid] = nodata_of(labels.dtype)

    core = np.ascontiguousarray(labels[tile.core.slices(tile.window)])
    label_ids = np.asarray(panoptic.label_ids)[kept]
    if label_ids.size and not 0 <= label_ids.min() <= label_ids.max() < len(classes):
        raise ValueError(f"The replica names class {label_ids.max()}, but there are {len(classes)} classes.")
    areas, first = _core_statistics(core, tile.core, grid.width, len(label_ids))
    nodes = NodeColumns(
        (label_ids + 1).astype(np.uint16),
        np.asarray(panoptic.scores, np.float32)[kept],
        areas,
        first,
        _touches_edge(labels, valid, tile, grid, len(label_ids)),
    )
    return TileFragment(
        grid.tile_id(tile.row, tile.col), core, _strips(grid, tile, labels), nodes, panoptic.queries_used
    )


def nodata_of(dtype: np.dtype[np.unsignedinteger]) -> int:
    """The local id of pixels without input."""
    return int(np.iinfo(dtype).max)


def band_of_side(grid: TileGrid, tile: Tile, d_row: int, d_col: int) -> Window | None:
    """Overlap band of a tile with the neighbour in that direction; None at the grid's border."""
    row, col = tile.row + d_row, tile.col + d_col
    if not (0 <= row < grid.rows and 0 <= col < grid.cols):
        return None
    return grid.band(tile, grid.tile_at(row, col))


def _strips(
    grid: TileGrid, tile: Tile, labels: NDArray[np.unsignedinteger]
) -> dict[Side, NDArray[np.unsignedinteger]]:
    strips: dict[Side, NDArray[np.unsignedinteger]] = {}
    for side, d_row, d_col in SIDES:
        band = band_of_side(grid, tile, d_row, d_col)
        if band is not None:
            strips[side] = np.ascontiguousarray(labels[band.slices(tile.window)])
    return strips


def _core_statistics(
    core: NDArray[np.unsignedinteger], where: Window, raster_width: int, n: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Owned area and first owned pixel of each of ``n`` segments."""
    flat = core.ravel().astype(np.int64)
    flat[flat == nodata_of(core.dtype)] = 0
    areas = np.bincount(flat, minlength=n + 1)[1:].astype(np.int32)
    at = np.full(n + 1, NO_PIXEL, np.int64)
    at[flat[::-1]] = np.arange(
        flat.size - 1, -1, -1
    )  # the last assignment wins: the first pixel in scan order
    at = at[1:]
    rows, cols = np.divmod(at, where.width)
    first = (where.row + rows) * raster_width + where.col + cols
    return areas, np.where(at == NO_PIXEL, NO_PIXEL, first)


def _touches_edge(
    labels: NDArray[np.unsignedinteger], valid: NDArray[np.bool_], tile: Tile, grid: TileGrid, n: int
) -> NDArray[np.bool_]:
    """Which segments own a pixel at the raster's edge or beside (4-neighbourhood) a pixel without input."""
    window = tile.window
    beside = np.zeros(window.shape, np.bool_)
    if not valid.all():
        missing = ~valid
        beside[1:] |= missing[:-1]
        beside[:-1] |= missing[1:]
        beside[:, 1:] |= missing[:, :-1]
        beside[:, :-1] |= missing[:, 1:]
    if window.row == 0:
        beside[0] = True
    if window.stop_row == grid.height:
        beside[-1] = True
    if window.col == 0:
        beside[:, 0] = True
    if window.stop_col == grid.width:
        beside[:, -1] = True
    owned = tile.core.slices(window)
    touching = np.zeros(n + 1, np.bool_)
    ids = labels[owned][beside[owned] & valid[owned]]
    touching[ids] = True
    return touching[1:]


# --- bytes ---------------------------------------------------------------------------------------------


def encode_fragment(tiles: Iterable[PackedTile]) -> bytes:
    """The bytes of a unit's fragment: equal content gives equal bytes."""
    ordered = sorted(tiles, key=lambda t: t.tile_id)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "tiles.arrow", _table_bytes(_tile_table(ordered)))
        nodes = NodeColumns.concatenate([t.nodes for t in ordered])
        _add(
            archive, "nodes.arrow", _table_bytes(pa.table({name: getattr(nodes, name) for name in _COLUMNS}))
        )
        for t in ordered:
            for member, data in t.members.items():
                _add(archive, f"{t.tile_id}/{member}", data)
    return buffer.getvalue()


class FragmentFile:
    """A fragment opened for reading; members are read one by one."""

    def __init__(self, stream: BinaryIO) -> None:
        self._archive = zipfile.ZipFile(stream)
        tiles = _read_table(self._archive.read("tiles.arrow"))
        self._itemsize = dict(zip(tiles["tile_id"].to_pylist(), tiles["itemsize"].to_pylist(), strict=True))
        self.tiles = tiles

    @property
    def tile_ids(self) -> list[int]:
        return list(self._itemsize)

    def node_counts(self) -> list[int]:
        """Segments per tile, in the order of :attr:`tile_ids`."""
        counts: list[int] = self.tiles["segments"].to_pylist()
        return counts

    def nodes(self) -> NodeColumns:
        """Segments of all tiles, tile after tile."""
        table = _read_table(self._archive.read("nodes.arrow"))
        return NodeColumns(
            *(table[name].to_numpy().astype(dtype, copy=False) for name, dtype in _COLUMNS.items())
        )

    def core(self, tile_id: int, shape: tuple[int, int]) -> NDArray[np.unsignedinteger] | None:
        """Core labels of a tile; None for a tile without input, or one that failed."""
        return self._array(tile_id, "core", shape)

    def strip(self, tile_id: int, side: Side, shape: tuple[int, int]) -> NDArray[np.unsignedinteger] | None:
        """Labels of an overlap band; None for a tile without input, or one that failed."""
        return self._array(tile_id, side, shape)

    def _array(self, tile_id: int, member: str, shape: tuple[int, int]) -> NDArray[np.unsignedinteger] | None:
        itemsize = self._itemsize.get(tile_id, 0)
        if itemsize == 0:
            return None
        dtype: type[np.unsignedinteger] = np.uint16 if itemsize == 2 else np.uint32
        raw = pa.decompress(
            self._archive.read(f"{tile_id}/{member}"),
            shape[0] * shape[1] * itemsize,
            codec="zstd",
            asbytes=True,
        )
        labels: NDArray[np.unsignedinteger] = np.frombuffer(raw, dtype).reshape(shape)
        return labels

    def close(self) -> None:
        self._archive.close()


def to_global(local: NDArray[np.unsignedinteger], lut: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Local ids of one tile to segment ids of the raster; ``lut[i]`` is the id of local segment ``i + 1``."""
    table = np.zeros(len(lut) + 2, np.uint32)
    table[1:-1] = lut
    table[-1] = NODATA_ID
    index = local.astype(np.int64)
    index[local == nodata_of(local.dtype)] = len(lut) + 1
    return table[index]


def _tile_table(tiles: Sequence[PackedTile]) -> pa.Table:
    return pa.table(
        {
            "tile_id": pa.array([t.tile_id for t in tiles], pa.int32()),
            "itemsize": pa.array([t.itemsize for t in tiles], pa.int8()),
            "segments": pa.array([len(t.nodes) for t in tiles], pa.int32()),
            "queries_used": pa.array([t.queries_used for t in tiles], pa.int32()),
        }
    )


def _table_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _read_table(data: bytes) -> pa.Table:
    with pa.ipc.open_file(pa.BufferReader(data)) as reader:
        return reader.read_all()


def _compress(array: NDArray[np.unsignedinteger]) -> bytes:
    compressed: bytes = pa.Codec("zstd", compression_level=1).compress(
        np.ascontiguousarray(array), asbytes=True
    )
    return compressed


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name, _ZIP_TIME), data)
