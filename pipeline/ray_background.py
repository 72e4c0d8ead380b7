"""Background tasks as Ray tasks: on any node's CPUs, beside the replicas."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from panoptile.pipeline.background import Task, TaskResult
from panoptile.pipeline.ray_wait import wait_for
from panoptile.pipeline.worker import THREAD_VARIABLES

GET_SECONDS = 60.0
"""For small results that are known to be there."""


class RayBackground:
    """At most ``count`` tasks at a time. They ask for no resources: CPU replicas may hold all that there are."""

    def __init__(self, count: int = 2, *, threads: int = 1) -> None:
        self._count = count
        env = {name: str(threads) for name in THREAD_VARIABLES}
        env["CUDA_VISIBLE_DEVICES"] = ""  # Ray does not hide GPUs from tasks that ask for none
        self._remote: Any = ray.remote(_call).options(
            num_cpus=0,
            num_gpus=0,
            max_retries=0,  # counted here, so that a task that kills its process ends
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": env},
        )
        self._queue: deque[Task] = deque()
        self._running: dict[Any, tuple[Task, float]] = {}
        """(task, when it was handed to Ray) by its reference."""

    def submit(self, key: str, call: Callable[[], Any], *, seconds: float = math.inf) -> None:
        self._queue.append(Task(key, call, seconds))
        self._fill()

    def pending(self) -> int:
        return len(self._queue) + len(self._running)

    def poll(self, timeout: float = 0.0) -> list[TaskResult]:
        self._fill()
        if not self._running:
            return []
        refs = list(self._running)
        done = wait_for(refs, count=1, timeout=timeout)
        if done:  # whatever else has arrived meanwhile
            done = wait_for(refs, count=len(refs), timeout=0)
        results = [r for r in map(self._result, done) if r is not None] + self._overdue()
        self._fill()
        return results

    def widen(self, count: int) -> None:
        self._count = max(self._count, count)
        self._fill()

    def close(self) -> None:
        for ref in self._running:
            ray.cancel(ref, force=True)
        self._running.clear()
        self._queue.clear()

    def _fill(self) -> None:
        while self._queue and len(self._running) < self._count:
            task = self._queue.popleft()
            self._running[self._remote.remote(task.call)] = (task, time.monotonic())

    def _result(self, ref: Any) -> TaskResult | None:
        task, _ = self._running.pop(ref)
        try:
            return TaskResult(task.key, ray.get(ref, timeout=GET_SECONDS))
        except RayTaskError as e:
            cause = e.cause if isinstance(e.cause, Exception) else e
            return TaskResult(task.key, None, f"{type(cause).__name__}: {cause}")
        except RayError as e:  # its process or node is gone
            return self._after_loss(task, f"was lost ({type(e).__name__})")

    def _overdue(self) -> list[TaskResult]:
        """End what takes too long; the results of what will not be tried again."""
        now, results = time.monotonic(), []
        for ref, (task, began) in list(self._running.items()):
            if now - began > task.seconds:
                ray.cancel(ref, force=True)
                del self._running[ref]
                results.append(self._after_loss(task, task.overrun))
        return [r for r in results if r is not None]

    def _after_loss(self, task: Task, how: str) -> TaskResult | None:
        after = task.after_loss(how)
        if isinstance(after, TaskResult):
            return after
        self._queue.append(after)
        return None


def _call(call: Callable[[], Any]) -> Any:
    return call()
