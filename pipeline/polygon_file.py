"""Labelled polygons of a GeoJSON, GeoParquet or GeoPackage file, with their class values and CRS.

Unusual: no vector library is needed. GeoParquet is read with pyarrow, a GeoPackage is an SQLite file whose geometries
are WKB behind a short header (OGC 12-128r18, clause 2.1.3).
"""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from panoptile.pipeline import gdal_env
from panoptile.pipeline.inputs import InputError, shown

gdal_env.configure()  # before rasterio

# isort: split
from rasterio.crs import CRS
from rasterio.errors import CRSError

POLYGON_ENDINGS = (".geojson", ".json", ".parquet", ".geoparquet", ".gpkg")
LONGITUDE_LATITUDE = "EPSG:4326"
_EPSG = re.compile(r"(?:urn:ogc:def:crs:)?EPSG:(?:[\d.]*:)?(\d+)", re.IGNORECASE)
_CRS84 = re.compile(r"(?:urn:ogc:def:crs:)?OGC:(?:[\d.]*:)?CRS84", re.IGNORECASE)
_ENVELOPE_BYTES = (0, 32, 48, 48, 64)


@dataclass(frozen=True, slots=True)
class PolygonFile:
    """All features of a file, in file order."""

    path: str
    geometries: NDArray[np.object_]
    """(N,) shapely geometries; None where there is none or it cannot be read."""
    classes: tuple[str | None, ...] | None
    """Each feature's value in the class column; None without such a column."""
    crs: CRS | None
    """None: the file does not say."""


def read_polygon_file(path: str, *, class_column: str | None) -> PolygonFile:
    """Read all features. Raises InputError for a file that cannot be used, or has no such column."""
    ending = Path(path).suffix.lower()
    if not Path(path).is_file():
        raise InputError(f"There is no label file {shown(path)}.")
    if ending in (".geojson", ".json"):
        return _geojson(path, class_column)
    if ending in (".parquet", ".geoparquet"):
        return _geoparquet(path, class_column)
    if ending == ".gpkg":
        return _geopackage(path, class_column)
    raise InputError(
        f"{shown(path)}: labels are read from {', '.join(POLYGON_ENDINGS)} or rasters; convert this file to GeoParquet."
    )


def _as_classes(values: Sequence[Any]) -> tuple[str | None, ...]:
    return tuple(None if value is None else str(value) for value in values)


def _no_column(path: str, column: str, there: Sequence[str]) -> InputError:
    known = ", ".join(sorted(there)[:20]) or "none"
    return InputError(f"{shown(path)} has no column {column!r}: name one of its columns ({known}).")


def _geojson(path: str, column: str | None) -> PolygonFile:
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        features = document["features"]
        rows = [(f.get("geometry"), f.get("properties") or {}) for f in features]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise InputError(f"{shown(path)} is no GeoJSON FeatureCollection: {type(e).__name__} {e}.") from e
    there = {name for _, properties in rows for name in properties}
    if column is not None and column not in there:
        raise _no_column(path, column, list(there))
    texts = np.array([None if g is None else json.dumps(g) for g, _ in rows], object)
    classes = None if column is None else _as_classes([properties.get(column) for _, properties in rows])
    geometries = np.array([_from_geojson(text) for text in texts], object)
    return PolygonFile(path, geometries, classes, _geojson_crs(path, document))


