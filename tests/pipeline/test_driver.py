"""The driver: retries, quarantine, limits and lost workers, on a pool without threads or pixels."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import pytest

from panoptile.pipeline.attempt import UnitReport
from panoptile.pipeline.driver import Policy, TooManyFailures, run_units
from panoptile.pipeline.plan import Unit
from panoptile.pipeline.pool import Failure, Outcome, PoolError
from panoptile.pipeline.store_local import LocalStore


def report(unit: Unit) -> UnitReport:
    return UnitReport(unit, "w", unit.count, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0)


class ScriptedPool:
    """Two workers; units in ``failing`` fail that many times first."""

    def __init__(
        self,
        failing: dict[Unit, int],
        *,
        ready: int = 2,
        killers: tuple[Unit, ...] = (),
        late: tuple[Unit, ...] = (),
    ) -> None:
        self.failing, self.ready, self.killers, self.late = dict(failing), ready, killers, late
        self.running: deque[Unit] = deque()
        self.most_running = 0

    def start(self) -> None: ...

    def free(self) -> int:
        return 2 * self.ready - len(self.running)

    def size(self) -> int:
        return self.ready

    def submit(self, unit: Unit) -> None:
        self.running.append(unit)
        self.most_running = max(self.most_running, len(self.running))

    def wait(self, timeout: float) -> list[Outcome]:
        if not self.running:
            return []
        unit = self.running.pop()  # last in, first out: completion order is not submission order
        if unit in self.killers:  # the worker dies, and all that it was given with it
            lost, self.running = [unit, *self.running], deque()
            return [
                Outcome(u, None, Failure("worker", "ActorDied", "died", "", "w", lost=True)) for u in lost
            ]
        if self.failing.get(unit, 0) > 0:
            self.failing[unit] -= 1
            return [Outcome(unit, None, Failure("infer", "RuntimeError", "out of luck", "", "w"))]
        return [Outcome(unit, report(unit), None)]

    def kill_overdue(self, seconds: float) -> list[Unit]:
        return [unit for unit in self.late if unit in self.running]

    def close(self) -> None: ...


UNITS = [Unit("k", 4 * i, 4) for i in range(20)]


def test_a_unit_that_fails_twice_is_done_at_the_third_try(tmp_path: Path) -> None:
    """Failed attempts are recorded and repeated; nothing is lost."""
    store = LocalStore(tmp_path)
    result = run_units(ScriptedPool({UNITS[3]: 2}), store, UNITS, Policy(), lambda r: None)
    assert sorted(r.unit for r in result.reports) == UNITS
    assert result.retries == 2
    assert not result.dead
    assert store.keys(f"_state/dead/{UNITS[3].id}") == [f"_state/dead/{UNITS[3].id}/{n}.json" for n in (1, 2)]


def test_a_unit_that_always_fails_is_set_aside(tmp_path: Path) -> None:
    """Within the limit the run goes on without the unit and names it."""
    result = run_units(
        ScriptedPool({UNITS[3]: 9}), LocalStore(tmp_path), UNITS, Policy(max_failures=2), lambda r: None
    )
    assert list(result.dead) == [UNITS[3]]
    assert len(result.reports) == len(UNITS) - 1


def test_too_many_failures_stop_the_run(tmp_path: Path) -> None:
    """Above the limit the run stops, and the message names a unit and its error."""
    failing = dict.fromkeys(UNITS[:5], 9)
    with pytest.raises(TooManyFailures, match="out of luck"):
        run_units(ScriptedPool(failing), LocalStore(tmp_path), UNITS, Policy(max_failures=3), lambda r: None)


def test_two_units_in_flight_per_worker_but_not_at_the_end(tmp_path: Path) -> None:
    """Workers prefetch a second unit only while enough units are left for all."""
    pool = ScriptedPool({})
    run_units(pool, LocalStore(tmp_path), UNITS, Policy(), lambda r: None)
    assert pool.most_running == 4
    short = ScriptedPool({})
    run_units(short, LocalStore(tmp_path), UNITS[:2], Policy(), lambda r: None)
    assert short.most_running == 2


def test_no_worker_for_too_long_ends_the_run(tmp_path: Path) -> None:
    """Without any ready worker the wait is bounded."""
    with pytest.raises(PoolError, match="No replica has been ready"):
        run_units(
            ScriptedPool({}, ready=0), LocalStore(tmp_path), UNITS, Policy(lost_timeout=0.01), lambda r: None
        )


def test_a_killer_takes_no_innocent_unit_with_it(tmp_path: Path) -> None:
    """Units that die together are tried again alone: only the one that kills its worker is set aside."""
    killer = UNITS[7]
    result = run_units(
        ScriptedPool({}, killers=(killer,)),
        LocalStore(tmp_path),
        UNITS,
        Policy(max_failures=20),
        lambda r: None,
    )
    assert list(result.dead) == [killer]
    assert sorted(r.unit for r in result.reports) == [u for u in UNITS if u != killer]


def test_a_unit_that_runs_too_long_is_recorded_as_that(tmp_path: Path) -> None:
    """The dead letter says how long the unit was allowed, not that an actor was unavailable."""
    late = UNITS[2]
    retried: list[Failure] = []
    pool = ScriptedPool({}, killers=(late,), late=(late,))
    result = run_units(
        pool,
        LocalStore(tmp_path),
        UNITS,
        Policy(max_failures=20),
        lambda r: None,
        lambda u, f: retried.append(f),
    )
    assert result.dead[late].stage == "timeout"
    assert "1800 s" in result.dead[late].message
    assert sum(f.stage == "timeout" for f in retried) == 2
