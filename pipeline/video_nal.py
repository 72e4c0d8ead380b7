"""The inner structure of H.264 and HEVC packets: lengths that add up, and parameters that stay as they were.

decord trusts both and says nothing where they fail; so files where they do are left to PyAV.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

_PARAMETER_SETS = {"h264": frozenset({7, 8}), "hevc": frozenset({32, 33, 34})}
"""Types of unit that carry coding parameters: SPS and PPS (ISO 14496-10, table 7-1), VPS too (23008-2, 7-1)."""


@dataclass
class NalCheck:
    """Watches the packets of a stream in file order; does nothing for other codecs and for Annex B streams."""

    codec: str
    length_bytes: int
    """Bytes of each unit's length; 0 where packets are not cut by lengths."""
    parameters_change: bool = False
    malformed: int = 0
    _record: list[bytes] = field(default_factory=list)
    _known: set[bytes] = field(default_factory=set)

    @classmethod
    def of(cls, codec: str, extradata: bytes | None) -> NalCheck:
        """For a stream with this configuration record (avcC: ISO 14496-15, 5.3.3.1; hvcC: 8.3.3.1)."""
        data = bytes(extradata or b"")
        at = {"h264": 4, "hevc": 21}.get(codec)
        # An Annex B stream has start codes here, not a record, whose first byte is its version.
        if at is None or len(data) <= at or data[0] != 1:
            return cls(codec, 0)
        check = cls(codec, (data[at] & 3) + 1)
        check._record = _units_in_record(codec, data)
        check._known = {_digest(unit) for unit in check._record}
        return check

    def known_units(self) -> list[bytes]:
        """The parameter sets of the configuration record."""
        return self._record

    def see(self, packet: Any) -> None:
        """Check one packet."""
        if not self.length_bytes:
            return
        data = memoryview(packet)
        at, slices = 0, 0
        while at + self.length_bytes <= len(data):
            size = int.from_bytes(data[at : at + self.length_bytes], "big")
            at += self.length_bytes
            if size == 0 or at + size > len(data) or data[at] & 0x80:  # forbidden_zero_bit
                break
            slices += self._see_unit(data[at : at + size])
            at += size
        if at != len(data) or not slices:
            self.malformed += 1

    def _see_unit(self, unit: memoryview) -> bool:
        """Whether the unit is a slice of a picture."""
        kind = unit[0] & 31 if self.codec == "h264" else unit[0] >> 1 & 63
        if kind in _PARAMETER_SETS[self.codec] and _digest(unit) not in self._known:
            self.parameters_change = True
        return 1 <= kind <= 5 if self.codec == "h264" else kind < 32


def _digest(unit: bytes | memoryview) -> bytes:
    return hashlib.sha256(unit).digest()


def _units_in_record(codec: str, data: bytes) -> list[bytes]:
    """The parameter sets that a configuration record holds; fewer where it is cut short."""
    units: list[bytes] = []
    if codec == "h264":
        at, arrays = 5, 2
    else:
        at, arrays = 23, data[22]
    for array in range(arrays):
        if codec == "h264":
            count = data[at] & (31 if array == 0 else 255) if at < len(data) else 0
            at += 1
        else:
            count, at = int.from_bytes(data[at + 1 : at + 3], "big"), at + 3
        for _ in range(count):
            size = int.from_bytes(data[at : at + 2], "big")
            units.append(data[at + 2 : at + 2 + size])
            at += 2 + size
            if at > len(data):
                return units
    return units
