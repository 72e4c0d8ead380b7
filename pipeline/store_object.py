"""A store in an object store: any fsspec filesystem, with atomic puts, bounded retries and put-if-absent.

Never ``fs.open(key, "wb")``: an exception inside publishes a torn object. Every write is one PUT or one completed
multipart upload. Listings are never cached, and every GET is checked against the object's size. What is read whole is
of one version of the object: one GET, or pieces with the same etag before the first and after the last.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from panoptile.pipeline.remote_filesystem import connect
from panoptile.pipeline.remote_uri import scheme_of
from panoptile.pipeline.store import StoreAbilities, Stored, StoreUnreachable, check_key
from panoptile.pipeline.store_election import elect, withdraw
from panoptile.pipeline.store_retry import Backoff, ShortRead, is_conflict, retried

T = TypeVar("T")

PART_BYTES = 8 << 20
"""Parts of a multipart upload; two are in memory at once."""
MAX_PARTS = 9_000
"""S3 takes 10,000."""
PIECE_BYTES = 8 << 20
"""Large objects are read in pieces of this size."""
SPOOL_BYTES = 64 << 20
"""An object up to this size is opened as a copy in scratch; a larger one is read by ranges."""
MAX_READS = 5
"""How often a large object is read from its start because it was replaced meanwhile."""
_PROBES = "_state/probe"


class _Replaced(Exception):
    """The object is not the one any more of which the first pieces were read."""


class ObjectStore:
    """A prefix in an object store."""

    def __init__(self, root: str, backoff: Backoff | None = None) -> None:
        """``root`` as :func:`panoptile.pipeline.remote_uri.checked_uri` returns it."""
        self._root = root
        self._fs = connect(root)
        self._base = str(self._fs._strip_protocol(root)).rstrip("/")
        self._backoff = backoff or Backoff()
        # fsspec's memory filesystem looks, then writes: threads of this process take turns.
        self._turn: Any = _MEMORY_LOCK if scheme_of(root) == "memory" else contextlib.nullcontext()

    @property
    def root(self) -> str:
        return self._root

    @cached_property
    def abilities(self) -> StoreAbilities:
        """Puts one small key twice: a store that lets the second overwrite the first cannot commit by itself."""
        key = f"{_PROBES}/{uuid.uuid4().hex}"
        try:
            self._create(key, b"first")
            exclusive = not self._create(key, b"second")
        finally:
            self._remove(key)
        if exclusive:
            return StoreAbilities(exclusive=True)
        return StoreAbilities(
            exclusive=False,
            note=f"{self._root} ignores put-if-absent: each commit waits for the others and one of them is elected, "
            "which is slower and safe only while a put takes less than 2 s.",
        )

    def uri(self, key: str) -> str:
        return f"{self._root}/{check_key(key)}"

    def check_writable(self) -> None:
        """Lists the place: a missing bucket or a refusal shows. Whether it may be written shows at the first put."""
        self.entries()

    # --- write ---

    def put_bytes(self, key: str, data: bytes) -> None:
        path = self._path(key)
        self._try("write", key, lambda: self._fs.pipe_file(path, data, **self._one_request(len(data))))

    def put_file(self, key: str, source: Path) -> None:
        path, size = self._path(key), source.stat().st_size
        if size <= PART_BYTES or scheme_of(self._root) == "memory":
            self.put_bytes(key, source.read_bytes())
        else:
            options = self._multipart(size)
            self._try("upload", key, lambda: self._fs.put_file(str(source), path, **options))
        stored = self.size(key)
        if stored != size:
            raise OSError(
                errno.EIO, f"{self.uri(key)} has {stored} bytes after an upload of {size}: try again"
            )
        source.unlink()

    def put_if_absent(self, key: str, data: bytes) -> bool:
        if not self.abilities.exclusive:
            return elect(self, check_key(key), data)
        return self._create(key, data)

    def _create(self, key: str, data: bytes) -> bool:
        """One conditional PUT. A conflict may be our own success whose answer was lost: what is there decides."""
        path = self._path(key)

        def create() -> bool:
            try:
                with self._turn:
                    self._fs.pipe_file(path, data, mode="create")
            except Exception as e:  # every client has its own class for a conflict
                if is_conflict(e):
                    return False
                raise
            return True

        if self._try("write", key, create):
            return True
        try:
            return self.read_bytes(key) == data
        except FileNotFoundError:  # deleted since: not ours to judge
            return False

    def delete(self, key: str) -> None:
        self._remove(key)
        if not self.abilities.exclusive:
            withdraw(self, key)

    def _remove(self, key: str) -> None:
        path = self._path(key)

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(path)

        self._try("delete", key, remove)

    # --- read ---

    def read_bytes(self, key: str) -> bytes:
        path = self._path(key)

        def read() -> bytes:
            return self._whole(path, self._info(path)["size"])

        return self._try("read", key, read)

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop`` of ``key``, all of them or an error."""
        path = self._path(key)
        return self._try("read", key, lambda: self._range(path, start, stop))

    def read_all(self, prefix: str) -> dict[str, bytes]:
        sizes = {s.key: s.size for s in self._list(prefix)}
        paths = {self._path(key): key for key in sizes}
        if not paths:
            return {}
        got = self._try("read", prefix, lambda: self._fs.cat(list(paths), on_error="return"))
        whole = {}
        for path, data in got.items():
            key = paths[path]
            if not isinstance(data, bytes) or len(data) != sizes[key]:  # replaced, gone or torn: one by one
                try:
                    data = self.read_bytes(key)
                except FileNotFoundError:
                    continue
            whole[key] = data
        return whole

    def open(self, key: str) -> BinaryIO:
        size = self.size(key)
        if size > SPOOL_BYTES:
            return io.BufferedReader(self.ranges(key), 1 << 20)
        spool = tempfile.TemporaryFile(prefix="panoptile-")  # noqa: SIM115  (the caller closes it)
        spool.write(self.read_bytes(key))
        spool.seek(0)
        return spool

    def sha256(self, key: str) -> str:
        def digest(pieces: Iterator[bytes]) -> str:
            found = hashlib.sha256()
            for piece in pieces:
                found.update(piece)
            return found.hexdigest()

        return self._in_pieces(key, digest)

    def local_copy(self, key: str, folder: Path) -> Path:
        target = folder / f"{uuid.uuid4().hex}-{key.rsplit('/', 1)[-1]}"

        def write(pieces: Iterator[bytes]) -> Path:
            with target.open("wb") as file:
                file.writelines(pieces)
            return target

        return self._in_pieces(key, write)

    def _in_pieces(self, key: str, take: Callable[[Iterator[bytes]], T]) -> T:
        """What ``take`` makes of the bytes of ``key``; it is called anew where the object was replaced meanwhile."""
        path = self._path(key)

        def begin() -> tuple[tuple[int, str], bytes | None]:
            version = _version(self._info(path))
            return version, self._whole(path, version[0]) if version[0] <= PIECE_BYTES else None

        for _ in range(MAX_READS):
            version, whole = self._try("read", key, begin)
            if whole is not None:
                return take(iter((whole,)))
            with contextlib.suppress(_Replaced):
                return take(self._pieces(key, version))
        raise OSError(
            errno.EBUSY,
            f"{self.uri(key)} was replaced each of the {MAX_READS} times that it was read: try again when nobody writes it",
        )

    def _pieces(self, key: str, version: tuple[int, str]) -> Iterator[bytes]:
        """All bytes of that version; raises :class:`_Replaced`, at the latest after the last piece."""
        for start in range(0, version[0], PIECE_BYTES):
            yield self._piece(key, start, version)
        if _version(self.describe(key)) != version:
            raise _Replaced

    def _piece(self, key: str, start: int, version: tuple[int, str]) -> bytes:
        path = self._path(key)

        def read() -> bytes | None:
            try:
                return self._range(path, start, min(start + PIECE_BYTES, version[0]))
            except Exception:  # every client has its own class for a range beyond the end of a shorter object
                if _version(self._info(path)) != version:
                    return None
                raise

        piece = self._try("read", key, read)
        if piece is None:
            raise _Replaced
        return piece

    def ranges(self, key: str) -> io.RawIOBase:
        """``key`` for random reads, each of them one ranged GET; raises ``FileNotFoundError``."""
        return _RangeFile(self, key, self.size(key))

    def describe(self, key: str) -> dict[str, Any]:
        """What the store's client says of ``key``: at least ``size``; raises ``FileNotFoundError``."""
        path = self._path(key)
        return self._try("look up", key, lambda: self._info(path))

    def size(self, key: str) -> int:
        return int(self.describe(key)["size"])

    def exists(self, key: str) -> bool:
        try:
            self.size(key)
        except FileNotFoundError:
            return False
        return True

    def keys(self, prefix: str) -> list[str]:
        return [s.key for s in self._list(prefix)]

    def _list(self, prefix: str) -> list[Stored]:
        path = self._path(prefix.rstrip("/"))
        found = self._try("list", prefix, lambda: self._ls(path))
        return sorted((self._stored(i) for i in found if i["type"] == "file"), key=lambda s: s.key)

    def walk(self, prefix: str = "") -> Iterator[Stored]:
        path = self._path(prefix.rstrip("/")) if prefix else self._base

        def find() -> dict[str, dict[str, Any]]:
            try:
                found: dict[str, dict[str, Any]] = self._fs.find(path, detail=True)
            except FileNotFoundError as e:
                self._missing(e)
                return {}
            return found

        infos = self._try("list", prefix or ".", find).values()
        yield from sorted(
            (self._stored(i) for i in infos if i["type"] == "file" and not i["name"].endswith("/")),
            key=lambda s: s.key,
        )

    def matching(self, pattern: str) -> list[str]:
        """Keys that match a glob, sorted; files alone."""
        path = self._path(pattern)
        found = self._try("list", pattern, lambda: self._fs.glob(path, detail=True)).values()
        return sorted(self._stored(i).key for i in found if i["type"] == "file")

    def entries(self) -> list[str]:
        found = self._try("list", ".", lambda: self._ls(self._base))
        names = {str(i["name"]).rstrip("/").rsplit("/", 1)[-1] for i in found}
        return sorted(names)

    # --- one request ---

    def _ls(self, path: str) -> list[dict[str, Any]]:
        """What is directly inside a folder, without the marker object that some tools leave for the folder itself."""
        try:
            found = self._fs.ls(path, detail=True)
        except FileNotFoundError as e:
            self._missing(e)
            return []
        return [i for i in found if str(i["name"]).strip("/") != path.strip("/")]

    def _missing(self, error: FileNotFoundError) -> None:
        """Nothing there: raise where it is the bucket that is missing, for then nothing can be written either."""
        bucket = self._base.strip("/").split("/", 1)[0]
        if scheme_of(self._root) != "memory" and not self._fs.exists(bucket):
            raise StoreUnreachable(
                errno.ENOENT,
                f"Cannot list {self._root}: there is no bucket {bucket}; create it, or name another",
            ) from error

    def _info(self, path: str) -> dict[str, Any]:
        info: dict[str, Any] = self._fs.info(path)
        if info["type"] != "file":
            raise FileNotFoundError(errno.ENOENT, f"{path} is not there")
        return info

    def _whole(self, path: str, size: int) -> bytes:
        """All bytes by one open-ended GET, which a put in its course cannot tear.

        With an end, it would cut an object that has grown since its size was asked for; without a start too, the
        client for S3 would ask for the size itself, and read a large object in parts.
        """
        if size == 0:
            return b""
        try:
            data: bytes = self._fs.cat_file(path, start=0)
        except (
            Exception
        ) as e:  # Azure's client reads a large object in parts, and is refused those of another
            if is_conflict(e):
                raise ShortRead(errno.EIO, "the object was replaced while it was read") from e
            raise
        if len(data) != size:
            raise ShortRead(errno.EIO, f"{len(data)} bytes came of an object of {size}")
        return data

    def _range(self, path: str, start: int, stop: int) -> bytes:
        if stop == start:
            return b""
        data: bytes = self._fs.cat_file(path, start=start, end=stop)
        if len(data) != stop - start:
            raise ShortRead(errno.EIO, f"{len(data)} of {stop - start} bytes came")
        return data

    def _stored(self, info: dict[str, Any]) -> Stored:
        key = str(info["name"]).strip("/").removeprefix(self._base.strip("/")).lstrip("/")
        return Stored(key, int(info["size"]), written_at(info))

    def _path(self, key: str) -> str:
        return f"{self._base}/{check_key(key)}"

    def _try(self, what: str, key: str, action: Callable[[], T]) -> T:
        return retried(action, what, f"{self._root}/{key}", self._backoff)

    def _one_request(self, size: int) -> dict[str, int]:
        """Options that keep a put of ``size`` bytes one request, where the client lets us say so."""
        return {"chunksize": max(size + 1, PART_BYTES)} if scheme_of(self._root) in ("s3", "s3a") else {}

    def _multipart(self, size: int) -> dict[str, Any]:
        part = max(PART_BYTES, -(-size // MAX_PARTS))
        part = -(-part // (1 << 20)) << 20  # whole MiB: Google wants multiples of 256 KiB
        scheme = scheme_of(self._root)
        if scheme in ("s3", "s3a"):
            return {"chunksize": part, "max_concurrency": 2}
        return {"chunksize": part} if scheme in ("gs", "gcs") else {"overwrite": True, "max_concurrency": 2}


def tag_of(info: Mapping[str, Any]) -> str:
    """What tells two contents of an object apart, in what a store's client says of it."""
    tag = next((info[n] for n in ("ETag", "etag", "md5Hash", "content_md5", "created") if info.get(n)), "")
    return str(tag).strip('"')


def written_at(info: Mapping[str, Any]) -> float:
    """When an object was written, seconds since 1970 by its store's clock; 0 where the store's client does not say."""
    when: Any = next(
        (info[n] for n in ("LastModified", "mtime", "last_modified", "created") if info.get(n)), None
    )
    return float(when.timestamp()) if hasattr(when, "timestamp") else 0.0


def _version(info: Mapping[str, Any]) -> tuple[int, str]:
    return int(info["size"]), tag_of(info)


class _RangeFile(io.RawIOBase):
    """A large object for random reads; each read is one ranged GET."""

    def __init__(self, store: ObjectStore, key: str, size: int) -> None:
        self._store, self._key, self._size, self._at = store, key, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        stop = min(self._at + len(buffer), self._size)
        if stop <= self._at:
            return 0
        data = self._store.read_range(self._key, self._at, stop)
        buffer[: len(data)] = data
        self._at = stop
        return len(data)


_MEMORY_LOCK = threading.Lock()
