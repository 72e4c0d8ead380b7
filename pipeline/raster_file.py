"""Opening a raster that may be hostile or broken: allow-listed driver, caps, completeness, before any pixel.

The driver is chosen by the file's first bytes, never by its name or by trial: a VRT named ``.tif`` would
read any local file, and a playlist of drivers is a playlist of parsers to attack.
"""

from __future__ import annotations

import os
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from panoptile.pipeline import gdal_env
from panoptile.pipeline.completeness import driver_of, what_is_missing
from panoptile.pipeline.inputs import InputError, shown
from panoptile.pipeline.window import Window

gdal_env.configure()  # before rasterio

# isort: split
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError, RasterioIOError
from rasterio.windows import Window as RasterioWindow

# A raster without georeferencing is told of in RasterInfo.notes, once, in our words.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

SIDE_FILES = (".msk", ".aux.xml")
"""Endings added to a raster's name that GDAL would otherwise read: mask and metadata."""
WORLD_FILES = (".tfw", ".tifw", ".pgw", ".pngw", ".jgw", ".jpgw", ".j2w", ".wld")
"""Endings in place of a raster's own, with georeferencing."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a raster may ask of a machine before it is taken for a bomb."""

    pixels: int = 10**12
    bands: int = 4096
    block_bytes: int = 64 << 20
    """Of one block as it is decoded: all bands where they are interleaved by pixel."""


class RasterReadError(OSError):
    """A window of a raster could not be read; the message names file and window."""


def check_file(uri: str, limits: Limits | None = None) -> None:
    """Raise InputError unless ``uri`` is a whole raster file of an allowed format and within ``limits``."""
    name = shown(uri)
    driver = _driver(uri)
    try:
        missing = what_is_missing(uri, driver)
    except OSError as e:
        raise InputError(f"{name} cannot be read: {e.strerror or e}.") from e
    if missing:
        raise InputError(f"{name} is truncated or damaged: {missing}; copy or download it again.")
    with open_raster(uri) as dataset:
        _check_limits(name, dataset, limits or Limits())


def open_raster(uri: str) -> rasterio.DatasetReader:
    """Open a local file with the one allowed driver that its first bytes name; InputError if there is none."""
    driver = _driver(uri)
    try:
        # A Path, because rasterio gives "!", "?" and schemes in a string a meaning; sharing=False, because
        # a shared handle would be used by several threads at once.
        dataset = rasterio.open(Path(uri), driver=driver, sharing=False)
    except RasterioError as e:
        raise InputError(f"{shown(uri)} cannot be opened as {driver}: {first_line(e)}.") from e
    # GDAL follows this item wherever it points when overviews or the file list are asked for, and a TIFF
    # can hold it inside itself, where switching side files off does not help.
    if dataset.tags(ns="OVERVIEWS"):
        dataset.close()
        raise InputError(
            f"{shown(uri)} is refused: its metadata names another file for its overviews; rewrite it without."
        )
    return dataset


def read_window(
    dataset: rasterio.DatasetReader,
    uri: str,
    window: Window,
    bands: list[int],
    shape: tuple[int, int] | None = None,
) -> NDArray[np.generic]:
    """Bands of a window as they are in the file, (len(bands), H, W), decimated to ``shape`` if one is given."""
    try:
        out_shape = None if shape is None else (len(bands), *shape)
        values: NDArray[np.generic] = dataset.read(bands, window=gdal_window(window), out_shape=out_shape)
    except RasterioError as e:
        raise read_error(uri, window, e) from e
    return values


def read_error(uri: str, window: Window, error: Exception) -> RasterReadError:
    """The error that tells which part of which file is broken."""
    return RasterReadError(
        f"{shown(uri)}: cannot read rows {window.row}-{window.stop_row - 1}, columns {window.col}-"
        f"{window.stop_col - 1}: {first_line(error)}; the file is truncated or damaged there."
    )


def gdal_window(window: Window) -> RasterioWindow:
    """Our window in rasterio's order of arguments."""
    return RasterioWindow(window.col, window.row, window.width, window.height)


def ignored_side_files(uri: str) -> list[str]:
    """Names of files beside the raster that GDAL would read and panoptile does not."""
    stem = os.path.splitext(uri)[0]
    candidates = [uri + e for e in SIDE_FILES] + [stem + e for e in WORLD_FILES]
    return [os.path.basename(c) for c in candidates if os.path.isfile(c)]


def _driver(uri: str) -> str:
    name = shown(uri)
    try:
        status = os.stat(uri)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{name} is not a regular file: name a raster file.")
        with open(uri, "rb") as file:
            head = file.read(16)
    except FileNotFoundError as e:
        raise InputError(f"{name} does not exist: check the path.") from e
    except OSError as e:
        raise InputError(f"{name} cannot be read: {e.strerror or e}.") from e
    if not head:
        raise InputError(f"{name} is empty (0 bytes): copy or download it again.")
    driver = driver_of(head)
    if driver is None:
        if head.lstrip().startswith(b"<"):
            raise InputError(
                f"{name} is an XML text (a VRT, perhaps), which could name any other file: "
                "make a GeoTIFF of it with gdal_translate -of COG."
            )
        raise InputError(
            f"{name} is not a raster that panoptile reads (GeoTIFF or COG, PNG, JPEG, JPEG 2000): "
            f"it starts with {head[:8]!r}."
        )
    return driver


def _check_limits(name: str, dataset: rasterio.DatasetReader, limits: Limits) -> None:
    height, width, count = dataset.height, dataset.width, dataset.count
    if height * width > limits.pixels:
        raise InputError(
            f"{name} declares {width}x{height} pixels, more than the limit of {limits.pixels:,}."
        )
    if not 1 <= count <= limits.bands:
        raise InputError(f"{name} declares {count} bands: between 1 and {limits.bands} are read.")
    block_h, block_w = dataset.block_shapes[0]
    interleaved = dataset.interleaving is None or dataset.interleaving.name == "pixel"
    samples = block_h * block_w * (count if interleaved else 1)
    block_bytes = samples * _item_bytes(dataset.dtypes[0])
    if block_bytes > limits.block_bytes:
        raise InputError(
            f"{name} is stored in blocks of {block_w}x{block_h} pixels, {block_bytes >> 20} MB each (limit "
            f"{limits.block_bytes >> 20} MB): rewrite it with gdal_translate -of COG."
        )


def _item_bytes(dtype: str) -> int:
    try:
        return np.dtype(dtype).itemsize
    except TypeError:  # GDAL's complex integers, which numpy does not have
        return 8


def first_line(error: BaseException) -> str:
    """The first line of GDAL's message, which is often in the cause, without its full stop."""
    cause = error.__cause__ if isinstance(error, RasterioIOError) and error.__cause__ else error
    return str(cause).strip().splitlines()[0].rstrip(".") if str(cause).strip() else type(cause).__name__
