"""Opening a raster that may be hostile or broken: allow-listed driver, caps, completeness, before any pixel.

The driver is chosen by the file's first bytes, never by its name or by trial: a VRT named ``.tif`` would
read any local file, and a playlist of drivers is a playlist of parsers to attack.
"""

from __future__ import annotations

import logging
import os
import stat
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from panoptile.pipeline import gdal_env
from panoptile.pipeline.completeness import driver_of, what_is_missing
from panoptile.pipeline.inputs import InputError, shown
from panoptile.pipeline.remote_object import is_remote, open_ranges, read_head
from panoptile.pipeline.remote_raster import vsi_path
from panoptile.pipeline.store import StoreUnreachable
from panoptile.pipeline.store_retry import Backoff
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


REMOTE_TRIES = Backoff(attempts=6, first=0.2, most=5.0)
"""How often a window of an object in a store is read again."""

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a raster may ask of a machine before it is taken for a bomb."""

    pixels: int = 10**12
    bands: int = 4096
    block_bytes: int = 64 << 20
    """Of one block as it is decoded: all bands where they are interleaved by pixel."""
    drivers: tuple[str, ...] = gdal_env.ALLOWED_DRIVERS
    """GDAL drivers that may open it. Those beyond ``gdal_env.ALLOWED_DRIVERS`` are trusted by who names them."""

    def __post_init__(self) -> None:
        if self.pixels < 1 or self.bands < 1 or self.block_bytes < 1:
            raise ValueError(f"Limits must be positive, got {self}.")
        forbidden = sorted(set(self.drivers) & set(gdal_env.SKIPPED_DRIVERS))
        if forbidden or not self.drivers:
            raise ValueError(
                f"{', '.join(forbidden) or 'no driver'} cannot be allowed: "
                "such files name other files or hosts, which would be read."
            )


class RasterReadError(OSError):
    """A window of a raster could not be read; the message names file and window."""


def check_file(uri: str, limits: Limits | None = None) -> str:
    """The GDAL driver of ``uri``; raises InputError unless it is a whole raster file of an allowed format and within
    ``limits``, and StoreUnreachable for an object store that cannot be reached."""
    name = shown(uri)
    limits = limits or Limits()
    driver = _driver(uri, limits.drivers)
    if driver in gdal_env.ALLOWED_DRIVERS:  # what makes a file whole is not known of others
        try:
            with open_ranges(uri) as file:
                missing = what_is_missing(file, driver)
        except StoreUnreachable:
            raise
        except OSError as e:
            raise InputError(f"{name} cannot be read: {e.strerror or e}.") from e
        if missing:
            raise InputError(f"{name} is truncated or damaged: {missing}; copy or download it again.")
    with open_raster(uri, limits.drivers) as dataset:
        _check_limits(name, dataset, limits)
    return driver


def open_raster(uri: str, drivers: tuple[str, ...] = gdal_env.ALLOWED_DRIVERS) -> rasterio.DatasetReader:
    """Open a file or object with the one allowed driver that its first bytes name; InputError if there is none."""
    driver = _driver(uri, drivers)
    try:
        # A Path, because rasterio gives "!", "?" and schemes in a string a meaning; sharing=False, because
        # a shared handle would be used by several threads at once. GDAL's own names are taken as they are.
        dataset = rasterio.open(vsi_path(uri) if is_remote(uri) else Path(uri), driver=driver, sharing=False)
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


def tried_again(uri: str, action: Callable[[], T], between: Callable[[], None] | None = None) -> T:
    """The result of ``action``; for an object in a store it is tried again where GDAL could not read.

    GDAL itself repeats requests that are refused; a body that ends too early, or a connection that is reset, it
    reports as a damaged file. ``between`` is called before each further try.
    """
    waits = REMOTE_TRIES.waits() if is_remote(uri) else iter(())
    while True:
        try:
            return action()
        except (RasterReadError, InputError) as e:
            wait = next(waits, None) if isinstance(e.__cause__, RasterioError | RasterReadError) else None
            if wait is None:
                raise
            _log.info("%s; trying again in %.1f s", e, wait)
            if between is not None:
                between()
            time.sleep(wait)


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


def _driver(uri: str, drivers: tuple[str, ...]) -> str:
    name, head = shown(uri), _head(uri)
    if not head:
        raise InputError(f"{name} is empty (0 bytes): copy or download it again.")
    driver = driver_of(head)
    if driver is not None and driver not in drivers:
        raise InputError(f"{name} is a {driver} file: --allow-drivers names only {', '.join(drivers)}.")
    trusted = tuple(d for d in drivers if d not in gdal_env.ALLOWED_DRIVERS)
    if driver is None and trusted and not head.lstrip().startswith(b"<"):
        return _trusted_driver(uri, trusted)
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


def _head(uri: str) -> bytes:
    """The first 16 bytes of a regular file or of an object."""
    name = shown(uri)
    try:
        if not is_remote(uri) and not stat.S_ISREG(os.stat(uri).st_mode):
            raise InputError(f"{name} is not a regular file: name a raster file.")
        return read_head(uri, 16)
    except (StoreUnreachable, InputError):
        raise
    except FileNotFoundError as e:
        raise InputError(f"{name} does not exist: check the path.") from e
    except ValueError as e:
        raise InputError(shown(str(e))) from e
    except OSError as e:
        raise InputError(f"{name} cannot be read: {e.strerror or e}.") from e


def _trusted_driver(uri: str, drivers: tuple[str, ...]) -> str:
    """The first of the drivers named with --allow-drivers that opens the file."""
    name = vsi_path(uri) if is_remote(uri) else Path(uri)
    for driver in drivers:
        try:
            with rasterio.open(name, driver=driver, sharing=False):
                return driver
        except (RasterioError, ValueError):  # ValueError: GDAL has no driver of that name
            continue
    raise InputError(f"{shown(uri)} cannot be opened as {' or '.join(drivers)}, which --allow-drivers names.")


def _check_limits(name: str, dataset: rasterio.DatasetReader, limits: Limits) -> None:
    height, width, count = dataset.height, dataset.width, dataset.count
    if height * width > limits.pixels:
        raise InputError(
            f"{name} declares {width}x{height} pixels, more than the limit of {limits.pixels:,}: if it is meant to, "
            "raise --max-pixels."
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
