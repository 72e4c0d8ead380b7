"""Where results live: every byte that panoptile writes for a user goes through here.

Nothing is ever seen half-written. Files appear by one atomic rename; commits are put-if-absent. So far a
store is a local folder; the keys are relative POSIX paths, as on an object store.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_STAGING = "_state/tmp"


class Store:
    """A folder with atomic puts and put-if-absent."""

    def __init__(self, root: str | Path) -> None:
        text = str(root)
        if re.match(r"^[a-z][a-z0-9+.-]*://", text):
            raise ValueError(
                f"Cannot write to {text}: only local folders can be written so far. Give a local path."
            )
        self.root = Path(text).expanduser().absolute()

    def path(self, key: str) -> Path:
        """Local path of ``key``; raises ``ValueError`` for a key that leaves the store."""
        if key.startswith("/") or ".." in key.split("/") or "\0" in key:
            raise ValueError(f"{key!r} is no key of a store: keys are relative paths without '..'.")
        return self.root / key

    def put_bytes(self, key: str, data: bytes) -> None:
        """Write ``data`` under ``key`` in one atomic step, replacing what was there."""
        with self._staged() as staged:
            _write_synced(staged, data)
            self._publish(staged, key)

    def put_file(self, key: str, source: Path) -> None:
        """Move a finished local file under ``key`` in one atomic step; ``source`` is gone afterwards."""
        target = self.path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.stat().st_dev == target.parent.stat().st_dev:
            with source.open("rb") as f:
                os.fsync(f.fileno())
            os.replace(source, target)
            return
        with self._staged() as staged:
            shutil.copyfile(source, staged)
            with staged.open("rb") as f:
                os.fsync(f.fileno())
            self._publish(staged, key)
        source.unlink()

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write ``data`` under ``key`` unless something is there already; True if this call wrote it."""
        target = self.path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._staged() as staged:
            _write_synced(staged, data)
            try:
                os.link(staged, target)
            except FileExistsError:
                return False
        return True

    def read_bytes(self, key: str) -> bytes:
        """All bytes of ``key``; raises ``FileNotFoundError``."""
        return self.path(key).read_bytes()

    def open(self, key: str) -> BinaryIO:
        """``key`` for random reads; raises ``FileNotFoundError``."""
        return self.path(key).open("rb")

    def size(self, key: str) -> int:
        return self.path(key).stat().st_size

    def exists(self, key: str) -> bool:
        return self.path(key).exists()

    def keys(self, prefix: str) -> list[str]:
        """Keys of the files directly inside the folder ``prefix``, sorted; empty where it does not exist."""
        folder = self.path(prefix)
        if not folder.is_dir():
            return []
        return sorted(f"{prefix.rstrip('/')}/{p.name}" for p in folder.iterdir() if p.is_file())

    def entries(self) -> list[str]:
        """Names at the top of the store, sorted; empty where it does not exist yet."""
        return sorted(p.name for p in self.root.iterdir()) if self.root.is_dir() else []

    def delete(self, key: str) -> None:
        """Remove ``key`` if it is there."""
        self.path(key).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _staged(self) -> Iterator[Path]:
        """A private name on the store's own file system, gone at the end whatever happens."""
        folder = self.path(_STAGING)
        folder.mkdir(parents=True, exist_ok=True)
        staged = folder / uuid.uuid4().hex
        try:
            yield staged
        finally:
            staged.unlink(missing_ok=True)

    def _publish(self, staged: Path, key: str) -> None:
        target = self.path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(staged, target)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
