"""The raster source: what is known of an input before the run, and its tiles as the network takes them.

``inspect_raster`` decides everything that concerns the whole raster (bands, scaling, nodata, grid, area of
interest) once; ``RasterSource`` then reads any window without looking beyond it, so a tile's pixels do not
depend on the tiling.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from panoptile.pipeline import gdal_env
from panoptile.pipeline.aoi import AreaOfInterest, read_aoi
from panoptile.pipeline.band_reader import DTYPES, BandReader, select_bands, select_nodata
from panoptile.pipeline.inputs import InputError, output_key, shown
from panoptile.pipeline.raster_file import (
    Limits,
    RasterReadError,
    check_file,
    ignored_side_files,
    open_raster,
    tried_again,
)
from panoptile.pipeline.raster_info import RasterInfo
from panoptile.pipeline.remote_object import is_remote, version_of
from panoptile.pipeline.resample import Taps, axis_taps, resample
from panoptile.pipeline.scaling import (
    AUTO_PERCENTILES,
    SAMPLE_PIXELS,
    ScaleRule,
    parse_scale,
    percentile_range,
    sample_windows,
    to_uint8,
)
from panoptile.pipeline.window import Window
from panoptile.pipeline.working_grid import Transform, ratios, working_grid

gdal_env.configure()  # before rasterio

# isort: split
from typing import Self

import rasterio

IDENTITY: Transform = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
"""What GDAL gives for a raster without georeferencing."""

RESAMPLE_BYTES = 32 << 20
"""Source pixels held at once while resampling; a larger window is resampled in parts, with the same result."""

SUSPICIOUS_RATIO = 1000
"""Decoded bytes per byte of file above which a note warns of a sparse or hostile file."""


@dataclass(frozen=True, slots=True, eq=False)
class RasterTile:
    """The pixels of one window and which of them are input."""

    pixels: NDArray[np.uint8]
    """(C, H, W); 0 where the file has no input. Pixels outside the area of interest keep their values: the reader decides
    nothing about them (the worker shows the network its fill value there)."""
    valid: NDArray[np.bool_]
    """(H, W); False: nodata, transparent, masked, NaN, or outside the area of interest."""


class RasterSource:
    """Windows of one raster on its working grid. Any number of threads may read: each has its own handle."""

    def __init__(self, info: RasterInfo) -> None:
        self.info = info
        self._aoi = None if info.aoi_wkb is None else AreaOfInterest(info.aoi_wkb, info.transform)
        self._local = threading.local()
        self._lock = threading.Lock()
        self._handles: list[rasterio.DatasetReader] = []
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the handles of all threads; none of them may be reading."""
        with self._lock:
            self._closed = True
            for handle in self._handles:
                handle.close()
            self._handles.clear()

    def read(self, window: Window) -> RasterTile:
        """Pixels and validity of a window of the working grid.

        Equal to the same slice of the whole raster, whatever was read before. Raises ValueError for a window
        outside the raster, RasterReadError (an OSError) where the file cannot be read.
        """
        if window.intersect(Window(0, 0, self.info.height, self.info.width)) != window:
            raise ValueError(
                f"{window} lies outside the raster of {self.info.height}x{self.info.width} pixels."
            )
        pixels, valid = tried_again(self.info.uri, lambda: self._read(window), self._forget)
        if self._aoi is not None:
            valid = valid & self._aoi.mask(window)
        return RasterTile(pixels, valid)

    def _read(self, window: Window) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        reader = self._reader()
        if self.info.resampled:
            return self._read_resampled(reader, window)
        values, valid = reader.read(window)
        return to_uint8(values, valid, self.info.scale), valid

    def _forget(self) -> None:
        """Close this thread's handle: one that failed keeps what it got."""
        dataset: rasterio.DatasetReader | None = getattr(self._local, "dataset", None)
        if dataset is not None:
            with self._lock:
                self._handles.remove(dataset)
            dataset.close()
        self._local.reader = self._local.dataset = None

    def _reader(self) -> BandReader:
        reader: BandReader | None = getattr(self._local, "reader", None)
        if self._closed:
            raise ValueError(f"The source of {shown(self.info.uri)} is closed.")
        if reader is None:
            reader = self._local.reader = self._open()
        return reader

    def _open(self) -> BandReader:
        info = self.info
        try:
            dataset = open_raster(info.uri, (info.driver,))
        except InputError as e:  # it was good when the run was planned
            raise RasterReadError(str(e)) from e
        if (dataset.height, dataset.width) != (info.native_height, info.native_width):
            dataset.close()
            raise RasterReadError(
                f"{shown(info.uri)} has another size than when it was planned: plan it again."
            )
        self._local.ratios = ratios(native_transform(dataset), info.transform)
        with self._lock:
            self._handles.append(dataset)
        self._local.dataset = dataset
        return BandReader(dataset, info.uri, info.bands, info.nodata)

    def _read_resampled(
        self, reader: BandReader, window: Window
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        pixels = np.zeros((len(self.info.bands), *window.shape), np.uint8)
        valid = np.zeros(window.shape, bool)
        for part in self._affordable(window):
            rows, cols = self._taps(part)
            source = Window.span(rows.start, cols.start, rows.stop, cols.stop)
            values, is_valid = resample(*reader.read(source), rows, cols)
            index = part.slices(window)
            pixels[(slice(None), *index)] = to_uint8(values, is_valid, self.info.scale)
            valid[index] = is_valid
        return pixels, valid

    def _taps(self, part: Window) -> tuple[Taps, Taps]:
        row_ratio, col_ratio = self._ratios()
        return (
            axis_taps(part.row, part.stop_row, ratio=row_ratio, source_size=self.info.native_height),
            axis_taps(part.col, part.stop_col, ratio=col_ratio, source_size=self.info.native_width),
        )

    def _ratios(self) -> tuple[float, float]:
        """(rows, columns) of the file per pixel of the working grid; known once this thread's handle is open."""
        pair: tuple[float, float] = self._local.ratios
        return pair

    def _affordable(self, window: Window) -> Iterator[Window]:
        """Parts of a window whose source pixels are held at once; each output pixel stands for itself."""
        row_ratio, col_ratio = self._ratios()
        needed = window.pixels * row_ratio * col_ratio * len(self.info.bands) * 8
        if needed <= RESAMPLE_BYTES or window.pixels == 1:
            yield window
            return
        for half in _halves(window):
            yield from self._affordable(half)


def native_transform(dataset: rasterio.DatasetReader) -> Transform:
    """The file's own transform as plain numbers; the identity where it has none."""
    a, b, c, d, e, f = (float(v) for v in tuple(dataset.transform)[:6])
    return a, b, c, d, e, f


def inspect_raster(
    uri: str,
    *,
    bands: Sequence[int] | None = None,
    scale: str = "auto",
    gsd: float | None = None,
    nodata: float | None = None,
    aoi: str | os.PathLike[str] | None = None,
    channels: int = 3,
    limits: Limits | None = None,
) -> RasterInfo:
    """Check a raster file and decide everything that concerns it as a whole.

    ``bands``: GDAL numbers from 1, ``channels`` of them, or one that is repeated; None: see select_bands.
    ``scale``: "auto", "LOW,HIGH" or "pA,pB", see parse_scale. ``gsd``: metres per pixel; None: the file's.
    ``nodata``: in place of the declared value. ``aoi``: a GeoJSON file. ``channels``: bands of the network.
    Raises InputError, in one sentence, for anything that would make the run fail or mislead, and StoreUnreachable.
    """
    uri = uri if is_remote(uri) else os.path.abspath(uri)
    return tried_again(
        uri,
        lambda: _inspect(
            uri, bands=bands, scale=scale, gsd=gsd, nodata=nodata, aoi=aoi, channels=channels, limits=limits
        ),
    )


def _inspect(
    uri: str,
    *,
    bands: Sequence[int] | None,
    scale: str,
    gsd: float | None,
    nodata: float | None,
    aoi: str | os.PathLike[str] | None,
    channels: int,
    limits: Limits | None,
) -> RasterInfo:
    rule = parse_scale(scale)
    driver = check_file(uri, limits)
    version = version_of(uri)
    with open_raster(uri, (driver,)) as dataset:
        chosen, notes = select_bands(dataset, uri, asked=bands, channels=channels)
        dtype = _common_dtype(dataset, uri, chosen)
        no_value, nodata_notes = select_nodata(dataset, chosen, nodata)
        reader = BandReader(dataset, uri, chosen, no_value)
        try:
            _decode_corners(dataset, reader)
            scaling, scale_notes = _scaling(dataset, reader, rule)
        except RasterReadError as e:
            raise InputError(str(e)) from e
        crs_wkt = dataset.crs.to_wkt() if dataset.crs else None
        transform = native_transform(dataset)
        notes += [
            *nodata_notes,
            *scale_notes,
            *_place_notes(dataset, uri),
            *_file_notes(dataset, uri, version.size),
        ]
        height, width, block = dataset.height, dataset.width, dataset.block_shapes[chosen[0] - 1]
    try:
        grid = working_grid(height=height, width=width, transform=transform, crs_wkt=crs_wkt, gsd=gsd)
    except InputError as e:
        raise InputError(f"{shown(uri)}: {e}") from e
    most = (limits or Limits()).pixels
    if grid.height * grid.width > most:
        raise InputError(
            f"{shown(uri)} has {grid.width}x{grid.height} pixels at --gsd {gsd:g}, more than {most:,}: if it is meant "
            "to, raise --max-pixels."
        )
    wkb: str | None = None
    aoi_notes: tuple[str, ...] = ()
    if aoi is not None:
        wkb, aoi_notes = read_aoi(
            os.fspath(aoi), crs_wkt=crs_wkt, transform=grid.transform, shape=(grid.height, grid.width)
        )
    key, stem = output_key(uri)
    return RasterInfo(
        uri=uri, key=key, stem=stem, height=grid.height, width=grid.width, bands=chosen, dtype=dtype,
        transform=grid.transform, crs_wkt=crs_wkt, georeferenced=transform != IDENTITY,
        native_height=height, native_width=width, block_shape=(int(block[0]), int(block[1])),
        resampled=grid.resampled, nodata=no_value, scale=scaling, size_bytes=version.size,
        mtime_ns=version.mtime_ns, etag=version.etag, driver=driver, aoi_wkb=wkb, notes=(*notes, *aoi_notes),
        written_ns=version.written_ns,
    )  # fmt: skip


def _common_dtype(dataset: rasterio.DatasetReader, uri: str, bands: Sequence[int]) -> str:
    dtypes = {str(dataset.dtypes[b - 1]) for b in bands}
    if len(dtypes) > 1:
        raise InputError(
            f"{shown(uri)}: bands {bands} have the types {sorted(dtypes)}: choose bands of one type."
        )
    (dtype,) = dtypes
    if dtype not in DTYPES:
        raise InputError(
            f"{shown(uri)} holds {dtype} values: convert it (gdal_translate -ot Float32) to one of {', '.join(DTYPES)}."
        )
    return dtype


def _decode_corners(dataset: rasterio.DatasetReader, reader: BandReader) -> None:
    """Decode the first and the last block: a broken codec or tail shows before anything starts."""
    reader.read(Window(0, 0, 1, 1))
    reader.read(Window(dataset.height - 1, dataset.width - 1, 1, 1))


def _scaling(
    dataset: rasterio.DatasetReader, reader: BandReader, rule: ScaleRule
) -> tuple[tuple[float, float] | None, list[str]]:
    """(the raster's range, notes); None where uint8 is taken as it is."""
    if rule.kind == "range":
        return (rule.low, rule.high), []
    percentiles = (rule.low, rule.high)
    if rule.kind == "auto":
        if reader.is_uint8:
            return None, []
        percentiles = AUTO_PERCENTILES
    found = percentile_range(_sample(dataset, reader), *percentiles)
    if found is None:
        return (0.0, 1.0), ["No input was found to take the scaling from: give it with --scale LOW,HIGH."]
    return found, [
        f"Values {found[0]:g} to {found[1]:g} are mapped to 0-255; --scale LOW,HIGH sets other ones."
    ]


def sampled_range(infos: Sequence[RasterInfo], rule: ScaleRule) -> tuple[float, float] | None:
    """The percentiles of a rule over the usable values of several rasters; None where none has any."""
    low, high = AUTO_PERCENTILES if rule.kind == "auto" else (rule.low, rule.high)
    samples = []
    for info in infos:
        with open_raster(info.uri, (info.driver,)) as dataset:
            samples.append(_sample(dataset, BandReader(dataset, info.uri, info.bands, info.nodata)))
    return percentile_range(np.concatenate(samples), low, high)


def _sample(dataset: rasterio.DatasetReader, reader: BandReader) -> NDArray[np.generic]:
    """Usable values from the finest overview that is small enough, else from a lattice of blocks."""
    height, width = dataset.height, dataset.width
    for factor in sorted(dataset.overviews(reader.first_band)):
        shape = -(-height // factor), -(-width // factor)
        if SAMPLE_PIXELS // 64 <= shape[0] * shape[1] <= SAMPLE_PIXELS < height * width:
            return reader.usable(Window(0, 0, height, width), shape)
    block = dataset.block_shapes[reader.first_band - 1]
    return np.concatenate([reader.usable(w) for w in sample_windows(height, width, (block[0], block[1]))])


def _place_notes(dataset: rasterio.DatasetReader, uri: str) -> list[str]:
    """What is missing or unusual about where the raster lies."""
    a, b, _, d, e, _ = transform = native_transform(dataset)
    if not all(map(math.isfinite, transform)) or a * e == b * d:
        raise InputError(f"{shown(uri)} has a transform that maps pixels to a line: {transform}; correct it.")
    notes = []
    if transform == IDENTITY:
        notes.append("The raster is not georeferenced: outputs are in pixel coordinates.")
        if dataset.gcps[0] or dataset.rpcs is not None:
            notes.append(
                "Its ground control points or RPCs are not used: run gdalwarp first for map coordinates."
            )
    if dataset.crs is None:
        notes.append("The raster has no CRS: outputs have none either, and areas are in pixels.")
    if b or d:
        notes.append("The raster is rotated against its CRS: outputs keep its grid.")
    return notes


def _file_notes(dataset: rasterio.DatasetReader, uri: str, size: int) -> list[str]:
    notes = []
    beside = ignored_side_files(uri)
    if beside:
        names = ", ".join(map(shown, beside))
        notes.append(
            f"Files beside the raster are not read, for safety: {names}; gdal_translate -of COG takes them in."
        )
    if dataset.subdatasets:
        notes.append(f"The file holds {len(dataset.subdatasets)} images: only the first is read.")
    decoded = dataset.height * dataset.width * dataset.count * np.dtype(dataset.dtypes[0]).itemsize
    if decoded > SUSPICIOUS_RATIO * size:
        notes.append(
            f"The file decodes to {decoded // size:,} times its size: it is nearly empty, or not what it seems."
        )
    return notes


def _halves(window: Window) -> tuple[Window, Window]:
    """The window cut across its longer side."""
    if window.height >= window.width:
        middle = window.row + window.height // 2
        return (
            Window.span(window.row, window.col, middle, window.stop_col),
            Window.span(middle, window.col, window.stop_row, window.stop_col),
        )
    middle = window.col + window.width // 2
    return (
        Window.span(window.row, window.col, window.stop_row, middle),
        Window.span(window.row, middle, window.stop_row, window.stop_col),
    )
