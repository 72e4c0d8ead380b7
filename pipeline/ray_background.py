"""Background tasks as Ray tasks: on any node's CPUs, beside the replicas."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from panoptile.pipeline.background import TRIES, Task, TaskResult
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
        self._running: dict[Any, Task] = {}

    def submit(self, key: str, call: Callable[[], Any]) -> None:
        self._queue.append(Task(key, call))
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
        results = [r for r in map(self._result, done) if r is not None]
        self._fill()
        return results

    def close(self) -> None:
        for ref in self._running:
            ray.cancel(ref, force=True)
        self._running.clear()
        self._queue.clear()

    def _fill(self) -> None:
        while self._queue and len(self._running) < self._count:
            task = self._queue.popleft()
            self._running[self._remote.remote(task.call)] = task

    def _result(self, ref: Any) -> TaskResult | None:
        task = self._running.pop(ref)
        try:
            return TaskResult(task.key, ray.get(ref, timeout=GET_SECONDS))
        except RayTaskError as e:
            cause = e.cause if isinstance(e.cause, Exception) else e
            return TaskResult(task.key, None, f"{type(cause).__name__}: {cause}")
        except RayError as e:  # its process or node is gone
            task = replace(task, tries=task.tries + 1)
            if task.tries >= TRIES:
                return TaskResult(task.key, None, f"its process was lost {TRIES} times: {type(e).__name__}")
            self._queue.append(task)
            return None


def _call(call: Callable[[], Any]) -> Any:
    return call()
