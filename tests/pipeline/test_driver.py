"""The driver: retries, isolation, quarantine, limits and lost workers, on a pool without threads or pixels."""

from __future__ import annotations

import json
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.pipeline.scripted_pool import ScriptedPool

from panoptile.pipeline.driver import Interrupted, Listener, TooManyFailures, run_units
from panoptile.pipeline.layout import commit_key
from panoptile.pipeline.plan import Unit
from panoptile.pipeline.pool import Failure, PoolError
from panoptile.pipeline.recovery import Case, GiveUp, Policy, TryAgain, first_attempt
from panoptile.pipeline.run_result import RunResult
from panoptile.pipeline.store_local import LocalStore

UNITS = [Unit("k", 4 * i, 4) for i in range(20)]
QUICK = Policy(max_failures=20, retry_seconds=0.001)


def run(pool: ScriptedPool, folder: Path, policy: Policy = QUICK, units: list[Unit] = UNITS) -> RunResult:
    return run_units(pool, LocalStore(folder), units, policy)


def test_a_unit_that_fails_twice_is_done_at_the_third_try(tmp_path: Path) -> None:
    """Failed attempts are recorded and repeated; nothing is lost."""
    result = run(ScriptedPool(failing_units={UNITS[3]: 2}), tmp_path)
    assert sorted(r.unit for r in result.reports) == UNITS
    assert result.retries == 2
    assert not result.dead
    keys = LocalStore(tmp_path).keys(f"_state/dead/{UNITS[3].id}")
    assert keys == [f"_state/dead/{UNITS[3].id}/{n}.json" for n in (1, 2)]


def test_a_unit_that_always_fails_is_set_aside(tmp_path: Path) -> None:
    """Within the limit the run goes on without the unit; the dead letter says what, where, how often and when."""
    result = run(ScriptedPool(failing_units={UNITS[3]: 9}), tmp_path)
    assert list(result.dead) == [UNITS[3]]
    assert len(result.reports) == len(UNITS) - 1
    (dead,) = result.dead_items
    assert (dead.item, dead.stage, dead.attempts) == (None, "open", 3)
    assert "out of luck" in dead.message
    assert 0 < dead.first_time <= dead.last_time


def test_too_many_failures_stop_the_run(tmp_path: Path) -> None:
    """Above the limit the run stops, and the message names a unit and its error."""
    pool = ScriptedPool(failing_units=dict.fromkeys(UNITS[:5], 9))
    with pytest.raises(TooManyFailures, match="out of luck"):
        run(pool, tmp_path, Policy(max_failures=3, retry_seconds=0.001))


def test_two_units_in_flight_per_worker_but_not_at_the_end(tmp_path: Path) -> None:
    """Workers prefetch a second unit only while enough units are left for all."""
    pool = ScriptedPool()
    run(pool, tmp_path)
    assert pool.most_running == 4
    short = ScriptedPool()
    run(short, tmp_path, units=UNITS[:2])
    assert short.most_running == 2


def test_no_worker_for_too_long_ends_the_run(tmp_path: Path) -> None:
    """Without any ready worker the wait is bounded."""
    with pytest.raises(PoolError, match="No replica has been ready"):
        run(ScriptedPool(workers=0), tmp_path, Policy(lost_timeout=0.01))


def test_an_item_that_fails_is_isolated_without_doing_the_others_again(tmp_path: Path) -> None:
    """A bad tile is tried again on its own; the unit is committed from its first run, naming the tile."""
    bad = (UNITS[3], UNITS[3].first + 1)
    pool = ScriptedPool(failing_items={bad: 99})
    result = run(pool, tmp_path)
    attempts = [a for a in pool.attempts if a.unit == UNITS[3]]
    assert [a.only for a in attempts] == [None, (bad[1],), (bad[1],)]
    (dead,) = result.dead_items
    assert (dead.unit, dead.item, dead.stage, dead.attempts) == (*bad, "read", 3)
    commit = json.loads(LocalStore(tmp_path).read_bytes(commit_key(UNITS[3])))
    assert commit["failed_tiles"] == [bad[1]]
    assert len(result.reports) == len(UNITS)


def test_an_item_that_heals_loses_nothing(tmp_path: Path) -> None:
    """A tile that fails once is in the result: its unit is run again as a whole."""
    bad = (UNITS[3], UNITS[3].first + 1)
    pool = ScriptedPool(failing_items={bad: 1})
    result = run(pool, tmp_path)
    assert not result.dead
    assert pool.committed[UNITS[3]] == ()


