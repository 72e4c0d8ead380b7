"""Where workers run: threads of this process, or Ray actors. Both look the same to the driver."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol

from panoptile.pipeline.attempt import Attempt, UnitError, UnitReport
from panoptile.pipeline.plan import Unit
from panoptile.pipeline.worker import Worker, WorkerSpec

IN_FLIGHT = 2
"""Units handed to a worker at once: one holds the replica, the next one's first tiles are read."""


class PoolError(RuntimeError):
    """No worker could be started, or all were lost: the run can be resumed."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a unit was not done."""

    stage: str
    error_type: str
    message: str
    traceback: str
    worker: str
    lost: bool = False
    """The worker died or was killed; the unit may be innocent."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came back of one unit."""

    unit: Unit
    report: UnitReport | None
    failure: Failure | None


class Pool(Protocol):
    """A set of workers."""

    def start(self) -> None:
        """Begin starting workers; returns once the first is ready. Raises :class:`PoolError`."""
        ...

    def free(self) -> int:
        """How many more units the ready workers may take now."""
        ...

    def submit(self, unit: Unit) -> None:
        """Give a unit to the ready worker with the fewest units."""
        ...

    def wait(self, timeout: float) -> list[Outcome]:
        """Outcomes that arrived within ``timeout`` seconds."""
        ...

    def size(self) -> int:
        """Ready workers."""
        ...

    def kill_overdue(self, seconds: float) -> list[Unit]:
        """Kill the workers whose oldest unit runs longer than ``seconds``; returns those units."""
        ...

    def close(self) -> None: ...


def describe(error: BaseException, worker: str) -> Failure:
    """A failure record of an exception raised inside a worker."""
    stage = error.stage if isinstance(error, UnitError) else "worker"
    cause = error.__cause__ if isinstance(error, UnitError) and error.__cause__ is not None else error
    text = "".join(traceback.format_exception(error))
    return Failure(stage, type(cause).__name__, str(error), text, worker)


@dataclass(slots=True)
class _LocalWorker:
    worker: Worker
    threads: ThreadPoolExecutor
    running: int = 0


class LocalPool:
    """Workers as threads of this process: ``--local``, tests, machines without Ray."""

    def __init__(
        self, spec: WorkerSpec, count: int, make: Callable[[WorkerSpec, str], Worker] = Worker
    ) -> None:
        self._spec, self._count, self._make = spec, count, make
        self._workers: list[_LocalWorker] = []
        self._futures: dict[Future[UnitReport], tuple[Unit, _LocalWorker, float]] = {}
        self._lock = threading.Lock()

    def start(self) -> None:
        for i in range(self._count):
            name = f"local-{i}"
            worker = self._make(self._spec, name)
            self._workers.append(_LocalWorker(worker, ThreadPoolExecutor(IN_FLIGHT, name)))

    def free(self) -> int:
        return sum(IN_FLIGHT - w.running for w in self._workers)

    def size(self) -> int:
        return len(self._workers)

    def submit(self, unit: Unit) -> None:
        target = min(self._workers, key=lambda w: w.running)
        target.running += 1
        self._futures[target.threads.submit(target.worker.run, Attempt(unit, tolerant=True))] = (
            unit,
            target,
            time.monotonic(),
        )

    def wait(self, timeout: float) -> list[Outcome]:
        done, _ = wait(self._futures, timeout, FIRST_COMPLETED)
        outcomes = []
        for future in done:
            unit, target, _ = self._futures.pop(future)
            target.running -= 1
            error = future.exception()
            if error is None:
                outcomes.append(Outcome(unit, future.result(), None))
            elif isinstance(error, Exception):
                outcomes.append(Outcome(unit, None, describe(error, target.worker.name)))
            else:
                raise error
        return outcomes

    def kill_overdue(self, seconds: float) -> list[Unit]:
        now = time.monotonic()
        late = [unit for unit, _, since in self._futures.values() if now - since > seconds]
        if late:
            raise PoolError(
                f"Unit {late[0].id} has run for more than {seconds:.0f} s and a thread cannot be killed. "
                "Run without --local, or allow more time."
            )
        return []

    def close(self) -> None:
        for w in self._workers:
            w.threads.shutdown(wait=False, cancel_futures=True)
            if w.running == 0:  # a worker in the middle of a unit may hang: it ends with the process
                w.worker.close()
        self._workers.clear()
