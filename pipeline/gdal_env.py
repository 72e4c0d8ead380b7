"""GDAL's process environment, set before rasterio is imported: no side files, no drivers that open other files.

Import this module above rasterio: ``from panoptile.pipeline import gdal_env`` sets the environment. GDAL
reads ``GDAL_SKIP`` once, when its drivers are registered; setting it later, or through ``rasterio.Env``,
has no effect. Child processes (Ray workers) inherit it.
"""

from __future__ import annotations

import os

ALLOWED_DRIVERS = ("GTiff", "PNG", "JPEG", "JP2OpenJPEG")
"""Drivers that inputs are opened with; GTiff reads COGs too. Each of these formats is one self-contained file."""

FORCED = {
    "GDAL_PAM_ENABLED": "NO",  # an .aux.xml can name an overview file anywhere, on the network too
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # neither .ovr, .msk, .aux.xml nor world files are looked for
}
"""What safety rests on: an environment that says otherwise is overruled."""

DEFAULTS = {
    "GDAL_CACHEMAX": "64",  # MB for all datasets of the process; GDAL's own default is 5 % of the memory
    "GDAL_NUM_THREADS": "1",
}
"""What a user may set otherwise."""

SKIPPED_DRIVERS = (
    "VRT", "GTI", "DERIVED", "WMS", "WCS", "WMTS", "HTTP", "STACTA", "STACIT", "PLMOSAIC", "EEDA", "EEDAI",
)  # fmt: skip
"""Drivers whose files point to other files or hosts. The allow-list at open is the first lock, this the second.

rasterio's WarpedVRT, MemoryFile and the COG driver do not need the skipped ones.
"""


def configure() -> None:
    """Set the environment variables that GDAL reads; safe to call again."""
    os.environ.update(FORCED)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    skipped = os.environ.get("GDAL_SKIP", "").replace(",", " ").split()
    os.environ["GDAL_SKIP"] = " ".join(dict.fromkeys([*skipped, *SKIPPED_DRIVERS]))


configure()
