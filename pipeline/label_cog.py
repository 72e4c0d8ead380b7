"""Cloud-optimised GeoTIFFs of labels: segment ids, and classes with a palette.

Pixels go block by block into a scratch GeoTIFF, and the published file is its copy by GDAL's COG driver: the bytes of
a GeoTIFF depend on the order of writing, those of the copy do not. Labels allow no interpolation: overviews are
nearest-neighbour (the driver's default invents ids) and there is no predictor (it makes labels larger).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from panoptile.model.classes import ClassTable
from panoptile.pipeline import gdal_env  # noqa: F401  (GDAL's environment, before rasterio)
from panoptile.pipeline.raster_info import NODATA_ID, RasterInfo
from panoptile.pipeline.terms import Compression
from panoptile.pipeline.window import Window

import rasterio  # isort: skip  (after gdal_env)
import rasterio.shutil  # isort: skip
from rasterio.errors import NotGeoreferencedWarning  # isort: skip
from rasterio.transform import Affine  # isort: skip
from rasterio.windows import Window as RasterioWindow  # isort: skip


COG_BLOCK = 512
"""Side of a COG's blocks, pixels; writes that are aligned to it never touch a block twice."""


class CogWriter:
    """One single-band label raster: write windows, then ``finish``. Leaving the context removes the scratch file."""

    def __init__(
        self,
        path: Path,
        info: RasterInfo,
        *,
        dtype: Literal["uint8", "uint16", "uint32"],
        nodata: int,
        compression: Compression = "zstd",
    ) -> None:
        if compression not in ("zstd", "deflate"):
            raise ValueError(f"Label rasters are compressed with 'zstd' or 'deflate', got {compression!r}.")
        self.path = path
        self._scratch = path.with_name(f".{path.name}.scratch.tif")
        self._compression = compression
        place: dict[str, Any] = {"transform": Affine(*info.transform)} if info.georeferenced else {}
        if info.crs_wkt is not None:
            place["crs"] = info.crs_wkt
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # it is meant to be without
            self._dataset = rasterio.open(
                self._scratch, "w", driver="GTiff", width=info.width, height=info.height, count=1, dtype=dtype,
                nodata=nodata, tiled=True, blockxsize=COG_BLOCK, blockysize=COG_BLOCK, compress=compression,
                zlevel=1, zstd_level=1, BIGTIFF="YES", num_threads=1, **place,
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._dataset.close()
        self._scratch.unlink(missing_ok=True)

    def describe(
        self,
        description: str,
        tags: Mapping[str, str],
        palette: Mapping[int, tuple[int, int, int]] | None = None,
    ) -> None:
        """Set the band's description, the file's tags and, for 8 and 16 bits, the colours of values."""
        self._dataset.set_band_description(1, description)
        self._dataset.update_tags(**tags)
        if palette is not None:
            self._dataset.write_colormap(1, {value: (*color, 255) for value, color in palette.items()})

    def write(self, window: Window, values: NDArray[np.unsignedinteger]) -> None:
        """Write ``values`` (H, W) at ``window``."""
        at = RasterioWindow(window.col, window.row, window.width, window.height)
        self._dataset.write(values, 1, window=at)

    def finish(self, threads: int = 1) -> Path:
        """Close the scratch file, write the COG, remove the scratch file; returns the COG's path.

        ``threads`` compress blocks; the bytes do not depend on how many.
        """
        self._dataset.close()
        rasterio.shutil.copy(
            self._scratch, self.path, driver="COG", BLOCKSIZE=COG_BLOCK, COMPRESS=self._compression.upper(),
            PREDICTOR="NO", OVERVIEW_RESAMPLING="NEAREST", BIGTIFF="YES", NUM_THREADS=str(threads),
        )  # fmt: skip
        self._scratch.unlink()
        return self.path


def segment_raster(
    path: Path, info: RasterInfo, *, tags: Mapping[str, str], compression: Compression = "zstd"
) -> CogWriter:
    """``segments.tif``: uint32 segment ids, 0 void, ``NODATA_ID`` without input."""
    writer = CogWriter(path, info, dtype="uint32", nodata=NODATA_ID, compression=compression)
    writer.describe("segment id (0 void)", {**tags, "ROLE": "segments"})
    return writer


def class_raster(
    path: Path,
    info: RasterInfo,
    classes: ClassTable,
    segment_counts: Mapping[int, int],
    *,
    tags: Mapping[str, str],
    compression: Compression = "zstd",
) -> CogWriter:
    """``classes.tif``: class ids with a palette, 0 void, ``class_nodata(classes)`` without input.

    The tag ``CLASSES`` holds the rows of ``classes.json``, each with the number of its ``segments`` here.
    """
    dtype: Literal["uint8", "uint16"] = "uint8" if class_nodata(classes) == 0xFF else "uint16"
    rows = [
        {**row, "segments": segment_counts.get(c.class_id, 0)}
        for c, row in zip(classes, classes.to_json(), strict=True)
    ]
    names = json.dumps(rows, ensure_ascii=True, separators=(",", ":"))
    palette = {0: (0, 0, 0), **{c.class_id: c.color for c in classes}}
    writer = CogWriter(path, info, dtype=dtype, nodata=class_nodata(classes), compression=compression)
    writer.describe("class id (0 void)", {**tags, "ROLE": "classes", "CLASSES": names}, palette)
    return writer


def class_nodata(classes: ClassTable) -> int:
    """Value of pixels without input in the class raster: 255, or 65535 where there are more than 254 classes."""
    return 0xFF if len(classes) <= 254 else 0xFFFF


class ClassLookup:
    """Class ids of segment ids; 1 or 2 bytes a segment."""

    def __init__(self, class_ids: NDArray[np.uint16], classes: ClassTable) -> None:
        self._nodata = class_nodata(classes)
        dtype: type[np.unsignedinteger] = np.uint8 if self._nodata == 0xFF else np.uint16
        self._table: NDArray[np.unsignedinteger] = np.zeros(len(class_ids) + 1, dtype)
        self._table[1:] = class_ids

    def __call__(self, labels: NDArray[np.uint32]) -> NDArray[np.unsignedinteger]:
        """(H, W) class ids of ``labels`` (H, W). Raises ``ValueError`` for an id that is not in the table."""
        unseen = labels == NODATA_ID
        seen = np.where(unseen, np.uint32(0), labels)
        if seen.max() >= len(self._table):
            raise ValueError(
                f"Labels hold segment {seen.max()}, the segment table ends at {len(self._table) - 1}."
            )
        values: NDArray[np.unsignedinteger] = self._table[seen]
        values[unseen] = self._nodata
        return values
