"""The table of segments as GeoParquet 1.1: one row per thing, one per stuff segment and 4,096-px block.

Rows come in Hilbert order with a bounding-box column, so that readers skip row groups by place. Written group by
group: memory is that of one group. Pixel columns count from the raster's upper left corner: ``bbox_px`` is
[x, y, width, height], ``rle`` the COCO code over that box, ``rle_offset`` its [x, y], the column and row to paste at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray

from panoptile.model.classes import ClassTable
from panoptile.pipeline import gdal_env  # noqa: F401  (GDAL's environment, before rasterio)
from panoptile.pipeline.ground_area import area_rule
from panoptile.pipeline.polygons import Ints, Outlines, offsets_of, ragged_index, to_geometries
from panoptile.pipeline.raster_info import RasterInfo
from panoptile.pipeline.remote_uri import SCHEMES, scheme_of
from panoptile.pipeline.rle import encode_runs
from panoptile.pipeline.segments import SegmentTable
from panoptile.pipeline.spool import OutlineSpool

from rasterio.crs import CRS  # isort: skip  (after gdal_env)

GROUP_ROWS = 50_000
"""Rows of a row group, at most."""
_GROUP_BYTES = 8 << 20
"""Spooled bytes of a row group, at most (a quarter of its WKB): groups with large outlines have fewer rows."""
_BATCH_ROWS = 1_000
"""Rows that are turned into columns at once: run-length codes take some 80 bytes a pixel of horizontal outline."""
_BATCH_BYTES = 1 << 20
"""Spooled bytes that are turned into columns at once."""

Batch = tuple[Outlines, NDArray[np.int32]]
"""Outlines and their part numbers."""

_BBOX = pa.struct([pa.field(name, pa.float64(), nullable=False) for name in ("xmin", "ymin", "xmax", "ymax")])
_RLE = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
_COLUMNS = pa.schema(
    [
        pa.field("segment_id", pa.uint32(), nullable=False),
        pa.field("part", pa.int32(), nullable=False),
        pa.field("class_id", pa.uint16(), nullable=False),
        pa.field("class_name", pa.string(), nullable=False),
        pa.field("is_thing", pa.bool_(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("area_px", pa.int64(), nullable=False),
        pa.field("area_m2", pa.float64()),
        pa.field("bbox_px", pa.list_(pa.int32()), nullable=False),
        pa.field("rle", _RLE),
        pa.field("rle_offset", pa.list_(pa.int64()), nullable=False),
        pa.field("tile_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("at_edge", pa.bool_(), nullable=False),
        pa.field("merged_from", pa.int32(), nullable=False),
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("geometry", pa.binary(), nullable=False),
        pa.field("bbox", _BBOX, nullable=False),
    ]
)


_OPTIONS: dict[str, Any] = {
    "version": "2.6",
    "store_schema": False,  # with Arrow's copy of the schema, pyarrow's readers do not see "geo", which is added last
    "compression": "zstd",
    "compression_level": 1,  # on outlines, levels 6 and 9 take two to three times as long and save nothing
    "use_dictionary": ["class_id", "class_name", "source_uri", "merged_from", "part"],
    "write_statistics": [
        f.name
        for f in _COLUMNS
        if not pa.types.is_nested(f.type) and f.name not in ("geometry", "source_uri")
    ]
    + [f"bbox.{f.name}" for f in _BBOX],
}


def write_geoparquet(
    path: Path, spool: OutlineSpool, info: RasterInfo, segments: SegmentTable, classes: ClassTable
) -> int:
    """Write all rows of ``spool`` to ``path`` and return their number; without any, a valid empty file.

    ``geometry`` is in the raster's CRS (pixel coordinates, y down, where the raster is not georeferenced); attributes
    are those of the whole segment, areas and boxes those of the row. ``area_m2`` is on the ground, see ``area_rule``, and
    null without CRS.
    """
    rows = _Rows(info, segments, classes)
    written = 0
    with pq.ParquetWriter(path, _COLUMNS, **_OPTIONS) as writer:
        for group in _groups(spool):
            table = pa.Table.from_batches([rows.columns(*batch) for batch in group], _COLUMNS)
            writer.write_table(table, row_group_size=len(table))
            written += len(table)
        writer.add_key_value_metadata({"geo": json.dumps(rows.geo_metadata(), separators=(",", ":"))})
    return written


def _groups(spool: OutlineSpool) -> Iterator[Iterator[Batch]]:
    """Batches of one row group each; a group must be used up before the next is asked for."""
    batches = spool.batches(min(_BATCH_ROWS, GROUP_ROWS), _BATCH_BYTES)
    ahead = next(batches, None)

    def one_group() -> Iterator[Batch]:
        nonlocal ahead
        rows = size = 0
        while ahead is not None:
            rows, size = rows + len(ahead[0]), size + ahead[0].starts_xy.nbytes
            if rows > GROUP_ROWS or (size > _GROUP_BYTES and rows > len(ahead[0])):
                return
            yield ahead
            ahead = next(batches, None)

    while ahead is not None:
        yield one_group()


class _Rows:
    """Turns outlines into rows, and remembers what the file's metadata say of all of them."""

    def __init__(self, info: RasterInfo, segments: SegmentTable, classes: ClassTable) -> None:
        self._info, self._segments = info, segments
        self._names = pa.array(["", *(c.name for c in classes)])
        self._is_thing = np.array([False, *(c.is_thing for c in classes)])
        self._uri = public_uri(info.uri)
        self._square_metres = area_rule(info)
        self._bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])
        self._types: set[str] = set()

    def columns(self, outlines: Outlines, parts: NDArray[np.int32]) -> pa.RecordBatch:
        """The rows of ``P`` outlines."""
        rows = outlines.ids.astype(np.int64) - 1
        table, boxes = self._segments, outlines.boxes()
        class_ids = table.class_ids[rows]
        metres = None if self._square_metres is None else self._square_metres(outlines)
        geometries = to_geometries(outlines, self._info.transform)
        return pa.RecordBatch.from_arrays(
            [
                pa.array(outlines.ids),
                pa.array(parts),
                pa.array(class_ids),
                self._names.take(pa.array(class_ids)),
                pa.array(self._is_thing[class_ids]),
                pa.array(table.scores[rows]),
                pa.array(outlines.areas()),
                pa.nulls(len(rows), pa.float64()) if metres is None else pa.array(metres),
                _pairs(np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)),
                _rle(outlines, boxes),
                _pairs(boxes[:, :2].astype(np.int64)),
                _tile_ids(table, rows),
                pa.array(table.at_edge[rows]),
                pa.array(table.merged_from[rows]),
                pa.array([self._uri] * len(rows), pa.string()),
                pa.array(shapely.to_wkb(geometries), pa.binary()),
                self._bbox(geometries),
            ],
            schema=_COLUMNS,
        )

    def _bbox(self, geometries: NDArray[np.object_]) -> pa.StructArray:
        bounds = shapely.bounds(geometries)
        self._bounds[:2] = np.minimum(self._bounds[:2], bounds[:, :2].min(axis=0))
        self._bounds[2:] = np.maximum(self._bounds[2:], bounds[:, 2:].max(axis=0))
        several = shapely.get_type_id(geometries) == shapely.GeometryType.MULTIPOLYGON
        self._types |= {"MultiPolygon"} if several.any() else set()
        self._types |= set() if several.all() else {"Polygon"}
        return pa.StructArray.from_arrays([pa.array(side) for side in bounds.T.copy()], fields=list(_BBOX))

    def geo_metadata(self) -> dict[str, Any]:
        """The file's ``geo`` entry (GeoParquet 1.1.0), after all rows were made."""
        wkt = self._info.crs_wkt
        column: dict[str, Any] = {
            "encoding": "WKB",
            "geometry_types": sorted(self._types),
            "crs": None if wkt is None else CRS.from_wkt(wkt).to_dict(projjson=True),
            "orientation": "counterclockwise",
            "edges": "planar",
            "covering": {"bbox": {field.name: ["bbox", field.name] for field in _BBOX}},
        }
        if self._types:
            column["bbox"] = self._bounds.tolist()
        return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}


