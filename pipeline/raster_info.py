"""What is known of an input raster before any pixel is segmented."""

from __future__ import annotations

from dataclasses import dataclass, field

NODATA_ID = 0xFFFF_FFFF
"""Segment id of pixels without input, in memory and in ``segments.tif``; 0 is void."""


@dataclass(frozen=True, slots=True)
class RasterInfo:
    """One input raster on the pixel grid that the run works on (after ``--gsd``). Plain values: it is JSON."""

    uri: str
    """Where it is read from, as the user named it."""
    key: str
    """Name of its outputs: sanitised stem + 10 hex digits of sha256(uri)."""
    stem: str
    """Sanitised file stem."""
    height: int
    width: int
    """Size of the working grid, pixels."""
    bands: tuple[int, ...]
    """GDAL band numbers, from 1, in the order that the network sees."""
    dtype: str
    """numpy name of the source's data type."""
    transform: tuple[float, float, float, float, float, float]
    """Affine a, b, c, d, e, f of the working grid: x = a*col + b*row + c, y = d*col + e*row + f."""
    crs_wkt: str | None
    """None where the raster has no CRS."""
    georeferenced: bool
    """False where the transform is only the pixel grid itself."""
    native_height: int
    native_width: int
    """Size of the file's own grid."""
    block_shape: tuple[int, int]
    """(rows, columns) of the file's blocks."""
    resampled: bool
    """True where ``--gsd`` asks for another pixel size than the file's."""
    nodata: float | None
    """Value that means "no input", declared or given; None where there is none."""
    scale: tuple[float, float] | None
    """(low, high) mapped to 0…255 for the whole raster; None: uint8 is taken as it is."""
    size_bytes: int
    mtime_ns: int
    """Of a local file; 0 elsewhere."""
    etag: str = ""
    """Of an object in a store, as the store's client gives it; empty for a local file."""
    driver: str = "GTiff"
    """GDAL driver that opened it; workers open it with no other."""
    aoi_wkb: str | None = None
    """Area of interest in the raster's CRS, hexadecimal WKB: pixels whose centre lies outside are nodata."""
    notes: tuple[str, ...] = field(default=())
    """What is missing or unusual, one sentence each, for the user."""
    sheets: tuple[Sheet, ...] = ()
    """The files that make up a mosaic; empty for a raster of one file."""
    written_ns: int = field(default=0, compare=False)
    """When an object was written, by its store's clock, nanoseconds since 1970; 0 where that is not known. Told, never
    compared: its ``etag`` tells whether an object is another one."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """One file of a mosaic, and where its first pixel lies in it."""

    row: int
    col: int
    info: RasterInfo
