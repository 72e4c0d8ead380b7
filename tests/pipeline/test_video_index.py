"""The index of a video: times, keys, geometry, the gate's reasons, and what it refuses to open."""

from __future__ import annotations

import json
import os
import socket
import struct
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.pipeline.video_files import FRAMES, HEIGHT, RATE, WIDTH, cut, number_in, write_video

from panoptile.pipeline import video_gate
from panoptile.pipeline.frame_source import Frame, choose_backend, select_frames
from panoptile.pipeline.inputs import InputError
from panoptile.pipeline.magic import shields_from_text_probes, video_container
from panoptile.pipeline.video_decode_pyav import PyavSource
from panoptile.pipeline.video_gate import MOST_DECODINGS, decodings_per_frame
from panoptile.pipeline.video_index import VideoIndex, index_video


def plain_index(pts: list[int], keys: list[int], time_base: Fraction = Fraction(1, 1000)) -> VideoIndex:
    """An index of a file that does not exist."""
    return VideoIndex(
        pts=np.array(pts, np.int64), time_base=time_base, keys=np.array(keys, np.int64),
        key_dts=np.array(pts, np.int64)[keys], width=64, height=48, rotation=0, codec="h264", container="mov",
        decord_safe=True, reasons=(), size=1, mtime_ns=2,
    )  # fmt: skip


def test_times_keys_and_size_are_the_file_s(tmp_path: Path) -> None:
    """Frame k of a 25 Hz file is at k / 25 s; keys are where the encoder put them; sizes are as shown."""
    index = index_video(str(write_video(tmp_path / "v.mp4", rotation=90)))
    assert len(index) == FRAMES
    np.testing.assert_allclose(index.times_s, np.arange(FRAMES) / RATE, rtol=0, atol=1e-12)
    assert [index.time_s(k) for k in (0, 7, 89)] == [0.0, 7 / RATE, 89 / RATE]
    assert index.keys.tolist() == [0, 20, 40, 60, 80]
    assert [index.key_before(k) for k in (0, 19, 20, 89)] == [0, 0, 20, 80]
    assert (index.width, index.height, index.rotation) == (HEIGHT, WIDTH, 90)
    assert index.duration_s == pytest.approx(FRAMES / RATE)
    assert index.fps == pytest.approx(RATE)
    assert (index.decord_safe, index.reasons, index.problems) == (True, (), ())


@given(st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=60), st.data())
def test_an_index_survives_json(ticks: list[int], data: st.DataObject) -> None:
    """Plans store it: what comes back is what was stored, to the last tick."""
    pts = sorted(ticks)
    keys = sorted(data.draw(st.sets(st.integers(0, len(pts) - 1), min_size=1)))
    index = plain_index(pts, keys, Fraction(1001, 30000))
    again = VideoIndex.from_json(json.loads(json.dumps(index.to_json())))
    assert again.to_json() == index.to_json()
    assert again.pts.tolist() == pts
    assert again.keys.tolist() == keys
    assert again.time_base == Fraction(1001, 30000)


def test_a_long_video_s_index_is_small() -> None:
    """Six hours at 30 Hz take less than 20 kB in a plan."""
    count = 6 * 3600 * 30
    index = plain_index(list(range(0, 512 * count, 512)), list(range(0, count, 60)))
    assert len(json.dumps(index.to_json())) < 20_000


def test_uneven_times_are_kept(tmp_path: Path) -> None:
    """Times come from the file, never from a rate."""
    times = [0, 1, 5, 6, 20, 21, 22, 50]
    path = write_video(tmp_path / "v.mp4", numbers=range(8), times=times, time_base=Fraction(1, 50))
    assert index_video(str(path)).times_s.tolist() == [t / 50 for t in times]


def test_equal_times_are_kept_apart_and_recorded(tmp_path: Path) -> None:
    """Frames with one time keep the order of the file, and the index says how many there are."""
    path = write_video(
        tmp_path / "v.mkv", numbers=range(30), time_base=Fraction(1, 1500), b_frames=0,
        options={"x264-params": "keyint=10:bframes=0"},
    )  # fmt: skip
    index = index_video(str(path))
    assert len(index) == 30
    assert any("have the time of the frame before" in problem for problem in index.problems)
    frames = PyavSource(str(path), index).frames(0, 30)
    given_numbers = [number_in(f.rgb) for f in frames if isinstance(f, Frame)]
    assert given_numbers == list(range(30))


