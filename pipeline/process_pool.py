"""Workers as processes of this machine, without Ray: what crashes, hangs or is killed costs one attempt."""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from multiprocessing.connection import Connection, wait
from pathlib import Path

from panoptile.pipeline.attempt import Attempt
from panoptile.pipeline.child_process import ChildProcess
from panoptile.pipeline.child_serve import Answer
from panoptile.pipeline.pool import Failure, Outcome, PoolError, Seat, seats_with_room, total_room
from panoptile.pipeline.worker import Worker, WorkerSpec

START_ATTEMPTS = 3
"""Starts in a row that a worker may fail before it is left out."""


def visible_gpus(devices: Path = Path("/dev")) -> tuple[str, ...]:
    """Ids of the GPUs that this process may use, without loading CUDA: of the environment, else of the driver."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(part.strip() for part in named.split(",") if part.strip() not in ("", "-1"))
    found = (p.name.removeprefix("nvidia") for p in devices.glob("nvidia[0-9]*"))
    return tuple(str(n) for n in sorted(int(n) for n in found if n.isdigit()))


class _Process(Seat):
    """A worker process, and how its starting goes."""

    def __init__(self, name: str, folder: Path, gpu: str | None) -> None:
        super().__init__(name)
        self.child = ChildProcess(name, folder, gpu)
        self.is_ready = False
        self.started_at = 0.0
        self.failed_starts = 0
        self.restart_at = 0.0

    def launch(self, spec: WorkerSpec) -> None:
        self.child.launch(Worker, (spec, self.name), spec.threads)
        self.is_ready, self.started_at = False, time.monotonic()


class ProcessPool:
    """``count`` worker processes, replaced when they die; they die with this process.

    ``gpus`` are device ids, one for each worker in turn; empty: the environment is left as it is.
    """

    def __init__(
        self, spec: WorkerSpec, count: int, *, gpus: tuple[str, ...] = (), start_timeout: float = 600.0
    ) -> None:
        self._spec, self._count, self._gpus, self._start_timeout = spec, count, gpus, start_timeout
        self._seats: list[_Process] = []
        self._tickets = itertools.count(1)
        self._losses: list[Outcome] = []
        self._peak_rss: dict[str, int] = {}
        self._was_ready = False
        self._folder = tempfile.TemporaryDirectory(prefix="panoptile-workers-")

    def start(self) -> None:
        for i in range(self._count):
            gpu = self._gpus[i % len(self._gpus)] if self._gpus else None
            seat = _Process(f"local-{i}", Path(self._folder.name), gpu)
            seat.launch(self._spec)
            self._seats.append(seat)
        until = time.monotonic() + self._start_timeout
        while self.size() == 0:
            if time.monotonic() > until:
                self.close()
                raise PoolError(
                    f"No replica was ready after {self._start_timeout:.0f} s: {self._count} processes are loading."
                )
            self.wait(0.2)

    def room(self, *, alone: bool = False, spare: bool = False) -> int:
        return total_room(self._ready(), alone=alone, spare=spare)

    def size(self) -> int:
        return len(self._ready())

    def submit(self, attempt: Attempt, *, spare: bool = False) -> None:
        seat = seats_with_room(self._ready(), alone=attempt.alone, spare=spare)[0]
        ticket = next(self._tickets)
        seat.running[ticket] = (attempt, time.monotonic())
        if not seat.child.send((ticket, attempt)):
            self._lose(seat, seat.child.exit_words())

    def wait(self, timeout: float) -> list[Outcome]:
        """Outcomes within ``timeout`` seconds; takes note of what became ready or died meanwhile."""
        self._relaunch()
        live = {seat.child.connection: seat for seat in self._seats if seat.child.connection is not None}
        if not live:
            time.sleep(0.0 if self._losses else min(timeout, 0.2))
        outcomes = []
        for ready in wait(list(live), 0.0 if self._losses else timeout) if live else []:
            assert isinstance(ready, Connection)
            outcome = self._receive(live[ready])
            if outcome is not None:
                outcomes.append(outcome)
        lost, self._losses = self._losses, []
        return outcomes + lost

    def kill_overdue(self) -> list[Attempt]:
        late = []
        for seat in self._ready():
            attempt = seat.overdue()
            if attempt is not None:
                late.append(attempt)
                self._lose(seat, "was killed, because a unit ran for too long")
        return late

    def close(self) -> None:
        for seat in self._seats:
            seat.child.kill()
        self._seats.clear()
        self._folder.cleanup()

    def peak_rss_bytes(self) -> dict[str, int]:
        """Peak resident size of each worker process."""
        return dict(self._peak_rss)

    def pids(self) -> list[int]:
        """Processes that are running."""
        return [seat.child.pid for seat in self._seats if seat.child.pid is not None]

    def _ready(self) -> list[_Process]:
        return [seat for seat in self._seats if seat.is_ready]

    def _receive(self, seat: _Process) -> Outcome | None:
        answer = seat.child.receive()
        if answer is None:
            self._lose(seat, seat.child.exit_words())
            return None
        self._peak_rss[seat.name] = max(answer.peak_rss_bytes, self._peak_rss.get(seat.name, 0))
        if answer.kind == "ready":
            seat.is_ready, seat.failed_starts, self._was_ready = True, 0, True
            return None
        if answer.kind == "broken":
            self._broken(seat, answer.value)
            return None
        return self._answered(seat, answer)

    def _answered(self, seat: _Process, answer: Answer) -> Outcome:
        attempt, _ = seat.running.pop(answer.ticket)
        seat.restart_clocks()
        if answer.kind == "done":
            return Outcome(attempt, answer.value, None)
        if answer.value.lost:  # the replica is of no use any more
            self._lose(seat, "was replaced after another unit broke its replica")
        return Outcome(attempt, None, answer.value)

    def _broken(self, seat: _Process, failure: Failure) -> None:
        """A worker could not be made. Where none ever could, the next one will not either."""
        seat.child.kill()
        seat.failed_starts += 1
        seat.restart_at = time.monotonic() + seat.failed_starts
        if not self._was_ready:
            self.close()
            raise PoolError(
                f"Replica {failure.worker} could not start: {failure.error_type}: {failure.message}"
            )

    def _lose(self, seat: _Process, how: str) -> None:
        """A worker died, or is to die: what it had comes back as losses, and it is started again."""
        message = f"the worker process {how}"
        words = seat.child.last_words()
        seat.child.kill()
        for attempt, _ in seat.running.values():
            failure = Failure("worker", "WorkerLost", message, words, seat.name, lost=True)
            self._losses.append(Outcome(attempt, None, failure))
        seat.running.clear()
        seat.failed_starts = 0 if seat.is_ready else seat.failed_starts + 1
        seat.is_ready = False
        seat.restart_at = time.monotonic() + seat.failed_starts
        if seat.failed_starts >= START_ATTEMPTS and not self._was_ready:
            self.close()
            raise PoolError(f"Replica {seat.name} could not start: {message}. {words}".strip())

    def _relaunch(self) -> None:
        now = time.monotonic()
        for seat in self._seats:
            if seat.child.pid is None:
                if seat.failed_starts < START_ATTEMPTS and now >= seat.restart_at:
                    seat.launch(self._spec)
            elif not seat.is_ready and now - seat.started_at > self._start_timeout:
                self._lose(seat, f"was not ready after {self._start_timeout:.0f} s")
