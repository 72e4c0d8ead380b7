"""Where workers run: threads of this process, processes of this machine, or Ray actors. All look the same."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from panoptile.pipeline.attempt import Attempt, UnitError, UnitReport
from panoptile.pipeline.replica import ReplicaBroken
from panoptile.pipeline.worker import Worker, WorkerSpec

IN_FLIGHT = 2
"""Units handed to a worker at once: one holds the replica, the next one's first items are read."""


class PoolError(RuntimeError):
    """No worker could be started, or all were lost: the run can be resumed."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt was not done."""

    stage: str
    """open, read, infer, encode, commit; ``worker`` where the worker died, ``timeout`` where it was killed."""
    error_type: str
    message: str
    traceback: str
    worker: str
    lost: bool = False
    """The worker died or was killed; the unit may be innocent."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came back of one attempt: a report or a failure."""

    attempt: Attempt
    report: UnitReport | None
    failure: Failure | None


class Pool(Protocol):
    """A set of workers. An attempt may be submitted where :meth:`room` says so."""

    def start(self) -> None:
        """Begin starting workers; returns once the first is ready. Raises :class:`PoolError`."""
        ...

    def room(self, *, alone: bool = False, spare: bool = False) -> int:
        """How many attempts the ready workers may take now.

        ``alone``: attempts that need a worker for themselves. ``spare``: leave out the worker with the fewest
        attempts, so that it becomes free for one that must run alone.
        """
        ...

    def submit(self, attempt: Attempt, *, spare: bool = False) -> None:
        """Give an attempt to the ready worker with the fewest; ``spare`` as in :meth:`room`."""
        ...

    def wait(self, timeout: float) -> list[Outcome]:
        """Outcomes that arrived within ``timeout`` seconds."""
        ...

    def size(self) -> int:
        """Ready workers."""
        ...

    def kill_overdue(self) -> list[Attempt]:
        """Kill the workers whose oldest attempt runs longer than it may; returns those attempts.

        Their outcomes, and those of what ran beside them, come from :meth:`wait` as losses.
        """
        ...

    def close(self) -> None: ...


def describe(error: BaseException, worker: str) -> Failure:
    """A failure record of an exception raised inside a worker."""
    trace = "".join(traceback.format_exception(error))
    if isinstance(error, UnitError):
        cause = error.__cause__ or error
        kind = error.error_type or type(cause).__name__
        return Failure(error.stage, kind, str(error), error.trace or trace, worker)
    lost = isinstance(error, ReplicaBroken)  # the pool replaces the worker
    return Failure("worker", type(error).__name__, str(error), trace, worker, lost)


@dataclass
class Seat:
    """A worker as the pool sees it: what it was given, and since when."""

    name: str
    running: dict[Any, tuple[Attempt, float]] = field(default_factory=dict)
    """By the pool's own ticket: the attempt, and when its turn began on the monotonic clock."""

    def room(self) -> int:
        if any(attempt.alone for attempt, _ in self.running.values()):
            return 0
        return max(0, IN_FLIGHT - len(self.running))

    def overdue(self) -> Attempt | None:
        """The oldest attempt, if it runs for longer than it may."""
        if not self.running:
            return None
        attempt, since = min(self.running.values(), key=lambda item: item[1])
        return attempt if time.monotonic() - since > attempt.seconds else None

    def restart_clocks(self) -> None:
        """The replica is free again: the time of what waited for it begins now."""
        now = time.monotonic()
        for ticket, (attempt, _) in self.running.items():
            self.running[ticket] = (attempt, now)


S = TypeVar("S", bound=Seat)


def seats_with_room(seats: Sequence[S], *, alone: bool, spare: bool) -> list[S]:
    """Ready seats that may take an attempt, the emptiest first."""
    order = sorted(seats, key=lambda seat: len(seat.running))
    if alone:
        return [seat for seat in order if not seat.running]
    return [seat for seat in order[1 if spare else 0 :] if seat.room() > 0]


def total_room(seats: Sequence[S], *, alone: bool, spare: bool) -> int:
    """Attempts that these seats may take."""
    found = seats_with_room(seats, alone=alone, spare=spare)
    return len(found) if alone else sum(seat.room() for seat in found)


class _Threads(Seat):
    """A worker and the threads that run its attempts."""

    def __init__(self, name: str, worker: Worker) -> None:
        super().__init__(name)
        self.worker = worker
        self.executor = ThreadPoolExecutor(IN_FLIGHT, name)


class LocalPool:
    """Workers as threads of this process: for a store that no other process sees, and for tests.

    A thread cannot be killed: what crashes ends the process, what hangs ends the run.
    """

    def __init__(
        self, spec: WorkerSpec, count: int, make: Callable[[WorkerSpec, str], Worker] = Worker
    ) -> None:
        self._spec, self._count, self._make = spec, count, make
        self._seats: list[_Threads] = []
        self._futures: dict[Future[UnitReport], _Threads] = {}

    def start(self) -> None:
        for i in range(self._count):
            name = f"local-{i}"
            self._seats.append(_Threads(name, self._make(self._spec, name)))

    def room(self, *, alone: bool = False, spare: bool = False) -> int:
        return total_room(self._seats, alone=alone, spare=spare)

    def size(self) -> int:
        return len(self._seats)

    def submit(self, attempt: Attempt, *, spare: bool = False) -> None:
        seat = seats_with_room(self._seats, alone=attempt.alone, spare=spare)[0]
        future = seat.executor.submit(seat.worker.run, attempt)
        seat.running[future] = (attempt, time.monotonic())
        self._futures[future] = seat

    def wait(self, timeout: float) -> list[Outcome]:
        if not self._futures:
            time.sleep(min(timeout, 0.05))
            return []
        done, _ = wait(self._futures, timeout, FIRST_COMPLETED)
        outcomes = []
        for future in done:
            seat = self._futures.pop(future)
            attempt, _since = seat.running.pop(future)
            seat.restart_clocks()
            error = future.exception()
            if error is None:
                outcomes.append(Outcome(attempt, future.result(), None))
            elif isinstance(error, Exception):
                failure = describe(error, seat.name)
                if failure.lost:  # the replica will not answer any more: the next attempts get a new one
                    seat.worker = self._make(self._spec, seat.name)
                outcomes.append(Outcome(attempt, None, failure))
            else:
                raise error
        return outcomes

    def kill_overdue(self) -> list[Attempt]:
        for seat in self._seats:
            late = seat.overdue()
            if late is not None:
                raise PoolError(
                    f"Unit {late.unit.id} has run for more than {late.seconds:.0f} s and a thread cannot be killed. "
                    "Allow more time, or write to a folder or an object store instead of memory://."
                )
        return []

    def close(self) -> None:
        for seat in self._seats:
            seat.executor.shutdown(wait=False, cancel_futures=True)
            if not seat.running:  # a worker in the middle of a unit may hang: it ends with the process
                seat.worker.close()
        self._seats.clear()
