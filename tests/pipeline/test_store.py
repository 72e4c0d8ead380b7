"""The store: nothing half-written, nothing outside, one winner per commit."""

from __future__ import annotations

import os
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


def test_listing_is_of_files_alone_in_the_order_of_their_keys(tmp_path: Path) -> None:
    """Any depth, links to files too, no folders, nothing that is gone; a folder that is none lists nothing."""
    store = LocalStore(tmp_path / "out")
    for key in ("b/z.bin", "b/c/a.bin", "b.bin", "b/a.bin", "a/é f.bin"):
        store.put_bytes(key, key.encode())
    root = tmp_path / "out"
    (root / "b" / "empty").mkdir()
    (root / "b" / "link.bin").symlink_to(root / "b.bin")
    (root / "b" / "broken.bin").symlink_to(root / "nothing")
    (root / "b" / "loop").symlink_to(root, target_is_directory=True)
    assert [s.key for s in store.walk("b")] == ["b/a.bin", "b/c/a.bin", "b/link.bin", "b/z.bin"]
    everything = [s for s in store.walk() if not s.key.startswith("_state")]
    assert [s.key for s in everything] == [
        "a/é f.bin", "b.bin", "b/a.bin", "b/c/a.bin", "b/link.bin", "b/z.bin",
    ]  # fmt: skip
    assert everything[1].size == 5
    assert everything[1].modified == (root / "b.bin").stat().st_mtime
    assert store.keys("b") == ["b/a.bin", "b/link.bin", "b/z.bin"]
    for nothing in ("nothing", "b.bin"):
        assert list(store.walk(nothing)) == []
        assert store.keys(nothing) == []


def test_a_folder_that_cannot_be_listed_is_no_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the disk is raised: what is not listed would count as lost, and be made again."""
    store = LocalStore(tmp_path)
    store.put_bytes("a/b/c.bin", b"")

    def broken(path: str) -> None:
        raise OSError(5, "Input/output error", path)

    monkeypatch.setattr(os, "scandir", broken)
    with pytest.raises(OSError, match="Input/output"):
        list(store.walk("a"))
