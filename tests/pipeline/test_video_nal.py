"""The inner structure of H.264 and HEVC packets, which the gate checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import pytest
from tests.pipeline.video_files import write_video

from panoptile.pipeline.video_nal import NalCheck


def packets_of(path: Path) -> tuple[bytes, list[bytes]]:
    opened: Any = av.open(str(path))
    with opened:
        stream = opened.streams.video[0]
        return bytes(stream.codec_context.extradata), [bytes(p) for p in opened.demux(stream) if p.size]


@pytest.mark.parametrize(("codec", "name"), [("libx264", "h264"), ("libx265", "hevc")])
def test_sound_packets_pass_and_damaged_ones_do_not(tmp_path: Path, codec: str, name: str) -> None:
    """Every packet of an encoder is sound; a wrong length, a forbidden bit, a cut and zeros are each noticed."""
    record, packets = packets_of(write_video(tmp_path / "v.mp4", codec, numbers=range(30)))
    check = NalCheck.of(name, record)
    assert check.length_bytes == 4
    for packet in packets:
        check.see(packet)
    assert (check.malformed, check.parameters_change) == (0, False)
    sound = packets[5]
    broken = [
        b"\0\0\xff\xff" + sound[4:],
        sound[:4] + b"\x80" + sound[5:],
        sound[:-1],
        bytes(len(sound)),
        sound + b"\0",
    ]
    for count, packet in enumerate(broken, start=1):
        check.see(packet)
        assert check.malformed == count


@pytest.mark.parametrize(("codec", "name"), [("libx264", "h264"), ("libx265", "hevc")])
def test_parameters_that_change_are_noticed(tmp_path: Path, codec: str, name: str) -> None:
    """Parameter sets that repeat the configuration record are none of a change; others are."""
    record, _ = packets_of(write_video(tmp_path / "v.mp4", codec, numbers=range(30)))
    other, _ = packets_of(write_video(tmp_path / "w.mp4", codec, numbers=range(3), size=(128, 192)))
    own, foreign = (next(iter(NalCheck.of(name, r).known_units())) for r in (record, other))
    check = NalCheck.of(name, record)
    slice_unit = b"\0\0\0\x02" + (b"\x65\x00" if name == "h264" else b"\x26\x01")
    changes = []
    for unit in (own, foreign):
        check.see(len(unit).to_bytes(4, "big") + unit + slice_unit)
        changes.append(check.parameters_change)
    assert changes == [False, True]
    assert check.malformed == 0


@pytest.mark.parametrize(
    "record", [b"", b"\x01", b"\x01" + bytes(5), b"\x01" + b"\xff" * 30, b"\0\0\0\1gabc"]
)
def test_a_broken_record_is_no_crash(record: bytes) -> None:
    """Records come from the file: whatever they hold, the check ends."""
    for codec in ("h264", "hevc", "vp9"):
        check = NalCheck.of(codec, record)
        check.see(b"\0\0\0\2\x65\0")
