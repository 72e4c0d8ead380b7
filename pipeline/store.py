"""Where results live: every byte that panoptile writes for a user goes through a store.

Nothing is ever seen half-written: a put is one atomic step, a commit is put-if-absent. Keys are relative POSIX
paths. A store is a local folder or a prefix in an object store; who uses it need not know which.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from panoptile.pipeline.remote_uri import checked_uri, local_path_of, scheme_of


class StoreUnreachable(OSError):
    """The store cannot be reached, or refuses: one sentence of which, why, and what to do. Exit code 6."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One file or object of a store."""

    key: str
    size: int
    """Bytes."""
    modified: float
    """When it was written, seconds since 1970 by the store's own clock; 0 where the store does not say."""


@dataclass(frozen=True, slots=True)
class StoreAbilities:
    """What a store was found to do."""

    exclusive: bool
    """Whether put-if-absent is refused where something is there already."""
    note: str = ""
    """One sentence for the user where something is missing; empty where nothing is."""


class Store(Protocol):
    """A place with atomic puts and put-if-absent. Any number of threads may use it.

    All methods raise ``ValueError`` for a key that leaves the store, :class:`StoreUnreachable` where the store
    cannot be reached or refuses, and ``OSError`` for anything else that fails for good; what may pass is tried
    again inside.
    """

    @property
    def root(self) -> str:
        """The place as text, as a user may name it: an absolute path or a URI without a slash at its end."""
        ...

    @property
    def abilities(self) -> StoreAbilities:
        """What this store does; found out by a probe on first use."""
        ...

    def uri(self, key: str) -> str:
        """Where ``key`` is, as a user may name it."""
        ...

    def check_writable(self) -> None:
        """Raise :class:`StoreUnreachable`, ``OSError`` or ``ValueError`` where nothing can be written; writes nothing."""
        ...

    def put_bytes(self, key: str, data: bytes) -> None:
        """Write ``data`` under ``key`` in one atomic step, replacing what was there."""
        ...

    def put_file(self, key: str, source: Path) -> None:
        """Move a finished local file under ``key`` in one atomic step; ``source`` is gone afterwards."""
        ...

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write ``data`` under ``key`` unless something is there already; True if ``data`` is what is there now
        by a call of ours (a success whose answer was lost counts)."""
        ...

    def read_bytes(self, key: str) -> bytes:
        """All bytes of ``key``; raises ``FileNotFoundError``."""
        ...

    def read_all(self, prefix: str) -> dict[str, bytes]:
        """The bytes of every key directly inside ``prefix``, by key: many small objects in few round trips."""
        ...

    def open(self, key: str) -> BinaryIO:
        """``key`` for random reads; raises ``FileNotFoundError``."""
        ...

    def sha256(self, key: str) -> str:
        """Hexadecimal sha256 of ``key``, read in pieces; raises ``FileNotFoundError``."""
        ...

    def local_copy(self, key: str, folder: Path) -> Path:
        """A local file with the bytes of ``key`` to read, never to change: the file itself, or a copy in ``folder``."""
        ...

    def size(self, key: str) -> int:
        """Bytes of ``key``; raises ``FileNotFoundError``."""
        ...

    def exists(self, key: str) -> bool: ...

    def keys(self, prefix: str) -> list[str]:
        """Keys of the files directly inside the folder ``prefix``, sorted; empty where it does not exist."""
        ...

    def walk(self, prefix: str = "") -> Iterator[Stored]:
        """Everything below the folder ``prefix``, sorted by key; nothing where it does not exist."""
        ...

    def entries(self) -> list[str]:
        """Names at the top of the store, sorted; empty where it does not exist yet."""
        ...

    def delete(self, key: str) -> None:
        """Remove ``key`` if it is there."""
        ...


def open_store(root: str | Path) -> Store:
    """The store at ``root``: a local path, ``file://``, ``s3://``, ``gs://``, ``az://`` or ``memory://``.

    Nothing is contacted yet. Raises ``ValueError``, in one sentence, for any other scheme, for a URI with a
    password in it, and where the extra for its client is not installed.
    """
    from panoptile.pipeline.store_local import LocalStore

    text = str(root)
    scheme = scheme_of(text)
    if scheme is None or scheme == "file":
        return LocalStore(local_path_of(text))
    from panoptile.pipeline.store_object import ObjectStore

    return ObjectStore(checked_uri(text))


def probe_store(store: Store) -> StoreAbilities:
    """Find out whether the store honours put-if-absent; say ``note`` to the user if it is not empty."""
    return store.abilities


def check_key(key: str) -> str:
    """``key`` itself; raises ``ValueError`` for one that leaves the store."""
    if not key or key.startswith("/") or ".." in key.split("/") or "\0" in key or "\\" in key:
        raise ValueError(f"{key!r} is no key of a store: keys are relative paths without '..'.")
    return key