@pytest.mark.parametrize("direction", [(-1, 0, 0, 1), (1, 0, 0, -1)])
def test_a_mirroring_matrix_is_recorded(tmp_path: Path, direction: tuple[int, int, int, int]) -> None:
    """A display matrix that mirrors is not applied, and says so; decord is not used then."""
    path = write_video(tmp_path / "v.mp4")
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (x * 65536 for x in direction)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    index = index_video(str(path))
    assert index.rotation == 0
    assert any("mirrors" in problem for problem in index.problems)
    assert "mirrored" in index.reasons


def test_the_sample_aspect_ratio_is_recorded_and_not_applied(tmp_path: Path) -> None:
    """Pixels are given as they are stored."""
    path = write_video(tmp_path / "v.mp4", options={"x264-params": "sar=4/3:keyint=20"})
    index = index_video(str(path))
    assert index.sample_aspect_ratio == Fraction(4, 3)
    assert (index.width, index.height) == (WIDTH, HEIGHT)


HOSTILE = {
    "hls.mp4": b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n",
    "spaces.mp4": b"\xef\xbb\xbf \n#EXTM3U\n",
    "concat.mkv": b"ffconcat version 1.0\nfile '/etc/passwd'\n",
    "list.mp4": b"file '/etc/passwd'\n",
    "dash.mp4": b'<?xml version="1.0"?><MPD profiles="urn:mpeg:dash:profile:isoff-live:2011">',
    "bare.mp4": b"<MPD>",
    "sdp.mp4": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\n",
    "smil.mov": b"<smil>",
    "text.mp4": b"just a text, of some length, so that nobody takes it for a video\n",
    "urls.ts": b"http://127.0.0.1:1/a.ts\n",
    "elf.mp4": b"\x7fELF\x02\x01\x01" + bytes(60),
    "raw.mp4": b"\0\0\0\1\x67\x42\0\x1e" + bytes(60),
    "empty.mp4": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_video_is_refused_unread(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Playlists and other texts named as videos are refused in one sentence, before any decoder sees them."""
    path = tmp_path / name
    path.write_bytes(HOSTILE[name])
    monkeypatch.setattr("av.open", lambda *a, **k: pytest.fail("a decoder saw the file"))
    with pytest.raises(InputError) as e:
        index_video(str(path))
    message = str(e.value)
    assert name in message
    assert message.endswith(".")
    assert "\n" not in message


def test_only_regular_local_files_are_opened(tmp_path: Path) -> None:
    """Pipes would wait for ever, addresses would be fetched: neither is opened."""
    os.mkfifo(tmp_path / "pipe.mp4")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "s.mp4"))
    for path in (tmp_path / "pipe.mp4", tmp_path / "s.mp4", tmp_path, tmp_path / "none.mp4"):
        with pytest.raises(InputError):
            index_video(str(path))
    for uri in ("http://127.0.0.1:1/a.mp4", "concat:/a|/b", "subfile,,start,0,end,0,,:/a", "pipe:0"):
        with pytest.raises(InputError):
            index_video(uri)
    server.close()


def test_a_playlist_inside_a_container_opens_nothing(tmp_path: Path) -> None:
    """A file that begins as MP4 and goes on as a playlist stays an MP4, which it then is not."""
    path = tmp_path / "v.mp4"
    path.write_bytes(b"\0\0\0\x18ftypisom\0\0\2\0isomiso2\n#EXTM3U\n/etc/passwd\n")
    with pytest.raises(InputError, match="mov"):
        index_video(str(path))


def test_a_matroska_head_without_a_zero_byte_keeps_decord_away(tmp_path: Path) -> None:
    """decord guesses the format itself: where a DASH mark could be found first, it is not asked."""
    path = tmp_path / "v.mkv"
    path.write_bytes(b"\x1a\x45\xdf\xa3" + b"<MPD dash:profile:isoff-live:2011>" * 4)
    assert video_container(str(path)) == "matroska"
    assert not shields_from_text_probes(str(path))
    assert shields_from_text_probes(str(write_video(tmp_path / "w.mkv", numbers=range(3))))


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames beyond the limit are refused with the size that the file declares."""
    from panoptile.pipeline import video_probe

    path = write_video(tmp_path / "v.mp4", numbers=range(3))
    monkeypatch.setattr(video_probe, "LIMITS", video_probe.Limits(pixels=1000))
    with pytest.raises(InputError, match="160x96 pixels"):
        index_video(str(path))


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.9])
@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts", "avi", "flv", "mpg"])
def test_a_cut_file_gives_frames_or_one_sentence(ending: str, share: float, tmp_path: Path) -> None:
    """However a file is cut, indexing ends: with an index whose frames are right, or with InputError."""
    codec, muxer = {"avi": ("mpeg4", None), "mpg": ("mpeg2video", "vob")}.get(ending, ("libx264", None))
    whole = write_video(tmp_path / f"w.{ending}", codec, numbers=range(40), muxer=muxer, b_frames=2, gop=12)
    path = cut(whole, tmp_path / f"v.{ending}", share)
    try:
        index = index_video(str(path))
    except InputError as e:
        sentence = str(e)
    else:
        frames = [f for f in PyavSource(str(path), index).frames(0, len(index)) if isinstance(f, Frame)]
        # By its time: a frame whose packet stood behind the cut is not in the index. The time of the last may
        # itself stand behind the cut in a program stream, which gives one time to several frames.
        for frame in frames[: len(frames) - (ending == "mpg")]:
            expected = round((frame.time_s - index.time_s(0)) * RATE)
            assert frame.damaged or number_in(frame.rgb) in (-1, expected)
        return
    assert "\n" not in sentence


