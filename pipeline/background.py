"""Work on CPUs beside the replicas: publishing one input while the units of others go on.

A task is a picklable call without arguments that leaves its result in the store; what comes back is a small value.
A process that dies, or that is still at it when the task's time is over, costs a try, not the run.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from panoptile.pipeline.child_process import ChildProcess

TRIES = 3
"""How often a task may lose its process, or overrun its time."""


@dataclass(frozen=True, slots=True)
class Task:
    """One call."""

    key: str
    """What it is about: the input's key."""
    call: Callable[[], Any]
    """Picklable; its errors are part of what it returns."""
    seconds: float = math.inf
    """How long one try may take."""
    tries: int = 0

    def after_loss(self, how: str) -> Task | TaskResult:
        """The next try, or what to say after the last one; ``how`` the process was lost."""
        if self.tries + 1 >= TRIES:
            return TaskResult(self.key, None, f"its process {how}, {TRIES} times")
        return replace(self, tries=self.tries + 1)

    @property
    def overrun(self) -> str:
        """How the process of a task that took too long is lost."""
        return f"was killed, because the task was not done within {self.seconds:,.0f} s"


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What came of a task."""

    key: str
    value: Any
    """What the call returned; None where there is an error."""
    error: str = ""
    """Why the call has no result, in one sentence; empty where it has one."""


class Background(Protocol):
    """Runs tasks while the caller does other things."""

    def submit(self, key: str, call: Callable[[], Any], *, seconds: float = math.inf) -> None:
        """Queue a call; it starts when there is room, and each try of it may take ``seconds``."""
        ...

    def poll(self, timeout: float = 0.0) -> list[TaskResult]:
        """Results that are there within ``timeout`` seconds; starts what is queued."""
        ...

    def pending(self) -> int:
        """Tasks that are queued or running."""
        ...

    def widen(self, count: int) -> None:
        """From now on run up to ``count`` tasks at once, and no fewer than before."""
        ...

    def close(self) -> None:
        """Drop what is queued, end what is running."""
        ...


class Caller:
    """The other end of a background process: it does what it is told."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, call: Callable[[], Any]) -> Any:
        return call()


class ProcessBackground:
    """Up to ``count`` processes of this machine, started when the first task comes; no GPU is seen by them."""

    def __init__(self, count: int = 1, *, threads: int = 1) -> None:
        self._count, self._threads = count, threads
        self._folder = TemporaryDirectory(prefix="panoptile-background-")
        self._processes: list[ChildProcess] = []
        self._queue: deque[Task] = deque()
        self._running: dict[str, tuple[Task, float]] = {}
        """(task, when it began) by the name of the process."""
        self._done: list[TaskResult] = []

    def submit(self, key: str, call: Callable[[], Any], *, seconds: float = math.inf) -> None:
        self._queue.append(Task(key, call, seconds))
        self._fill()

    def pending(self) -> int:
        return len(self._queue) + len(self._running)

    def poll(self, timeout: float = 0.0) -> list[TaskResult]:
        self._fill()
        live = {p.connection: p for p in self._processes if p.connection is not None}
        if live and not self._done:
            for connection in wait(list(live), timeout):
                self._receive(live[connection])  # type: ignore[index]
        elif not self._done:
            time.sleep(min(timeout, 0.05))
        self._end_overdue()
        self._fill()
        done, self._done = self._done, []
        return done

    def widen(self, count: int) -> None:
        self._count = max(self._count, count)
        self._fill()

    def close(self) -> None:
        for process in self._processes:
            process.kill()
        self._processes.clear()
        self._queue.clear()
        self._running.clear()
        self._folder.cleanup()

    def _fill(self) -> None:
        """Give queued tasks to idle processes; start processes while there are more tasks than these."""
        while len(self._processes) < min(self._count, len(self._queue) + len(self._running)):
            process = ChildProcess(f"background-{len(self._processes)}", Path(self._folder.name), gpu="")
            self._processes.append(process)
        for process in self._processes:
            if self._queue and process.name not in self._running:
                if process.connection is None:
                    process.launch(Caller, (process.name,), self._threads)
                task = self._queue.popleft()
                self._running[process.name] = (task, time.monotonic())
                process.send((0, task.call))

    def _receive(self, process: ChildProcess) -> None:
        answer = process.receive()
        if answer is None:
            self._lost(process, process.exit_words())
        elif answer.kind in ("done", "failed"):
            task, _ = self._running.pop(process.name)
            if answer.kind == "done":
                self._done.append(TaskResult(task.key, answer.value))
            else:
                failure = answer.value
                self._done.append(TaskResult(task.key, None, f"{failure.error_type}: {failure.message}"))

    def _end_overdue(self) -> None:
        now = time.monotonic()
        for process in self._processes:
            task, began = self._running.get(process.name, (None, now))
            if task is not None and now - began > task.seconds:
                self._lost(process, task.overrun)

    def _lost(self, process: ChildProcess, how: str) -> None:
        process.kill()
        if process.name not in self._running:
            return
        task, _ = self._running.pop(process.name)
        after = task.after_loss(how)
        if isinstance(after, TaskResult):
            self._done.append(after)
        else:
            self._queue.append(after)
