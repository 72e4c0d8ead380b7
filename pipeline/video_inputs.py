"""From what the user named to the list of videos, and each of them as a local file for the decoders.

Decoders are given local regular files alone, so a video in an object store is copied to scratch first, within a
bound, and removed when it is closed.
"""

from __future__ import annotations

import errno
import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from panoptile.pipeline.image_sequence import folder_tag, index_images, is_image_sequence, natural_order
from panoptile.pipeline.inputs import InputError, NothingThere, expanded, shown, stands_for_a_file
from panoptile.pipeline.remote_object import Version, version_of, written_ns
from panoptile.pipeline.remote_uri import checked_uri, local_path_of, scheme_of
from panoptile.pipeline.store_object import tag_of
from panoptile.pipeline.store_retry import Backoff, ShortRead, retried
from panoptile.pipeline.video_index import VideoIndex, index_video

VIDEO_ENDINGS = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".flv", ".ts", ".m2ts", ".mts", ".mpg", ".mpeg", ".vob",
)  # fmt: skip
"""Files that a directory contributes, in lower or upper case. A file named directly may end in anything."""
MAX_COPY_BYTES = 64 << 30
"""Default bound of the scratch copy of one video."""
PIECE_BYTES = 8 << 20


def find_videos(sources: Sequence[str], *, may_be_empty: bool = False) -> list[str]:
    """Absolute paths and URIs of the videos that ``sources`` name, in the order named, each once.

    A source is a file, a glob, a directory of videos (in natural order, without sub-directories), a directory of
    numbered images (which is one video), a ``file://`` URL, or an object, glob or folder in an object store (of
    videos: not of images). Raises InputError that names every source where nothing is, or a directory that holds both.

    ``may_be_empty``: folders without videos and globs without match contribute nothing, and the list may be empty.
    """
    found = expanded(sources, lambda s: _remote(s) if _is_remote(s) else _local(s), may_be_empty)
    if not found and not may_be_empty:
        raise InputError("No input was named: give at least one video, directory or glob.")
    return found


def index_input(path: str, sequence_fps: float | None = None) -> VideoIndex:
    """The index of a local video file, or of a directory of images shown at ``sequence_fps``."""
    if os.path.isdir(path):
        return index_images(path, sequence_fps)
    return index_video(path)


class LocalVideo:
    """A video as a local path: itself where it is local, else a copy in scratch that ``close`` removes.

    On Linux the copy has no name: workers end by being killed, and it goes with the process, however that ends.
    """

    def __init__(
        self,
        uri: str,
        scratch: str | Path | None = None,
        *,
        max_bytes: int = MAX_COPY_BYTES,
        backoff: Backoff | None = None,
    ) -> None:
        """``scratch`` is the folder of the copy (the system's for temporary files by default).

        Raises InputError for a video of more than ``max_bytes`` or than scratch has room for, FileNotFoundError,
        store.StoreUnreachable where the store stays unreachable or refuses, and OSError for the rest.
        """
        self._folder: str | None = None
        self._held: BinaryIO | None = None
        self._uri = uri
        self.etag = ""
        """Of an object, or of a folder of images (see image_sequence.folder_tag): another one, another content."""
        self.written_ns = 0
        """When an object was written; 0 for what is local."""
        if not _is_remote(uri):
            self.path = str(_local_path(uri))
            if os.path.isdir(self.path):
                self.etag = _tag_of_images(self.path)
            return
        self._folder = tempfile.mkdtemp(prefix="panoptile-video-", dir=scratch)
        try:
            self.path, about = _download(_checked(uri), self._folder, max_bytes, backoff or Backoff())
            self.etag, self.written_ns = tag_of(about), written_ns(about)
            self._forget_name()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove the copy, if there is one; calling it again does nothing."""
        if self._held is not None:
            self._held.close()
            self._held = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _forget_name(self) -> None:
        """Leave the copy reachable by this process's open file alone, where the system has a path for that."""
        if sys.platform != "linux":
            return
        self._held = open(self.path, "rb")  # noqa: SIM115  (held until close)
        held = f"/proc/self/fd/{self._held.fileno()}"
        if os.path.exists(held) and self._folder is not None:
            shutil.rmtree(self._folder)
            self.path, self._folder = held, None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if isinstance(error, InputError) and _is_remote(self._uri):  # the copy's path says nothing to anybody
            raise InputError(str(error).replace(self.path, shown(self._uri))) from error


def _tag_of_images(folder: str) -> str:
    """See ``folder_tag``. Raises InputError for an image that is a link to nowhere."""
    try:
        return folder_tag(folder)
    except FileNotFoundError as e:
        raise InputError(f"{shown(str(e.filename))} does not exist: check the path.") from e


def video_version(uri: str) -> Version:
    """The version that a video's name stands for now; of a folder of images its tag alone. Raises as version_of."""
    if not _is_remote(uri) and os.path.isdir(_local_path(uri)):
        return Version(0, etag=folder_tag(str(_local_path(uri))))
    return version_of(uri)


