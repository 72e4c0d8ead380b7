"""The driver: hands out units, watches workers, obeys the recovery of units in trouble.

Execution is at least once; a unit's single commit makes its effect once. The driver knows units, not pixels, and
keeps nothing that grows with the run but what failed: units come from an iterator, reports go into sums.
"""

from __future__ import annotations

import heapq
import itertools
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Protocol

from panoptile.pipeline.attempt import Attempt, UnitReport
from panoptile.pipeline.commit import commit_unit
from panoptile.pipeline.fault_points import reach
from panoptile.pipeline.layout import dead_key
from panoptile.pipeline.plan import Unit
from panoptile.pipeline.pool import Failure, Outcome, Pool, PoolError
from panoptile.pipeline.recovery import Case, CommitParked, Decision, Policy, TryAgain, first_attempt
from panoptile.pipeline.redaction import redacted_json
from panoptile.pipeline.run_result import RunResult
from panoptile.pipeline.store import Store

WAIT_SECONDS = 0.5
"""How long the driver waits for outcomes before it looks at deadlines and signals again."""
FRUITLESS_LOSSES = 20
"""Workers lost before anything succeeded, above which the replica itself is to blame."""


class Stop(Protocol):
    """Says that the run is to end; ``threading.Event`` does."""

    def is_set(self) -> bool: ...


class TooManyFailures(RuntimeError):
    """More units failed than the run tolerates."""

    def __init__(self, message: str, result: RunResult) -> None:
        super().__init__(message)
        self.result = result


class Interrupted(RuntimeError):
    """The run was asked to stop; what is done is kept, the rest can be resumed."""

    def __init__(self, message: str, result: RunResult) -> None:
        super().__init__(message)
        self.result = result


@dataclass(frozen=True, slots=True)
class Listener:
    """Whom the driver tells what happens; all run on the driver's thread."""

    on_done: Callable[[UnitReport], None] = lambda report: None
    """A unit is committed."""
    on_retry: Callable[[Unit, Failure], None] = lambda unit, failure: None
    """An attempt failed, and the unit goes on."""
    on_input_done: Callable[[str], None] = lambda key: None
    """All units of an input are settled: committed or quarantined."""
    on_turn: Callable[[], None] = lambda: None
    """Called at every turn of the loop, about twice a second at least."""


def run_units(
    pool: Pool,
    store: Store,
    units: Iterable[Unit],
    policy: Policy,
    on_done: Callable[[UnitReport], None] | None = None,
    on_retry: Callable[[Unit, Failure], None] | None = None,
    *,
    stop: Stop | None = None,
    listener: Listener | None = None,
    keep_reports: bool = True,
) -> RunResult:
    """Run every unit on the pool.

    ``units`` is read as workers become free; those of one input must follow each other. Raises
    :class:`TooManyFailures`, :class:`Interrupted`, :class:`PoolError`, or ``OSError`` of the store.
    """
    listener = listener or Listener()
    if on_done is not None:
        listener = replace(listener, on_done=on_done)
    if on_retry is not None:
        listener = replace(listener, on_retry=on_retry)
    return _Run(pool, store, units, policy, listener, stop, keep_reports).execute()


