"""The worker: pulls units, reads, runs its replica, writes fragments, commits.

A plain class; the Ray actor and the local process are thin shells around it. Reading and encoding happen in
threads beside the replica, with bounded queues, so no pixel passes through Ray and memory does not grow with
the input. Two units may be in flight: while one holds the replica, the next one's first items are read.
"""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from panoptile.pipeline.attempt import Attempt, UnitError, UnitReport
from panoptile.pipeline.layout import commit_key, plan_key
from panoptile.pipeline.open_inputs import OpenInputs
from panoptile.pipeline.plan import Unit
from panoptile.pipeline.replica import ReplicaFactory
from panoptile.pipeline.store import open_store
from panoptile.pipeline.unit_input import InputContext, UnitInput, open_input
from panoptile.pipeline.unit_run import BatchSize, Equipment, UnitRun

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """All that a worker needs to start; small and picklable."""

    store_root: str
    replica: ReplicaFactory
    batch: int = 1
    """Images per forward pass; the last batch of a unit is padded, so the shape is always the same."""
    channels: int = 3
    readers: int = 2
    """Reading threads."""
    encoders: int = 2
    """Threads that cut, compress and write."""
    threads: int = 1
    """Threads of torch, BLAS, GDAL and Arrow inside this worker."""


def bound_threads(threads: int) -> None:
    """Bound the threads of everything that computes in this process: torch, BLAS, GDAL, Arrow.

    Call it before numpy or torch are imported where that can be had; OpenMP reads its variable once.
    """
    for name in THREAD_VARIABLES:
        os.environ[name] = str(threads)
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ["GDAL_NUM_THREADS"] = str(threads)
    import pyarrow as pa

    pa.set_cpu_count(threads)
    pa.set_io_thread_count(max(1, threads))


class Worker:
    """Hosts one replica and segments units with it."""

    def __init__(self, spec: WorkerSpec, name: str = "worker-0") -> None:
        bound_threads(spec.threads)
        _preload()
        self.name = name
        self._store = open_store(spec.store_root)
        replica = spec.replica()
        self._context = InputContext(replica.classes, replica.fill, spec.channels, spec.readers)
        self._inputs = OpenInputs(self._open)
        self._equipment = Equipment(
            name,
            self._store,
            replica,
            threading.Lock(),
            BatchSize(spec.batch),
            ThreadPoolExecutor(spec.readers, f"{name}-read"),
            ThreadPoolExecutor(spec.encoders, f"{name}-encode"),
            spec.encoders,
            spec.readers,
        )

    def run(self, attempt: Attempt) -> UnitReport:
        """Segment a unit and commit it; calling it again is harmless.

        Raises :class:`UnitError` where the unit failed as a whole, and ``ReplicaBroken``.
        """
        if self._store.exists(commit_key(attempt.unit)):
            return _already_done(attempt.unit, self.name)
        with contextlib.ExitStack() as held:
            try:
                opened = held.enter_context(self._inputs.use(attempt.unit.key))
                items = opened.begin(attempt.unit, attempt.items)
            except (OSError, ValueError) as e:
                raise UnitError("open", f"{type(e).__name__}: {e}") from e
            held.callback(items.close)
            return UnitRun(self._equipment, attempt, items).execute()

    def close(self) -> None:
        """Stop the threads and close all inputs."""
        self._equipment.readers.shutdown(cancel_futures=True)
        self._equipment.encoders.shutdown(cancel_futures=True)
        self._inputs.close()

    def _open(self, key: str) -> UnitInput:
        return open_input(self._store.read_bytes(plan_key(key)), self._context)


def _preload() -> None:
    """Import what the first unit needs before the worker says that it is ready: a unit has a deadline."""
    from panoptile.pipeline import raster_input  # noqa: F401
    from panoptile.pipeline.fragment import encode_fragment

    encode_fragment([])  # Arrow loads half of itself on first use


def _already_done(unit: Unit, worker: str) -> UnitReport:
    return UnitReport(unit, worker, 0, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, already_done=True)
