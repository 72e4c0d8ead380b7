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

from panoptile.pipeline.layout import dead_key
from panoptile.pipeline.plan import Unit
from panoptile.pipeline.pool import Failure, Outcome, Pool, PoolError
from panoptile.pipeline.store import Store
from panoptile.pipeline.worker import UnitReport


@dataclass(frozen=True, slots=True)
class Policy:
    """When the driver gives up."""

    attempts: int = 3
    """Tries per unit."""
    max_failures: int | None = None
    """Quarantined units above which the run stops; None: a tenth of the units, rounded up."""
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
    """Run every unit on the pool. Raises :class:`TooManyFailures` or :class:`PoolError`."""
    queue = deque(units)
    allowed = policy.max_failures if policy.max_failures is not None else -(-len(queue) // 10)
    attempts: Counter[Unit] = Counter()
    result = RunResult()
    running = 0
    alive_at = time.monotonic()
    while queue or running:
        while queue and pool.free() > 0 and (running < pool.size() or len(queue) >= pool.size()):
            unit = queue.popleft()
            attempts[unit] += 1
            pool.submit(unit)
            running += 1
        for unit in pool.kill_overdue(policy.unit_timeout):
            _note_timeout(unit, policy, on_retry)
        outcomes = pool.wait(1.0)
        if pool.size() > 0:
            alive_at = time.monotonic()
        elif time.monotonic() - alive_at > policy.lost_timeout:
            raise PoolError(
                f"No replica has been ready for {policy.lost_timeout:.0f} s; {len(queue) + running} units are not done."
            )
        for outcome in outcomes:
            running -= 1
            if outcome.report is not None:
                result.reports.append(outcome.report)
                on_done(outcome.report)
            elif outcome.failure is not None:
                _handle_failure(outcome, outcome.failure, attempts, policy, queue, result, store, on_retry)
                if len(result.dead) > allowed:
                    raise TooManyFailures(_give_up(result, allowed), result)
    return result


def _handle_failure(
    outcome: Outcome,
    failure: Failure,
    attempts: Counter[Unit],
    policy: Policy,
    queue: deque[Unit],
    result: RunResult,
    store: Store,
    on_retry: Callable[[Unit, Failure], None] | None,
) -> None:
    unit = outcome.unit
    store.put_bytes(dead_key(unit, attempts[unit]), json.dumps(asdict(failure)).encode())
    if attempts[unit] < policy.attempts:
        result.retries += 1
        queue.append(unit)
        if on_retry is not None:
            on_retry(unit, failure)
    else:
        result.dead[unit] = failure


def _note_timeout(unit: Unit, policy: Policy, on_retry: Callable[[Unit, Failure], None] | None) -> None:
    if on_retry is not None:
        message = f"ran for more than {policy.unit_timeout:.0f} s; its replica was restarted"
        on_retry(unit, Failure("timeout", "TimeoutError", message, "", "", lost=True))


def _give_up(result: RunResult, allowed: int) -> str:
    unit, failure = next(iter(result.dead.items()))
    return (
        f"{len(result.dead)} units failed, {allowed} are tolerated (--max-failures). "
        f"The first: {unit.id}: {failure.message}"
    )