class _Queue:
    """Attempts that wait: fresh units, retries that are due later, and those that must run alone."""

    def __init__(self, units: Iterable[Unit], policy: Policy) -> None:
        self._units, self._policy = iter(units), policy
        self._fresh: deque[Unit] = deque()
        self._later: list[tuple[float, int, Attempt]] = []
        self._alone: deque[Attempt] = deque()
        self._count = itertools.count()
        self._open: Counter[str] = Counter()
        """Units of each input that were read and are not settled."""
        self._ended: set[str] = set()
        """Open inputs of which all units were read."""
        self._reading: str | None = None
        self._settled: list[str] = []

    def look_ahead(self, count: int) -> int:
        """How many attempts are ready, counted up to ``count``."""
        while len(self._fresh) < count:
            unit = next(self._units, None)
            if self._reading is not None and (unit is None or unit.key != self._reading):
                self._ended.add(self._reading)
                self._check_settled(self._reading)
            if unit is None:
                self._reading = None
                break
            self._reading = unit.key
            self._fresh.append(unit)
            self._open[unit.key] += 1
        return len(self._fresh) + self._due()

    def add(self, attempt: Attempt, after: float) -> None:
        if attempt.alone:
            self._alone.append(attempt)
        else:
            heapq.heappush(self._later, (time.monotonic() + after, next(self._count), attempt))

    def take(self) -> Attempt:
        """The next attempt that may share a worker: retries that are due before fresh units."""
        if self._due():
            return heapq.heappop(self._later)[2]
        return first_attempt(self._fresh.popleft(), self._policy)

    def take_alone(self) -> Attempt:
        return self._alone.popleft()

    @property
    def alone(self) -> int:
        return len(self._alone)

    def waiting(self) -> int:
        """Attempts that wait, those that are not yet due included."""
        return self.look_ahead(1) + len(self._later) - self._due() + len(self._alone)

    def settle(self, key: str) -> None:
        """One unit of the input is settled."""
        self._open[key] -= 1
        self._check_settled(key)

    def settled_inputs(self) -> list[str]:
        """Inputs that were settled since this was asked last: all units are read, and none is open."""
        keys, self._settled = self._settled, []
        return keys

    def _check_settled(self, key: str) -> None:
        if self._open[key] == 0 and key in self._ended:
            del self._open[key]
            self._ended.discard(key)
            self._settled.append(key)

    def _due(self) -> int:
        now = time.monotonic()
        return sum(due <= now for due, _, _ in self._later)


