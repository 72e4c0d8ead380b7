"""Canaries for hostile input: what was read, asked for, written, run or told, that must not be."""

from __future__ import annotations

import ctypes
import http.server
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import pyarrow.parquet as pq

from panoptile.pipeline import gdal_env

gdal_env.configure()  # before rasterio

import rasterio

_IN_ACCESS, _IN_OPEN, _IN_NONBLOCK = 0x1, 0x20, 0o4000


class ReadWatch:
    """Counts how often files are opened or read, by any process and any library: the kernel tells (inotify)."""

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._libc = ctypes.CDLL(None, use_errno=True)

    def __enter__(self) -> Self:
        self._fd = self._libc.inotify_init1(_IN_NONBLOCK)
        for path in self._paths:
            if self._libc.inotify_add_watch(self._fd, os.fsencode(path), _IN_OPEN | _IN_ACCESS) < 0:
                raise OSError(ctypes.get_errno(), f"cannot watch {path}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def take(self) -> int:
        """Events since the last call."""
        try:
            data = os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return 0
        count = at = 0
        while at < len(data):
            (length,) = struct.unpack_from("I", data, at + 12)
            at += 16 + length
            count += 1
        return count


class CanaryServer:
    """An HTTP server that nobody may ask; answers everything with a few bytes, and remembers it."""

    def __enter__(self) -> Self:
        requests: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version: ClassVar[str] = "HTTP/1.0"  # type: ignore[misc]

            def _answer(self) -> None:
                requests.append(f"{self.command} {self.path}")
                self.send_response(200)
                self.send_header("Content-Length", "3")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(b"hey")

            do_GET = do_HEAD = do_POST = do_PUT = _answer

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.requests = requests
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def files_below(folder: Path) -> dict[str, tuple[int, int]]:
    """(size, time) of every file below a folder, by relative path."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            status = path.stat()
            found[str(path.relative_to(folder))] = (status.st_size, status.st_mtime_ns)
    return found


def texts_of(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """What every file below a folder holds: its bytes, and what is compressed in Parquet and tagged in TIFF."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        yield path, path.read_bytes()
        yield path, os.fsencode(path.name)
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            yield path, repr(table.schema.metadata).encode()
            for name in table.column_names:
                if name != "geometry":
                    yield path, repr(table.column(name).to_pylist()).encode("utf-8", "surrogateescape")
        elif path.suffix == ".tif":
            with rasterio.open(path) as raster:
                spaces = [raster.tags(ns=ns) for ns in (None, *raster.tag_namespaces())]
                yield path, repr([raster.profile, *spaces, raster.descriptions]).encode()
