"""How much of a raster has no input, from a lattice of small windows: an estimate before anything is read whole."""

from __future__ import annotations

from panoptile.pipeline.mosaic import open_source
from panoptile.pipeline.raster_info import RasterInfo
from panoptile.pipeline.window import Window

LATTICE, SIDE = 6, 16
"""Windows along each axis, and their side in pixels."""


def nodata_share(info: RasterInfo) -> float:
    """Share of pixels without input, 0 to 1, seen through 36 small windows. Raises ``OSError``."""
    seen = missing = 0
    with open_source(info) as source:
        for i in range(LATTICE):
            for j in range(LATTICE):
                height, width = min(SIDE, info.height), min(SIDE, info.width)
                row = round((i + 0.5) / LATTICE * info.height - height / 2)
                col = round((j + 0.5) / LATTICE * info.width - width / 2)
                row = min(max(row, 0), info.height - height)
                col = min(max(col, 0), info.width - width)
                valid = source.read(Window(row, col, height, width)).valid
                seen += valid.size
                missing += int(valid.size - valid.sum())
    return missing / seen