def _pairs(values: NDArray[np.signedinteger[Any]]) -> pa.ListArray:
    """A list column of the rows of ``values`` (P, k)."""
    offsets = np.arange(len(values) + 1, dtype=np.int32) * np.int32(values.shape[1])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.ravel()))


def _rle(outlines: Outlines, boxes: NDArray[np.int32]) -> pa.StructArray:
    counts = encode_runs(outlines, boxes)
    sizes = _pairs(np.stack([boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]], axis=1))
    return pa.StructArray.from_arrays([sizes, counts], fields=list(_RLE), mask=counts.is_null())


def _tile_ids(table: SegmentTable, rows: Ints) -> pa.ListArray:
    starts = table.tile_offsets[rows]
    lengths = table.tile_offsets[rows + 1] - starts
    values = table.tile_ids[ragged_index(starts, lengths)]
    return pa.ListArray.from_arrays(pa.array(offsets_of(lengths).astype(np.int32)), pa.array(values))


def public_uri(uri: str) -> str:
    """``uri`` without what may be secret: user, password, query string (signatures) and fragment.

    Only text with a scheme (``s3://``, ``/vsicurl/https://``) has such parts; a plain path stays as it is. In the key of an
    object ``#`` and ``?`` are letters, unless parameters follow, which remote_uri.checked_uri refuses.
    """
    split = re.match(r"(?P<prefix>/vsi\w+/)?(?P<url>[A-Za-z][A-Za-z0-9+.-]*://.*)", uri, re.DOTALL)
    if split is None:
        return uri
    if scheme_of(uri) in SCHEMES:
        place, slash, key = uri.partition("://")[2].partition("/")
        return f"{scheme_of(uri)}://{place.rpartition('@')[2]}{slash}{re.sub(r'[?][^/]*=.*', '', key, flags=re.DOTALL)}"
    url = urlsplit(split["url"])
    return (split["prefix"] or "") + urlunsplit((url.scheme, url.netloc.rpartition("@")[2], url.path, "", ""))
