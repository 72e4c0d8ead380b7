"""The store behind a bad network: nothing lost, nothing doubled, nothing torn, and no false conflict."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator

import pytest
from tests.faults.fault_proxy import FaultProxy, Faults
from tests.object_stores import Server, reach

from panoptile.pipeline import store_election
from panoptile.pipeline.store import StoreUnreachable, open_store, probe_store
from panoptile.pipeline.store_object import ObjectStore
from panoptile.pipeline.store_retry import Backoff

IMPATIENT = json.dumps({"config_kwargs": {"connect_timeout": 2, "read_timeout": 1}})
"""Client time-outs below the proxy's silence."""

QUICK = Backoff(attempts=20, first=0.01, most=0.2)

Proxied = Callable[..., tuple[FaultProxy, str]]
"""Starts a proxy with faults; returns it and a fresh place behind it."""


@pytest.fixture
def proxied(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxied]:
    """Put a proxy before S3: returns it and a fresh place behind it."""
    if s3_server.port is None:
        pytest.skip("PANOPTILE_TEST_S3 names a real store, before which no proxy can stand")
    port, opened = s3_server.port, []

    def start(faults: Faults, **options: object) -> tuple[FaultProxy, str]:
        proxy = FaultProxy(port, faults, **options).__enter__()  # type: ignore[arg-type]
        opened.append(proxy)
        monkeypatch.setenv("FSSPEC_S3", IMPATIENT)
        monkeypatch.setitem(_fsspec_conf(), "s3", json.loads(IMPATIENT))
        return proxy, reach(s3_server, monkeypatch, proxy.port)

    yield start
    for proxy in opened:
        proxy.__exit__(None, None, None)


def _fsspec_conf() -> dict[str, object]:
    import fsspec

    conf: dict[str, object] = fsspec.config.conf
    return conf


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(Faults(unavailable=0.4), marks=pytest.mark.slow),
        pytest.param(Faults(reset=0.4), marks=pytest.mark.slow),
        pytest.param(Faults(silence=0.1), marks=pytest.mark.slow),
        Faults(torn=0.4),
        Faults(short=0.4),
        Faults(lost=0.4),
        Faults(delay=0.4),
    ],
    ids=lambda f: next(n for n in f.__slots__ if getattr(f, n)),
)
def test_each_fault_alone_is_survived(proxied: Proxied, faults: Faults) -> None:
    """Puts, commits and reads all succeed and give the right bytes; the fault did happen."""
    proxy, root = proxied(faults, hold=1.3, pause=0.02)
    store = ObjectStore(root, QUICK)
    assert probe_store(store).exclusive
    for i in range(6):
        data = f"{i}".encode() * 5000
        store.put_bytes(f"_state/data/{i}.frag", data)
        assert store.put_if_absent(f"_state/commits/{i}.json", data)
        assert not store.put_if_absent(f"_state/commits/{i}.json", b"another's")
        assert store.read_bytes(f"_state/data/{i}.frag") == data
    assert len(store.keys("_state/commits")) == 6
    assert len(store.read_all("_state/data")) == 6
    (counted,) = proxy.counts.items()
    print(f"{counted[1]} times {counted[0]} in {proxy.requests} requests")
    assert counted[1] >= 2


def test_lost_answers_of_commits_are_no_conflicts(proxied: Proxied) -> None:
    """Commits until 50 answers were lost: each says that it won, and holds its own bytes."""
    proxy, root = proxied(Faults(lost=0.6), seed=1)
    store = ObjectStore(root, Backoff(attempts=30, first=0.01, most=0.05))
    proxy.enabled = False
    assert probe_store(store).exclusive
    proxy.enabled = True
    won: list[bool] = []
    while proxy.counts["lost"] < 50 and len(won) < 200:
        won.append(store.put_if_absent(f"_state/commits/{len(won)}.json", f"token {len(won)}".encode()))
    proxy.enabled = False
    held = [store.read_bytes(f"_state/commits/{i}.json") for i in range(len(won))]
    print(f"lost answers {proxy.counts['lost']} of {len(won)} commits, false conflicts {won.count(False)}")
    assert held == [f"token {i}".encode() for i in range(len(won))]
    assert proxy.counts["lost"] >= 50
    assert all(won)


def test_a_store_that_only_fails_ends_in_a_sentence(proxied: Proxied) -> None:
    """Tries are bounded, and the error names the object, the reason and what to do."""
    proxy, root = proxied(Faults(unavailable=1.0))
    store = ObjectStore(root, Backoff(attempts=2, first=0.01))
    with pytest.raises(StoreUnreachable, match=r"Cannot write s3://.*job\.json.*2 tries.*same command") as e:
        store.put_bytes("job.json", b"{}")
    assert "\n" not in str(e.value)
    assert 2 <= proxy.requests <= 30


@pytest.fixture
def overwriting(proxied: Proxied, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store that ignores put-if-absent: a proxy drops the header, as some look-alikes do."""
    monkeypatch.setattr(store_election, "SETTLE", 0.7)
    _, root = proxied(Faults(), drop_headers=("if-none-match",))
    return root


def test_a_store_that_ignores_put_if_absent_is_found_out(overwriting: str) -> None:
    """The probe says so in one sentence and leaves nothing behind."""
    store = open_store(overwriting)
    found = probe_store(store)
    assert not found.exclusive
    assert "ignores put-if-absent" in found.note
    assert "\n" not in found.note
    assert list(store.walk()) == []


def test_on_such_a_store_all_writers_elect_one(overwriting: str) -> None:
    """Eight racing writers, each with its own client: one winner, its bytes stay, no attempt is left."""
    won: list[int] = []
    barrier = threading.Barrier(8)

    def write(i: int) -> None:
        store = open_store(overwriting)
        assert not store.abilities.exclusive
        barrier.wait()
        if store.put_if_absent("_state/commits/u.json", str(i).encode()):
            won.append(i)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    store = open_store(overwriting)
    assert len(won) == 1
    assert store.read_bytes("_state/commits/u.json") == str(won[0]).encode()
    assert not store.put_if_absent("_state/commits/u.json", b"late")
    assert store.read_bytes("_state/commits/u.json") == str(won[0]).encode()
    assert [s.key for s in store.walk()] == ["_state/commits/u.json"]


def test_a_writer_that_died_in_an_election_does_no_harm(overwriting: str) -> None:
    """Its attempt may win, and then its bytes are there for everybody; a withdrawn key forgets old attempts."""
    store = open_store(overwriting)
    store.put_bytes(f"{store_election.ATTEMPTS}/_state/commits/u.json/0", b"of the dead")
    assert not store.put_if_absent("_state/commits/u.json", b"of the living")
    assert store.read_bytes("_state/commits/u.json") == b"of the dead"
    store.put_bytes(f"{store_election.ATTEMPTS}/_state/commits/u.json/0", b"left behind")
    store.delete("_state/commits/u.json")
    assert store.put_if_absent("_state/commits/u.json", b"of the living")