def test_every_and_fps_take_the_frames_on_their_grid() -> None:
    """``every`` counts frames; ``fps`` takes the frame that is shown at each tick, each once."""
    index = plain_index(list(range(0, 4000, 40)), [0])  # 25 Hz, 4 s
    assert select_frames(index).tolist() == list(range(100))
    assert select_frames(index, every=30).tolist() == [0, 30, 60, 90]
    assert select_frames(index, fps=5).tolist() == list(range(0, 100, 5))
    assert select_frames(index, fps=10).tolist()[:5] == [0, 2, 5, 7, 10]
    assert select_frames(index, fps=50).tolist() == list(range(100)), "a slow video gives each frame once"
    assert select_frames(index, start_s=1, end_s=2).tolist() == list(range(25, 50))
    assert select_frames(index, start_s=1, every=50).tolist() == [25, 75]
    late = plain_index([t + 10**9 for t in range(0, 4000, 40)], [0])
    assert select_frames(late, start_s=1, end_s=2).tolist() == list(range(25, 50)), (
        "seconds from the first frame"
    )


def test_a_long_gap_costs_no_memory() -> None:
    """Ticks without a frame of their own are never listed: ten days at a million a second."""
    assert select_frames(plain_index([0, 40, 864_000_000], [0]), fps=1e6).tolist() == [0, 1, 2]
    assert select_frames(plain_index([0, 40, 864_000_000], [0]), fps=1e300).tolist() == [0, 1, 2]


@given(st.lists(st.integers(1, 500), min_size=1, max_size=80), st.floats(0.2, 120))
def test_fps_never_takes_a_frame_that_is_not_shown(steps: list[int], fps: float) -> None:
    """With any times, each tick's frame is the last one at or before it, and the first frame is always there."""
    pts = np.cumsum([0, *steps]).tolist()
    taken = select_frames(plain_index(pts, [0]), fps=fps).tolist()
    ticks = np.arange(int(pts[-1] / 1000 * fps + 1e-6) + 1) / fps * 1000
    expected = sorted({int(np.searchsorted(pts, t + 0.5, side="right")) - 1 for t in ticks})
    assert taken == expected
    assert taken[0] == 0


@pytest.mark.parametrize(
    "options",
    [
        {"fps": 5, "every": 2},
        {"fps": 0},
        {"fps": float("nan")},
        {"every": 0},
        {"start_s": 9},
        {"start_s": 2, "end_s": 1},
    ],
)
def test_a_selection_of_nothing_is_an_error(options: dict[str, float]) -> None:
    """Contradictory or empty selections are refused, never ignored."""
    with pytest.raises(InputError):
        select_frames(plain_index(list(range(0, 4000, 40)), [0]), **options)  # type: ignore[arg-type]


def test_decord_is_not_chosen_where_bounded_memory_makes_it_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large frames in long groups would be decoded again and again: PyAV reads them, unless decord is named."""
    path = str(write_video(tmp_path / "v.mp4"))
    index = index_video(path)
    assert choose_backend(path, index).backend == "decord"
    assert decodings_per_frame(frames=1000, keys=10, height=360, width=640) <= MOST_DECODINGS
    monkeypatch.setattr(video_gate, "CHUNK_BYTES", 1)
    choice = choose_backend(path, index)
    assert choice.backend == "pyav"
    assert "would decode each frame" in choice.reason
    assert choose_backend(path, index, "decord").backend == "decord"


def test_the_gate_gives_every_reason() -> None:
    """A plan tells all that speaks against decord, and a file against which nothing speaks has no reasons."""
    index = plain_index([0, 1, 2], [0])
    assert choose_backend("unread.ts", replace(index, decord_safe=False, reasons=("a", "b"))).reason == "a; b"