class _Run:
    """One run over units."""

    def __init__(
        self,
        pool: Pool,
        store: Store,
        units: Iterable[Unit],
        policy: Policy,
        listener: Listener,
        stop: Stop | None,
        keep_reports: bool,
    ) -> None:
        self._pool, self._store, self._policy, self._listener = pool, store, policy, listener
        self._queue = _Queue(units, policy)
        self._stop, self._keep_reports = stop, keep_reports
        self._cases: dict[Unit, Case] = {}
        self._records: Counter[Unit] = Counter()
        self._overdue: set[Unit] = set()
        self._running = 0
        self._alive_at = time.monotonic()
        self._successes = 0
        self._result = RunResult()

    def execute(self) -> RunResult:
        while self._running or self._queue.waiting():
            if self._stop is not None and self._stop.is_set():
                self._drain()
            self._hand_out()
            self._turn()
        self._tell_settled()
        return self._result

    def _turn(self) -> None:
        self._overdue.update(attempt.unit for attempt in self._pool.kill_overdue())
        outcomes = self._pool.wait(WAIT_SECONDS)
        self._check_alive()
        for outcome in outcomes:
            self._running -= 1
            self._take(outcome)
        self._tell_settled()
        self._listener.on_turn()

    def _tell_settled(self) -> None:
        for key in self._queue.settled_inputs():
            self._listener.on_input_done(key)

    def _drain(self) -> None:
        """Hand out nothing more; let what runs end within the time for that."""
        until = time.monotonic() + self._policy.drain_seconds
        while self._running and time.monotonic() < until:
            self._turn()
        raise Interrupted(
            f"Interrupted: {self._result.totals.units} units are done and kept; {self._running} were dropped.",
            self._result,
        )

    # --- hand out ---

    def _hand_out(self) -> None:
        while self._queue.alone and self._pool.room(alone=True):
            self._submit(self._queue.take_alone())
        spare = self._queue.alone > 0  # let a worker run empty for those
        size = self._pool.size()
        while self._pool.room(spare=spare):
            ready = self._queue.look_ahead(size)
            if ready == 0 or (self._running >= size and ready < size):
                break  # near the end a second unit in flight would only wait behind the first
            self._submit(self._queue.take(), spare=spare)

    def _submit(self, attempt: Attempt, *, spare: bool = False) -> None:
        reach("driver.before_submit")
        self._pool.submit(attempt, spare=spare)
        self._running += 1
        reach("driver.after_submit")

    def _check_alive(self) -> None:
        if self._pool.size() > 0:
            self._alive_at = time.monotonic()
        elif time.monotonic() - self._alive_at > self._policy.lost_timeout:
            raise PoolError(
                f"No replica has been ready for {self._policy.lost_timeout:.0f} s; at least "
                f"{self._queue.waiting() + self._running} units are not done."
            )

    # --- take back ---

    def _take(self, outcome: Outcome) -> None:
        attempt, report, failure = outcome.attempt, outcome.report, outcome.failure
        unit = attempt.unit
        if report is not None:
            self._successes += 1
            if report.committed:
                self._settle(unit, report)
                return
            case = self._case(unit)
            self._record(attempt, [asdict(f) for f in report.failures])
            decision = case.incomplete(attempt, report)
            told = None
            if report.failures:
                f = report.failures[0]
                told = Failure(f.stage, f.error_type, f.message, f.traceback, report.worker)
            self._obey(unit, decision, told)
        elif failure is not None:
            failure = self._explained(unit, failure)
            self._record(attempt, [asdict(failure)])
            self._obey(unit, self._case(unit).failed(attempt, failure), failure)

    def _explained(self, unit: Unit, failure: Failure) -> Failure:
        """A loss in words: a worker that was killed at the deadline did not just die."""
        if unit in self._overdue:
            self._overdue.discard(unit)
            message = "ran for longer than --timeout-unit allows; its replica was restarted"
            failure = Failure(
                "timeout", "TimeoutError", message, failure.traceback, failure.worker, lost=True
            )
        if failure.lost:
            self._result.lost_workers += 1
            if self._successes == 0 and self._result.lost_workers > FRUITLESS_LOSSES:
                raise PoolError(
                    f"{self._result.lost_workers} times a replica was lost before anything was done; the last "
                    f"time: {failure.message}"
                )
        return failure

    def _case(self, unit: Unit) -> Case:
        if unit not in self._cases:
            self._cases[unit] = Case(unit, self._policy)
        return self._cases[unit]

    def _obey(self, unit: Unit, decision: Decision, failure: Failure | None) -> None:
        if isinstance(decision, TryAgain):
            self._queue.add(decision.attempt, decision.after)
            self._result.retries += 1
            if failure is not None:
                self._listener.on_retry(unit, failure)
        elif isinstance(decision, CommitParked):
            failed = [f.item for f in decision.report.failures]
            commit_unit(self._store, unit, decision.fragment, failed)
            self._settle(unit, replace(decision.report, committed=True))
        else:
            self._settle(unit, None)

    def _settle(self, unit: Unit, report: UnitReport | None) -> None:
        """The unit is committed, or given up (``report`` None)."""
        case = self._cases.pop(unit, None)
        if case is None and (report is None or report.failures):
            case = Case(unit, self._policy)
        dead = [] if case is None else case.dead_items(report)
        if report is not None:
            self._result.totals.add(report)
            if self._keep_reports:
                self._result.reports.append(report)
            self._listener.on_done(report)
        if dead:
            self._result.dead[unit] = dead[0]
            self._result.dead_items += dead
            if len(self._result.dead) > self._policy.max_failures:
                raise TooManyFailures(self._too_many(), self._result)
        self._queue.settle(unit.key)

    def _record(self, attempt: Attempt, failures: list[dict[str, object]]) -> None:
        """Leave a record of a failed attempt in the store."""
        if not failures:
            return
        self._records[attempt.unit] += 1
        record = {"items": list(attempt.items), "alone": attempt.alone, "failures": failures}
        record["time"] = time.time()
        key = dead_key(attempt.unit, self._records[attempt.unit])
        self._store.put_bytes(key, json.dumps(redacted_json(record)).encode())

    def _too_many(self) -> str:
        unit, first = next(iter(self._result.dead.items()))
        what = unit.id if first.item is None else f"{unit.id}, tile {first.item}"
        return (
            f"{len(self._result.dead)} units failed for good, more than the {self._policy.max_failures} that "
            f"--max-failures tolerates. The first: {what}: {first.message.rstrip('.')}."
        )
