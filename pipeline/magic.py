"""What a file is by its first bytes, and nothing else: asked before any decoder sees it.

A decoder that is left to guess takes a playlist named ``.mp4`` for a playlist, and then reads whatever other
file or address the playlist names. So a file that does not begin as one of a few containers is refused, and
the demuxer is then forced to be that container's.
"""

from __future__ import annotations

import os
import stat

from panoptile.pipeline.inputs import InputError, shown

TS_PACKET = 188
HEAD_BYTES = 4096

_EBML = b"\x1a\x45\xdf\xa3"
_MOV_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_PLAYLISTS = (
    (b"#extm3u", "an HLS playlist"),
    (b"ffconcat", "a concat script"),
    (b"v=0", "an SDP description"),
    (b"[playlist]", "a playlist"),
    (b"<mpd", "a DASH manifest"),
    (b"<smil", "a SMIL playlist"),
    (b"<?xml", "an XML text"),
    (b"<", "an XML or HTML text"),
    (b"file ", "a concat script"),
    (b"rtsp", "a list of addresses"),
    (b"http", "a list of addresses"),
)
_IMAGES = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
)


def video_container(path: str) -> str:
    """FFmpeg's name of the demuxer for a local video file: mov, matroska, avi, flv, mpegts or mpeg.

    Raises InputError, with one sentence, for anything but a regular local file that begins as such a container:
    playlists and other texts are named as what they are.
    """
    head = read_head(path)
    container = _container_of(head)
    if container is not None:
        return container
    text = _playlist_in(head)
    if text is not None:
        raise InputError(
            f"{shown(path)} is {text}, not a video: it could name any other file or address; "
            "give the video files themselves."
        )
    raise InputError(
        f"{shown(path)} is not a video that panoptile reads (MP4, MOV, MKV, WebM, AVI, FLV, MPEG-TS, MPEG-PS): "
        f"it starts with {head[:8]!r}; remux it with ffmpeg -c copy."
    )


def image_kind(path: str) -> str:
    """png, jpeg or tiff, by the first bytes of a local file; InputError for anything else."""
    head = read_head(path)
    for mark, kind in _IMAGES:
        if head.startswith(mark):
            return kind
    raise InputError(f"{shown(path)} is not a PNG, JPEG or TIFF image: it starts with {head[:8]!r}.")


def read_head(path: str) -> bytes:
    """The first bytes of a regular local file that has any; InputError otherwise."""
    name = shown(path)
    if "://" in path:
        raise InputError(f"{name} is not a local file: a decoder is given local files alone.")
    try:
        # Asked before opening: to open a named pipe would wait for its writer for ever.
        is_regular = stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError as e:
        raise InputError(f"{name} does not exist: check the path.") from e
    except (OSError, ValueError) as e:
        raise InputError(f"{name} cannot be read: {getattr(e, 'strerror', None) or e}.") from e
    if not is_regular:
        raise InputError(f"{name} is not a regular file: name a file.")
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except FileNotFoundError as e:
        raise InputError(f"{name} does not exist: check the path.") from e
    except (OSError, ValueError) as e:
        raise InputError(f"{name} cannot be read: {getattr(e, 'strerror', None) or e}.") from e
    if not head:
        raise InputError(f"{name} is empty (0 bytes): copy or download it again.")
    return head


def shields_from_text_probes(path: str) -> bool:
    """Whether a zero byte near the start ends the search of every text format's probe.

    decord's FFmpeg cannot be told which demuxer to use; it asks each of them. Those of DASH and SDP look for
    their marks anywhere in the first megabyte, up to the first zero byte: a Matroska file without one near its
    start could be made to be taken for a DASH manifest.
    """
    return b"\0" in read_head(path)[:64]


def _container_of(head: bytes) -> str | None:
    if head[4:8] in _MOV_BOXES and head[0] == 0:
        return "mov"
    if head.startswith(_EBML):
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head.startswith(b"FLV\x01"):
        return "flv"
    if head.startswith(b"\0\0\1\xba"):
        return "mpeg"
    if _is_transport_stream(head):
        return "mpegts"
    return None


def _is_transport_stream(head: bytes) -> bool:
    """Sync bytes at three packets in a row: packets are of 188 bytes, or of 192 with a time code before each."""
    for size, first in ((TS_PACKET, 0), (TS_PACKET + 4, 4)):
        marks = head[first : first + 2 * size + 1 : size]
        if len(marks) == 3 and set(marks) == {0x47}:
            return True
    return False


def _playlist_in(head: bytes) -> str | None:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for mark, name in _PLAYLISTS:
        if text.startswith(mark):
            return name
    printable = sum(32 <= byte < 127 or byte in b"\t\r\n" for byte in text[:256])
    return "a text" if text and printable == len(text[:256]) else None
