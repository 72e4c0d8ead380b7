"""A store in a local folder: atomic renames, and hard links for put-if-absent."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from panoptile.pipeline.store import StoreAbilities, Stored, check_key

_STAGING = "_state/tmp"
_KERNEL_VIEWS = ("/proc", "/sys")
"""File systems that root may write, by their permissions, but where nobody can make a folder."""


class LocalStore:
    """A folder with atomic puts and put-if-absent."""

    def __init__(self, root: str | Path) -> None:
        self._root = Path(root).expanduser().absolute()

    @property
    def root(self) -> str:
        return str(self._root)

    @property
    def abilities(self) -> StoreAbilities:
        return StoreAbilities(exclusive=True)

    def uri(self, key: str) -> str:
        return str(self.path(key))

    def path(self, key: str) -> Path:
        """Local path of ``key``; raises ``ValueError`` for a key that leaves the store."""
        return self._root / check_key(key)

    def check_writable(self) -> None:
        probe = self._root
        while not probe.exists():
            probe = probe.parent
        if not probe.is_dir():
            raise NotADirectoryError(f"{probe} is a file")
        if not os.access(probe, os.W_OK | os.X_OK) or os.statvfs(probe).f_flag & os.ST_RDONLY:
            raise PermissionError(f"{probe} is read-only")
        if any(
            os.path.ismount(view) and os.stat(view).st_dev == probe.stat().st_dev for view in _KERNEL_VIEWS
        ):
            raise PermissionError(f"{probe} is the kernel's and holds no files of others")

    def put_bytes(self, key: str, data: bytes) -> None:
        with self._staged(key) as staged:
            _write_synced(staged, data)
            self._publish(staged, key)

    def put_file(self, key: str, source: Path) -> None:
        target = self.path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.stat().st_dev == target.parent.stat().st_dev:
            with source.open("rb") as f:
                os.fsync(f.fileno())
            os.replace(source, target)
            return
        with self._staged(key) as staged:
            shutil.copyfile(source, staged)
            with staged.open("rb") as f:
                os.fsync(f.fileno())
            self._publish(staged, key)
        source.unlink()

    def put_if_absent(self, key: str, data: bytes) -> bool:
        target = self.path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._staged(key) as staged:
            _write_synced(staged, data)
            try:
                os.link(staged, target)
            except FileExistsError:
                return False
        return True

    def read_bytes(self, key: str) -> bytes:
        return self.path(key).read_bytes()

    def read_all(self, prefix: str) -> dict[str, bytes]:
        found = {}
        for key in self.keys(prefix):
            with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                found[key] = self.read_bytes(key)
        return found

    def open(self, key: str) -> BinaryIO:
        return self.path(key).open("rb")

    def sha256(self, key: str) -> str:
        with self.path(key).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def local_copy(self, key: str, folder: Path) -> Path:
        return self.path(key)

    def size(self, key: str) -> int:
        return self.path(key).stat().st_size

    def exists(self, key: str) -> bool:
        return self.path(key).exists()

    def keys(self, prefix: str) -> list[str]:
        folder = self.path(prefix)
        if not folder.is_dir():
            return []
        with os.scandir(folder) as entries:
            return sorted(f"{prefix.rstrip('/')}/{entry.name}" for entry in entries if entry.is_file())

    def walk(self, prefix: str = "") -> Iterator[Stored]:
        found: list[str] = []  # names as text: as paths, their parts would be kept by the interpreter
        for folder, _, names in os.walk(self.path(prefix) if prefix else self._root, onerror=_but_gone):
            within = Path(folder).relative_to(self._root).as_posix()
            found.extend(name if within == "." else f"{within}/{name}" for name in names)
        for key in sorted(found):
            try:
                status = os.stat(os.path.join(self._root, key))
            except FileNotFoundError:  # deleted since it was listed
                continue
            if stat.S_ISREG(status.st_mode):
                yield Stored(key, status.st_size, status.st_mtime)

    def entries(self) -> list[str]:
        return sorted(p.name for p in self._root.iterdir()) if self._root.is_dir() else []

    def delete(self, key: str) -> None:
        self.path(key).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _staged(self, key: str) -> Iterator[Path]:
        """A private name on the store's own file system, gone at the end whatever happens."""
        check_key(key)
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


def _but_gone(error: OSError) -> None:
    """Listing goes on where a folder is not there (any more), and nowhere else."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error
