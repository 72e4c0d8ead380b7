"""Whether a raster file is whole, from its structure alone and without decoding a pixel.

Decoders are lenient (libjpeg fills what is missing with grey), and a decoding pass over a terabyte costs
hours; the tables of a file say in milliseconds where its last byte must be.
Formats: TIFF 6.0 section 2 and BigTIFF, PNG (ISO/IEC 15948) section 5, JPEG (ITU T.81) annex B,
JPEG 2000 (ITU T.800) annexes A and I.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

MAX_DIRECTORIES = 4096
"""More image directories than this in one TIFF are taken for a bomb: they may overlap in a small file."""

MAX_FIELDS = 4096
"""More fields than this in one directory are taken for garbage."""

_SEARCHED_AT_ONCE = 1 << 20
"""Bytes of a JPEG held in memory while its end is looked for."""

ENTRIES_AT_ONCE = 1 << 20
"""Block table entries held in memory at once: 16 MB for offsets and sizes."""

_OFFSETS, _SIZES = (273, 324), (279, 325)  # strips, tiles
_TYPE_BYTES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
_TYPE_CODES = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8"}


def driver_of(head: bytes) -> str | None:
    """The GDAL driver for a file that starts with ``head`` (16 bytes are enough); None for anything else."""
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "GTiff"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")):
        return "JP2OpenJPEG"
    return None


def what_is_missing(file: BinaryIO, driver: str) -> str | None:
    """Why ``file``, open for random reads, cannot be whole, as the end of a sentence; None where nothing is missing."""
    size = file.seek(0, io.SEEK_END)
    try:
        if driver == "GTiff":
            return _tiff(file, size)
        if driver == "PNG":
            return _png(file, size)
        if driver == "JPEG":
            return _jpeg(file)
        return _jpeg2000(file, size)
    except struct.error:
        return f"its structure makes no sense within its {size} bytes"


@dataclass(frozen=True, slots=True)
class _Entry:
    """One field of an image directory."""

    type: int
    count: int
    position: int
    """Where the values are, bytes from the start of the file."""

    @property
    def end(self) -> int:
        return self.position + self.count * _TYPE_BYTES.get(self.type, 0)


def _tiff(file: BinaryIO, size: int) -> str | None:
    for number, directory in enumerate(_directories(file)):
        if number >= MAX_DIRECTORIES:
            return f"it holds more than {MAX_DIRECTORIES} image directories"
        for entry in directory.values():
            if entry.end > size:
                return f"its tables reach to byte {entry.end}, the file has {size}"
        last = _last_block_byte(file, directory)
        if last > size:
            return f"its blocks reach to byte {last}, the file has {size}"
    return None


def _directories(file: BinaryIO) -> Iterator[dict[int, _Entry]]:
    """The image directories of a TIFF: the image, its overviews and masks."""
    order, big, position = _tiff_header(file)
    count_code, entry_code, offset_code = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
    seen: set[int] = set()
    while position and position not in seen:
        seen.add(position)
        file.seek(position)
        (count,) = _unpack(file, order + count_code)
        if count > MAX_FIELDS:
            raise struct.error
        table, entry_bytes = file.tell(), struct.calcsize(order + entry_code)
        fields = file.read(count * entry_bytes)
        directory: dict[int, _Entry] = {}
        for i, (tag, kind, values, inline) in enumerate(struct.iter_unpack(order + entry_code, fields)):
            at = table + (i + 1) * entry_bytes - len(inline)
            if values * _TYPE_BYTES.get(kind, 0) > len(inline):
                (at,) = struct.unpack(order + offset_code, inline)
            directory[tag] = _Entry(kind, values, at)
        (position,) = _unpack(file, order + offset_code)
        yield directory


def _tiff_header(file: BinaryIO) -> tuple[str, bool, int]:
    """(byte order, is BigTIFF, position of the first directory)."""
    file.seek(0)
    order = "<" if file.read(2) == b"II" else ">"
    (version,) = _unpack(file, order + "H")
    if version == 43:
        file.seek(8)
        return order, True, int(_unpack(file, order + "Q")[0])
    return order, False, int(_unpack(file, order + "I")[0])


def _last_block_byte(file: BinaryIO, directory: dict[int, _Entry]) -> int:
    """The end of the block that lies furthest back; 0 without blocks. A sparse block has size 0."""
    offsets = next((directory[tag] for tag in _OFFSETS if tag in directory), None)
    sizes = next((directory[tag] for tag in _SIZES if tag in directory), None)
    if offsets is None or sizes is None or {offsets.type, sizes.type} - _TYPE_CODES.keys():
        return 0
    order, _, _ = _tiff_header(file)
    last = 0
    for start in range(0, min(offsets.count, sizes.count), ENTRIES_AT_ONCE):
        stop = min(start + ENTRIES_AT_ONCE, offsets.count, sizes.count)
        at, length = _values(file, order, offsets, start, stop), _values(file, order, sizes, start, stop)
        ends = np.where(length > 0, at + length, 0)
        last = max(last, int(ends.max()))
    return last


def _values(file: BinaryIO, order: str, entry: _Entry, start: int, stop: int) -> np.ndarray:
    width = _TYPE_BYTES[entry.type]
    file.seek(entry.position + start * width)
    data = file.read((stop - start) * width)
    return np.frombuffer(data, order + _TYPE_CODES[entry.type]).astype(np.uint64)


def _png(file: BinaryIO, size: int) -> str | None:
    position = 8
    while position + 12 <= size:
        file.seek(position)
        length, kind = _unpack(file, ">I4s")
        position += 12 + length
        if kind == b"IEND":
            return None
    return "its end marker (IEND) is missing"


def _jpeg(file: BinaryIO) -> str | None:
    position = 2
    while True:
        file.seek(position)
        fill, marker, length = _unpack(file, ">BBH")
        if fill != 0xFF:
            return f"byte {position} is no marker"
        position += 1 if marker == 0xFF else 2 + length
        if marker == 0xDA:
            break
    # Inside the coded data every 0xFF is followed by 0x00 or a restart marker, so the first EOI is the true end.
    file.seek(position)
    last = b""
    while piece := file.read(_SEARCHED_AT_ONCE):
        if b"\xff\xd9" in last + piece:
            return None
        last = piece[-1:]
    return "its end marker (EOI) is missing"


def _jpeg2000(file: BinaryIO, size: int) -> str | None:
    file.seek(0)
    position, end = 0, size
    while file.read(4) != b"\xff\x4f\xff\x51":  # a codestream; else the boxes of a JP2 file around it
        if position >= size:
            return "it holds no image"
        file.seek(position)
        length, kind = _unpack(file, ">I4s")
        head = 16 if length == 1 else 8
        length = _unpack(file, ">Q")[0] if length == 1 else length or size - position
        if position + length > size or length < head:
            return f"its box {kind!r} reaches to byte {position + length}, the file has {size}"
        end = position + length
        position = position + head if kind == b"jp2c" else end
        file.seek(position)
    file.seek(end - 2)
    return None if file.read(2) == b"\xff\xd9" else "its end marker (EOC) is missing"


def _unpack(file: BinaryIO, code: str) -> tuple[Any, ...]:
    """The values of a struct code at the file's position; struct.error at its end."""
    return struct.unpack(code, file.read(struct.calcsize(code)))
