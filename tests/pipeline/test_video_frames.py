"""Right frames: every frame that is delivered is the one that was asked for, at its time, whatever the file."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.pipeline.video_files import (
    FRAMES,
    HEIGHT,
    WIDTH,
    X264,
    X265,
    cut,
    damage,
    number_in,
    reference_frames,
    remux,
    write_video,
)

from panoptile.pipeline.frame_source import Frame, FrameSource, LostFrame, choose_backend, open_frames
from panoptile.pipeline.inputs import InputError
from panoptile.pipeline.video_decode_decord import DecordSource, open_reader
from panoptile.pipeline.video_decode_pyav import PyavSource
from panoptile.pipeline.video_index import VideoIndex, index_video

Make = Callable[[Path], Path]
OPEN = {"x264-params": f"{X264}:open-gop=1"}
HEVC_OPEN = {"x265-params": f"{X265}:open-gop=1"}
HEVC_CLOSED = {"x265-params": f"{X265}:open-gop=0"}
GOP = 20
"""Frames from key to key."""
UNEVEN = [2 * k + (k % 7 == 3) + 40 * (k > 50) for k in range(FRAMES)]


def whole(folder: Path) -> Path:
    return write_video(folder / "whole.mp4", muxer_options={"movflags": "+faststart"})


DAMAGED = {
    "packet of zeros": (25,),
    "packet with a wrong length": (25,),
    "packet of noise": (25, 50),
    "packet with a wrong slice header": (25, 30),
    "key of noise": (20,),
    "hevc packet of noise": (25,),
}
"""Packets that are damaged, numbers in file order."""
MATRIX: dict[str, tuple[str, Make]] = {
    "h264 closed GOP, B-frames, mp4": ("decord", lambda d: write_video(d / "v.mp4")),
    "h264 without B-frames, mp4": ("decord", lambda d: write_video(d / "v.mp4", b_frames=0, options={"x264-params": "keyint=20:bframes=0"})),
    "h264 closed GOP, mkv": ("decord", lambda d: write_video(d / "v.mkv")),
    "h264 open GOP, mp4": ("pyav", lambda d: write_video(d / "v.mp4", options=OPEN)),
    "h264 open GOP, mkv": ("pyav", lambda d: write_video(d / "v.mkv", options=OPEN)),
    "h264 intra refresh, mp4": ("any", lambda d: write_video(d / "v.mp4", options={"x264-params": f"{X264}:intra-refresh=1"})),
    "h264 intra refresh, ts": ("pyav", lambda d: write_video(d / "v.ts", options={"x264-params": f"{X264}:intra-refresh=1"})),
    "h264 interlaced, mp4": ("pyav", lambda d: write_video(d / "v.mp4", options={"x264-params": f"{X264}:tff=1"})),
    "h264 one GOP, mp4": ("decord", lambda d: write_video(d / "v.mp4", options={"x264-params": f"{X264}:keyint=infinite"})),
    "h264 fragmented mp4": ("any", lambda d: write_video(d / "v.mp4", muxer_options={"movflags": "frag_keyframe+empty_moov"})),
    "h264 4:4:4, mp4": ("pyav", lambda d: write_video(d / "v.mp4", pixel_format="yuv444p")),
    "h264 10 bits, mp4": ("pyav", lambda d: write_video(d / "v.mp4", pixel_format="yuv420p10le")),
    "h264 MPEG-TS": ("pyav", lambda d: write_video(d / "v.ts")),
    "h264 open GOP, MPEG-TS": ("pyav", lambda d: write_video(d / "v.ts", options=OPEN)),
    "h264 FLV": ("pyav", lambda d: write_video(d / "v.flv")),
    "hevc closed GOP, mp4": ("decord", lambda d: write_video(d / "v.mp4", "libx265", options=HEVC_CLOSED)),
    "hevc open GOP, mp4": ("pyav", lambda d: write_video(d / "v.mp4", "libx265", options=HEVC_OPEN)),
    "hevc open GOP, MPEG-TS": ("pyav", lambda d: write_video(d / "v.ts", "libx265", options=HEVC_OPEN)),
    "hevc 10 bits, mkv": ("pyav", lambda d: write_video(d / "v.mkv", "libx265", options=HEVC_CLOSED, pixel_format="yuv420p10le")),
    "vp9 webm": ("decord", lambda d: write_video(d / "v.webm", "libvpx-vp9")),
    "vp8 webm, alternate references": ("pyav", lambda d: write_video(d / "v.webm", "libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "16", "g": "20", "deadline": "good", "cpu-used": "4"})),
    "av1 mp4": ("pyav", lambda d: write_video(d / "v.mp4", "libsvtav1")),
    "av1 mkv": ("pyav", lambda d: write_video(d / "v.mkv", "libsvtav1")),
    "mpeg4 B-frames, avi": ("pyav", lambda d: write_video(d / "v.avi", "mpeg4", b_frames=2, gop=12)),
    "mpeg2 MPEG-PS": ("pyav", lambda d: write_video(d / "v.mpg", "mpeg2video", b_frames=2, gop=12, muxer="vob")),
    "prores mov": ("pyav", lambda d: write_video(d / "v.mov", "prores", pixel_format="yuv422p10le")),
    "uneven times, mp4": ("decord", lambda d: write_video(d / "v.mp4", times=UNEVEN, time_base=Fraction(1, 50))),
    "uneven times, open GOP, mkv": ("pyav", lambda d: write_video(d / "v.mkv", times=UNEVEN, time_base=Fraction(1, 50), options=OPEN)),
    "minutes apart, mp4": ("decord", lambda d: apart(d / "v.mp4", 60)),
    "10 minutes apart, mp4": ("pyav", lambda d: apart(d / "v.mp4", 600)),
    "10 minutes apart, mkv": ("any", lambda d: write_video(d / "v.mkv", times=[600_000 * i for i in range(FRAMES)], time_base=Fraction(1, 1000))),
    "equal times, mkv": ("pyav", lambda d: write_video(d / "v.mkv", times=list(range(FRAMES)), time_base=Fraction(1, 1500), b_frames=0, options={"x264-params": "keyint=20:bframes=0"})),
    "edit list, cut 30 frames in, mp4": ("pyav", lambda d: remux(write_video(d / "w.mp4"), d / "v.mp4", shift=30)),
    "edit list, late start, mp4": ("any", lambda d: write_video(d / "v.mp4", times=range(50, 50 + FRAMES))),
    "rotated 90, mp4": ("decord", lambda d: write_video(d / "v.mp4", rotation=90)),
    "rotated 180, mp4": ("decord", lambda d: write_video(d / "v.mp4", rotation=180)),
    "rotated 270, hevc open GOP": ("pyav", lambda d: write_video(d / "v.mp4", "libx265", options=HEVC_OPEN, rotation=-90)),
    "sound and pictures, mp4": ("decord", lambda d: write_video(d / "v.mp4", audio=True)),
    "sound and pictures, MPEG-TS": ("pyav", lambda d: write_video(d / "v.ts", audio=True)),
    "cut off, mp4": ("pyav", lambda d: cut(whole(d), d / "v.mp4", 0.6)),
    "cut off, mkv": ("pyav", lambda d: cut(write_video(d / "w.mkv"), d / "v.mkv", 0.6)),
    "cut off, MPEG-TS": ("pyav", lambda d: cut(write_video(d / "w.ts"), d / "v.ts", 0.6)),
    "begins inside a GOP, MPEG-TS": ("pyav", lambda d: tail(write_video(d / "w.ts", options=OPEN), d / "v.ts", 12)),
    "packet of zeros": ("pyav", lambda d: damage(whole(d), d / "v.mp4", [25], "zero")),
    "packet with a wrong length": ("pyav", lambda d: damage(whole(d), d / "v.mp4", [25], "length")),
    "packet of noise": ("any", lambda d: damage(whole(d), d / "v.mp4", [25, 50], "noise")),
    "packet with a wrong slice header": ("any", lambda d: damage(whole(d), d / "v.mp4", [25, 30], "slice")),
    "key of noise": ("any", lambda d: damage(whole(d), d / "v.mp4", [20], "noise")),
    "hevc packet of noise": ("any", lambda d: damage(write_video(d / "w.mp4", "libx265", options=HEVC_CLOSED), d / "v.mp4", [25], "noise")),
}  # fmt: skip


def apart(path: Path, seconds: int) -> Path:
    """A time-lapse: frames so far apart on a clock of 90 kHz."""
    times = [90_000 * seconds * i for i in range(36)]
    return write_video(path, numbers=range(36), times=times, time_base=Fraction(1, 90_000))


def tail(source: Path, target: Path, packets: int) -> Path:
    """A transport stream without its first video frames, as a recording starts; its tables come first again."""
    data = source.read_bytes()
    starts = [
        at
        for at in range(0, len(data), 188)
        if data[at + 1] & 0x40 and (data[at + 1] & 31) << 8 | data[at + 2] == 0x100
    ]
    target.write_bytes(data[: 3 * 188] + data[starts[packets] :])
    return target


@dataclass
class Tally:
    """What a comparison counted."""

    asked: int = 0
    delivered: int = 0
    damaged: int = 0
    lost: int = 0
    wrong: int = 0
    lost_wrongly: int = 0
    """Lost, though the plain decoding has them."""
    concealed: int = 0
    """Other pixels than those of the plain decoding, in a group of pictures that the test has damaged: a decoder
    makes them up, each in its own way."""

    def __str__(self) -> str:
        return f"{self.asked:>7}{self.delivered:>11}{self.damaged:>9}{self.lost:>6}{self.concealed:>11}{self.wrong:>7}"


class Truth:
    """The frames of a plain decoding, upright, by time and by their turn among those of equal time."""

    def __init__(self, path: Path, index: VideoIndex, damaged: tuple[int, ...] = ()) -> None:
        self._spoiled = {f for p in damaged for f in range(GOP * (p // GOP), GOP * (p // GOP + 1))}
        turns: Counter[int] = Counter()
        self._pictures: dict[tuple[int, int], NDArray[np.uint8]] = {}
        for pts, rotation, rgb in reference_frames(path):
            self._pictures[pts, turns[pts]] = np.rot90(rgb, rotation // 90 % 4)
            turns[pts] += 1
        self._index = index
        self.numbers = [number_in(np.rot90(p, -index.rotation // 90 % 4)) for p in self._pictures.values()]
        """What the pictures themselves say, in the order of their times."""

    def __len__(self) -> int:
        return len(self._pictures)

    def is_spoiled(self, frame: int) -> bool:
        """Whether the test has damaged the group of pictures of a frame."""
        return frame in self._spoiled

    def of(self, frame: int) -> NDArray[np.uint8] | None:
        """The picture of a frame, by its time in the index; None where the plain decoding has none."""
        pts = int(self._index.pts[frame])
        turn = frame - int(np.searchsorted(self._index.pts, pts))
        return self._pictures.get((pts, turn))


def compare(source: FrameSource, truth: Truth) -> Tally:
    """Read a source in three ways and judge every frame that it gives."""
    count = len(source.index)
    rng = np.random.default_rng(3)
    ranges = [(0, count, 1), (0, count, 7)]
    ranges += [
        (int(k), min(int(k) + 1 + 2 * (i % 3), count), 1 + i % 2)
        for i, k in enumerate(rng.integers(0, count, 20))
    ]
    tally = Tally()
    for start, stop, step in ranges:
        given = list(source.frames(start, stop, step))
        assert [f.index for f in given] == list(range(start, stop, step)), "each frame once, in order"
        for frame in given:
            judge(frame, source, truth, tally)
    return tally


def judge(frame: Frame | LostFrame, source: FrameSource, truth: Truth, tally: Tally) -> None:
    """Count one frame; wrong is one whose pixels are not those of the plain decoding at its time."""
    index, expected = source.index, truth.of(frame.index)
    tally.asked += 1
    assert frame.pts == index.pts[frame.index]
    assert frame.time_s == float(int(index.pts[frame.index]) * index.time_base)
    if isinstance(frame, LostFrame):
        tally.lost += 1
        tally.lost_wrongly += expected is not None and not truth.is_spoiled(frame.index)
        assert frame.reason
        return
    tally.delivered += 1
    tally.damaged += frame.damaged
    same = expected is not None and np.array_equal(frame.rgb, expected)
    tally.concealed += not same and truth.is_spoiled(frame.index)
    tally.wrong += not same and not truth.is_spoiled(frame.index)


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    """Rows of the table that is printed at the end."""
    rows: list[str] = []
    yield rows
    print(
        f"\n{'file':<36}{'backend':<9}{'frames':>7}{'delivered':>11}{'damaged':>9}{'lost':>6}{'concealed':>11}{'wrong':>7}  reason"
    )
    print("\n".join(rows))


@pytest.mark.parametrize("name", MATRIX)
def test_every_delivered_frame_is_the_one_asked_for(name: str, tmp_path: Path, table: list[str]) -> None:
    """Sequential, every 7th and random access by auto and by PyAV give the frames and times of a plain decoding.

    Frames that the plain decoding has are all delivered; none is given twice, and none that it does not have.
    """
    expected_backend, make = MATRIX[name]
    path = make(tmp_path)
    index = index_video(str(path))
    truth = Truth(path, index, DAMAGED.get(name, ()))
    choice = choose_backend(str(path), index)
    assert expected_backend in ("any", choice.backend), choice.reason
    for source in {
        choice.backend: open_frames(str(path), index, choice),
        "pyav": PyavSource(str(path), index),
    }.values():
        tally = compare(source, truth)
        table.append(f"{name:<36}{source.backend:<9}{tally}  {choice.reason[:60]}")
        assert tally.wrong == 0
        assert tally.lost_wrongly == 0
        source.close()
    if name not in DAMAGED and not name.startswith("cut off"):
        assert tally.damaged == 0, "an undamaged frame is said to be damaged"
        numbers = [n for n in truth.numbers if n >= 0]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), (
            "the plain decoding itself is wrong"
        )


def test_the_matrix_holds_what_is_known_to_break_decoders() -> None:
    """At least fifteen files, of which some go to decord and some to PyAV."""
    backends = Counter(backend for backend, _ in MATRIX.values())
    assert len(MATRIX) >= 15
    assert backends["decord"] >= 5
    assert backends["pyav"] >= 10


def test_every_frame_of_a_real_file_has_its_exact_time(data_dir: Path, table: list[str]) -> None:
    """nasa_13013.mp4, two video streams with sound: 390 frames at the times that were measured for it, none wrong."""
    path = data_dir / "video" / "nasa_13013.mp4"
    if not path.is_file():
        pytest.skip(f"{path} is not there: a real video is NOT tested")
    index = index_video(str(path))
    stated = json.loads((path.parent / f"{path.name}.stream{index.stream}.all_frames_info.json").read_text())
    times = [float(frame["pts_time"]) for frame in stated]
    assert len(index) == len(times)
    assert np.abs(index.times_s - times).max() <= 5e-7, "the stated times have six decimals"
    truth = Truth(path, index)
    source = open_frames(str(path), index)
    tally = compare(source, truth)
    table.append(f"{'nasa_13013.mp4':<36}{source.backend:<9}{tally}  {source.reason[:60]}")
    assert (tally.wrong, tally.lost, tally.damaged) == (0, 0, 0)


def test_a_missing_decord_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without decord PyAV reads every file, and the reason says so."""
    path = str(write_video(tmp_path / "v.mp4"))
    index = index_video(path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert choose_backend(path, index).backend == "pyav"
    assert "not installed" in choose_backend(path, index).reason
    with pytest.raises(InputError, match="not installed"):
        choose_backend(path, index, "decord")


def test_decord_is_refused_where_it_would_be_wrong(tmp_path: Path) -> None:
    """Asking for decord by name does not get wrong frames either: the error names the reason."""
    path = str(write_video(tmp_path / "v.mp4", options=OPEN))
    with pytest.raises(InputError, match="open GOP"):
        choose_backend(path, index_video(path), "decord")


def test_what_decord_would_have_done(tmp_path: Path) -> None:
    """The gate is needed: asked directly, decord gives wrong frames of an open-GOP HEVC and a TS file."""
    decord = pytest.importorskip("decord")
    for path, step in (
        (write_video(tmp_path / "v.mp4", "libx265", options=HEVC_OPEN), 7),
        (write_video(tmp_path / "v.ts"), 1),
    ):
        reader = decord.VideoReader(str(path), num_threads=1)
        wanted = list(range(0, min(FRAMES, len(reader)), step))
        numbers = [number_in(p) for p in reader.get_batch(wanted).asnumpy()]
        assert sum(n != w for n, w in zip(numbers, wanted, strict=True)) > 0
        assert not index_video(str(path)).decord_safe
        del reader


def test_a_frame_that_decord_pads_is_read_by_pyav(tmp_path: Path) -> None:
    """decord loses the first two frames of a long time-lapse and fills the end with copies: one copy is an error already,
    and the frames of that chunk come from PyAV."""
    decord = pytest.importorskip("decord")
    path = str(apart(tmp_path / "v.mp4", 600))
    with pytest.raises(decord.DECORDLimitReachedError):
        open_reader(path).get_batch(list(range(35)))
    source = DecordSource(path, index_video(path))
    given = [f for f in source.frames(20, 36) if isinstance(f, Frame)]
    assert [number_in(f.rgb) for f in given] == list(range(20, 36))


@pytest.mark.parametrize("colour", ["709", "full range", "odd height"])
def test_both_backends_give_the_same_bytes(tmp_path: Path, colour: str) -> None:
    """What the gate lets through is the same from decord and from PyAV, so a job may use either."""
    options = {"709": "colormatrix=bt709", "full range": "fullrange=on", "odd height": "bframes=2"}[colour]
    path = write_video(
        tmp_path / "v.mp4",
        numbers=range(30),
        pixel_format="yuvj420p" if colour == "full range" else "yuv420p",
        options={"x264-params": f"{X264}:{options}"},
        size=(HEIGHT + 22, WIDTH + 6) if colour == "odd height" else (HEIGHT, WIDTH),
    )
    index = index_video(str(path))
    assert choose_backend(str(path), index).backend == "decord", index.reasons
    pairs = zip(
        open_frames(str(path), index, "decord").frames(0, 30),
        open_frames(str(path), index, "pyav").frames(0, 30),
        strict=True,
    )
    for one, other in pairs:
        assert isinstance(one, Frame)
        assert isinstance(other, Frame)
        np.testing.assert_array_equal(one.rgb, other.rgb)


@pytest.mark.parametrize(
    ("ending", "muxer"), [("avi", None), ("mpg", "vob")], ids=["h264 in AVI", "h264 in a program stream"]
)
def test_frames_without_times_are_counted(tmp_path: Path, ending: str, muxer: str | None) -> None:
    """Where a container gives no usable times, frames are numbered in the order of their display, and it is said."""
    path = write_video(tmp_path / f"v.{ending}", muxer=muxer)
    index = index_video(str(path))
    assert index.ordinal
    assert any("no time of their own" in problem for problem in index.problems)
    assert len(index) == FRAMES
    source = open_frames(str(path), index)
    assert source.backend == "pyav"
    for start, stop, step in ((0, FRAMES, 1), (0, FRAMES, 7), (50, 53, 1), (3, 5, 1), (77, 78, 1)):
        given = [number_in(f.rgb) for f in source.frames(start, stop, step) if isinstance(f, Frame)]
        assert given == list(range(start, stop, step))
    assert np.allclose(np.diff(index.times_s), 1 / 25)


def test_a_second_iteration_ends_the_first(tmp_path: Path) -> None:
    """Two iterations would take frames from each other: the first says so instead."""
    path = write_video(tmp_path / "v.mp4", numbers=range(30))
    source = PyavSource(str(path), index_video(str(path)))
    first = source.frames(0, 30)
    next(first)
    assert len(list(source.frames(5, 8))) == 3
    with pytest.raises(RuntimeError, match="Another iteration"):
        next(first)


def test_a_file_that_changed_is_refused(tmp_path: Path) -> None:
    """An index of another file of the same name is not used."""
    path = write_video(tmp_path / "v.mp4", numbers=range(30))
    index = index_video(str(path))
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(InputError, match="changed since it was planned"):
        open_frames(str(path), index)


def test_odd_file_names_are_names(tmp_path: Path) -> None:
    """What FFmpeg would take for a protocol or an option is opened as the file that it is."""
    whole = write_video(tmp_path / "v.mp4", numbers=range(30))
    for name in ("concat:a|b.mp4", "-i.mp4", "100%25 ?x=1#y.mp4", " x .mp4", "naïve ✓.mp4", "a\\b'\"c.mp4"):
        path = tmp_path / name
        path.write_bytes(whole.read_bytes())
        index = index_video(str(path))
        for backend in ("pyav", "decord"):
            given = [
                number_in(f.rgb)
                for f in open_frames(str(path), index, backend).frames(0, 30)
                if isinstance(f, Frame)
            ]
            assert given == list(range(30))


def test_an_open_decord_reader_does_not_break_the_end_of_a_process(tmp_path: Path) -> None:
    """Its threads may log while the interpreter goes away."""
    path = write_video(tmp_path / "v.mp4")
    code = (
        "import sys; from panoptile.pipeline.frame_source import open_frames;"
        "from panoptile.pipeline.video_index import index_video; p = sys.argv[1];"
        "s = open_frames(p, index_video(p), 'decord'); g = s.frames(0, 90); next(g); s._reader[40]"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(path)], check=False, capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_source_goes_back_and_forth(tmp_path: Path) -> None:
    """Any order of requests to one source gives the same frames, also after an abandoned iteration."""
    path = write_video(tmp_path / "v.ts", "libx265", options=HEVC_OPEN)
    source = PyavSource(str(path), index_video(str(path)))
    next(source.frames(70, 90))
    for start, stop in ((0, 3), (88, 90), (41, 45), (40, 42), (19, 21), (59, 61), (60, 61), (3, 4)):
        given = [number_in(f.rgb) for f in source.frames(start, stop) if isinstance(f, Frame)]
        assert given == list(range(start, stop))


@pytest.mark.parametrize("wanted", [(-1, 3, 1), (0, 91, 1), (5, 4, 1), (0, 3, 0)])
def test_a_range_outside_the_video_is_refused(tmp_path: Path, wanted: tuple[int, int, int]) -> None:
    """Nothing is clipped in silence."""
    path = write_video(tmp_path / "v.mp4")
    with pytest.raises(ValueError, match="do not lie in a video of 90 frames"):
        list(PyavSource(str(path), index_video(str(path))).frames(*wanted))


def test_a_change_of_size_is_told_frame_by_frame(tmp_path: Path) -> None:
    """Frames of another size than the first are lost with that reason, not scaled or cropped."""
    first = write_video(tmp_path / "a.ts", numbers=range(20))
    second = write_video(tmp_path / "b.ts", numbers=range(20, 40), times=range(20, 40), size=(128, 192))
    path = tmp_path / "v.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    index = index_video(str(path))
    given = list(PyavSource(str(path), index).frames(0, len(index)))
    assert [number_in(f.rgb) for f in given if isinstance(f, Frame)] == list(range(20))
    reasons = {f.reason for f in given if isinstance(f, LostFrame)}
    assert reasons == {"its size is 192x128, not 160x96"}


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    """A file that was cut off gives the frames that are there, and its index says how far it goes."""
    index = index_video(str(cut(whole(tmp_path), tmp_path / "v.mp4", 0.6)))
    assert any("cut off" in problem for problem in index.problems)
    assert 30 < len(index) < FRAMES
    with pytest.raises(InputError, match=r"cannot be read as a video \(mov\)"):
        index_video(str(cut(write_video(tmp_path / "w.mp4"), tmp_path / "end.mp4", 0.6)))
