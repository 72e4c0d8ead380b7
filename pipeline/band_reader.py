"""Reading the selected bands of an open raster, and which of its pixels are input at all.

A pixel is no input where any of these says so: an alpha band of 0, the file's mask, the nodata value in
*all* selected bands (255 in one band of an RGB image is a colour, not a hole; GDAL's dataset mask agrees),
or NaN or infinity in *any* selected band (it cannot be turned into a colour).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from panoptile.pipeline import gdal_env
from panoptile.pipeline.inputs import InputError, shown
from panoptile.pipeline.raster_file import gdal_window, read_error, read_window
from panoptile.pipeline.window import Window

gdal_env.configure()  # before rasterio

# isort: split
import rasterio
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioError

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
"""Data types that are read; 64-bit integers and complex numbers are not images."""

Shape = tuple[int, int]


class BandReader:
    """Values and validity of the bands of one dataset. Not for several threads at once."""

    def __init__(
        self, dataset: rasterio.DatasetReader, uri: str, bands: Sequence[int], nodata: float | None
    ) -> None:
        self._dataset = dataset
        self._uri = uri
        self._bands = list(dict.fromkeys(bands))
        self._channels = [self._bands.index(b) for b in bands]
        """For each channel its place among the bands that are read: a grey band is read once."""
        self._nodata = nodata
        expand = set(bands) == {bands[0]} and len(bands) == 3 and is_palette(dataset, bands[0])
        self._palette = palette(dataset, bands[0]) if expand else None
        self._alpha = next((b for b in alpha_bands(dataset) if b not in self._bands), None)
        flags = dataset.mask_flag_enums[self._bands[0] - 1]
        self._masked = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags

    @property
    def first_band(self) -> int:
        """GDAL number of the band that the first channel shows."""
        return self._bands[0]

    @property
    def is_uint8(self) -> bool:
        """True where values already are 0…255."""
        return self._palette is not None or self._dataset.dtypes[self._bands[0] - 1] == "uint8"

    def read(
        self, window: Window, shape: Shape | None = None
    ) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """(values (C, H, W), valid (H, W)) of a window, decimated to ``shape`` if one is given.

        Values have the file's data type, or uint8 where a palette is expanded. Raises RasterReadError.
        """
        extra = [] if self._alpha is None else [self._alpha]
        values = read_window(self._dataset, self._uri, window, self._bands + extra, shape)
        valid = np.ones(values.shape[1:], bool)
        if extra:
            values, alpha = values[:-1], values[-1]
            valid &= alpha != 0
        if self._masked:
            valid &= self._mask(window, values.shape[1:]) != 0
        if self._nodata is not None:
            valid &= ~is_nodata(values, self._nodata).all(axis=0)
        if values.dtype.kind == "f":
            valid &= np.isfinite(values).all(axis=0)
        if self._palette is not None:
            index = values[0]
            valid &= self._palette[3][index] != 0
            return self._palette[:3][:, index], valid
        return values if len(self._channels) == len(values) else values[self._channels], valid

    def usable(self, window: Window, shape: Shape | None = None) -> NDArray[np.generic]:
        """The 1-D values of a window that may tell the range: of valid pixels, without single-band nodata."""
        values, valid = self.read(window, shape)
        keep = np.broadcast_to(valid, values.shape)
        if self._nodata is not None and self._palette is None:
            keep = keep & ~is_nodata(values, self._nodata)
        return values[keep]

    def _mask(self, window: Window, shape: Shape) -> NDArray[np.uint8]:
        try:
            mask: NDArray[np.uint8] = self._dataset.read_masks(
                self._bands[0], window=gdal_window(window), out_shape=shape
            )
        except RasterioError as e:
            raise read_error(self._uri, window, e) from e
        return mask


def is_nodata(values: NDArray[np.generic], nodata: float) -> NDArray[np.bool_]:
    """Where values equal nodata as the data type holds it; nowhere, if the type cannot hold it."""
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.asarray(values == values.dtype.type(nodata))
    if not holds(values.dtype, nodata):
        return np.zeros(values.shape, bool)
    return np.asarray(values == values.dtype.type(int(nodata)))


def holds(dtype: np.dtype[np.generic], value: float) -> bool:
    """True where an integer data type can hold ``value`` exactly; always for floating point."""
    if dtype.kind == "f":
        return True
    limits = np.iinfo(dtype.name)
    return math.isfinite(value) and value.is_integer() and limits.min <= value <= limits.max


def alpha_bands(dataset: rasterio.DatasetReader) -> list[int]:
    """Numbers of the bands that are declared alpha."""
    return [i for i, meaning in enumerate(dataset.colorinterp, 1) if meaning is ColorInterp.alpha]


def is_palette(dataset: rasterio.DatasetReader, band: int) -> bool:
    """True where a band holds indices of a colour table."""
    return dataset.colorinterp[band - 1] is ColorInterp.palette and dataset.dtypes[band - 1] in (
        "uint8",
        "uint16",
    )


def palette(dataset: rasterio.DatasetReader, band: int) -> NDArray[np.uint8]:
    """(4, 65536) colours of the indices: red, green, blue, alpha; an index without entry is black and void."""
    table = np.zeros((4, 1 << 16), np.uint8)
    for index, colour in dataset.colormap(band).items():
        if 0 <= index < 1 << 16:
            table[:, index] = colour
    return table


def select_bands(
    dataset: rasterio.DatasetReader, uri: str, *, asked: Sequence[int] | None, channels: int
) -> tuple[tuple[int, ...], list[str]]:
    """(band numbers, one for each channel; notes). Raises InputError where no good choice exists.

    Without ``asked``: the bands declared red, green and blue; else the first ones that are not alpha. A
    single band is repeated.
    """
    name = shown(uri)
    if asked is not None:
        return _asked_bands(dataset, name, tuple(asked), channels)
    meanings = dataset.colorinterp
    data = [i for i in dataset.indexes if meanings[i - 1] is not ColorInterp.alpha]
    rgb = [ColorInterp.red, ColorInterp.green, ColorInterp.blue]
    if channels == 3 and all(c in meanings for c in rgb):
        return tuple(meanings.index(c) + 1 for c in rgb), []
    if len(data) == 1:
        return (data[0],) * channels, _grey_notes(dataset, data[0], channels)
    if len(data) < channels or (channels != 3 and len(data) != channels):
        raise InputError(
            f"{name} has {len(data)} bands of data, the network takes {channels}: choose them with --bands."
        )
    chosen = tuple(data[:channels])
    order = ",".join(map(str, chosen))
    return chosen, [] if channels != 3 else [
        f"The bands' colours are not declared: {order} are taken as red, green, blue; --bands says otherwise."
    ]


def _asked_bands(
    dataset: rasterio.DatasetReader, name: str, asked: tuple[int, ...], channels: int
) -> tuple[tuple[int, ...], list[str]]:
    unknown = [b for b in asked if b not in dataset.indexes]
    if unknown:
        raise InputError(f"{name} has no band {unknown[0]}: --bands may name 1 to {dataset.count}.")
    if len(asked) not in (1, channels):
        raise InputError(f"--bands names {len(asked)} bands, the network takes {channels} (or 1, repeated).")
    notes = [
        f"Band {b} is declared alpha; named by --bands, it is read as data and not as a mask."
        for b in alpha_bands(dataset)
        if b in asked
    ]
    if len(asked) == 1:
        return asked * channels, notes + _grey_notes(dataset, asked[0], channels)
    return asked, notes


def _grey_notes(dataset: rasterio.DatasetReader, band: int, channels: int) -> list[str]:
    if channels == 3 and is_palette(dataset, band):
        return ["The raster has a palette: its colours are read."]
    return ["The raster has no colours: its one band is repeated."] if channels > 1 else []


def select_nodata(
    dataset: rasterio.DatasetReader, bands: Sequence[int], asked: float | None
) -> tuple[float | None, list[str]]:
    """(the nodata value or None, notes on values that cannot or may not mean what they say).

    NaN and infinity need no value: in floating point they are never input.
    """
    value = dataset.nodatavals[bands[0] - 1] if asked is None else asked
    if value is None:
        return None, []
    dtype = np.dtype(dataset.dtypes[bands[0] - 1])
    if dtype.kind == "f" and not math.isfinite(value):
        return None, []
    if not holds(dtype, float(value)):
        return None, [f"Nodata {value:g} is no {dtype} value, so no pixel has it."]
    if asked is None and dtype == np.uint8 and not is_palette(dataset, bands[0]):
        rule = "in all of them count as no input" if len(set(bands)) > 1 else "count as no input"
        return float(value), [
            (
                f"The file declares nodata {value:g}, which is a colour too: pixels of {value:g} {rule}; "
                "--nodata -1 keeps them."
            )
        ]
    return float(value), []
