"""Small rasters of which some are broken, in ten ways."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tests.pipeline.rasters import write_raster
from tests.pipeline.trigger_replica import ABORT, HANG, RAISE

from panoptile.pipeline import gdal_env

gdal_env.configure()  # before rasterio

import rasterio
from rasterio.transform import Affine

SIDE = 128


@dataclass(frozen=True)
class Corpus:
    """Files by what is expected of them."""

    good: tuple[Path, ...]
    broken: dict[Path, frozenset[str]]
    """The stages that the dead letter may name, for each broken file."""


def write_corpus(folder: Path, good: int, of_each: int) -> Corpus:
    """``good`` whole rasters and ``of_each`` of each of ten broken kinds, mixed in the order of their names."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(5)
    wholes = [folder / f"{rng.integers(1 << 40):010x}-good.tif" for _ in range(good)]
    for path in wholes:
        _whole(path)
    broken: dict[Path, frozenset[str]] = {}
    for name, (make, stages) in _BREAKS.items():
        for _ in range(of_each):
            path = folder / f"{rng.integers(1 << 40):010x}-{name}.tif"
            make(path)
            broken[path] = frozenset(stages)
    return Corpus(tuple(wholes), broken)


def _whole(path: Path, trigger: int = 100, transform: Affine | None = None) -> Path:
    texture = np.random.default_rng(1).integers(20, 200, (3, SIDE, SIDE)).astype(np.uint8)
    texture[:, 0, 0] = trigger
    more = {} if transform is None else {"transform": transform}
    return write_raster(path, texture, compress="DEFLATE", blockxsize=32, blockysize=32, **more)


def _truncated(path: Path) -> None:
    data = _whole(path).read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _wrong_type(path: Path) -> None:
    path.write_text('<VRTDataset rasterXSize="9" rasterYSize="9"></VRTDataset>')


def _nan(path: Path) -> None:
    _whole(path, transform=Affine(0.5, float("nan"), 5e5, 0, -0.5, 4e6))


def _bit_flips(path: Path) -> None:
    """In a block in the middle: neither the header nor the corners show it."""
    _whole(path)
    with rasterio.open(path) as src:
        start = int(src.get_tag_item("BLOCK_OFFSET_2_1", "TIFF", bidx=1))
    data = bytearray(path.read_bytes())
    data[start : start + 64] = bytes(b ^ 0x5A for b in data[start : start + 64])
    path.write_bytes(data)


def _tiff(width: int, height: int, rows_per_strip: int) -> bytes:
    """A grey TIFF of one strip that is not in the file."""
    fields = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, 1, 0), (277, 3, 1, 1), (278, 4, 1, rows_per_strip), (279, 4, 1, 0),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *f) for f in fields)
    return b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + b"\0" * 64


def _absurd(path: Path) -> None:
    path.write_bytes(_tiff(2**31 - 1, 2**31 - 1, 1))


def _bomb(path: Path) -> None:
    """Two hundred bytes that stand for 1.2 million million pixels."""
    path.write_bytes(_tiff(1_100_000, 1_100_000, 64))


_BREAKS: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "truncated": (_truncated, {"open", "header"}),
    "empty": (_empty, {"open", "header"}),
    "wrong-type": (_wrong_type, {"open", "header"}),
    "nan": (_nan, {"open", "header"}),
    "absurd": (_absurd, {"open", "header"}),
    "bomb": (_bomb, {"open", "header"}),
    "bit-flips": (_bit_flips, {"read"}),
    "killer": (lambda path: _whole(path, ABORT), {"worker"}),
    "hang": (lambda path: _whole(path, HANG), {"timeout"}),
    "ugly": (lambda path: _whole(path, RAISE), {"infer"}),
}
