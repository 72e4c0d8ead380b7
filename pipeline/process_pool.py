"""Workers as processes of this machine, without Ray: what crashes, hangs or is killed costs one attempt."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from panoptile.pipeline.attempt import Attempt
from panoptile.pipeline.pool import Failure, Outcome, PoolError, Seat, seats_with_room, total_room
from panoptile.pipeline.worker import THREAD_VARIABLES, WorkerSpec

START_ATTEMPTS = 3
"""Starts in a row that a worker may fail before it is left out."""
STDERR_BYTES = 16_000
"""How much of a dead worker's last words goes into the failure's record."""
STDERR_KEPT = 1 << 20
"""Bytes of messages of a living worker that are kept."""

_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[3]); "
    "from panoptile.pipeline.worker_process import main; main()"
)


class _Process(Seat):
    """A worker process, its socket and its last words."""

    def __init__(self, name: str, folder: Path, gpu: str | None) -> None:
        super().__init__(name)
        self.gpu = gpu
        self.errors = folder / f"{name}.stderr"
        self.process: subprocess.Popen[bytes] | None = None
        self.connection: Connection | None = None
        self.is_ready = False
        self.started_at = 0.0
        self.failed_starts = 0
        self.restart_at = 0.0

    def launch(self, spec: WorkerSpec) -> None:
        """Start the process; it says when it is ready."""
        env = os.environ | {name: str(spec.threads) for name in THREAD_VARIABLES}
        env["OMP_WAIT_POLICY"] = "PASSIVE"
        if self.gpu is not None:
            env["CUDA_VISIBLE_DEVICES"] = self.gpu
        ours, theirs = socket.socketpair()
        arguments = [str(theirs.fileno()), str(os.getpid()), json.dumps(sys.path)]
        with theirs, self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=[theirs.fileno()],
                env=env,
            )
        self.connection = Connection(ours.detach())
        self.is_ready, self.started_at = False, time.monotonic()
        with contextlib.suppress(
            BrokenPipeError
        ):  # dead already: its socket's end tells, with its last words
            self.connection.send_bytes(pickle.dumps((spec, self.name)))

    def kill(self) -> None:
        """End the process and forget it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        if self.connection is not None:
            self.connection.close()
        self.process = self.connection = None
        self.is_ready = False

    def last_words(self) -> str:
        """The end of what the process wrote on stderr."""
        try:
            with self.errors.open("rb") as f:
                f.seek(max(0, f.seek(0, os.SEEK_END) - STDERR_BYTES))
                return f.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def trim(self) -> None:
        """Forget old messages of a process that writes many."""
        if self.errors.stat().st_size > STDERR_KEPT:
            os.truncate(self.errors, 0)

    def exit_words(self) -> str:
        """How the process ended."""
        if self.process is None:
            return "was killed"
        try:
            code = self.process.wait(10)
        except subprocess.TimeoutExpired:
            return "stopped answering"
        if code >= 0:
            return f"ended with exit code {code}"
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"was killed by {signal.Signals(-code).name}{hint}"


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
        assert seat.connection is not None
        ticket = next(self._tickets)
        seat.running[ticket] = (attempt, time.monotonic())
        try:
            seat.connection.send((ticket, attempt))
        except OSError:
            self._lose(seat, "was gone when a unit was given to it")

    def wait(self, timeout: float) -> list[Outcome]:
        """Outcomes within ``timeout`` seconds; takes note of what became ready or died meanwhile."""
        self._relaunch()
        live = {seat.connection: seat for seat in self._seats if seat.connection is not None}
        if self._losses or not live:
            timeout = 0.0 if self._losses else min(timeout, 0.2)
            time.sleep(timeout)
        outcomes = []
        for ready in wait(list(live), timeout) if live else []:
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
            seat.kill()
        self._seats.clear()
        self._folder.cleanup()

    def peak_rss_bytes(self) -> dict[str, int]:
        """Peak resident size of each worker process."""
        return dict(self._peak_rss)

    def pids(self) -> list[int]:
        """Processes that are running."""
        return [seat.process.pid for seat in self._seats if seat.process is not None]

    def _ready(self) -> list[_Process]:
        return [seat for seat in self._seats if seat.is_ready]

    def _receive(self, seat: _Process) -> Outcome | None:
        assert seat.connection is not None
        try:
            kind, ticket, value, rss = seat.connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            self._lose(seat, seat.exit_words())
            return None
        self._peak_rss[seat.name] = max(rss, self._peak_rss.get(seat.name, 0))
        return self._heard(seat, kind, ticket, value)

    def _heard(self, seat: _Process, kind: str, ticket: int, value: Any) -> Outcome | None:
        if kind == "ready":
            seat.is_ready, seat.failed_starts, self._was_ready = True, 0, True
            return None
        if kind == "broken":
            self._broken(seat, value)
            return None
        attempt, _ = seat.running.pop(ticket)
        seat.restart_clocks()
        seat.trim()
        if kind == "done":
            return Outcome(attempt, value, None)
        if value.lost:  # the replica is of no use any more
            self._lose(seat, "was replaced after another unit broke its replica")
        return Outcome(attempt, None, value)

    def _broken(self, seat: _Process, failure: Failure) -> None:
        """A worker could not be made: the same will happen again, unless it could be made before."""
        seat.kill()
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
        was_ready = seat.is_ready
        words = seat.last_words()
        seat.kill()
        for attempt, _ in seat.running.values():
            failure = Failure("worker", "WorkerLost", message, words, seat.name, lost=True)
            self._losses.append(Outcome(attempt, None, failure))
        seat.running.clear()
        seat.failed_starts = 0 if was_ready else seat.failed_starts + 1
        seat.restart_at = time.monotonic() + seat.failed_starts
        if seat.failed_starts >= START_ATTEMPTS and not self._was_ready:
            self.close()
            raise PoolError(f"Replica {seat.name} could not start: {message}. {words}".strip())

    def _relaunch(self) -> None:
        now = time.monotonic()
        for seat in self._seats:
            if seat.process is None and seat.failed_starts < START_ATTEMPTS and now >= seat.restart_at:
                seat.launch(self._spec)
            elif (
                seat.process is not None and not seat.is_ready and now - seat.started_at > self._start_timeout
            ):
                self._lose(seat, f"was not ready after {self._start_timeout:.0f} s")
