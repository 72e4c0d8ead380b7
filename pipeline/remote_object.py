"""Objects that are read as inputs: what a URI names, which version of it, and its bytes by ranges."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, BinaryIO

from panoptile.pipeline.remote_uri import checked_uri, scheme_of
from panoptile.pipeline.store_object import ObjectStore, tag_of, written_at

HEAD_BUFFER = 256 << 10
"""Bytes of one ranged GET while tables of a file are read."""
_REACHED_BY = ("AWS_", "FSSPEC_", "STORAGE_EMULATOR_HOST", "GOOGLE_", "AZURE_")


@dataclass(frozen=True, slots=True)
class Version:
    """Which bytes a name stood for. Two equal versions are the same content."""

    size: int
    mtime_ns: int = 0
    """Of a local file; 0 for an object."""
    etag: str = ""
    """Of an object; empty for a local file."""
    written_ns: int = field(default=0, compare=False)
    """When an object was written, by its store's clock; 0 for a local file. Equal content may be written again."""


def is_remote(uri: str) -> bool:
    """True for a URI of an object store; False for local paths and ``file://``."""
    return scheme_of(uri) not in (None, "file")


def version_of(uri: str) -> Version:
    """The version that ``uri`` names now. Raises ``FileNotFoundError``, ``OSError`` or ``StoreUnreachable``."""
    if not is_remote(uri):
        status = os.stat(uri)
        return Version(status.st_size, status.st_mtime_ns)
    store, key = _place(uri)
    info = store.describe(key)
    return Version(int(info["size"]), etag=tag_of(info), written_ns=written_ns(info))


def written_ns(info: Mapping[str, Any]) -> int:
    """When the object was written of which a store's client says ``info``, in whole milliseconds; 0 if it does not say."""
    return int(written_at(info) * 1000) * 1_000_000


def open_ranges(uri: str) -> BinaryIO:
    """A file or an object for random reads; of an object, only the ranges that are read are fetched."""
    if not is_remote(uri):
        return open(uri, "rb")
    store, key = _place(uri)
    return io.BufferedReader(store.ranges(key), HEAD_BUFFER)


def read_head(uri: str, count: int) -> bytes:
    """The first ``count`` bytes of a file or an object; fewer where it is shorter."""
    if not is_remote(uri):
        with open(uri, "rb") as file:
            return file.read(count)
    store, key = _place(uri)
    return store.read_range(key, 0, min(count, store.size(key)))


def objects_in(uri: str) -> list[str]:
    """URIs of the objects directly inside the folder that ``uri`` names, sorted."""
    store, key = _place(uri + "/.")
    folder = key.rpartition("/")[0]
    keys = store.keys(folder) if folder else [k for k in store.entries() if store.exists(k)]
    return [store.uri(k) for k in keys]


def objects_like(pattern: str) -> list[str]:
    """URIs of the objects that match a glob (``*`` within a folder, ``**`` descends), sorted."""
    store, key = _place(pattern)
    return [store.uri(k) for k in store.matching(key)]


def exists(uri: str) -> bool:
    store, key = _place(uri)
    return store.exists(key)


def _place(uri: str) -> tuple[ObjectStore, str]:
    """The bucket's store and the key inside it. Raises ``ValueError`` for a URI that cannot be read."""
    scheme, rest = checked_uri(uri).split("://", 1)
    bucket, _, key = rest.partition("/")
    environment = tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith(_REACHED_BY)))
    return _bucket(f"{scheme}://{bucket}", environment), key


@lru_cache(maxsize=16)
def _bucket(root: str, environment: tuple[tuple[str, str], ...]) -> ObjectStore:
    """One client a bucket: making one takes a tenth of a second, and there may be many thousand inputs."""
    return ObjectStore(root)


def pieces(uri: str, size: int = 8 << 20) -> Iterator[bytes]:
    """The bytes of a file or an object, a piece at a time."""
    with open_ranges(uri) as file:
        while piece := file.read(size):
            yield piece