def _from_geojson(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return shapely.from_geojson(text)
    except shapely.errors.ShapelyError:
        return None


def _geojson_crs(path: str, document: dict[str, Any]) -> CRS:
    """Only codes are looked up: GDAL would read a file or a URL given in place of a name."""
    member = document.get("crs")
    if member is None:
        return CRS.from_string(LONGITUDE_LATITUDE)
    properties = member.get("properties") if isinstance(member, dict) else None
    text = str(properties.get("name", "")) if isinstance(properties, dict) else ""
    if _CRS84.fullmatch(text):
        return CRS.from_string(LONGITUDE_LATITUDE)
    if match := _EPSG.fullmatch(text):
        return CRS.from_epsg(int(match[1]))
    raise InputError(
        f"{shown(path)} names the CRS {text!r}: only EPSG codes are understood, such as EPSG:32633."
    )


def _geoparquet(path: str, column: str | None) -> PolygonFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from panoptile.pipeline.parquet_read import read_columns

    try:
        schema = pq.read_schema(path)
        geo = json.loads((schema.metadata or {})[b"geo"])
        primary = geo["primary_column"]
        settings = geo["columns"][primary]
        if column is not None and column not in schema.names:
            raise _no_column(path, column, schema.names)
        table = read_columns(path, [primary, *([column] if column else [])])
    except (OSError, pa.ArrowException, KeyError, ValueError) as e:
        if isinstance(e, InputError):
            raise
        raise InputError(f"{shown(path)} is no GeoParquet file: {type(e).__name__} {e}.") from e
    if settings.get("encoding", "WKB") != "WKB":
        raise InputError(
            f"{shown(path)}: its geometries are encoded as {settings['encoding']}; write them as WKB."
        )
    geometries = shapely.from_wkb(np.array(table.column(primary).to_pylist(), object), on_invalid="ignore")
    classes = None if column is None else _as_classes(table.column(column).to_pylist())
    return PolygonFile(path, np.atleast_1d(geometries), classes, _projjson_crs(path, settings))


def _projjson_crs(path: str, settings: dict[str, Any]) -> CRS | None:
    if "crs" not in settings:
        return CRS.from_string(LONGITUDE_LATITUDE)  # GeoParquet 1.1: OGC:CRS84 where it is left out
    if settings["crs"] is None:
        return None
    try:
        return CRS.from_user_input(json.dumps(settings["crs"]))
    except CRSError as e:
        raise InputError(f"{shown(path)}: its CRS cannot be read: {e}.") from e


def _geopackage(path: str, column: str | None) -> PolygonFile:
    uri = Path(path).absolute().as_uri() + "?mode=ro&immutable=1"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as database:
            layers = database.execute(
                "SELECT table_name, column_name, srs_id FROM gpkg_geometry_columns"
            ).fetchall()
            if len(layers) != 1:
                raise InputError(
                    f"{shown(path)} holds {len(layers)} layers with geometries: write the one with the labels to a "
                    "file of its own."
                )
            ((layer, geometry, srs_id),) = layers
            there = [row[1] for row in database.execute(f"PRAGMA table_info({_quoted(layer)})")]
            if column is not None and column not in there:
                raise _no_column(path, column, there)
            asked = ", ".join(_quoted(name) for name in (geometry, *([column] if column else [])))
            rows = database.execute(f"SELECT {asked} FROM {_quoted(layer)}").fetchall()
            found = database.execute(
                "SELECT organization, organization_coordsys_id, definition FROM gpkg_spatial_ref_sys WHERE srs_id = ?",
                (srs_id,),
            ).fetchone()
    except sqlite3.Error as e:
        raise InputError(f"{shown(path)} is no GeoPackage: {e}.") from e
    blobs = np.array([_wkb_of_blob(row[0]) for row in rows], object)
    classes = None if column is None else _as_classes([row[1] for row in rows])
    geometries = shapely.from_wkb(blobs, on_invalid="ignore") if len(blobs) else blobs
    return PolygonFile(path, geometries, classes, _geopackage_crs(found))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _wkb_of_blob(blob: bytes | None) -> bytes | None:
    """The WKB behind a GeoPackage geometry's header; None for what is none."""
    if blob is None or len(blob) < 8 or blob[:2] != b"GP":
        return None
    flags = blob[3]
    envelope = (flags >> 1) & 7
    if flags & 0x10 or envelope >= len(_ENVELOPE_BYTES):
        return None
    return blob[8 + _ENVELOPE_BYTES[envelope] :]


def _geopackage_crs(row: tuple[str, int, str] | None) -> CRS | None:
    if row is None or row[1] <= 0:
        return None  # -1 and 0: undefined
    organisation, code, definition = row
    if organisation.upper() == "EPSG":
        return CRS.from_epsg(code)
    try:
        return CRS.from_wkt(definition)
    except CRSError:
        return None
