"""The store: nothing half-written, nothing outside, one winner per commit."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from panoptile.pipeline.store_local import LocalStore


def test_put_if_absent_has_one_winner_of_sixteen(tmp_path: Path) -> None:
    """Sixteen racing writers: one True, and the stored bytes are the winner's."""
    store = LocalStore(tmp_path)
    won: list[int] = []
    barrier = threading.Barrier(16)

    def write(i: int) -> None:
        barrier.wait()
        if store.put_if_absent("_state/commits/u.json", str(i).encode()):
            won.append(i)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(16)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(won) == 1
    assert store.read_bytes("_state/commits/u.json") == str(won[0]).encode()


def test_an_error_while_writing_leaves_the_old_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A put that fails half-way changes nothing and leaves no temporary file."""
    store = LocalStore(tmp_path)
    store.put_bytes("a/b.bin", b"old")

    def full(path: Path, data: bytes) -> None:
        path.write_bytes(data[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("panoptile.pipeline.store_local._write_synced", full)
    with pytest.raises(OSError, match="No space"):
        store.put_bytes("a/b.bin", b"new")
    assert store.read_bytes("a/b.bin") == b"old"
    assert list((tmp_path / "_state" / "tmp").iterdir()) == []


def test_put_file_moves_it_in_one_step(tmp_path: Path) -> None:
    """The source is gone and its bytes are under the key."""
    source = tmp_path / "scratch.bin"
    source.write_bytes(b"x" * 1000)
    store = LocalStore(tmp_path / "out")
    store.put_file("rasters/k/a.tif", source)
    assert not source.exists()
    assert store.read_bytes("rasters/k/a.tif") == b"x" * 1000


@pytest.mark.parametrize("key", ["../x", "/etc/x", "a/../../x", "a\0b"])
def test_keys_never_leave_the_store(tmp_path: Path, key: str) -> None:
    """A key with '..', a leading slash or NUL is refused."""
    with pytest.raises(ValueError, match="no key of a store"):
        LocalStore(tmp_path).put_bytes(key, b"")
