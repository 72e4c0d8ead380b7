"""Workers as Ray actors: one GPU each where there are GPUs; the driver sees them as a pool.

Actors restart by themselves (``max_restarts=-1``) and never retry a call (``max_task_retries=0``): retries
belong to the driver, because only it knows what is committed.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayTaskError

from panoptile.pipeline.attempt import Attempt, UnitReport
from panoptile.pipeline.plan import Unit
from panoptile.pipeline.pool import IN_FLIGHT, Failure, Outcome, PoolError, describe
from panoptile.pipeline.worker import THREAD_VARIABLES, Worker, WorkerSpec

LOST = (RayActorError, ActorDiedError, ActorUnavailableError)


class _WorkerActor:
    """The thin shell: a worker inside an actor."""

    def __init__(self, spec: WorkerSpec, name: str) -> None:
        self._worker = Worker(spec, name)

    def ready(self) -> bool:
        return True

    def run(self, unit: Unit) -> UnitReport:
        return self._worker.run(Attempt(unit, tolerant=True))

    def peak_rss_bytes(self) -> int:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass(slots=True)
class _Actor:
    name: str
    handle: Any
    ready: Any | None
    """Reference that resolves once the actor has loaded its model; None when it has."""
    running: dict[Any, tuple[Unit, float]] = field(default_factory=dict)


class RayPool:
    """``count`` actors with ``gpus`` GPUs each (0: CPU actors, from which GPUs are hidden)."""

    def __init__(self, spec: WorkerSpec, count: int, gpus: float, start_timeout: float = 600.0) -> None:
        self._spec, self._count, self._gpus, self._start_timeout = spec, count, gpus, start_timeout
        self._actors: list[_Actor] = []

    def start(self) -> None:
        env = {name: str(self._spec.threads) for name in THREAD_VARIABLES} | {"OMP_WAIT_POLICY": "PASSIVE"}
        if self._gpus == 0:
            env["CUDA_VISIBLE_DEVICES"] = ""  # Ray does not hide GPUs from actors that ask for none
        actor_class: Any = ray.remote(_WorkerActor).options(
            num_gpus=self._gpus,
            num_cpus=1,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=IN_FLIGHT + 1,
            runtime_env={"env_vars": env},
        )
        for i in range(self._count):
            name = f"ray-{i}"
            handle = actor_class.remote(self._spec, name)
            self._actors.append(_Actor(name, handle, handle.ready.remote()))
        waiting = [a.ready for a in self._actors]
        done, _ = ray.wait(waiting, num_returns=1, timeout=self._start_timeout)
        if not done:
            self.close()
            raise PoolError(
                f"No replica was ready after {self._start_timeout:.0f} s: {self._count} actors with {self._gpus:g} "
                f"GPU(s) and 1 CPU each were asked for. The cluster has {_resources()}."
            )
        self._welcome()

    def free(self) -> int:
        self._welcome()
        return sum(IN_FLIGHT - len(a.running) for a in self._actors if a.ready is None)

    def size(self) -> int:
        return sum(a.ready is None for a in self._actors)

    def submit(self, unit: Unit) -> None:
        target = min((a for a in self._actors if a.ready is None), key=lambda a: len(a.running))
        target.running[target.handle.run.remote(unit)] = (unit, time.monotonic())

    def wait(self, timeout: float) -> list[Outcome]:
        refs = [ref for a in self._actors for ref in a.running]
        if not refs:
            time.sleep(min(timeout, 0.2))
            return []
        done, _ = ray.wait(refs, num_returns=1, timeout=timeout)
        if done:  # whatever else has arrived meanwhile
            done, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        return [self._outcome(ref) for ref in done]

    def kill_overdue(self, seconds: float) -> list[Unit]:
        now = time.monotonic()
        late = []
        for a in self._actors:
            oldest = min(a.running.values(), key=lambda item: item[1], default=None)
            if oldest is not None and now - oldest[1] > seconds:
                late.append(oldest[0])
                ray.kill(a.handle, no_restart=False)
                a.ready = a.handle.ready.remote()
        return late

    def close(self) -> None:
        for a in self._actors:
            ray.kill(a.handle)
        self._actors.clear()

    def peak_rss_bytes(self) -> dict[str, int]:
        """Peak resident size of each worker process."""
        refs = {a.name: a.handle.peak_rss_bytes.remote() for a in self._actors if a.ready is None}
        done, _ = ray.wait(list(refs.values()), num_returns=len(refs), timeout=10) if refs else ([], [])
        return {name: ray.get(ref, timeout=10) for name, ref in refs.items() if ref in done}

    def _welcome(self) -> None:
        """Take in actors that have become ready; late ones are used as they come."""
        for a in self._actors:
            if a.ready is None:
                continue
            done, _ = ray.wait([a.ready], timeout=0)
            if not done:
                continue
            try:
                ray.get(a.ready, timeout=10)
                a.ready = None
            except LOST as e:
                if isinstance(e, ActorDiedError):
                    raise PoolError(f"Replica {a.name} could not start: {e}") from e
                a.ready = a.handle.ready.remote()

    def _outcome(self, ref: Any) -> Outcome:
        actor = next(a for a in self._actors if ref in a.running)
        unit, _ = actor.running.pop(ref)
        for other, (waiting, _) in list(actor.running.items()):  # its turn begins now: so does its time
            actor.running[other] = (waiting, time.monotonic())
        try:
            return Outcome(unit, ray.get(ref, timeout=60), None)
        except LOST as e:
            if actor.ready is None:
                actor.ready = actor.handle.ready.remote()  # it restarts; no unit until it is ready again
            return Outcome(unit, None, Failure("worker", type(e).__name__, str(e), "", actor.name, lost=True))
        except RayTaskError as e:
            cause = e.as_instanceof_cause()
            return Outcome(
                unit, None, describe(e.cause if isinstance(e.cause, Exception) else cause, actor.name)
            )


def _resources() -> str:
    found = ray.cluster_resources()
    return f"{found.get('CPU', 0):g} CPUs and {found.get('GPU', 0):g} GPUs"


def start_ray(workers: int) -> tuple[int, bool]:
    """Connect to the Ray of this process, or start a small one; returns (GPUs, whether it was started here)."""
    started = not ray.is_initialized()
    if started:
        import os

        os.environ.setdefault(
            "RAY_AUTH_MODE", "disabled"
        )  # a private cluster on loopback, gone with the process
        ray.init(
            address="local",
            num_cpus=max(workers, os.cpu_count() or 1),
            include_dashboard=False,
            object_store_memory=100 * 2**20,  # no pixel passes through it
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    return int(ray.cluster_resources().get("GPU", 0)), started
