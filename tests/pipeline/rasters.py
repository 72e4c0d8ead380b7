"""Makers of small rasters for tests, and of the plain answers that reads are compared with."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from panoptile.pipeline import gdal_env

gdal_env.configure()  # before rasterio

import rasterio
from rasterio.transform import Affine

TRANSFORM = Affine(0.5, 0, 500_000, 0, -0.5, 4_000_000)

CANARY = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print(self.command, self.path, file=sys.stderr, flush=True)
        self.send_error(404)
    do_HEAD = do_GET
    def log_message(self, *args): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


def noise(count: int, height: int, width: int, dtype: str, seed: int = 0) -> NDArray[Any]:
    """Random values over the range of an integer type (of ±1000 for wide and floating ones)."""
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return rng.normal(0, 1000, (count, height, width)).astype(kind)
    limits = np.iinfo(dtype)
    return rng.integers(max(limits.min, -1000), min(limits.max, 60_000) + 1, (count, height, width)).astype(
        kind
    )


def write_raster(path: Path, bands: NDArray[Any], **options: Any) -> Path:
    """A tiled GeoTIFF in UTM 33 unless ``options`` (rasterio's) say otherwise; ``mask`` (H, W) is put inside."""
    mask = options.pop("mask", None)
    meanings = options.pop("colorinterp", None)
    count, height, width = bands.shape
    profile = {
        "driver": "GTiff", "count": count, "height": height, "width": width, "dtype": bands.dtype.name,
        "crs": "EPSG:32633", "transform": TRANSFORM, "tiled": True, "blockxsize": 64, "blockysize": 48,
    } | options  # fmt: skip
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **profile) as dst:
        dst.write(bands)
        if meanings is not None:
            dst.colorinterp = meanings
        if mask is not None:
            dst.write_mask(mask)
    return path


def plain_read(path: Path) -> NDArray[Any]:
    """All bands, by rasterio alone."""
    with rasterio.open(path) as src:
        data: NDArray[Any] = src.read()
    return data


def vrt_of(path: Path, target: str, size: int = 32) -> Path:
    """A VRT under any name that reads ``target``."""
    path.write_text(
        f'<VRTDataset rasterXSize="{size}" rasterYSize="{size}"><VRTRasterBand dataType="Byte" band="1">'
        f"<SimpleSource><SourceFilename>{target}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    return path


def sparse_bomb(path: Path, side: int = 1_000_000, block: int = 16_384) -> Path:
    """A small file that declares ``side`` x ``side`` x 3 pixels in huge blocks, none of them stored."""
    with rasterio.open(
        path, "w", driver="GTiff", height=side, width=side, count=3, dtype="uint8", tiled=True, sparse_ok=True,
        blockxsize=block, blockysize=block, compress="deflate", bigtiff="yes", interleave="pixel",
    ):  # fmt: skip
        pass
    return path


def big_endian_tiff(path: Path) -> NDArray[np.uint16]:
    """A hand-made big-endian TIFF of one strip; returns its pixels."""
    pixels = np.arange(20, dtype=np.uint16).reshape(4, 5)
    entries = [
        (256, 3, 5 << 16), (257, 3, 4 << 16), (258, 3, 16 << 16), (259, 3, 1 << 16), (262, 3, 1 << 16),
        (273, 4, 8), (277, 3, 1 << 16), (278, 3, 4 << 16), (279, 4, 40),
    ]  # fmt: skip
    table = b"".join(struct.pack(">HHII", tag, kind, 1, value) for tag, kind, value in entries)
    head = struct.pack(">2sHI", b"MM", 42, 48)
    path.write_bytes(
        head + pixels.astype(">u2").tobytes() + struct.pack(">H", len(entries)) + table + struct.pack(">I", 0)
    )
    return pixels


@contextmanager
def canary(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A local web server in another process: (its address, the file that lists the requests it got)."""
    hits = tmp_path / "hits.txt"
    with hits.open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-c", CANARY], stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert server.stdout is not None
            yield f"http://127.0.0.1:{server.stdout.readline().strip()}", hits
        finally:
            server.kill()
            server.wait()


def data_folder(name: str) -> Path:
    """A folder of the test data; the test is skipped where PANOPTILE_TEST_DATA does not name any."""
    root = os.environ.get("PANOPTILE_TEST_DATA")
    if not root or not (Path(root) / name).is_dir():
        pytest.skip(f"PANOPTILE_TEST_DATA does not name a folder with {name}/")
    return Path(root) / name
