"""Connecting to Ray: the cluster that this process belongs to, or a small private one."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

import ray

ADDRESS_VARIABLE = "RAY_ADDRESS"
"""Ray's own: set in the entry point of a submitted job, or by hand."""


@dataclass(frozen=True, slots=True)
class RayConnection:
    """What a run may use, and whether Ray ends with it."""

    gpus: int
    cpus: int
    nodes: int
    private: bool
    """This process started Ray for itself: shut it down at the end."""
    opened: bool
    """This process connected here, and should disconnect at the end."""


def connect_ray(workers: int) -> RayConnection:
    """Use the Ray of this process, the cluster that ``RAY_ADDRESS`` names, or start a small one on loopback.

    Raises ``ConnectionError`` in one sentence where the named cluster cannot be reached, or Ray does not start here.
    """
    address = os.environ.get(ADDRESS_VARIABLE)
    opened = not ray.is_initialized()
    private = opened and not address
    if private:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # on loopback, and gone with the process
        # Ray gives workers a niceness of 15, so that any other process starves the replicas.
        os.environ.setdefault("RAY_worker_niceness", "0")
        _start_ray(max(workers, os.cpu_count() or 1))
    elif opened:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError) as e:
            reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
            raise ConnectionError(
                f"The Ray cluster at {address} ({ADDRESS_VARIABLE}) cannot be reached: {reason}"
            ) from e
    found = ray.cluster_resources()
    nodes = sum(1 for node in ray.nodes() if node["Alive"])
    return RayConnection(int(found.get("GPU", 0)), int(found.get("CPU", 0)), nodes, private, opened)


def _start_ray(cpus: int) -> None:
    """Start a private Ray; it gives itself 30 s, which a busy machine may exceed, so once more if need be."""
    for last in (False, True):
        try:
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                object_store_memory=100 * 2**20,  # no pixel passes through it
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except Exception as e:
            ray.shutdown()
            if last:
                reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
                raise ConnectionError(
                    f"Ray could not be started on this machine: {reason.rstrip('.')}. --local runs without it"
                ) from e
        else:
            return
