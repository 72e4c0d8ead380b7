"""Workers as Ray actors: one GPU each where there are GPUs; the driver sees them as a pool.

Actors restart by themselves (``max_restarts=-1``) and never retry a call (``max_task_retries=0``): retries
belong to the driver, because only it knows what is committed. The pool starts with the first actor that is ready,
takes in late ones as they come, and survives those that are lost with their nodes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayActorError, RayTaskError

from panoptile.pipeline.attempt import Attempt, UnitError, UnitReport
from panoptile.pipeline.pool import (
    IN_FLIGHT,
    Failure,
    Outcome,
    PoolError,
    Seat,
    describe,
    seats_with_room,
    total_room,
)
from panoptile.pipeline.ray_metrics import DriverMetrics, WorkerMetrics
from panoptile.pipeline.ray_wait import wait_for
from panoptile.pipeline.replica import ReplicaBroken
from panoptile.pipeline.worker import THREAD_VARIABLES, Worker, WorkerSpec

LOST = (RayActorError, ActorDiedError, ActorUnavailableError)
GET_SECONDS = 60.0
"""For small results that are known to be there."""


class _WorkerActor:
    """The thin shell: a worker inside an actor."""

    def __init__(self, spec: WorkerSpec, name: str) -> None:
        self._worker = Worker(spec, name)
        self._metrics = WorkerMetrics(name)

    def ready(self) -> bool:
        return True

    def run(self, attempt: Attempt) -> UnitReport:
        try:
            report = self._worker.run(attempt)
        except ReplicaBroken:
            os._exit(1)  # Ray starts the process again; the driver sees a lost worker
        except UnitError as e:
            self._metrics.add_failure(e)
            raise
        self._metrics.add(report)
        return report

    def peak_rss_bytes(self) -> int:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class _Actor(Seat):
    """An actor, and whether it is ready."""

    def __init__(self, name: str, handle: Any) -> None:
        super().__init__(name)
        self.handle = handle
        self.ready: Any | None = handle.ready.remote()
        """Reference that resolves once the actor has loaded its model; None when it has."""

    def expect_restart(self) -> None:
        """It restarts by itself: no unit for it until it is ready again."""
        if self.ready is None:
            self.ready = self.handle.ready.remote()


class RayPool:
    """``count`` actors with ``gpus`` GPUs each (0: CPU actors, from which GPUs are hidden)."""

    def __init__(
        self,
        spec: WorkerSpec,
        count: int,
        gpus: float,
        start_timeout: float = 600.0,
        *,
        accelerator_type: str | None = None,
    ) -> None:
        self._spec, self._count, self._gpus, self._start_timeout = spec, count, gpus, start_timeout
        self._accelerator_type = accelerator_type
        self._actors: list[_Actor] = []
        self._metrics = DriverMetrics()

    def start(self) -> None:
        actor_class: Any = ray.remote(_WorkerActor).options(
            num_gpus=self._gpus,
            num_cpus=1,
            accelerator_type=self._accelerator_type,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=IN_FLIGHT + 1,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": self._environment()},
        )
        for i in range(self._count):
            name = f"ray-{i}"
            self._actors.append(_Actor(name, actor_class.remote(self._spec, name)))
        until = time.monotonic() + self._start_timeout
        while self.size() == 0:
            left = until - time.monotonic()
            if left <= 0:
                self.close()
                raise PoolError(self._pending())
            wait_for([a.ready for a in self._actors], count=1, timeout=min(left, 5.0))
            self._welcome()

    def room(self, *, alone: bool = False, spare: bool = False) -> int:
        self._welcome()
        return total_room(self._ready(), alone=alone, spare=spare)

    def size(self) -> int:
        return len(self._ready())

    def submit(self, attempt: Attempt, *, spare: bool = False) -> None:
        seat = seats_with_room(self._ready(), alone=attempt.alone, spare=spare)[0]
        seat.running[seat.handle.run.remote(attempt)] = (attempt, time.monotonic())
        self._metrics.submitted(attempt)

    def wait(self, timeout: float) -> list[Outcome]:
        refs = [ref for a in self._actors for ref in a.running]
        if not refs:
            time.sleep(min(timeout, 0.2))
            return []
        done = wait_for(refs, count=1, timeout=timeout)
        if done:  # whatever else has arrived meanwhile
            done = wait_for(refs, count=len(refs), timeout=0)
        outcomes = [self._outcome(ref) for ref in done]
        for outcome in outcomes:
            self._metrics.ended(outcome)
        return outcomes

    def kill_overdue(self) -> list[Attempt]:
        late = []
        for a in self._ready():
            attempt = a.overdue()
            if attempt is not None:
                late.append(attempt)
                ray.kill(a.handle, no_restart=False)
                a.expect_restart()
        return late

    def close(self) -> None:
        for a in self._actors:
            ray.kill(a.handle)
        self._actors.clear()

    def peak_rss_bytes(self) -> dict[str, int]:
        """Peak resident size of each worker process."""
        refs = {a.name: a.handle.peak_rss_bytes.remote() for a in self._ready()}
        done = wait_for(list(refs.values()), count=len(refs), timeout=10) if refs else []
        found = {}
        for name, ref in refs.items():
            if ref in done:
                try:
                    found[name] = ray.get(ref, timeout=GET_SECONDS)
                except LOST:
                    continue  # it died between its last unit and now: its size is of no use any more
        return found

    def _environment(self) -> dict[str, str]:
        env = {name: str(self._spec.threads) for name in THREAD_VARIABLES} | {"OMP_WAIT_POLICY": "PASSIVE"}
        if self._gpus == 0:
            env["CUDA_VISIBLE_DEVICES"] = ""  # Ray does not hide GPUs from actors that ask for none
        return env

    def _ready(self) -> Sequence[_Actor]:
        return [a for a in self._actors if a.ready is None]

    def _pending(self) -> str:
        """What was asked for and what there is, for a start that took too long."""
        kind = f" of type {self._accelerator_type}" if self._accelerator_type else ""
        return (
            f"No replica was ready after {self._start_timeout:.0f} s: {self._count} actors, each with {self._gpus:g} "
            f"GPU(s){kind} and 1 CPU, are pending. The cluster has {_resources(ray.cluster_resources())}; free are "
            f"{_resources(ray.available_resources())}."
        )

    def _welcome(self) -> None:
        """Take in actors that have become ready; late ones are used as they come."""
        waiting = {a.ready: a for a in self._actors if a.ready is not None}
        if not waiting:
            return
        done = wait_for(list(waiting), count=len(waiting), timeout=0)
        for ref in done:
            a = waiting[ref]
            try:
                ray.get(ref, timeout=GET_SECONDS)
                a.ready = None
            except ActorUnavailableError:
                a.ready = a.handle.ready.remote()  # it is being restarted, perhaps on another node
            except LOST as e:
                if "creation task" in str(e) or "__init__" in str(e):
                    raise PoolError(f"Replica {a.name} could not start: {e}") from e
                a.ready = a.handle.ready.remote()

    def _outcome(self, ref: Any) -> Outcome:
        actor = next(a for a in self._actors if ref in a.running)
        attempt, _ = actor.running.pop(ref)
        actor.restart_clocks()
        try:
            return Outcome(attempt, ray.get(ref, timeout=GET_SECONDS), None)
        except (*LOST, GetTimeoutError) as e:
            actor.expect_restart()
            return Outcome(
                attempt, None, Failure("worker", type(e).__name__, str(e), "", actor.name, lost=True)
            )
        except RayTaskError as e:
            cause = e.cause if isinstance(e.cause, Exception) else e.as_instanceof_cause()
            return Outcome(attempt, None, describe(cause, actor.name))


def _resources(found: dict[str, float]) -> str:
    kinds = sorted(k.split(":", 1)[1] for k in found if k.startswith("accelerator_type:"))
    return f"{found.get('CPU', 0):g} CPUs and {found.get('GPU', 0):g} GPUs" + (
        f" ({', '.join(kinds)})" if kinds else ""
    )
