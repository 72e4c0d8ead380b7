"""Object stores: what a local folder promises holds on S3, Google, Azure and in memory, through real servers."""

from __future__ import annotations

import hashlib
import os
import threading
import tracemalloc
from pathlib import Path

import pytest

from panoptile.pipeline import store_object
from panoptile.pipeline.store import Store, StoreUnreachable, open_store, probe_store
from panoptile.pipeline.store_retry import Backoff


@pytest.fixture
def store(any_root: str) -> Store:
    return open_store(any_root)


def test_what_is_put_is_read_listed_and_deleted(store: Store, tmp_path: Path) -> None:
    """Bytes, sizes, direct children, everything below, names at the top: as in a folder."""
    assert store.entries() == []
    assert store.keys("_state/commits") == []
    assert list(store.walk()) == []
    contents = {
        "job.json": b"{}",
        "_state/a.json": b"1",
        "_state/commits/u 1.json": b"",
        "_state/é/ü.json": b"x" * 9,
    }
    for key, data in contents.items():
        store.put_bytes(key, data)
    assert {s.key: s.size for s in store.walk()} == {k: len(v) for k, v in contents.items()}
    assert [s.key for s in store.walk("_state/commits")] == ["_state/commits/u 1.json"]
    assert store.entries() == ["_state", "job.json"]
    assert store.keys("_state") == ["_state/a.json"]
    assert {k: store.read_bytes(k) for k in contents} == contents
    assert store.read_all("_state") == {"_state/a.json": b"1"}
    assert store.size("_state/é/ü.json") == 9
    store.put_bytes("job.json", b"another")
    assert store.read_bytes("job.json") == b"another"
    store.delete("job.json")
    store.delete("job.json")
    assert not store.exists("job.json")
    with pytest.raises(FileNotFoundError):
        store.read_bytes("job.json")
    with pytest.raises(FileNotFoundError):
        store.size("_state")


def test_put_if_absent_has_one_winner_of_sixteen(store: Store) -> None:
    """Sixteen racing writers: one True, and the stored bytes are the winner's; the probe leaves nothing behind."""
    won: list[int] = []
    barrier = threading.Barrier(16)

    def write(i: int) -> None:
        barrier.wait()
        if store.put_if_absent("_state/commits/u.json", str(i).encode()):
            won.append(i)

    assert probe_store(store).exclusive
    threads = [threading.Thread(target=write, args=(i,)) for i in range(16)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(won) == 1
    assert store.read_bytes("_state/commits/u.json") == str(won[0]).encode()
    assert [s.key for s in store.walk()] == ["_state/commits/u.json"]


def test_a_large_file_goes_up_in_parts_and_comes_back(store: Store, tmp_path: Path) -> None:
    """72 MB: the local file is gone, the bytes are there, ranges and hashes are right, and memory stays bounded."""
    source, size = tmp_path / "a.tif", 72 << 20
    block = os.urandom(1 << 20)
    with source.open("wb") as f:
        f.writelines(block for _ in range(72))
    digest = hashlib.sha256(block * 72).hexdigest()
    store.put_bytes("first", b"the client's own start-up is not counted")
    tracemalloc.start()
    store.put_file("rasters/k/a.tif", source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(
        f"{store.root.split(':')[0]}: {size >> 20} MB went up with a peak of {peak / 2**20:.0f} MB in memory"
    )
    assert not source.exists()
    assert store.size("rasters/k/a.tif") == size
    assert store.sha256("rasters/k/a.tif") == digest
    if not store.root.startswith("memory"):
        assert peak < 6 * store_object.PART_BYTES
    copy = store.local_copy("rasters/k/a.tif", tmp_path)
    assert copy.stat().st_size == size
    with store.open("rasters/k/a.tif") as file:
        file.seek(7 << 20)
        assert file.read(1 << 20) == block


def test_an_object_beyond_the_spool_is_read_by_ranges(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random reads of a large object equal those of its bytes."""
    data = os.urandom(3 << 20)
    store.put_bytes("a.bin", data)
    monkeypatch.setattr(store_object, "SPOOL_BYTES", 1 << 20)
    with store.open("a.bin") as file:
        assert file.read(10) == data[:10]
        file.seek(-5, os.SEEK_END)
        assert file.read() == data[-5:]
        file.seek(1_500_000)
        assert file.read(1_400_000) == data[1_500_000:2_900_000]


def test_a_missing_bucket_is_told_at_once(any_root: str) -> None:
    """One sentence with the bucket's name, no long retries."""
    if any_root.startswith("memory"):
        pytest.skip("memory has no buckets")
    scheme = any_root.split("://")[0]
    missing = open_store(f"{scheme}://panoptile-no-such-bucket/out")
    for act in (
        missing.check_writable,
        lambda: missing.put_bytes("a", b"1"),
        lambda: missing.put_if_absent("a", b"1"),
    ):
        with pytest.raises(StoreUnreachable, match=r"no such bucket|no bucket panoptile-no-such-bucket"):
            act()


def test_a_store_that_nobody_answers_for_ends_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries are bounded: a closed port gives StoreUnreachable that names the place."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x" * 10)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret")
    dead = store_object.ObjectStore("s3://bucket/out", Backoff(attempts=2, first=0.01))
    with pytest.raises(StoreUnreachable, match=r"s3://bucket/out/job.json.*2 tries.*same command") as e:
        dead.put_bytes("job.json", b"{}")
    assert "canary-secret" not in str(e.value)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3://key:canary-secret@bucket/out", "user name or password"),
        ("s3://bucket/out?X-Amz-Signature=canary-secret", "query parameters"),
        ("https://user:canary-secret@host/out", "cannot be used"),
        ("s3://", "no bucket"),
        ("s3:///out", "no bucket"),
        ("s3://bucket/../other", "means nothing there"),
        ("ftp://host/out", "cannot be used"),
    ],
)
def test_places_that_cannot_be_are_refused_without_their_secret(uri: str, words: str) -> None:
    """One sentence that says why; a password in a URI is never repeated."""
    with pytest.raises(ValueError, match=words) as e:
        open_store(uri)
    assert "canary-secret" not in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("key", ["../x", "/etc/x", "a/../../x", "a\0b", "", "a\\b"])
def test_keys_never_leave_the_store(key: str) -> None:
    """A key with '..', a leading slash or NUL is refused before anything is sent."""
    with pytest.raises(ValueError, match="no key of a store"):
        open_store("memory://keys/out").put_bytes(key, b"")
