"""Object stores: what a local folder promises holds on S3, Google, Azure and in memory, through real servers."""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


class _Replacing:
    """Puts the next of ``contents`` under ``key`` after each of the client's calls of ``name`` that asks for that key."""

    def __init__(self, store: Store, key: str, name: str, contents: Iterator[bytes]) -> None:
        assert isinstance(store, store_object.ObjectStore)
        self._store, self._key, self._contents = store, key, contents
        self._real, self._within = getattr(store._fs, name), False
        self.calls = 0

    def __call__(self, path: str, **options: Any) -> Any:
        found = self._real(path, **options)
        if path.endswith(self._key) and not self._within:
            self.calls += 1
            self._within = True
            if (data := next(self._contents, None)) is not None:
                self._store.put_bytes(self._key, data)
            self._within = False
        return found


LENGTHS = {"longer": 900, "shorter": 7, "as long": 30}


@pytest.mark.parametrize("length", LENGTHS)
def test_a_small_object_that_is_replaced_is_read_whole(
    length: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A put between the question for the size and the read: the old bytes or the new ones, not the head of the new."""
    monkeypatch.setattr(store, "_backoff", Backoff(first=0.01))
    old, new = b"o" * 30, b"n" * LENGTHS[length]
    for read in (store.read_bytes, store.sha256):
        store.put_bytes("a.json", old)
        with monkeypatch.context() as patched:
            patched.setattr(store._fs, "info", _Replacing(store, "a.json", "info", iter([new])))  # type: ignore[attr-defined]
            found = read("a.json")
        assert found in (old, new, *(hashlib.sha256(data).hexdigest() for data in (old, new)))


@pytest.mark.parametrize("length", LENGTHS)
def test_a_large_object_that_is_replaced_is_of_one_version(
    length: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A put between two pieces: hash and copy are those of the new object, whatever its length."""
    monkeypatch.setattr(store_object, "PIECE_BYTES", 10)
    monkeypatch.setattr(store, "_backoff", Backoff(first=0.01))
    old, new = bytes(range(30)), b"n" * LENGTHS[length]

    def replaced() -> _Replacing:
        store.put_bytes("a.bin", old)
        return _Replacing(store, "a.bin", "cat_file", iter([new]))

    with monkeypatch.context() as patched:
        patched.setattr(store._fs, "cat_file", replaced())  # type: ignore[attr-defined]
        assert store.sha256("a.bin") == hashlib.sha256(new).hexdigest()
    with monkeypatch.context() as patched:
        patched.setattr(store._fs, "cat_file", replaced())  # type: ignore[attr-defined]
        assert store.local_copy("a.bin", tmp_path).read_bytes() == new


def test_a_part_that_is_refused_because_of_a_put_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Azure's client reads a large object in parts and ends with 412 where another came: the new one is read."""
    store = store_object.ObjectStore("memory://refused/out", Backoff(first=0.01))
    store.put_bytes("a.bin", b"new")
    refusal = OSError("The condition is not met.")
    refusal.status_code = 412  # type: ignore[attr-defined]
    answers = iter([refusal])
    real = store._fs.cat_file

    def cat_file(path: str, **options: Any) -> bytes:
        for error in answers:
            raise error
        return bytes(real(path, **options))

    monkeypatch.setattr(store._fs, "cat_file", cat_file)
    assert store.read_bytes("a.bin") == b"new"


def test_an_object_that_is_replaced_all_the_time_ends_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading from the start is bounded."""
    store = store_object.ObjectStore("memory://restless/out")
    monkeypatch.setattr(store_object, "PIECE_BYTES", 10)
    store.put_bytes("a.bin", bytes(30))
    endless = (bytes([i % 256]) * 30 for i in itertools.count())
    monkeypatch.setattr(store._fs, "cat_file", _Replacing(store, "a.bin", "cat_file", endless))
    with pytest.raises(OSError, match=r"a\.bin was replaced each of the 5 times"):
        store.sha256("a.bin")


def test_a_small_read_is_two_requests(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size and the bytes, as one call each; a missing object is told by the first."""
    store.put_bytes("a.json", b"1")
    calls = [_Replacing(store, "json", name, iter(())) for name in ("info", "cat_file")]
    for name, call in zip(("info", "cat_file"), calls, strict=True):
        monkeypatch.setattr(store._fs, name, call)  # type: ignore[attr-defined]
    for read in (store.read_bytes, store.sha256):
        read("a.json")
    assert [call.calls for call in calls] == [2, 2]


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