def test_no_pause_before_a_try_is_longer_than_a_minute() -> None:
    """Pauses double, but --retries 2000 neither waits for days nor counts beyond what a number can hold."""
    policy = Policy(attempts=2001)
    case, attempt = Case(UNITS[0], policy), first_attempt(UNITS[0], policy)
    pauses = []
    for _ in range(policy.attempts - 1):
        decision = case.failed(attempt, Failure("read", "OSError", "no luck", "", "worker"))
        assert isinstance(decision, TryAgain)
        pauses.append(decision.after)
    assert pauses[:3] == [0.25, 0.5, 1.0]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 60
    assert isinstance(case.failed(attempt, Failure("read", "OSError", "no luck", "", "worker")), GiveUp)


def test_without_retries_a_bad_item_is_given_up_at_once(tmp_path: Path) -> None:
    """One attempt means one: the worker commits the others itself."""
    bad = (UNITS[3], UNITS[3].first)
    pool = ScriptedPool(failing_items={bad: 99})
    result = run(pool, tmp_path, Policy(attempts=1, max_failures=20))
    assert len(pool.attempts) == len(UNITS)
    assert pool.committed[UNITS[3]] == (bad[1],)
    assert [d.attempts for d in result.dead_items] == [1]


def test_a_killer_takes_no_innocent_item_with_it(tmp_path: Path) -> None:
    """Of the units that die together, and of the tiles of the guilty unit, only the killer is given up."""
    killer = (UNITS[7], UNITS[7].first + 2)
    pool = ScriptedPool(killers={killer})
    result = run(pool, tmp_path)
    assert [(d.unit, d.item, d.stage) for d in result.dead_items] == [(*killer, "worker")]
    assert pool.committed[UNITS[7]] == (killer[1],)
    assert set(pool.committed) == set(UNITS)
    assert pool.deaths == 4  # together, alone, half, quarter


def test_a_unit_of_one_item_that_kills_is_given_up_after_three_losses(tmp_path: Path) -> None:
    """A killer costs as many workers as there are attempts."""
    units = [Unit(f"k{i}", 0, 1) for i in range(20)]
    pool = ScriptedPool(killers={(units[7], 0)})
    result = run(pool, tmp_path, units=units)
    assert pool.deaths == 3
    assert [(d.unit, d.item, d.attempts) for d in result.dead_items] == [(units[7], None, 3)]
    assert set(pool.committed) == set(units) - {units[7]}


def test_without_retries_an_innocent_unit_is_still_tried_alone(tmp_path: Path) -> None:
    """Even one attempt is not spent on a loss that another unit may have caused."""
    units = [Unit(f"k{i}", 0, 1) for i in range(20)]
    pool = ScriptedPool(killers={(units[7], 0)})
    result = run(pool, tmp_path, Policy(attempts=1, max_failures=20), units=units)
    assert list(result.dead) == [units[7]]
    assert set(pool.committed) == set(units) - {units[7]}


def test_a_unit_that_hangs_is_recorded_as_that(tmp_path: Path) -> None:
    """The dead letter says timeout, not that a worker was unavailable."""
    hung = (UNITS[2], UNITS[2].first)
    retried: list[Failure] = []
    pool = ScriptedPool(hanging={hung})
    listener = Listener(on_retry=lambda unit, failure: retried.append(failure))
    result = run_units(pool, LocalStore(tmp_path), UNITS, QUICK, listener=listener)
    assert [(d.unit, d.item, d.stage) for d in result.dead_items] == [(*hung, "timeout")]
    assert "--timeout-unit" in result.dead_items[0].message
    assert sum(f.stage == "timeout" for f in retried) >= 3


def test_replicas_that_always_die_end_the_run(tmp_path: Path) -> None:
    """When nothing ever succeeds the replica is to blame, not sixteen losses for each of a million units."""
    pool = ScriptedPool(killers={(u, u.first) for u in UNITS} | {(u, u.first + 3) for u in UNITS})
    pool.killers |= {(u, i) for u in UNITS for i in u.items}
    with pytest.raises(PoolError, match="before anything was done"):
        run(pool, tmp_path)
    assert pool.deaths < 30


def test_a_stopped_run_hands_out_nothing_more(tmp_path: Path) -> None:
    """Running units end, the others are left for the next run."""
    stop, pool = threading.Event(), ScriptedPool()
    listener = Listener(on_done=lambda report: stop.set())
    with pytest.raises(Interrupted) as e:
        run_units(pool, LocalStore(tmp_path), UNITS, QUICK, stop=stop, listener=listener)
    assert len(pool.attempts) == len(pool.committed) == 4
    assert e.value.result.totals.units == 4


