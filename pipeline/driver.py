"""The driver: hands out units, counts attempts, sets aside what cannot be done.

Execution is at least once; a unit's single commit makes its effect once. The driver knows units, not
pixels, and keeps nothing that grows with the raster but the list of units.
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field

from panoptile.pipeline.attempt import UnitReport
from panoptile.pipeline.layout import dead_key
from panoptile.pipeline.plan import Unit
from panoptile.pipeline.pool import Failure, Outcome, Pool, PoolError
from panoptile.pipeline.store import Store


@dataclass(frozen=True, slots=True)
class Policy:
    """When the driver gives up."""

    attempts: int = 3
    """Tries per unit."""
    max_failures: int = 0
    """Quarantined units above which the run stops."""
    unit_timeout: float = 1800.0
    """Seconds that a unit may run."""
    lost_timeout: float = 300.0
    """Seconds without any ready worker."""


@dataclass(slots=True)
class RunResult:
    """What became of all units."""

    reports: list[UnitReport] = field(default_factory=list)
    dead: dict[Unit, Failure] = field(default_factory=dict)
    retries: int = 0


class TooManyFailures(RuntimeError):
    """More units failed than the run tolerates."""

    def __init__(self, message: str, result: RunResult) -> None:
        super().__init__(message)
        self.result = result


def run_units(
    pool: Pool,
    store: Store,
    units: Iterable[Unit],
    policy: Policy,
    on_done: Callable[[UnitReport], None],
    on_retry: Callable[[Unit, Failure], None] | None = None,
) -> RunResult:
    """Run every unit on the pool. Raises :class:`TooManyFailures`, :class:`PoolError` or ``OSError`` of the store."""
    return _Run(pool, store, deque(units), policy, on_done, on_retry).execute()


class _Run:
    """One run over a list of units.

    A unit that was lost with its worker may be innocent: two were in flight there. Its loss counts as an attempt
    only if it ran alone, so suspects wait until all others are done and then run one at a time.
    """

    def __init__(
        self,
        pool: Pool,
        store: Store,
        queue: deque[Unit],
        policy: Policy,
        on_done: Callable[[UnitReport], None],
        on_retry: Callable[[Unit, Failure], None] | None,
    ) -> None:
        self._pool, self._store, self._queue, self._policy = pool, store, queue, policy
        self._on_done, self._on_retry = on_done, on_retry
        self._suspects: deque[Unit] = deque()
        self._attempts: Counter[Unit] = Counter()
        self._records: Counter[Unit] = Counter()
        self._overdue: set[Unit] = set()
        self._alone: Unit | None = None
        self._running = 0
        self._alive_at = time.monotonic()
        self._result = RunResult()

    def execute(self) -> RunResult:
        while self._queue or self._suspects or self._running:
            self._hand_out()
            self._overdue.update(self._pool.kill_overdue(self._policy.unit_timeout))
            outcomes = self._pool.wait(1.0)
            self._check_alive()
            for outcome in outcomes:
                self._running -= 1
                self._take(outcome)
        return self._result

    def _hand_out(self) -> None:
        size = self._pool.size()
        while self._queue and self._pool.free() > 0 and (self._running < size or len(self._queue) >= size):
            self._submit(self._queue.popleft())
        if not self._queue and not self._running and self._suspects and self._pool.free() > 0:
            self._alone = self._suspects.popleft()
            self._submit(self._alone)

    def _submit(self, unit: Unit) -> None:
        self._attempts[unit] += 1
        self._pool.submit(unit)
        self._running += 1

    def _check_alive(self) -> None:
        if self._pool.size() > 0:
            self._alive_at = time.monotonic()
        elif time.monotonic() - self._alive_at > self._policy.lost_timeout:
            left = len(self._queue) + len(self._suspects) + self._running
            raise PoolError(
                f"No replica has been ready for {self._policy.lost_timeout:.0f} s; {left} units are not done."
            )

    def _take(self, outcome: Outcome) -> None:
        unit, failure = outcome.unit, outcome.failure
        was_alone = unit == self._alone
        if was_alone:
            self._alone = None
        if outcome.report is not None:
            self._result.reports.append(outcome.report)
            self._on_done(outcome.report)
        elif failure is not None:
            if unit in self._overdue:
                self._overdue.discard(unit)
                message = f"ran for more than {self._policy.unit_timeout:.0f} s; its replica was restarted"
                failure = Failure("timeout", "TimeoutError", message, failure.traceback, failure.worker)
            self._fail(unit, failure, innocent=failure.lost and not was_alone)

    def _fail(self, unit: Unit, failure: Failure, *, innocent: bool) -> None:
        self._records[unit] += 1
        self._store.put_bytes(dead_key(unit, self._records[unit]), json.dumps(asdict(failure)).encode())
        if innocent:
            self._attempts[unit] -= 1
        if self._attempts[unit] >= self._policy.attempts:
            self._result.dead[unit] = failure
            if len(self._result.dead) > self._policy.max_failures:
                raise TooManyFailures(self._give_up(), self._result)
            return
        self._result.retries += 1
        (self._suspects if failure.lost else self._queue).append(unit)
        if self._on_retry is not None:
            self._on_retry(unit, failure)

    def _give_up(self) -> str:
        unit, failure = next(iter(self._result.dead.items()))
        return (
            f"{len(self._result.dead)} units failed for good, more than the {self._policy.max_failures} that "
            f"--max-failures tolerates. The first: {unit.id}: {failure.message.rstrip('.')}."
        )
