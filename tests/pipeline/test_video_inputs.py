"""Which videos a command line names, and how one in an object store becomes a local file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest
from tests.pipeline.test_frame_images import write_images
from tests.pipeline.video_files import write_video

from panoptile.pipeline import video_inputs
from panoptile.pipeline.frame_source import open_frames
from panoptile.pipeline.inputs import InputError
from panoptile.pipeline.store_retry import Backoff
from panoptile.pipeline.video_index import index_video
from panoptile.pipeline.video_inputs import LocalVideo, find_videos, index_input, video_version

FAST = Backoff(attempts=4, first=0.001, most=0.002)


def touch(folder: Path, *names: str) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")
    return [str(folder / name) for name in names]


@pytest.fixture
def bucket() -> str:
    """A fresh place in fsspec's memory filesystem, where a URI is handled as in any object store."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    return "memory://bucket"


def put(uri: str, data: bytes) -> str:
    fsspec.filesystem("memory").pipe_file(uri.removeprefix("memory:/"), data)
    return uri


def test_files_globs_and_directories(tmp_path: Path) -> None:
    """A directory gives its videos in natural order; a glob what it matches; each file counts once."""
    b, a = touch(tmp_path / "d", "clip10.mp4", "clip9.MKV")
    touch(tmp_path / "d", "notes.txt", ".hidden.mp4")
    assert find_videos([str(tmp_path / "d")]) == [a, b]
    assert find_videos([str(tmp_path / "d" / "*.mp4")]) == [b]
    assert find_videos([b, str(tmp_path / "d"), f"file://{b}"]) == [b, a]


def test_a_link_that_leads_nowhere_is_an_input(tmp_path: Path) -> None:
    """A folder and a pattern name it; among numbered images it is named as missing."""
    (a,) = touch(tmp_path / "d", "a.mp4")
    (tmp_path / "d" / "b.mp4").symlink_to("/nowhere/b.mp4")
    found = [a, str(tmp_path / "d" / "b.mp4")]
    assert find_videos([str(tmp_path / "d")]) == found
    assert find_videos([str(tmp_path / "d" / "*.mp4")]) == found
    folder = write_images(tmp_path / "clip", ["0.png"])
    (folder / "1.png").symlink_to("/nowhere/1.png")
    with pytest.raises(InputError, match=r"1\.png does not exist"):
        LocalVideo(str(folder))


def test_a_directory_of_images_is_one_video(tmp_path: Path) -> None:
    """It stands for itself and is indexed as a sequence; with videos beside the images it is refused."""
    folder = write_images(tmp_path / "clip", ["0.png", "1.png"])
    assert find_videos([str(folder)]) == [str(folder)]
    assert len(index_input(str(folder), sequence_fps=5)) == 2
    touch(folder, "a.mp4")
    with pytest.raises(InputError, match="videos and images"):
        find_videos([str(folder)])


@pytest.mark.parametrize(
    "source",
    [
        "",
        "none.mp4",
        "*.mp4",
        "http://host/a.mp4",
        "s3://key:secret@bucket/a.mp4",
        "memory://bucket/none.mp4",
    ],
)
def test_what_is_not_there_is_an_error(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket: str
) -> None:
    """One sentence, exit 2, and never the secret of a URI."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as e:
        find_videos([source])
    assert "secret" not in str(e.value)
    with pytest.raises(InputError):
        find_videos([])


def test_remote_names(bucket: str) -> None:
    """Objects, globs and folders of an object store give URIs."""
    a, b = (put(f"{bucket}/d/clip{k}.mp4", b"x") for k in (9, 10))
    put(f"{bucket}/d/notes.txt", b"x")
    assert find_videos([a]) == [a]
    assert find_videos([f"{bucket}/d"]) == [a, b]
    assert find_videos([f"{bucket}/d/*10.mp4"]) == [b]


def test_a_remote_video_is_copied_and_removed(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy is whole, read by both decoders, and gone after the block, without a name before where the system allows;
    a local video is not copied."""
    video = write_video(tmp_path / "v.mp4")
    uri = put(f"{bucket}/v.mp4", video.read_bytes())
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(video_inputs, "PIECE_BYTES", 1000)
    with LocalVideo(uri, scratch) as copy:
        assert Path(copy.path).read_bytes() == video.read_bytes()
        assert os.listdir(scratch) == [] or sys.platform != "linux"
        index = index_video(copy.path)
        assert len(index) == 90
        for backend in ("pyav", "decord"):
            assert len(list(open_frames(copy.path, index, backend).frames(0, 90, 30))) == 3
    assert os.listdir(scratch) == []
    with LocalVideo(str(video), scratch) as own:
        assert own.path == str(video)
    assert video.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="needs files without names")