def _download(uri: str, folder: str, max_bytes: int, backoff: Backoff) -> tuple[str, dict[str, Any]]:
    """(path of a copy in ``folder``, what the store's client says of the object). Made in pieces, each tried again alone, and checked for
    changes meanwhile."""
    fs, place = _filesystem(uri)
    before = retried(lambda: fs.info(place), "read", uri, backoff)
    size = int(before["size"])
    if before.get("type") == "directory" or not size:
        raise InputError(f"{shown(uri)} is empty or a folder: name a video.")
    free = shutil.disk_usage(folder).free
    if size > min(max_bytes, free):
        bound = f"the bound of {max_bytes:,}" if max_bytes <= free else f"the {free:,} free in {folder}"
        raise InputError(f"{shown(uri)} has {size:,} bytes, more than {bound}: raise it, or cut the video.")
    path = os.path.join(folder, "video")
    with open(path, "wb") as file:
        for start in range(0, size, PIECE_BYTES):
            stop = min(start + PIECE_BYTES, size)
            file.write(retried(lambda a=start, b=stop: _piece(fs, place, a, b), "read", uri, backoff))  # type: ignore[misc]
    after = retried(lambda: fs.info(place), "read", uri, backoff)
    if any(before.get(name) != after.get(name) for name in ("size", "ETag", "etag", "LastModified", "mtime")):
        raise OSError(errno.ESTALE, f"{shown(uri)} changed while it was copied: run the same command again")
    return path, before


def _piece(fs: Any, place: str, start: int, stop: int) -> bytes:
    data: bytes = fs.cat_file(place, start=start, end=stop)
    if len(data) != stop - start:
        raise ShortRead(errno.EIO, f"{len(data)} bytes came of {stop - start}")
    return data


def _local(source: str) -> list[str]:
    path = _local_path(source)
    if os.path.isdir(path):
        return _directory(str(path))
    if os.path.lexists(path):
        return [str(path)]
    if glob.has_magic(str(path)):
        matches = sorted(glob.glob(str(path), recursive=True), key=natural_order)
        files = [os.path.abspath(m) for m in matches if stands_for_a_file(m)]
        if not files:
            raise NothingThere(
                f"No file matches {shown(source)}: check the pattern, and quote it in the shell."
            )
        return files
    raise InputError(f"{shown(source)} does not exist: check the path.")


def _directory(directory: str) -> list[str]:
    names = sorted((n for n in os.listdir(directory) if _is_video(n)), key=natural_order)
    videos = [p for p in (os.path.join(directory, n) for n in names) if stands_for_a_file(p)]
    images = is_image_sequence(directory)
    if videos and images:
        raise InputError(
            f"{shown(directory)} holds videos and images: name the files, or move one kind away."
        )
    if not videos and not images:
        raise NothingThere(
            f"{shown(directory)} holds no video and no image: looked for {' '.join(VIDEO_ENDINGS)} and numbered "
            "images, not in sub-directories."
        )
    return videos or [directory]


def _remote(source: str) -> list[str]:
    """The objects that a URI names: itself, what its glob matches, or the videos of the folder that it is."""
    uri = _checked(source)
    fs, place = _filesystem(uri)
    scheme = scheme_of(uri)

    def named(places: list[str]) -> list[str]:
        return [f"{scheme}://{p.removeprefix('/')}" for p in sorted(places, key=natural_order)]

    if glob.has_magic(place):
        matches = named(retried(lambda: fs.glob(place), "list", uri, Backoff()))
        if not matches:
            raise NothingThere(
                f"No object matches {shown(uri)}: check the pattern, and quote it in the shell."
            )
        return matches
    if retried(lambda: fs.isfile(place), "read", uri, Backoff()):
        return [uri]
    entries = retried(lambda: fs.ls(place, detail=False) if fs.isdir(place) else [], "list", uri, Backoff())
    videos = [p for p in entries if _is_video(os.path.basename(p.rstrip("/")))]
    if not videos:
        raise NothingThere(
            f"{shown(uri)} is no object and no folder of videos: check it (numbered images must be local)."
        )
    return named(videos)


def _filesystem(uri: str) -> tuple[Any, str]:
    from panoptile.pipeline.remote_filesystem import connect

    fs = connect(uri)
    return fs, str(fs._strip_protocol(uri))


def _checked(uri: str) -> str:
    try:
        return checked_uri(uri)
    except ValueError as e:
        raise InputError(str(e)) from e


def _local_path(source: str) -> Path:
    try:
        return local_path_of(source)
    except ValueError as e:
        raise InputError(f"{e} Name a file, a directory or a glob.") from e


def _is_remote(uri: str) -> bool:
    return scheme_of(uri) not in (None, "file")


def _is_video(name: str) -> bool:
    return name.lower().endswith(VIDEO_ENDINGS) and not name.startswith(".")