def test_a_drain_does_not_wait_for_a_unit_that_hangs(tmp_path: Path) -> None:
    """After the time for draining, what still runs is dropped."""
    stop = threading.Event()
    stop.set()
    pool = ScriptedPool(hanging={(UNITS[0], 0)})
    pool.kill_overdue = list  # type: ignore[method-assign]  # its deadline is far away
    turns = iter([False, *[True] * 100000])
    stop.is_set = lambda: next(turns)  # type: ignore[method-assign]
    with pytest.raises(Interrupted, match="were dropped"):
        run_units(
            pool, LocalStore(tmp_path), UNITS, Policy(drain_seconds=0.05, retry_seconds=0.001), stop=stop
        )


def test_units_are_read_as_they_are_needed(tmp_path: Path) -> None:
    """A million units are never in memory: the iterator is read a few units ahead of the workers."""
    read, done = 0, 0
    furthest = 0

    def units() -> Iterator[Unit]:
        nonlocal read
        for i in range(500):
            read += 1
            yield Unit(f"k{i // 10}", i % 10, 1)

    def on_done(_: object) -> None:
        nonlocal done, furthest
        done += 1
        furthest = max(furthest, read - done)

    result = run_units(
        ScriptedPool(), LocalStore(tmp_path), units(), QUICK, on_done=on_done, keep_reports=False
    )
    assert result.totals.units == 500
    assert result.reports == []
    assert furthest < 10


def test_the_driver_does_not_grow_with_the_inputs(tmp_path: Path) -> None:
    """Thousands of inputs need no more of the driver's memory than a hundred."""

    def peak(inputs: int) -> int:
        units = (Unit(f"input-{i:06d}", 0, 1) for i in range(inputs))
        pool = ScriptedPool(keep=False)
        tracemalloc.start()
        run_units(pool, LocalStore(tmp_path), units, QUICK, keep_reports=False)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(10)  # what is loaded on first use
    assert peak(4_000) <= peak(100) + 100_000


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_each_input_is_told_once_when_all_its_units_are_settled(tmp_path: Path, workers: int) -> None:
    """Publishing of one input may start while others go on; a quarantined unit settles, too."""
    units = [Unit(f"k{i}", j, 1) for i in range(30) for j in range(i % 4 + 1)]
    pool = ScriptedPool(
        workers=workers,
        killers={(units[5], units[5].first)},
        failing_units={units[9]: 9, units[11]: 2},
    )
    settled: list[str] = []

    def on_input_done(key: str) -> None:
        mine = [u for u in units if u.key == key]
        assert all(u in pool.committed or u in (units[5], units[9]) for u in mine)
        settled.append(key)

    run_units(pool, LocalStore(tmp_path), iter(units), QUICK, listener=Listener(on_input_done=on_input_done))
    assert sorted(settled) == sorted({u.key for u in units})
    alone = ScriptedPool(workers=workers)
    settled.clear()
    pool = alone
    run_units(
        pool, LocalStore(tmp_path), iter(units[:1]), QUICK, listener=Listener(on_input_done=settled.append)
    )
    assert settled == [units[0].key]


@given(data=st.data())
def test_whatever_fails_every_item_is_done_or_named(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """For any mixture of killers, hangs and failures: guilty items alone are lost, each unit is committed once."""
    count = data.draw(st.integers(1, 7), label="items per unit")
    units = [Unit("k", count * i, count) for i in range(data.draw(st.integers(1, 6)))]
    items = [(u, i) for u in units for i in u.items]
    some = st.sets(st.sampled_from(items), max_size=3)
    killers, hanging, broken = data.draw(some), data.draw(some), data.draw(some)
    pool = ScriptedPool(
        workers=data.draw(st.integers(1, 3)),
        killers=killers,
        hanging=hanging,
        failing_items=dict.fromkeys(broken, 999),
        failing_units=data.draw(st.dictionaries(st.sampled_from(units), st.integers(1, 2), max_size=2)),
    )
    store = LocalStore(tmp_path_factory.mktemp("store"))
    policy = Policy(
        max_failures=99,
        retry_seconds=0.0,
        losses=99,
        attempts=data.draw(st.integers(1, 4)),
    )
    pool.failing_units = type(pool.failing_units)(
        {u: min(n, policy.attempts - 1) for u, n in pool.failing_units.items()}
    )
    try:
        result = run_units(pool, store, units, policy)
    except PoolError:
        assert not pool.committed
        return
    guilty = killers | hanging | broken
    for u in units:
        lost = {d.item for d in result.dead_items if d.unit == u}
        mine = {i for unit, i in guilty if unit == u}
        if mine == set(u.items):
            assert lost == {None}
            assert not store.exists(commit_key(u))
        elif u in pool.committed:
            assert set(pool.committed[u]) == lost == mine
        else:  # committed by the driver from the first run
            assert set(json.loads(store.read_bytes(commit_key(u)))["failed_tiles"]) == lost == mine