def test_a_killed_process_leaves_no_copy(tmp_path: Path) -> None:
    """Workers end by being killed: the scratch copy of a video goes with them."""
    code = (
        "import fsspec, os, signal, sys; from panoptile.pipeline.video_inputs import LocalVideo;"
        "fsspec.filesystem('memory').pipe_file('/bucket/v.mp4', b'x' * 5000);"
        "copy = LocalVideo('memory://bucket/v.mp4', sys.argv[1]);"
        "print(len(open(copy.path, 'rb').read()), flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=False, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout) == (-9, "5000\n"), ended.stderr
    assert os.listdir(tmp_path) == []


def test_an_error_names_the_object_and_not_its_copy(bucket: str) -> None:
    """Whoever reads it knows the URI alone."""
    uri = put(f"{bucket}/v.mp4", b"not a video")
    with pytest.raises(InputError, match=r"^memory://bucket/v\.mp4 is a text"), LocalVideo(uri) as copy:
        index_video(copy.path)


def test_a_copy_stays_within_its_bound(tmp_path: Path, bucket: str) -> None:
    """A larger object is refused before a byte is copied, and nothing is left."""
    uri = put(f"{bucket}/v.mp4", bytes(5000))
    with pytest.raises(InputError, match="5,000 bytes, more than the bound of 4,999"):
        LocalVideo(uri, tmp_path, max_bytes=4999)
    assert os.listdir(tmp_path) == []


def test_passing_faults_are_tried_again(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lost connections and short answers cost a piece, not the copy; a lasting fault ends it and leaves nothing."""
    data = os.urandom(5000)
    uri = put(f"{bucket}/v.mp4", data)
    monkeypatch.setattr(video_inputs, "PIECE_BYTES", 1000)
    fs_class: Any = type(fsspec.filesystem("memory"))
    plain, calls = fs_class.cat_file, []

    def flaky(self: Any, path: str, start: int | None = None, end: int | None = None, **k: Any) -> bytes:
        calls.append(start)
        if len(calls) % 3 == 1:
            raise ConnectionResetError("gone")
        if len(calls) % 3 == 2:
            return bytes(plain(self, path, start=start, end=end - 1 if end else None))
        return bytes(plain(self, path, start=start, end=end))

    monkeypatch.setattr(fs_class, "cat_file", flaky)
    with LocalVideo(uri, tmp_path, backoff=FAST) as copy:
        assert Path(copy.path).read_bytes() == data
    assert len(calls) == 15

    def broken(self: Any, path: str, **k: Any) -> bytes:
        raise ConnectionResetError("gone")

    monkeypatch.setattr(fs_class, "cat_file", broken)
    with pytest.raises(OSError, match="Cannot read memory://bucket/v"):
        LocalVideo(uri, tmp_path, backoff=FAST)
    assert os.listdir(tmp_path) == []


def test_an_object_that_changes_meanwhile_is_refused(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of one version and half of another are never joined."""
    uri = put(f"{bucket}/v.mp4", bytes(3000))
    monkeypatch.setattr(video_inputs, "PIECE_BYTES", 1000)
    fs_class: Any = type(fsspec.filesystem("memory"))
    plain = fs_class.cat_file

    def replaced(self: Any, path: str, **k: Any) -> bytes:
        data = bytes(plain(self, path, **k))
        if k["start"] == 2000:
            put(uri, bytes(3001))
        return data

    monkeypatch.setattr(fs_class, "cat_file", replaced)
    with pytest.raises(OSError, match="changed while it was copied"):
        LocalVideo(uri, tmp_path, backoff=FAST)
    assert os.listdir(tmp_path) == []


def test_the_version_of_a_video_is_that_of_its_source(tmp_path: Path, bucket: str) -> None:
    """An object's is its tag, not the time of the copy; a folder's changes with any of its images, in whatever way."""
    uri = put(f"{bucket}/v.mp4", b"one")
    with LocalVideo(uri, tmp_path) as first, LocalVideo(uri, tmp_path) as second:
        assert first.etag == second.etag == video_version(uri).etag != ""
        assert first.written_ns == video_version(uri).written_ns > 1.7e18
    put(uri, b"two")
    assert video_version(uri).etag != first.etag
    folder = write_images(tmp_path / "clip", ["0.png", "1.png", "2.png"])
    tags = [video_version(str(folder)).etag, video_version(str(folder)).etag]
    assert tags[0] == tags[1]
    os.rename(folder / "0.png", folder / "t")
    os.rename(folder / "1.png", folder / "0.png")
    os.rename(folder / "t", folder / "1.png")
    tags.append(video_version(str(folder)).etag)
    os.utime(folder / "0.png", ns=(5, 5))
    tags.append(video_version(str(folder)).etag)
    assert len(set(tags)) == 3
