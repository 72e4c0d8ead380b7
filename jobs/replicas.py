"""How many replicas a job gets, and where they run."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from panoptile.jobs import interrupt
from panoptile.jobs.exits import Exit, JobError, invalid
from panoptile.jobs.prepare import Prepared
from panoptile.pipeline.pool import LocalPool, Pool
from panoptile.pipeline.process_pool import ProcessPool, visible_gpus
from panoptile.pipeline.remote_uri import needs_one_process
from panoptile.pipeline.worker import WorkerSpec

MOST_PUBLISHERS = 8
"""Inputs that one machine publishes at once beside its replicas, at most."""
PUBLISHER_BYTES = 600 * 2**20
"""Memory of publishing one input of any size (tests/benchmarks/bounded.py), with some room."""


@dataclass(frozen=True, slots=True)
class Workers:
    """What a job runs on."""

    pool: Pool
    publishers: int
    """Inputs that may be published at once while the replicas work."""
    stop: Callable[[], None]
    """To be called when it is over."""


def make_workers(prepared: Prepared, units: int) -> Workers:
    """The pool that the job asks for. Raises :class:`JobError`."""
    spec = prepared.spec
    worker = WorkerSpec(
        spec.out, prepared.model.factory, spec.batch, prepared.model.channels, threads=spec.threads
    )
    if needs_one_process(spec.out):
        if not spec.local:
            raise invalid(f"{spec.out} is seen by this process alone: write to it with --local.")
        return Workers(LocalPool(worker, min(worker_count(prepared, 0), units)), 1, lambda: None)
    if spec.local:
        gpus = visible_gpus()
        count = min(worker_count(prepared, len(gpus)), units)
        pool: Pool = ProcessPool(worker, count, gpus=gpus, start_timeout=spec.start_timeout)
        return Workers(pool, publishers(count, spec.threads), lambda: None)
    import ray

    from panoptile.pipeline.ray_connection import connect_ray
    from panoptile.pipeline.ray_pool import RayPool

    try:
        found = connect_ray(spec.workers or 1)
    except ConnectionError as e:
        raise JobError(Exit.UNREACHABLE, f"{e}.") from e
    interrupt.reinstall()
    cpus = None if found.private else found.cpus
    count = min(worker_count(prepared, found.gpus, cpus), units)
    pool = RayPool(
        worker,
        count,
        gpus=1 if found.gpus or spec.accelerator_type else 0,
        start_timeout=spec.start_timeout,
        accelerator_type=spec.accelerator_type,
    )
    machines = sum(node["Alive"] for node in ray.nodes())
    beside = max(2, publishers(count, spec.threads, cores=cpus, machines=machines))
    return Workers(pool, beside, ray.shutdown if found.opened else lambda: None)


def publishers(replicas: int, threads: int, *, cores: int | None = None, machines: int = 1) -> int:
    """How many inputs may be published at once: one a machine, more where the replicas leave cores to spare.

    A replica's own threads count, and one core for what it reads and encodes. Small inputs take 50 ms of a core each,
    which is longer than a GPU needs for them.

    Args:
        cores: of all machines; None for this machine, whose free memory counts, too.
    """
    most = MOST_PUBLISHERS * machines
    if cores is None:
        cores = usable_cores()
        most = min(most, psutil.virtual_memory().available // PUBLISHER_BYTES)
    return int(max(machines, min(most, cores - replicas * (threads + 1))))


def worker_count(prepared: Prepared, gpus: int, cpus: int | None = None) -> int:
    """--workers, else one per GPU, else one per CPU of a cluster, else as many as cores and memory allow here."""
    if prepared.spec.workers is not None:
        return prepared.spec.workers
    if gpus:
        return gpus
    if cpus is not None:
        return max(1, cpus // prepared.spec.threads)
    cores = max(1, usable_cores() // prepared.spec.threads)
    memory = psutil.virtual_memory().available // max(1, worker_bytes(prepared))
    return int(max(1, min(cores, memory)))


def usable_cores() -> int:
    """CPU cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def _largest_image(prepared: Prepared) -> int:
    """Pixels of the largest image that the network sees at once: a tile, or a frame."""
    spec = prepared.spec
    sides = [(spec.tile, spec.tile)] if len(prepared.videos) < len(prepared.plans) else []
    for plan in prepared.videos:
        height, width = plan.info.height, plan.info.width
        scale = min(1.0, (plan.frame_size or height) / min(height, width))
        sides.append((round(height * scale), round(width * scale)))
    return max(height * width for height, width in sides)


def worker_bytes(prepared: Prepared) -> int:
    """Estimated memory of one worker on a CPU.

    A process with torch takes about 350 MB, the weights 4 bytes a parameter, activations about 1.4 kB per
    pixel of the batch (1.4 GB measured at 1024² with Swin-T), and up to eight tiles wait in the queues.
    """
    spec = prepared.spec
    pixels = _largest_image(prepared) * spec.batch
    base = 350 if prepared.model.parameters else 150
    activations = 1400 * pixels if prepared.model.parameters else 16 * pixels
    queues = 8 * pixels * (prepared.model.channels + 9)
    return base * 2**20 + 4 * prepared.model.parameters + activations + queues
